"""Activations of a micro-batch: what a decoder layer saves for its backward pass, and what lies outside the layers.

In go the shapes of a base, of what is trained on it and of a micro-batch; out come bytes, as `saved_tensors` derives
them part by part. `passes` adds them up to a whole pass and its fullest moment. What was counted in real models stands
beside the estimates in `benchmarks/results/plan_error_*.md`.
"""

import math
from dataclasses import dataclass

from finetune.budget.adapter import AdapterShape
from finetune.budget.saved_tensors import (
    FLOAT32_BYTES,
    BatchShape,
    Computation,
    estimate_attention,
    estimate_inputs,
    estimate_mlp,
    estimate_norm,
    has_rule,
    is_of_heads,
    joins_output,
)
from finetune.budget.shapes import Architecture

__all__ = ["BatchShape", "LayerActivations", "OutsideActivations", "estimate_layer", "estimate_outside", "has_rule"]

_INDEX_BYTES = 8
_CHUNK_TOKENS = 256  # as `objectives.trained_loss` cuts them
_ENTROPY_TOKENS = 128  # as TRL (1.14) does where it reads all logits


@dataclass(frozen=True, slots=True)
class LayerActivations:
    """What one decoder layer saves.

    Attributes:
        kept_bytes: saved by a layer that is not recomputed.
        mlp_bytes: the part of it that the MLP saves; recomputed alone, the MLP keeps its input instead.
        input_bytes: saved where the layer is recomputed, and where its MLP is: what goes into it.
    """

    kept_bytes: int
    mlp_bytes: int
    input_bytes: int


@dataclass(frozen=True, slots=True)
class OutsideActivations:
    """What lies outside the decoder layers.

    Attributes:
        kept_bytes: saved from the forward pass to the backward one.
        head_bytes: alive beside it where the loss is computed, and free again behind it.
    """

    kept_bytes: int
    head_bytes: int


def estimate_layer(
    architecture: Architecture,
    adapter: AdapterShape,
    batch: BatchShape,
    *,
    compute_bytes: int,
    is_lean: bool,
    attention: str,
    is_quantized: bool = True,
    on_cpu: bool = False,
    is_first: bool = False,
    may_recompute: bool = False,
) -> LayerActivations:
    """Estimate what one decoder layer saves for its backward pass.

    Args:
        architecture: the base.
        adapter: what is trained.
        batch: the micro-batch.
        compute_bytes: of a number in the compute dtype: 2 or 4.
        is_lean: whether `model.lean` serves the linears with LoRA.
        attention: the kernel's name as transformers knows it.
        is_quantized: whether the base's linears are.
        on_cpu: whether it runs on a CPU, where PEFT and torch's dropout keep more.
        is_first: whether it is the first layer, whose input needs no gradient where nothing before it is trained.
        may_recompute: `training.gradient_checkpointing`, with which transformers asks for that gradient all the same.
    """
    tokens = batch.num_tokens + batch.num_rows * adapter.num_virtual_tokens
    # What IA³ and a trained norm scale is float32 from there on, unless autocast's own products come between.
    is_widened = adapter.is_whole or (adapter.method in ("ia3", "ln_tuning") and is_quantized and not is_first)
    trains_before = adapter.is_whole or bool(adapter.num_virtual_tokens) or adapter.method == "ln_tuning"
    case = Computation(
        architecture=architecture,
        adapter=adapter,
        batch=batch,
        tokens=tokens,
        c=compute_bytes,
        stream_bytes=FLOAT32_BYTES if is_widened else compute_bytes,
        is_lean=is_lean and adapter.method == "lora" and not adapter.dropout and not adapter.is_weight_decomposed,
        is_quantized=is_quantized and not adapter.is_whole,
        on_cpu=on_cpu,
        is_first=is_first and not (may_recompute or trains_before),
        attention=attention,
    )
    # Norms come in the order they run; those of queries and keys stand behind the others.
    between = [norm for norm in architecture.norms if not is_of_heads(norm)]
    of_heads = [norm for norm in architecture.norms if is_of_heads(norm)]
    attention_linears = [linear for linear in architecture.linears if linear.part == "attention"]
    mlp_linears = [linear for linear in architecture.linears if linear.part == "mlp"]

    # ---- where the gradient of the first layer begins
    is_adapted = adapter.adapts
    into_core = not case.is_first or any(is_adapted(linear) for linear in attention_linears[:-1])
    into_mlp = into_core or is_adapted(attention_linears[-1])
    inside_mlp = into_mlp or any(is_adapted(linear) for linear in mlp_linears[:-1])

    if case.is_first:
        between = between[1:] if into_mlp else []
    norms = sum(estimate_norm(case, norm) for norm in between)
    heads = sum(estimate_norm(case, norm) for norm in of_heads) if into_core else 0
    projections = estimate_inputs(case, attention_linears[:-1], "norm", has_gradient=not case.is_first)
    core = estimate_attention(case, attention_linears) if into_core else 0
    # The output layer reads what the attention has saved, unless that is the outputs of single documents.
    source = "attention" if into_core and not joins_output(case) else "product"
    projections += estimate_inputs(case, attention_linears[-1:], source, has_gradient=into_core)
    mlp = estimate_inputs(case, mlp_linears[:-1], "norm", has_gradient=into_mlp)
    mlp += estimate_mlp(case) if inside_mlp else 0
    mlp += estimate_inputs(case, mlp_linears[-1:], "product", has_gradient=inside_mlp)
    return LayerActivations(
        kept_bytes=norms + heads + projections + core + mlp,
        mlp_bytes=mlp,
        input_bytes=tokens * architecture.hidden_size * case.stream_bytes,
    )


def estimate_outside(
    architecture: Architecture,
    adapter: AdapterShape,
    batch: BatchShape,
    *,
    compute_bytes: int,
    loss: str = "chunks",
    keeps_layers: bool = True,
    is_quantized: bool = True,
    on_cpu: bool = False,
) -> OutsideActivations:
    """Estimate what lies outside the decoder layers: turning angles, the last norm, the loss.

    Args:
        architecture: the base.
        adapter: what is trained.
        batch: the micro-batch.
        compute_bytes: of a number in the compute dtype: 2 or 4.
        loss: `chunks`: of a few tokens at a time; `logits`: of all logits at once, as DPO and its like do.
        keeps_layers: whether a layer is not recomputed.
        is_quantized: whether the base's linears are.
        on_cpu: whether it runs on a CPU.
    """
    tokens = batch.num_tokens + batch.num_rows * adapter.num_virtual_tokens
    is_widened = adapter.is_whole or (adapter.method in ("ia3", "ln_tuning") and is_quantized)
    stream_bytes = FLOAT32_BYTES if is_widened else compute_bytes
    d, vocab = architecture.hidden_size, architecture.vocab_size
    kept = tokens * (
        FLOAT32_BYTES * (d + 1) + (stream_bytes * d if adapter.is_whole or adapter.method == "ln_tuning" else 0)
    )  # as `estimate_norm`
    if keeps_layers:  # cosines and sines, one row for all where positions do not restart
        rows = batch.num_rows if batch.is_packed else 1
        angle_bytes = FLOAT32_BYTES if adapter.is_whole else compute_bytes
        kept += 2 * rows * (tokens // batch.num_rows) * architecture.head_dim * angle_bytes
    if loss == "logits":
        row_bytes = tokens // batch.num_rows * vocab * FLOAT32_BYTES
        # The entropy reads a copy of all logits by 128 tokens, three tensors of so many at once. The backward pass
        # holds a gradient for each row, beside the last one two more of its size; then all of them put together.
        entropy = batch.num_rows * row_bytes + 3 * min(tokens, _ENTROPY_TOKENS) * vocab * FLOAT32_BYTES
        head = max((batch.num_rows + 2) * row_bytes, 2 * batch.num_rows * row_bytes, entropy)
        return OutsideActivations(kept + batch.num_rows * row_bytes, head)
    if adapter.method == "p_tuning" and compute_bytes < FLOAT32_BYTES:
        kept += adapter.num_parameters * compute_bytes  # the network that makes the vectors, as autocast takes it
    trained = math.ceil((tokens - batch.num_rows) * batch.trained_fraction)
    kept += trained * d * compute_bytes + tokens * _INDEX_BYTES  # the gradient of what predicts, and its places
    # Logits, their logarithms, probabilities and a product of both, all in float32; of the chunk before its gradient.
    is_mixed = compute_bytes < FLOAT32_BYTES
    own_bytes = FLOAT32_BYTES + (compute_bytes if is_mixed else 0)
    chunk, next_chunk = (min(max(0, number), _CHUNK_TOKENS) * vocab for number in (trained, trained - _CHUNK_TOKENS))
    computing = max(4 * chunk * FLOAT32_BYTES, 4 * next_chunk * FLOAT32_BYTES + chunk * own_bytes)
    if adapter.is_whole:
        # The head's gradient in float32; beside a chunk's own in the compute dtype, its weights too, and on a CPU once
        # more in float32, as it is added there.
        weights = vocab * d * (compute_bytes + (FLOAT32_BYTES if is_mixed and on_cpu else 0))
        kept += vocab * d * FLOAT32_BYTES
        computing = max(computing, chunk * (2 * FLOAT32_BYTES + own_bytes) + weights)
        computing += vocab * d * compute_bytes if is_mixed else 0
    head = tokens * d * stream_bytes + trained * d * compute_bytes + computing
    return OutsideActivations(kept, head)
