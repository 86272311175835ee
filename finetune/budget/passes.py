"""A forward and a backward pass taken together: what is saved between the two, and the fullest moment of both.

In go the shapes of a base, of what is trained on it and of a micro-batch, and how many layers are recomputed; out come
bytes. Gradients of what is trained, weights and optimizer are not counted here: `memory` has them.
"""

from dataclasses import dataclass
from functools import partial

from finetune.budget.activations import BatchShape, estimate_layer, estimate_outside
from finetune.budget.adapter import AdapterShape
from finetune.budget.saved_tensors import FLOAT32_BYTES
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
    *,
    num_recomputed: int,
    compute_bytes: int,
    is_lean: bool,
    attention: str,
    may_recompute: bool = True,
    loss: str = "chunks",
    is_quantized: bool = True,
    on_cpu: bool = False,
) -> PassActivations:
    """Estimate what a forward and a backward pass of a micro-batch hold, all layers taken together.

    Args:
        architecture: the base.
        adapter: what is trained.
        batch: the micro-batch.
        num_recomputed: layers that are; they stand before those that are kept.
        compute_bytes: of a number in the compute dtype: 2 or 4.
        is_lean: whether `model.lean` serves the linears with LoRA.
        attention: the kernel's name as transformers knows it.
        may_recompute: `training.gradient_checkpointing`; with it the first layer's input gets a gradient all the same.
        loss: as for `estimate_outside`.
        is_quantized: whether the base's linears are.
        on_cpu: whether it runs on a CPU.
    """
    estimate = partial(
        estimate_layer,
        architecture,
        adapter,
        batch,
        compute_bytes=compute_bytes,
        is_lean=is_lean,
        attention=attention,
        is_quantized=is_quantized,
        on_cpu=on_cpu,
        may_recompute=may_recompute,
    )
    layer, first = estimate(), estimate(is_first=True)
    num_kept = architecture.num_layers - num_recomputed
    outside = estimate_outside(
        architecture,
        adapter,
        batch,
        compute_bytes=compute_bytes,
        loss=loss,
        keeps_layers=num_kept > 0,
        is_quantized=is_quantized,
        on_cpu=on_cpu,
    )
    kept, inputs = num_kept * layer.kept_bytes, num_recomputed * layer.input_bytes
    if num_recomputed:
        inputs += first.input_bytes - layer.input_bytes
    else:
        kept += first.kept_bytes - layer.kept_bytes
    working = estimate_working_bytes(
        architecture,
        adapter,
        batch,
        compute_bytes=compute_bytes,
        is_lean=is_lean,
        is_quantized=is_quantized,
        on_cpu=on_cpu,
    )
    tokens = batch.num_tokens + batch.num_rows * adapter.num_virtual_tokens
    # The loss; the last norm, whose gradient is taken with five further tensors of its size in float32; a kept layer.
    saved = inputs + kept + outside.kept_bytes
    norm = 6 * tokens * architecture.hidden_size * FLOAT32_BYTES
    is_served = is_lean and adapter.method == "lora" and not adapter.dropout and not adapter.is_weight_decomposed
    cast = 0 if is_served or compute_bytes == FLOAT32_BYTES else num_recomputed * _count_cast(architecture, adapter)
    moments = [saved + cast * compute_bytes + outside.head_bytes, inputs + kept + norm]
    if num_kept:
        moments.append(inputs + kept + working)
    if num_recomputed:
        # Served, each linear has its weight in full from its recomputation to its gradient; the last is not recomputed.
        shared = [one for one in architecture.linears[:-1] if is_served and is_quantized and adapter.adapts(one)]
        weights = sum(one.num_weights for one in shared) * compute_bytes
        moments.append(inputs + layer.kept_bytes + weights + working)
    mask = tokens * batch.row_tokens if batch.has_mask and attention != "flash_attention_2" else 0  # one for all layers
    return PassActivations(saved_bytes=saved, peak_bytes=max(moments) + mask)


def _count_cast(architecture: Architecture, adapter: AdapterShape) -> int:
    """Numbers of a layer's trained matrices that autocast keeps in the compute dtype until the forward pass ends."""
    adapted = [linear for linear in architecture.linears if adapter.adapts(linear)]
    if adapter.is_whole:
        return sum(linear.num_weights for linear in adapted)
    if adapter.method != "lora":
        return 0
    return sum(adapter.r * (linear.in_features + linear.out_features) for linear in adapted)


def estimate_working_bytes(
    architecture: Architecture,
    adapter: AdapterShape,
    batch: BatchShape,
    *,
    compute_bytes: int,
    is_lean: bool,
    is_quantized: bool = True,
    on_cpu: bool = False,
) -> int:
    """Estimate what a layer's backward pass holds beside what the layer saved, at its widest place: inside the MLP.

    Args:
        architecture: the base.
        adapter: what is trained.
        batch: the micro-batch.
        compute_bytes: of a number in the compute dtype: 2 or 4.
        is_lean: whether `model.lean` serves the linears with LoRA.
        is_quantized: whether the base's linears are.
        on_cpu: whether it runs on a CPU.
    """
    tokens = batch.num_tokens + batch.num_rows * adapter.num_virtual_tokens
    f, c = architecture.intermediate_size, compute_bytes
    last = [linear for linear in architecture.linears if linear.part == "mlp"][-1]
    stream = tokens * architecture.hidden_size * (FLOAT32_BYTES if adapter.is_whole else c)
    weight = last.num_weights * c if is_quantized and not adapter.is_whole else 0
    # The gradient of the product of both branches, then of either branch; the product is let go where it was saved.
    num_inside = 2 if adapter.adapts(last) and adapter.method != "ia3" else 3
    working = stream + max(num_inside * tokens * f * c, tokens * f * c + weight)
    if adapter.method == "ia3" and c < FLOAT32_BYTES:  # its scaled input and that one's gradient are float32
        return max(working, stream + tokens * f * (2 * FLOAT32_BYTES + c))
    if adapter.method != "lora" or not adapter.adapts(last):
        return working
    if adapter.is_weight_decomposed:
        # DoRA makes the product of its matrices out of a unit matrix, and measures its sum with the weight: four of
        # the weight's size in float32 (three where the base is in float32 itself).
        num_weights = 4 if is_quantized or c < FLOAT32_BYTES else 3
        made = c * last.in_features**2 + num_weights * FLOAT32_BYTES * last.num_weights
        return max(working, 4 * stream + tokens * f * c + made)
    if is_lean and not adapter.dropout:
        return working
    # PEFT computes with a copy of the input in float32, and another one of what dropout left of it, beside the product
    # and four tensors of the stream's width: two of the stream, the norm's output and that of the base.
    numbers = (FLOAT32_BYTES if on_cpu or not is_quantized else 0) + c if c < FLOAT32_BYTES else c
    dropped = FLOAT32_BYTES if adapter.dropout and c < FLOAT32_BYTES and (on_cpu or not is_quantized) else 0
    return max(working, 4 * stream + tokens * f * (numbers + dropped))
