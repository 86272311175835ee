"""What a decoder layer may keep for its backward pass, and what that costs and saves: for a plan and for a run alike.

In go the shapes of a base, of what is trained on it and of a micro-batch, how it is computed and how it is recomputed;
out come the `Option`s that `spending` chooses from. A plan and the run itself both ask here, so that one decides as the
other does; a run that has measured a step puts measured bytes in the place of these.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from finetune.budget.activations import BatchShape, estimate_layer
from finetune.budget.adapter import AdapterShape
from finetune.budget.computing import Computing
from finetune.budget.devices import Device
from finetune.budget.shapes import Architecture, Linear
from finetune.budget.spending import RATES, Keeps, LayerWork, Option, Rates, build_options

__all__ = [
    "PartBytes",
    "Recomputing",
    "estimate_layer_work",
    "estimate_options",
    "estimate_part_bytes",
    "find_rates",
    "has_parts",
]

# NF4 with double quantization: half a byte, its block's scale, and the two bytes that are written (PERFORMANCE.md).
_DEQUANTIZED_BYTES = 2.516


@dataclass(frozen=True, slots=True)
class Recomputing:
    """How a layer is computed a second time.

    Attributes:
        by_parts: whether its attention and its MLP may be, each by itself.
        is_reentrant: whether all of it is, to its last product; the other mode stops behind the last tensor saved.
    """

    by_parts: bool
    is_reentrant: bool = False


@dataclass(frozen=True, slots=True)
class PartBytes:
    """Bytes of a layer's choices.

    Attributes:
        whole: saved by a layer that recomputes nothing, beyond what one saves that is recomputed.
        attention: of these, what is not saved where the attention alone is recomputed.
        mlp: the same of the MLP.
    """

    whole: int
    attention: int
    mlp: int


def find_rates(device: Device | None, *, on_cpu: bool) -> Rates:
    """Find how fast a device computes: as the table has it, else as one of its kind does.

    Args:
        device: of the table; None: it is not there.
        on_cpu: whether it is a CPU, of which at most the speed of whole steps is known.
    """
    if device is None or device.flops_per_second is None or device.bytes_per_second is None:
        return RATES["cpu" if on_cpu else "cuda"]
    return Rates(device.flops_per_second, device.bytes_per_second)


def has_parts(architecture: Architecture) -> bool:
    """Whether a layer has an attention and an MLP that can be recomputed by themselves, as `model.recomputation` asks.

    Encoders lay theirs out otherwise.
    """
    return {linear.path.partition(".")[0] for linear in architecture.linears} == {"self_attn", "mlp"}


def estimate_options(
    architecture: Architecture,
    adapter: AdapterShape,
    batch: BatchShape,
    computing: Computing,
    rates: Rates,
    recomputing: Recomputing,
) -> dict[Keeps, Option]:
    """Estimate what the choices of one layer cost, and what they save.

    Args:
        architecture: the base.
        adapter: what is trained.
        batch: the longest micro-batch.
        computing: how it is computed.
        rates: of the device.
        recomputing: how a layer is computed a second time.
    """
    layer = estimate_layer(architecture, adapter, batch, computing)
    parts = estimate_part_bytes(architecture, adapter, batch, computing)
    work = estimate_layer_work(architecture, adapter, batch, computing, rates, recomputing)
    return build_options(
        work,
        kept_bytes=layer.kept_bytes,
        input_bytes=layer.input_bytes,
        attention_bytes=parts.attention if recomputing.by_parts else None,
        mlp_bytes=parts.mlp if recomputing.by_parts else None,
    )


def estimate_part_bytes(
    architecture: Architecture, adapter: AdapterShape, batch: BatchShape, computing: Computing
) -> PartBytes:
    """Estimate the bytes of a layer's choices.

    A part that is recomputed by itself saves its input, which is as long as the layer's. The norms before both parts
    belong to neither.

    Args:
        architecture: the base.
        adapter: what is trained.
        batch: the micro-batch.
        computing: how it is computed.
    """
    layer = estimate_layer(architecture, adapter, batch, computing)
    return PartBytes(
        whole=layer.kept_bytes - layer.input_bytes,
        attention=max(layer.attention_bytes - layer.input_bytes, 0),
        mlp=max(layer.mlp_bytes - layer.input_bytes, 0),
    )


def estimate_layer_work(
    architecture: Architecture,
    adapter: AdapterShape,
    batch: BatchShape,
    computing: Computing,
    rates: Rates,
    recomputing: Recomputing,
) -> LayerWork:
    """Estimate what a layer, and each of its parts, takes to be computed a second time.

    Where the lean path serves a linear, its weight is dequantized once for that and for the gradient, and the last base
    product of what is recomputed is left out.

    Args:
        architecture: the base.
        adapter: what is trained.
        batch: the micro-batch.
        computing: how it is computed.
        rates: of the device.
        recomputing: how a layer is computed a second time.

    Source: PERFORMANCE.md, "The limit": 2 FLOPs a weight and token, 2Sd for attention.
    """
    scores = 2 * batch.document_tokens * architecture.num_heads * architecture.head_dim

    def is_lean(linear: Linear) -> bool:
        return computing.serves(adapter) and adapter.adapts(linear)

    def measure(linears: Sequence[Linear], scores: float, expert_weights: int = 0) -> float:
        ends_early = not recomputing.is_reentrant and not expert_weights and is_lean(linears[-1])
        weights = expert_weights + sum(linear.num_weights for linear in (linears[:-1] if ends_early else linears))
        dequantized = sum(one.num_weights for one in linears if computing.is_quantized and not is_lean(one))
        flops = batch.num_tokens * (2 * weights + scores)
        return flops / rates.flops_per_second + _DEQUANTIZED_BYTES * dequantized / rates.bytes_per_second

    attention, mlp = ([one for one in architecture.linears if one.part == part] for part in ("attention", "mlp"))
    experts = architecture.num_active_expert_weights
    return LayerWork(
        whole_seconds=measure([*attention, *mlp], scores, experts),
        attention_seconds=measure(attention, scores),
        mlp_seconds=measure(mlp, 0.0, experts),
    )
