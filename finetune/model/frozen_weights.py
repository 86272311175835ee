"""A frozen linear's weight in full: dequantized when it is asked for, or kept beside the quantized one.

In goes a linear whose weight is not trained; out comes its weight as the products want it. Dequantizing
a weight costs a pass over it in every product. Where memory is left a copy in the compute dtype stays
resident: the numbers are those of bitsandbytes, and nothing of the copy is saved, merged or moved.
"""

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, TypeGuard

import bitsandbytes as bnb
import torch
from torch import Tensor, nn

__all__ = [
    "FrozenLinear",
    "ResidentLinear4bit",
    "find_quantized",
    "find_resident",
    "forget_resident",
    "is_plain_4bit",
    "keep_first",
    "keep_resident",
    "multiply",
    "to_full_weight",
]

FrozenLinear = nn.Linear  # bitsandbytes' own linears are kinds of it

# Rows up to which bitsandbytes (0.50, backends/cuda/ops.py) may multiply by a fused 4-bit kernel.
_MAX_FUSED_ROWS = 1536
# What a linear is before its copy is kept. A kind not named here may have a forward of its own.
_KINDS_4BIT: tuple[type[bnb.nn.Linear4bit], ...] = (bnb.nn.Linear4bit, bnb.nn.LinearNF4, bnb.nn.LinearFP4)


@dataclass(frozen=True, slots=True, eq=False)
class _Copy:
    """A weight in full, and what it was made from: a weight that was merged into, loaded or moved is another.

    Attributes:
        weight_OI: in the compute dtype, no gradient.
        source: the parameter it was made from.
        address: of that parameter's bytes.
        version: how often those had been written to.
        kind: the linear's class without the copy.
    """

    weight_OI: Tensor
    source: nn.Parameter
    address: int
    version: int
    kind: type[bnb.nn.Linear4bit]

    def holds(self, linear: bnb.nn.Linear4bit) -> bool:
        weight = linear.weight
        is_same = weight is self.source and weight.data_ptr() == self.address and weight._version == self.version
        return is_same and self.weight_OI.dtype == linear.compute_dtype


class ResidentLinear4bit(bnb.nn.Linear4bit):
    """A 4-bit linear with its weight in full beside it; `keep_resident` makes one of a linear that is there.

    The copy is an attribute, no buffer: `state_dict()`, `to()` and DDP's broadcast pass over it.
    """

    resident: _Copy

    def forward(self, x: Tensor) -> Tensor:
        """As bitsandbytes computes it, without the dequantization."""
        weight_OI = find_resident(self)
        # A GPU multiplies few rows, and decodes, by a kernel of the library's own choice: there it does so with a copy
        # as without one, so that no number depends on which copies are kept.
        may_fuse = not self.training or x.numel() <= _MAX_FUSED_ROWS * x.shape[-1]
        if weight_OI is None or x.numel() == 0 or (x.device.type != "cpu" and may_fuse):
            out: Tensor = bnb.nn.Linear4bit.forward(self, x)
            return out
        product: Tensor = _Product.apply(x.to(weight_OI.dtype), weight_OI, self.bias)
        return product.to(x.dtype)


class _Product(torch.autograd.Function):
    """`x @ W.T + b` with nothing saved: the gradient of the input needs the frozen weight alone."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight_OI: Tensor, bias_O: Tensor | None) -> Tensor:
        ctx.weight_OI = weight_OI
        return multiply(x, weight_OI, bias_O)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad_out: Tensor) -> tuple[Tensor | None, None, Tensor | None]:
        weight_OI = ctx.weight_OI.to(grad_out.dtype)
        grad_x = torch.matmul(grad_out, weight_OI) if ctx.needs_input_grad[0] else None
        grad_bias = grad_out.flatten(0, -2).sum(0) if ctx.needs_input_grad[2] else None
        return grad_x, None, grad_bias


def multiply(x: Tensor, weight_OI: Tensor, bias_O: Tensor | None) -> Tensor:
    """`x @ W.T + b` in the weight's dtype, as bitsandbytes computes it once it has dequantized."""
    return nn.functional.linear(x, weight_OI, None if bias_O is None else bias_O.to(weight_OI.dtype))


def to_full_weight(linear: FrozenLinear, dtype: torch.dtype) -> Tensor:
    """A linear's weight as a matrix (out, in) in a dtype; the resident copy or the weight itself where it is one.

    Args:
        linear: in 4 or 8 bits by bitsandbytes, or in full.
        dtype: of the products.
    """
    resident = find_resident(linear)
    if resident is not None and resident.dtype == dtype:
        return resident
    if isinstance(linear, bnb.nn.Linear4bit):
        state = linear.weight.quant_state
        if state.dtype != dtype:  # the file was quantized from another dtype than is computed in here
            state = copy.copy(state)
            state.dtype = dtype
        full: Tensor = bnb.functional.dequantize_4bit(linear.weight.data, state)
        return full
    if isinstance(linear, bnb.nn.Linear8bitLt):
        # MatMul8bitLt.backward of bitsandbytes 0.50.2, to the bit.
        return linear.state.CB.to(dtype, copy=True).mul_(linear.state.SCB.unsqueeze(1).mul(1.0 / 127.0))
    return linear.weight.detach().to(dtype)


# ---- copies that stay


def is_plain_4bit(module: nn.Module) -> TypeGuard[bnb.nn.Linear4bit]:
    """Whether a module is bitsandbytes' own 4-bit linear, with or without its copy, and on the path with a gradient."""
    if not isinstance(module, ResidentLinear4bit) and type(module) not in _KINDS_4BIT:
        return False
    state = module.weight.quant_state if isinstance(module.weight, bnb.nn.Params4bit) else None
    # Packed is what the trap of `close_cpu_gradient_trap` leaves behind; the library names it on packed weights alone.
    return state is not None and not vars(state).get("packing_format_for_cpu", False)


def find_quantized(layer: nn.Module) -> list[bnb.nn.Linear4bit]:
    """Find the linears of a layer that a resident copy would serve, in the order they stand in.

    Those in 4 bits, quantized from the dtype that they compute in: bitsandbytes hands down the gradient of others
    through that other dtype. On a GPU 8 bits are multiplied as they are.
    """
    return [one for one in layer.modules() if is_plain_4bit(one) and _computes_in_its_dtype(one)]


def keep_resident(linear: bnb.nn.Linear4bit) -> int:
    """Keep a linear's weight in full, in the compute dtype, beside the quantized one.

    Args:
        linear: one that `find_quantized` has found; a second call makes the copy anew where the weight is another.

    Returns:
        Bytes of the copy.

    Raises:
        ValueError: it is none of those.
    """
    if not (is_plain_4bit(linear) and _computes_in_its_dtype(linear)):
        raise ValueError(f"{type(linear).__name__} computes in another dtype or way than its copy would")
    kept = find_resident(linear)
    if kept is None:
        forget_resident(linear)
        kept = to_full_weight(linear, linear.compute_dtype)
        weight, kind = linear.weight, type(linear)
        made = _Copy(kept, weight, weight.data_ptr(), weight._version, kind)
        linear.__class__ = ResidentLinear4bit
        linear.resident = made
    return kept.nbytes


def keep_first(linears: Sequence[bnb.nn.Linear4bit], number: int) -> None:
    """Keep copies of the first so many linears and of no other; of none where an error comes between."""
    try:
        for place, linear in enumerate(linears):
            if place < number:
                keep_resident(linear)
            else:
                forget_resident(linear)
    except BaseException:
        for linear in linears:
            forget_resident(linear)
        raise


def forget_resident(linear: nn.Module) -> None:
    """Give a copy's memory back; a linear without one stays as it is."""
    if isinstance(linear, ResidentLinear4bit):
        kind = linear.resident.kind
        del linear.resident
        linear.__class__ = kind


def find_resident(linear: nn.Module) -> Tensor | None:
    """Find the copy that is kept of a linear's weight; one of a weight that has changed since is given back here."""
    if not isinstance(linear, ResidentLinear4bit):
        return None
    if linear.resident.holds(linear):
        return linear.resident.weight_OI
    forget_resident(linear)
    return None


def _computes_in_its_dtype(linear: bnb.nn.Linear4bit) -> bool:
    return bool(linear.weight.quant_state.dtype == linear.compute_dtype)
