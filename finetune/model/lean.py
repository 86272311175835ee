"""LoRA's usual case in fewer passes over memory: one adapter, no dropout, on a frozen linear.

In goes a model with PEFT's LoRA; out come the same modules whose forward, where the case is the usual
one, runs the two functions below, and PEFT's own forward everywhere else. Weights, their names, files,
merging and switching stay PEFT's.

    PEFT                                                   here
    base, its copy, lora_A, lora_B, scaled, added          lora_A, base, and lora_B added into the base's output by one
                                                           product: one tensor of the output's size instead of five
    on a CPU each linear casts its input twice, and        the input as it is, kept once for all that read it, or
    keeps a cast of its own                                what it was made from (`lean_inputs`)
    base first: all is recomputed                          adapter first: recomputation stops before a layer's last base
    dequantized forward, recomputed, and backward          dequantized forward, and once for the other two

Legend: T tokens, I features in, O features out, R rank.
"""

from collections.abc import Callable, Sequence
from typing import Any

import bitsandbytes as bnb
import torch
from peft.tuners import lora
from torch import Tensor, nn

from finetune.model.frozen_weights import find_resident, is_plain_4bit, multiply, to_full_weight
from finetune.model.lean_inputs import Origin, find_origin

__all__ = ["forget_shared_weights", "is_watched", "use_lean_path"]

_FLOATS = frozenset({torch.float32, torch.float16, torch.bfloat16})


def use_lean_path(model: nn.Module) -> int:
    """Give the linears with LoRA of PEFT's the forward of this module; each call still decides whether it fits.

    Args:
        model: changed in place; adapters added to its linears later are served as well.

    Returns:
        The number of linears served.
    """
    for module in model.modules():
        if isinstance(module, lora.LoraLayer) and type(module) in _LEAN and _is_known(module.get_base_layer()):
            module.__class__ = _LEAN[type(module)]
    return sum(isinstance(module, _Lean) for module in model.modules())


def forget_shared_weights(model: nn.Module) -> None:
    """Give the weights back that a recomputed layer had dequantized for a gradient that never came."""
    for module in model.modules():
        if isinstance(module, _Lean):
            module.shared_OI = None


# PEFT's layers with another forward. Each inherits from one class alone: then it can be put in that one's place.


class LeanLinear(lora.Linear):
    shared_OI: Tensor | None = None  # the weight in full, from this linear's recomputation to its gradient

    def forward(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        return _forward(self, super().forward, x, args, kwargs)


class LeanLinear4bit(lora.Linear4bit):
    shared_OI: Tensor | None = None

    def forward(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        return _forward(self, super().forward, x, args, kwargs)


class LeanLinear8bitLt(lora.Linear8bitLt):
    shared_OI: Tensor | None = None

    def forward(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        return _forward(self, super().forward, x, args, kwargs)


_Lean = LeanLinear | LeanLinear4bit | LeanLinear8bitLt
_LEAN: dict[type[nn.Module], type[nn.Module]] = {
    lora.Linear: LeanLinear,
    lora.Linear4bit: LeanLinear4bit,
    lora.Linear8bitLt: LeanLinear8bitLt,
}


def _forward(
    layer: _Lean, peft_forward: Callable[..., Tensor], x: Tensor, args: Sequence[Any], kwargs: dict[str, Any]
) -> Tensor:
    """Compute a linear with its adapter: the usual case here, up to rounding as PEFT does, any other by PEFT itself."""
    adapter = None if args or kwargs else _find_only_adapter(layer)
    dtype = None if adapter is None else _find_product_dtype(layer, adapter, x)
    if adapter is None or dtype is None:
        return peft_forward(x, *args, **kwargs)
    scaling = layer.scaling[adapter]
    # The adapter's float32 weights are cast once for all passes; the input once, where it is float32 under autocast.
    a_RI, b_OR = (matrices[adapter].weight.to(dtype) for matrices in (layer.lora_A, layer.lora_B))
    inputs = x.to(dtype).contiguous()
    stand_in, h = _AdapterFirst.apply(inputs, a_RI, b_OR, layer, scaling, find_origin(inputs))
    out: Tensor = _BaseLast.apply(stand_in, inputs, h, b_OR, layer, scaling)
    return out.to(x.dtype) if _is_quantized(layer.get_base_layer()) else out


class _AdapterFirst(torch.autograd.Function):
    """The adapter's first product, and the whole backward pass.

    All that is saved is saved here, before the base is multiplied: recomputation ends with the last tensor saved, and
    that of a layer's last linear then ends without its base product, whose output nobody needs.
    """

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, a_RI: Tensor, b_OR: Tensor, layer: _Lean, scaling: float, origin: Origin
    ) -> tuple[Tensor, Tensor]:
        h = nn.functional.linear(x, a_RI)
        ctx.save_for_backward(h, a_RI, b_OR, *origin.parts)
        ctx.layer, ctx.scaling, ctx.remake, ctx.shape = layer, scaling, origin.remake, x.shape
        ctx.mark_non_differentiable(h)
        ctx.set_materialize_grads(False)
        # Stands for the output of the linear: of its shape, so that the gradient can come by it, and of no size.
        return x.new_empty(()).expand(*x.shape[:-1], b_OR.shape[0]), h

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad_out: Tensor | None, _: None) -> tuple[Tensor | None, ...]:
        layer, scaling = ctx.layer, ctx.scaling
        weight_OI, layer.shared_OI = layer.shared_OI, None
        if grad_out is None:
            return None, None, None, None, None, None
        h, a_RI, b_OR, *parts = ctx.saved_tensors
        needs_x, needs_a, needs_b, *_ = ctx.needs_input_grad
        h_TR, grad_TO = (one.reshape(-1, one.shape[-1]) for one in (h, grad_out))
        grad_h_TR = _scale_(torch.mm(grad_TO, b_OR), scaling)
        grad_a_RI = torch.mm(grad_h_TR.t(), ctx.remake(*parts).reshape(-1, ctx.shape[-1])) if needs_a else None
        grad_b_OR = _scale_(torch.mm(grad_TO.t(), h_TR), scaling) if needs_b else None
        if not needs_x:
            return None, grad_a_RI, grad_b_OR, None, None, None
        if weight_OI is None:
            weight_OI = to_full_weight(layer.get_base_layer(), grad_TO.dtype)
        grad_x_TI = torch.mm(grad_TO, weight_OI).addmm_(grad_h_TR, a_RI)
        return grad_x_TI.view(ctx.shape), grad_a_RI, grad_b_OR, None, None, None


class _BaseLast(torch.autograd.Function):
    """The frozen product with the adapter's added into it; saves nothing, and hands its gradient on as it is."""

    @staticmethod
    def forward(
        ctx: Any,
        stand_in: Tensor,
        x: Tensor,
        h: Tensor,
        b_OR: Tensor,
        layer: _Lean,
        scaling: float,
    ) -> Tensor:
        base = layer.get_base_layer()
        layer.shared_OI = None
        if layer.training and not isinstance(base, bnb.nn.Linear8bitLt):
            # bitsandbytes may take another kernel on a GPU for few rows: in training one product in every pass, so that
            # no number depends on what is recomputed or resident.
            weight_OI = to_full_weight(base, x.dtype)
            out = multiply(x, weight_OI, base.bias)
            if _is_quantized(base) and find_resident(base) is None and ctx.needs_input_grad[1] and _is_recomputed():
                layer.shared_OI = weight_OI
        else:
            out = base(x)
            # In 8 bits it is a view, which autograd lets nobody write into; this is the same memory as no view.
            out = torch.ops.aten._unsafe_view.default(out, out.shape)
        out.view(-1, out.shape[-1]).addmm_(h.view(-1, h.shape[-1]), b_OR.t(), alpha=scaling)
        return out

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad_out: Tensor) -> tuple[Tensor | None, ...]:
        return grad_out, None, None, None, None, None


def _scale_(product: Tensor, scaling: float) -> Tensor:
    """Scale in place; by one, which is `lora_alpha` equal to `r`, costs no pass."""
    return product if scaling == 1 else product.mul_(scaling)


def _is_recomputed() -> bool:
    """Whether this forward runs inside a backward pass; torch.utils.checkpoint asks in the same way."""
    return torch._C._current_graph_task_id() != -1


# ---- the usual case


def _find_only_adapter(layer: lora.LoraLayer) -> str | None:
    """Find the one adapter that a layer adds; None: none, several, or one that is more than two matrices."""
    if layer.disable_adapters or layer.merged or torch.compiler.is_compiling():
        return None
    names = [name for name in layer.active_adapters if name in layer.lora_A]
    if len(names) != 1 or names[0] in layer.lora_variant or not isinstance(layer.scaling[names[0]], float | int):
        return None
    dropout = layer.lora_dropout[names[0]]
    is_off = type(dropout) is nn.Identity or (type(dropout) is nn.Dropout and not (dropout.training and dropout.p > 0))
    parts = (layer.lora_A[names[0]], layer.lora_B[names[0]])
    if not is_off or parts[1].bias is not None or any(type(part) is not nn.Linear for part in parts):
        return None
    return None if any(is_watched(part) for part in (*parts, dropout, layer.get_base_layer())) else names[0]


def _find_product_dtype(layer: lora.LoraLayer, adapter: str, x: Tensor) -> torch.dtype | None:
    """Find the one dtype in which base and adapter are multiplied; None where PEFT multiplies in two."""
    base = layer.get_base_layer()
    if not _is_known(base) or base.weight.requires_grad or (base.bias is not None and base.bias.requires_grad):
        return None
    if x.dtype not in _FLOATS or x.numel() == 0:
        return None
    if torch.amp.is_autocast_available(x.device.type) and torch.is_autocast_enabled(x.device.type):
        dtype = torch.get_autocast_dtype(x.device.type)
        fits = x.dtype == dtype or (x.dtype == torch.float32 and not isinstance(base, bnb.nn.Linear8bitLt))
    else:
        dtype = x.dtype
        fits = layer.lora_A[adapter].weight.dtype == layer.lora_B[adapter].weight.dtype == dtype
        fits = fits and (_is_quantized(base) or base.weight.dtype == dtype)
    if isinstance(base, bnb.nn.Linear4bit):
        fits = fits and base.compute_dtype == dtype
    return dtype if fits else None


def _is_quantized(linear: nn.Module) -> bool:
    """Whether bitsandbytes holds a linear's weight."""
    return isinstance(linear, bnb.nn.Linear4bit | bnb.nn.Linear8bitLt)


def _is_known(base: nn.Module) -> bool:
    """Whether a base is multiplied as it is written here; whoever wraps or changes it has a class of its own."""
    return type(base) in (nn.Linear, bnb.nn.Linear8bitLt) or is_plain_4bit(base)


def is_watched(module: nn.Module) -> bool:
    """Whether somebody waits for a module's own call: a hook, or another forward put over it."""
    hooks = (module._forward_pre_hooks, module._forward_hooks, module._backward_pre_hooks, module._backward_hooks)
    return any(hooks) or "forward" in vars(module)
