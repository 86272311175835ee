"""A forward and a backward pass taken together: what is saved between the two, and the fullest moment of both.

In go the shapes of a base, of what is trained on it and of a micro-batch, and how many layers are recomputed; out come
bytes. Gradients of what is trained, weights and optimizer are not counted here: `memory` has them.
"""

from dataclasses import dataclass

from finetune.budget.activations import BatchShape, estimate_layer, estimate_outside
from finetune.budget.adapter import AdapterShape
from finetune.budget.computing import FLOAT32_BYTES, Computing
from finetune.budget.saved_tensors import count_tokens
from finetune.budget.shapes import Architecture

__all__ = ["PassActivations", "estimate_pass", "estimate_working_bytes"]


@dataclass(frozen=True, slots=True)
class PassActivations:
    """What a forward and a backward pass hold.

    Attributes:
        saved_bytes: between the two, as `saved_tensors_hooks` count it.
        peak_bytes: at the fullest moment of both, gradients of what is trained left aside.
    """

    saved_bytes: int
    peak_bytes: int


def estimate_pass(
    architecture: Architecture,
    adapter: AdapterShape,
    batch: BatchShape,
    computing: Computing,
    *,
    num_recomputed: int,
    may_recompute: bool,
) -> PassActivations:
    """Estimate what a forward and a backward pass of a micro-batch hold, all layers taken together.

    Args:
        architecture: the base.
        adapter: what is trained.
        batch: the micro-batch.
        computing: how it is computed.
        num_recomputed: layers that are; they stand before those that are kept.
        may_recompute: `training.gradient_checkpointing`; with it the first layer's input gets a gradient all the same.
    """
    layer, first = (
        estimate_layer(architecture, adapter, batch, computing, is_first=is_first, may_recompute=may_recompute)
        for is_first in (False, True)
    )
    num_kept = architecture.num_layers - num_recomputed
    kept, inputs = num_kept * layer.kept_bytes, num_recomputed * layer.input_bytes
    if num_recomputed:
        inputs += first.input_bytes - layer.input_bytes
    else:
        kept += first.kept_bytes - layer.kept_bytes
    outside = estimate_outside(architecture, adapter, batch, computing, keeps_layers=num_kept > 0)
    saved = inputs + kept + outside.kept_bytes
    casts = num_recomputed * _estimate_casts(architecture, adapter, computing)
    working = estimate_working_bytes(architecture, adapter, batch, computing)
    # The loss; the last norm; a kept layer; a recomputed one, when those that are kept are gone; at the end the
    # gradient of trained embeddings, before it is added up.
    norm = _estimate_last_norm(architecture, adapter, batch, computing)
    moments = [saved + casts + outside.head_bytes, inputs + kept + norm]
    if num_kept:
        moments.append(inputs + kept + working)
    if num_recomputed:
        moments.append(inputs + layer.kept_bytes + _estimate_shared_weights(architecture, adapter, computing) + working)
    if adapter.trains_embeddings:
        of_output = count_tokens(adapter, batch) * architecture.hidden_size
        moments.append((architecture.num_embedding_parameters + of_output) * FLOAT32_BYTES)
    return PassActivations(saved_bytes=saved, peak_bytes=max(moments) + _estimate_mask(adapter, batch, computing))


def _estimate_last_norm(
    architecture: Architecture, adapter: AdapterShape, batch: BatchShape, computing: Computing
) -> int:
    """The last norm with its gradient: by transformers' own forward six tensors of its size in float32.

    Served, three of them (rows, their gradient before and behind the root), its input, and the gradients on both sides,
    of which in float32 one is among the three.
    """
    numbers = count_tokens(adapter, batch) * architecture.hidden_size
    if not computing.serves_norms(architecture, adapter):
        return 6 * numbers * FLOAT32_BYTES
    number = FLOAT32_BYTES if adapter.trains_embeddings else computing.compute_bytes
    return numbers * (3 * FLOAT32_BYTES + (number if number == FLOAT32_BYTES else 3 * number))


def _estimate_casts(architecture: Architecture, adapter: AdapterShape, computing: Computing) -> int:
    """A layer's trained matrices in the compute dtype: where it is recomputed, autocast keeps them until the loss."""
    if computing.serves(adapter) or not computing.is_mixed:
        return 0
    adapted = [linear for linear in architecture.linears if adapter.adapts(linear)]
    if adapter.is_whole:
        num_weights = sum(linear.num_weights for linear in adapted)
    elif adapter.method == "lora":
        num_weights = sum(adapter.r * (linear.in_features + linear.out_features) for linear in adapted)
    else:
        num_weights = 0
    return num_weights * computing.compute_bytes


def _estimate_shared_weights(architecture: Architecture, adapter: AdapterShape, computing: Computing) -> int:
    """Weights in full of a layer that is recomputed and served: each linear's, from then to its gradient.

    The last linear is not recomputed.
    """
    if not (computing.serves(adapter) and computing.is_quantized):
        return 0
    shared = [linear for linear in architecture.linears[:-1] if adapter.adapts(linear)]
    return sum(linear.num_weights for linear in shared) * computing.compute_bytes


def _estimate_mask(adapter: AdapterShape, batch: BatchShape, computing: Computing) -> int:
    """The mask that keeps documents or padding apart, one for all layers."""
    is_flat = batch.is_packed and batch.num_rows == 1  # whose documents are named to the kernel
    names_documents = computing.attention == "flash_attention_2" or (computing.attention == "documents" and is_flat)
    reads_mask = batch.has_mask and not names_documents
    return count_tokens(adapter, batch) * batch.row_tokens if reads_mask else 0


def estimate_working_bytes(
    architecture: Architecture, adapter: AdapterShape, batch: BatchShape, computing: Computing
) -> int:
    """Estimate what a layer's backward pass holds beside what the layer saved, at its widest place: inside the MLP.

    Args:
        architecture: the base.
        adapter: what is trained.
        batch: the micro-batch.
        computing: how it is computed.
    """
    tokens, f, c = count_tokens(adapter, batch), architecture.intermediate_size, computing.compute_bytes
    last = next((linear for linear in reversed(architecture.linears) if linear.part == "mlp"), None)
    stream = tokens * architecture.hidden_size * (FLOAT32_BYTES if adapter.trains_embeddings else c)
    if last is None:  # experts: each token is in as many of them as it goes through, and all are in full precision
        inside = tokens * architecture.num_active_mlps
        return stream + 3 * inside * f * c + 2 * inside * architecture.hidden_size * c
    weight = last.num_weights * c if computing.is_quantized and not adapter.is_whole else 0
    # The gradient of the product of both branches, then of either branch; served, the gate's is taken beside them. The
    # product is let go where it was saved.
    if computing.serves_mlp(architecture):
        num_inside = 3 if adapter.adapts(last) and not computing.serves(adapter) else 4
    else:
        num_inside = 2 if adapter.adapts(last) and adapter.method != "ia3" else 3
    working = stream + max(num_inside * tokens * f * c, tokens * f * c + weight)
    if adapter.method == "hra":
        # Of each mirror's gradient three matrices in float32, in by in, and under autocast two in the compute dtype.
        width = max(linear.in_features for linear in architecture.linears if adapter.adapts(linear))
        return max(working, stream + width**2 * (3 * FLOAT32_BYTES + (2 * c if computing.is_mixed else 0)))
    if adapter.method == "ia3" and computing.is_mixed:
        # In float32 are the gradients of its scaled input, and of what that is a product of.
        return max(working, stream + tokens * f * 3 * FLOAT32_BYTES)
    if adapter.method != "lora" or not adapter.adapts(last):
        return working
    if adapter.is_weight_decomposed:
        # DoRA makes the product of its matrices out of a unit matrix, and measures its sum with the weight: four of
        # the weight's size in float32 (three where the base is in float32 itself).
        num_weights = 4 if computing.is_quantized or computing.is_mixed else 3
        made = c * last.in_features**2 + num_weights * FLOAT32_BYTES * last.num_weights
        return max(working, 4 * stream + tokens * f * c + made)
    if computing.serves(adapter):
        return working
    # PEFT computes with a copy of the input in float32, and another one of what dropout left of it, beside the product
    # and four tensors of the stream's width: two of the stream, the norm's output and that of the base.
    num_copies = (2 if adapter.dropout else 1) if computing.has_detour else 0
    return max(working, 4 * stream + tokens * f * (c + num_copies * FLOAT32_BYTES))
