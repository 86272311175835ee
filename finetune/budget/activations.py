"""Activations of a micro-batch: what a decoder layer saves for its backward pass, and what lies outside the layers.

In go the shapes of a base, of what is trained on it and of a micro-batch; out come bytes, as `saved_tensors` derives
them part by part. `passes` adds them up to a whole pass and its fullest moment. What was counted in real models stands
beside the estimates in `benchmarks/results/plan_error_*.md`.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from finetune.budget.adapter import AdapterShape
from finetune.budget.computing import FLOAT32_BYTES, Computing
from finetune.budget.saved_tensors import (
    BatchShape,
    Case,
    count_tokens,
    estimate_attention,
    estimate_inputs,
    estimate_mlp,
    estimate_norm,
    has_rule,
    is_of_heads,
    joins_output,
)
from finetune.budget.shapes import Architecture, Linear

__all__ = ["BatchShape", "LayerActivations", "OutsideActivations", "estimate_layer", "estimate_outside", "has_rule"]

_INDEX_BYTES = 8
_CHUNK_TOKENS = 256  # as `objectives.trained_loss` cuts them
_ROWS_MULTIPLE = 64  # to which it fills the products of a chunk
_ENTROPY_TOKENS = 128  # as TRL (1.14) does where it reads all logits


@dataclass(frozen=True, slots=True)
class LayerActivations:
    """What one decoder layer saves.

    Attributes:
        kept_bytes: saved by a layer that is not recomputed; what goes into it is among it where a norm keeps that.
        attention_bytes: the part of it that the attention saves, the norm before it left aside.
        mlp_bytes: the part of it that the MLP saves; recomputed alone, the MLP keeps its input instead.
        input_bytes: saved where the layer is recomputed, and where its MLP is: what goes into it.
    """

    kept_bytes: int
    attention_bytes: int
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
    computing: Computing,
    *,
    is_first: bool = False,
    may_recompute: bool = False,
) -> LayerActivations:
    """Estimate what one decoder layer saves for its backward pass.

    Args:
        architecture: the base.
        adapter: what is trained.
        batch: the micro-batch.
        computing: how it is computed.
        is_first: whether it is the first layer, whose input needs no gradient where nothing before it is trained.
        may_recompute: `training.gradient_checkpointing`, with which transformers asks for that gradient all the same.
    """
    stream_bytes = _find_stream_bytes(adapter, computing, is_first=is_first)
    case = Case(architecture=architecture, adapter=adapter, batch=batch, computing=computing, stream_bytes=stream_bytes)
    attention_linears = [linear for linear in architecture.linears if linear.part == "attention"]
    mlp_linears = [linear for linear in architecture.linears if linear.part == "mlp"]
    # Where the gradient of the first layer begins.
    trains_before = adapter.trains_embeddings or bool(adapter.num_virtual_tokens) or adapter.method == "ln_tuning"
    into_layer = not is_first or may_recompute or trains_before
    into_mlp = into_layer or _is_any_adapted(case, attention_linears)
    # Norms come in the order they run; those of queries and keys stand behind the others.
    norms = [norm for norm in architecture.norms if not is_of_heads(norm)]
    if not into_layer:
        norms = norms[1:] if into_mlp else []
    mlp = _estimate_mlp_part(case, mlp_linears, has_gradient=into_mlp)
    attention = _estimate_attention_part(case, attention_linears, has_gradient=into_layer)
    return LayerActivations(
        kept_bytes=sum(estimate_norm(case, norm) for norm in norms) + attention + mlp,
        attention_bytes=attention,
        mlp_bytes=mlp,
        input_bytes=case.tokens * architecture.hidden_size * stream_bytes,
    )


def _find_stream_bytes(adapter: AdapterShape, computing: Computing, *, is_first: bool = False) -> int:
    """Bytes of a number between the layers.

    Embeddings that are trained are float32, and so is all that is added to them. What IA³ and a trained norm scale is
    float32 from there on, unless autocast's own products come between.
    """
    is_scaled = adapter.method in ("ia3", "ln_tuning") and computing.is_quantized and not is_first
    return FLOAT32_BYTES if adapter.trains_embeddings or is_scaled else computing.compute_bytes


def _is_any_adapted(case: Case, linears: Sequence[Linear]) -> bool:
    return any(case.adapter.adapts(linear) for linear in linears)


def _estimate_attention_part(case: Case, linears: Sequence[Linear], *, has_gradient: bool) -> int:
    """The attention with its linears, and with the norms of queries and keys; the norm before it left aside."""
    into_core = has_gradient or _is_any_adapted(case, linears[:-1])
    saved = estimate_inputs(case, linears[:-1], "norm", has_gradient=has_gradient)
    if into_core:
        saved += sum(estimate_norm(case, norm) for norm in case.architecture.norms if is_of_heads(norm))
        saved += estimate_attention(case, linears)
    # The output layer reads what the attention has saved, unless that is the outputs of single documents.
    source = "attention" if into_core and not joins_output(case) else "documents"
    return saved + estimate_inputs(case, linears[-1:], source, has_gradient=into_core)


def _estimate_mlp_part(case: Case, linears: Sequence[Linear], *, has_gradient: bool) -> int:
    """The MLP with its linears, the norm before it left aside."""
    inside = has_gradient or _is_any_adapted(case, linears[:-1])
    saved = estimate_inputs(case, linears[:-1], "norm", has_gradient=has_gradient)
    saved += estimate_mlp(case) if inside else 0
    return saved + estimate_inputs(case, linears[-1:], "product", has_gradient=inside)


def estimate_outside(
    architecture: Architecture,
    adapter: AdapterShape,
    batch: BatchShape,
    computing: Computing,
    *,
    keeps_layers: bool = True,
) -> OutsideActivations:
    """Estimate what lies outside the decoder layers: turning angles, the last norm, the loss.

    Args:
        architecture: the base.
        adapter: what is trained.
        batch: the micro-batch.
        computing: how it is computed.
        keeps_layers: whether a layer is not recomputed.
    """
    tokens, d = count_tokens(adapter, batch), architecture.hidden_size
    stream_bytes = _find_stream_bytes(adapter, computing)
    number = stream_bytes if computing.serves_norms(architecture, adapter) else FLOAT32_BYTES
    factor = stream_bytes * d if adapter.trains_norms else 0
    kept = tokens * (number * d + FLOAT32_BYTES + factor)  # as `estimate_norm`
    if keeps_layers:  # cosines and sines, one row for all where positions do not restart
        rows = batch.num_rows if batch.is_packed else 1
        angle_bytes = FLOAT32_BYTES if adapter.trains_embeddings else computing.compute_bytes
        kept += 2 * rows * (tokens // batch.num_rows) * architecture.head_dim * angle_bytes
    if computing.loss == "logits":
        loss = _estimate_logits(architecture, adapter, batch, computing)
    else:
        loss = _estimate_chunks(architecture, adapter, batch, computing)
    return OutsideActivations(kept + loss.kept_bytes, loss.head_bytes)


def _estimate_logits(
    architecture: Architecture, adapter: AdapterShape, batch: BatchShape, computing: Computing
) -> OutsideActivations:
    """The loss of all logits at once, which are kept in float32."""
    tokens, num_rows, vocab = count_tokens(adapter, batch), batch.num_rows, architecture.vocab_size
    row_bytes = tokens // num_rows * vocab * FLOAT32_BYTES
    # The entropy reads a copy of all logits by 128 tokens, three tensors of so many at once. The backward pass
    # holds a gradient for each row, beside the last one two more of its size; then all of them put together.
    entropy = num_rows * row_bytes + 3 * min(tokens, _ENTROPY_TOKENS) * vocab * FLOAT32_BYTES
    widest = max((num_rows + 2) * row_bytes, 2 * num_rows * row_bytes, entropy)
    kept = num_rows * row_bytes
    if adapter.trains_output:
        # Its input, and under autocast its weights, too; the gradient of these, and again in float32, beside that of
        # all logits.
        d, c = architecture.hidden_size, computing.compute_bytes
        kept += tokens * d * c + (vocab * d * c if computing.is_mixed else 0)
        own_bytes = FLOAT32_BYTES + (c if computing.is_mixed else 0)
        widest = max(widest, (tokens + d) * vocab * own_bytes)
    return OutsideActivations(kept, widest)


def _estimate_chunks(
    architecture: Architecture, adapter: AdapterShape, batch: BatchShape, computing: Computing
) -> OutsideActivations:
    """The loss of a few tokens at a time; a head of labels or of a score is as small as a vocabulary of one word."""
    tokens, d, c = count_tokens(adapter, batch), architecture.hidden_size, computing.compute_bytes
    vocab = 1 if computing.loss == "head" else architecture.vocab_size
    kept = 0
    if adapter.method == "p_tuning" and computing.is_mixed:
        kept += adapter.num_parameters * c  # the network that makes the vectors, as autocast takes it
    # Mixtures of experts keep TRL's own loss (1.14), which does not leave the other tokens out.
    fraction = batch.trained_fraction if architecture.experts is None else 1.0
    trained = math.ceil(round((batch.num_tokens - batch.num_rows) * fraction, 6))
    kept += trained * d * c + tokens * _INDEX_BYTES  # the gradient of what predicts, and its places
    # Logits, their logarithms, probabilities and a product of both, all in float32; of the chunk before its gradient.
    own_bytes = FLOAT32_BYTES + (c if computing.is_mixed else 0)
    chunk, next_chunk = (min(max(0, number), _CHUNK_TOKENS) * vocab for number in (trained, trained - _CHUNK_TOKENS))
    widest = max(4 * chunk * FLOAT32_BYTES, 4 * next_chunk * FLOAT32_BYTES + chunk * own_bytes)
    widest = max(widest, _estimate_filled(trained, vocab, d, computing))
    if adapter.trains_output:
        # The head's gradient in float32; beside a chunk's own in the compute dtype, its weights too, and on a CPU once
        # more in float32, as it is added there.
        weights = vocab * d * (c + (FLOAT32_BYTES if computing.is_mixed and computing.on_cpu else 0))
        kept += vocab * d * FLOAT32_BYTES
        widest = max(widest, chunk * (2 * FLOAT32_BYTES + own_bytes) + weights)
        widest += vocab * d * c if computing.is_mixed else 0
    return OutsideActivations(kept, tokens * d * _find_stream_bytes(adapter, computing) + trained * d * c + widest)


def _estimate_filled(trained: int, vocab: int, d: int, computing: Computing) -> int:
    """The gradient of a last chunk that is filled up: a copy of it beside logits, logarithms and itself."""
    rows, c = trained % _CHUNK_TOKENS, computing.compute_bytes
    num_filled = -rows % _ROWS_MULTIPLE
    if not num_filled:
        return 0
    filled = rows + num_filled
    if computing.is_mixed:
        return rows * vocab * (3 * FLOAT32_BYTES + c) + filled * (vocab + d) * c
    return rows * vocab * 2 * FLOAT32_BYTES + filled * (2 * vocab + d) * FLOAT32_BYTES  # its logits are filled up too
