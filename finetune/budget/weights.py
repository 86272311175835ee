"""What a base weighs as it is held: 4 and 8 bits as bitsandbytes 0.50 stores them, the rest in 16 or 32.

In go a shape and how the recipe holds it; out come bytes, exact to the byte: tests/budget/test_weights.py compares
them with loaded models, for large bases with one layer of theirs.
"""

import math
from collections.abc import Iterable
from dataclasses import dataclass

from finetune.budget.adapter import AdapterShape
from finetune.budget.shapes import Architecture, Linear

__all__ = ["Holding", "estimate_base_bytes", "estimate_held_bytes", "estimate_layer_bytes", "is_quantized"]

_FLOAT32_BYTES = 4
_BLOCK_WEIGHTS = 64  # that share a scale in 4 bits
_NESTED_BLOCK_SCALES = 256  # scales that share one of their own under double quantization
# Kept with every 4-bit weight: the 16 values of its code, and under double quantization the 256 of the scales' code
# and what they are counted from; each a float32.
_CODE_BYTES = 16 * _FLOAT32_BYTES
_NESTED_CODE_BYTES = (256 + 1) * _FLOAT32_BYTES


@dataclass(frozen=True, slots=True)
class Holding:
    """How a base is held.

    Attributes:
        quantization: `nf4`, `fp4`, `int8` or `none`.
        double_quantization: whether 4-bit blocks' own scales are quantized too.
        compute_bytes: of a number in the compute dtype, which is that of all that is not quantized.
    """

    quantization: str
    double_quantization: bool
    compute_bytes: int


def is_quantized(holding: Holding) -> bool:
    """Whether linear layers are held in fewer bits than they compute in."""
    return holding.quantization != "none"


def estimate_held_bytes(linear: Linear, holding: Holding) -> int:
    """Estimate what a frozen linear layer takes, its bias included."""
    bias_bytes = linear.out_features * holding.compute_bytes if linear.has_bias else 0
    weights = linear.num_weights
    if holding.quantization == "none":
        return weights * holding.compute_bytes + bias_bytes
    if holding.quantization == "int8":  # a scale for each output
        return weights + linear.out_features * _FLOAT32_BYTES + bias_bytes
    scales = math.ceil(weights / _BLOCK_WEIGHTS)
    if holding.double_quantization:
        scale_bytes = scales + _FLOAT32_BYTES * math.ceil(scales / _NESTED_BLOCK_SCALES) + _NESTED_CODE_BYTES
    else:
        scale_bytes = scales * _FLOAT32_BYTES
    return math.ceil(weights / 2) + scale_bytes + _CODE_BYTES + bias_bytes


def estimate_layer_bytes(architecture: Architecture, holding: Holding) -> int:
    """Estimate what one frozen layer takes: its linears as they are held, norms and experts in the compute dtype."""
    others = sum(norm.num_parameters for norm in architecture.norms) + architecture.num_expert_parameters
    return _sum_held(architecture.linears, holding) + others * holding.compute_bytes


def estimate_base_bytes(architecture: Architecture, adapter: AdapterShape, holding: Holding) -> int:
    """Estimate what the base takes: embeddings, layers, norms and output, without what an adapter adds.

    Weights that are trained themselves are held in float32, the score of a reward model is too.
    """
    if adapter.is_whole:
        frozen = architecture.num_parameters - adapter.num_parameters
        return adapter.num_parameters * _FLOAT32_BYTES + frozen * holding.compute_bytes
    fresh_bytes = _FLOAT32_BYTES if architecture.head == "score" else holding.compute_bytes
    others = (
        architecture.num_embedding_parameters
        + sum(architecture.position_rows) * architecture.hidden_size
        + sum(norm.num_parameters for norm in architecture.outside_norms)
        + architecture.num_output_parameters
        + architecture.num_other_parameters
        - architecture.num_absent_parameters
    )
    return (
        architecture.num_layers * estimate_layer_bytes(architecture, holding)
        + _sum_held(architecture.head_linears, holding)
        + architecture.num_fresh_parameters * fresh_bytes
        + others * holding.compute_bytes
    )


def _sum_held(linears: Iterable[Linear], holding: Holding) -> int:
    return sum(estimate_held_bytes(linear, holding) for linear in linears)
