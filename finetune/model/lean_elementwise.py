"""What lies between the linears of a decoder layer, in fewer bytes kept: root-mean-square norms and gated MLPs.

In goes a model of transformers; out come the same modules whose forward saves less for the backward pass, and computes
the same numbers by the same operators. Modules of other classes, and every call that is not the usual one, keep the
library's own forward. Weights, names and files stay as they are.

    transformers keeps, in bytes of a token and feature    here, in 16 bits
    norm: its input in float32 (4)                         its input (2), which is the stream that runs past the parts
    MLP: gate, silu(gate), up and their product (8)        gate and up (4); the others are computed again

Of a norm's result nothing is saved here: the linears behind it keep it once for all of them.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers.activations import GELUTanh, SiLUActivation

from finetune.model.lean import is_watched
from finetune.model.lean_inputs import note_origin

__all__ = ["FUSED_MLPS", "GATED_MLPS", "NORMS", "use_lean_elementwise"]

_FLOATS = frozenset({torch.float32, torch.float16, torch.bfloat16})


@dataclass(frozen=True, slots=True)
class Norm:
    """How a kind of norm is written.

    Attributes:
        eps_name: of the attribute with the number that is added under the root.
        to_factor: from the weight to what the normed rows are multiplied by.
        rounds_first: whether they are rounded to the input's dtype before that, or after it.
    """

    eps_name: str
    to_factor: Callable[[Tensor], Tensor]
    rounds_first: bool


_LLAMA = Norm("variance_epsilon", lambda weight: weight, rounds_first=True)
_OLMO = Norm("variance_epsilon", lambda weight: weight, rounds_first=False)
_GEMMA = Norm("eps", lambda weight: 1.0 + weight.float(), rounds_first=False)

# By module below `transformers.models` and by class: those whose forward was read in transformers 5.17.
# tests/model/test_lean_elementwise.py reads them again in the one that is installed.
NORMS: Mapping[str, Norm] = {
    "apertus.modeling_apertus.ApertusRMSNorm": _LLAMA,
    "arcee.modeling_arcee.ArceeRMSNorm": _LLAMA,
    "ernie4_5.modeling_ernie4_5.Ernie4_5RMSNorm": _LLAMA,
    "exaone4.modeling_exaone4.Exaone4RMSNorm": _LLAMA,
    "glm.modeling_glm.GlmRMSNorm": _LLAMA,
    "glm4.modeling_glm4.Glm4RMSNorm": _LLAMA,
    "granite.modeling_granite.GraniteRMSNorm": _LLAMA,
    "hunyuan_v1_dense.modeling_hunyuan_v1_dense.HunYuanDenseV1RMSNorm": _LLAMA,
    "llama.modeling_llama.LlamaRMSNorm": _LLAMA,
    "ministral.modeling_ministral.MinistralRMSNorm": _LLAMA,
    "ministral3.modeling_ministral3.Ministral3RMSNorm": _LLAMA,
    "mistral.modeling_mistral.MistralRMSNorm": _LLAMA,
    "mixtral.modeling_mixtral.MixtralRMSNorm": _LLAMA,
    "phi3.modeling_phi3.Phi3RMSNorm": _LLAMA,
    "qwen2.modeling_qwen2.Qwen2RMSNorm": _LLAMA,
    "qwen2_moe.modeling_qwen2_moe.Qwen2MoeRMSNorm": _LLAMA,
    "qwen3.modeling_qwen3.Qwen3RMSNorm": _LLAMA,
    "qwen3_moe.modeling_qwen3_moe.Qwen3MoeRMSNorm": _LLAMA,
    "seed_oss.modeling_seed_oss.SeedOssRMSNorm": _LLAMA,
    "smollm3.modeling_smollm3.SmolLM3RMSNorm": _LLAMA,
    "olmo2.modeling_olmo2.Olmo2RMSNorm": _OLMO,
    "olmo3.modeling_olmo3.Olmo3RMSNorm": _OLMO,
    "gemma.modeling_gemma.GemmaRMSNorm": _GEMMA,
    "gemma2.modeling_gemma2.Gemma2RMSNorm": _GEMMA,
    "gemma3.modeling_gemma3.Gemma3RMSNorm": _GEMMA,
}
# One linear for gate and up, whose output is cut in two.
FUSED_MLPS = frozenset({"glm.modeling_glm.GlmMLP", "glm4.modeling_glm4.Glm4MLP", "phi3.modeling_phi3.Phi3MLP"})
GATED_MLPS = frozenset(
    {
        "cohere.modeling_cohere.CohereMLP",
        "cohere2.modeling_cohere2.Cohere2MLP",
        "ernie4_5.modeling_ernie4_5.Ernie4_5MLP",
        "exaone4.modeling_exaone4.Exaone4MLP",
        "gemma.modeling_gemma.GemmaMLP",
        "gemma2.modeling_gemma2.Gemma2MLP",
        "gemma3.modeling_gemma3.Gemma3MLP",
        "granite.modeling_granite.GraniteMLP",
        "helium.modeling_helium.HeliumMLP",
        "hunyuan_v1_dense.modeling_hunyuan_v1_dense.HunYuanDenseV1MLP",
        "llama.modeling_llama.LlamaMLP",
        "ministral.modeling_ministral.MinistralMLP",
        "ministral3.modeling_ministral3.Ministral3MLP",
        "mistral.modeling_mistral.MistralMLP",
        "olmo.modeling_olmo.OlmoMLP",
        "olmo2.modeling_olmo2.Olmo2MLP",
        "olmo3.modeling_olmo3.Olmo3MLP",
        "qwen2.modeling_qwen2.Qwen2MLP",
        "qwen3.modeling_qwen3.Qwen3MLP",
        "smollm3.modeling_smollm3.SmolLM3MLP",
    }
)


def use_lean_elementwise(model: nn.Module) -> int:
    """Give norms and gated MLPs of transformers' the forward of this module; each call still decides whether it fits.

    Args:
        model: changed in place.

    Returns:
        The number of modules served.
    """
    for module in model.modules():
        kind = type(module)
        name = f"{kind.__module__}.{kind.__qualname__}".removeprefix("transformers.models.")
        if name in NORMS:
            module.__class__ = _find_lean_kind(kind, partial(_normalize, NORMS[name]))
        elif name in GATED_MLPS:
            module.__class__ = _find_lean_kind(kind, _run_gated)
        elif name in FUSED_MLPS:
            module.__class__ = _find_lean_kind(kind, _run_fused)
    return sum(type(module) in _lean_kinds.values() for module in model.modules())


# A library's class, and the one that stands in its place.
_lean_kinds: dict[type[nn.Module], type[nn.Module]] = {}


def _find_lean_kind(kind: type[nn.Module], lean_forward: Callable[..., Tensor]) -> type[nn.Module]:
    """Find the class with another forward for one of a library's; it has nothing else of its own."""

    def forward(self: nn.Module, *args: Any, **kwargs: Any) -> Any:
        if kwargs or len(args) != 1 or not _is_recorded(args[0]):
            return kind.forward(self, *args, **kwargs)
        return lean_forward(self, args[0], partial(kind.forward, self))

    if kind not in _lean_kinds:
        _lean_kinds[kind] = type(f"Lean{kind.__name__}", (kind,), {"forward": forward})
    return _lean_kinds[kind]


def _is_recorded(x: Tensor) -> bool:
    """Whether a call may save something for a backward pass, and that is autograd's plain one."""
    if not torch.is_grad_enabled() or torch.compiler.is_compiling() or x.dtype not in _FLOATS or x.numel() == 0:
        return False
    # As `torch.autograd.Function.apply` asks (torch 2.13): whether vmap, jvp or grad of torch.func is under way.
    return not torch._C._are_functorch_transforms_active()


# ---- norms


def _normalize(rule: Norm, module: Any, x: Tensor, plain: Callable[[Tensor], Tensor]) -> Tensor:
    """Compute a norm whose weight is frozen."""
    weight = module.weight
    if weight.requires_grad or not x.requires_grad:
        return plain(x)
    out: Tensor = _RootMeanSquareNorm.apply(x, weight, vars(module)[rule.eps_name], rule)
    return out


class _RootMeanSquareNorm(torch.autograd.Function):
    """Rows over the roots of their mean squares, times a frozen factor; by the libraries' operators, in their order.

    Kept are the input as it came, and one number in float32 for each row.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, eps: float, rule: Norm) -> Tensor:
        rows, factor = x.float(), rule.to_factor(weight)
        rstd = torch.rsqrt(rows.pow(2).mean(-1, keepdim=True) + eps)
        ctx.save_for_backward(x, rstd, weight)
        ctx.rule = rule
        normed = rows * rstd
        return factor * normed.to(x.dtype) if rule.rounds_first else (factor * normed).to(x.dtype)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad_out: Tensor) -> tuple[Tensor | None, ...]:
        x, rstd, weight = ctx.saved_tensors
        factor, rows = ctx.rule.to_factor(weight), x.float()
        grad = (grad_out * factor).to(x.dtype).float() if ctx.rule.rounds_first else grad_out.float() * factor
        # grad * rstd - rows * rstd^3 * mean(grad * rows), rounded where autograd would round.
        grad_mean = -0.5 * (grad * rows).sum(-1, keepdim=True) * rstd.pow(3)
        grad_rows = (rows * (grad_mean / x.shape[-1] * 2)).add_(grad.mul_(rstd))
        return grad_rows.to(x.dtype), None, None, None


# ---- gated MLPs


@dataclass(frozen=True, slots=True)
class _Activation:
    """An activation and its gradient.

    Attributes:
        compute: from the gate.
        differentiate: (grad, gate) to the gradient of the gate.
    """

    compute: Callable[[Tensor], Tensor]
    differentiate: Callable[[Tensor, Tensor], Tensor]

    def multiply(self, gate: Tensor, other: Tensor) -> Tensor:
        """`act(gate) * other`, into the memory of the first."""
        return self.compute(gate).mul_(other)


_SILU = _Activation(F.silu, torch.ops.aten.silu_backward)
_GELU_TANH = _Activation(partial(F.gelu, approximate="tanh"), partial(torch.ops.aten.gelu_backward, approximate="tanh"))


def _run_gated(module: Any, x: Tensor, plain: Callable[[Tensor], Tensor]) -> Tensor:
    """Compute `down_proj(act(gate_proj(x)) * up_proj(x))`."""
    activation = _find_activation(module.act_fn)
    if activation is None:
        return plain(x)
    gate, up = module.gate_proj(x), module.up_proj(x)
    out: Tensor = module.down_proj(_multiply(activation, gate, up))
    return out


def _run_fused(module: Any, x: Tensor, plain: Callable[[Tensor], Tensor]) -> Tensor:
    """Compute the same where one linear makes gate and up, in this order."""
    activation = _find_activation(module.activation_fn)
    if activation is None:
        return plain(x)
    gate, up = module.gate_up_proj(x).chunk(2, dim=-1)
    out: Tensor = module.down_proj(_multiply(activation, gate, up))
    return out


def _multiply(activation: _Activation, gate: Tensor, up: Tensor) -> Tensor:
    """`act(gate) * up`, of which the linear that reads it keeps no more than is kept here."""
    if gate.dtype != up.dtype or not (gate.requires_grad or up.requires_grad):
        return activation.compute(gate) * up
    gated: Tensor = _Gated.apply(gate, up, activation)
    note_origin(gated, (gate, up), activation.multiply)
    return gated


def _find_activation(module: nn.Module) -> _Activation | None:
    """Find what an activation computes; None where that is not known here, or somebody waits for its call."""
    if is_watched(module):
        return None
    if type(module) in (SiLUActivation, nn.SiLU):
        return _SILU
    # The same class computes the tanh in Python where it is asked to.
    is_own = type(module) is GELUTanh and isinstance(module.act, partial)
    return _GELU_TANH if is_own else None


class _Gated(torch.autograd.Function):
    """`act(gate) * up`, from which gate and up are kept alone."""

    @staticmethod
    def forward(ctx: Any, gate: Tensor, up: Tensor, activation: _Activation) -> Tensor:
        ctx.save_for_backward(gate, up)
        ctx.activation = activation
        return activation.multiply(gate, up)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad_out: Tensor) -> tuple[Tensor | None, ...]:
        gate, up = ctx.saved_tensors
        activation, (needs_gate, needs_up, _) = ctx.activation, ctx.needs_input_grad
        grad_up = activation.multiply(gate, grad_out) if needs_up else None
        return activation.differentiate(grad_out * up, gate) if needs_gate else None, grad_up, None
