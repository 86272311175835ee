"""One linear with PEFT's LoRA on it, as the tests of the lean path want it: any base, numbers drawn by a seed."""

import copy
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass

import bitsandbytes as bnb
import torch
from peft import LoraConfig, inject_adapter_in_model
from torch import Tensor, nn

from finetune.model.frozen_weights import to_full_weight
from finetune.model.lean import use_lean_path
from finetune.model.quantization import close_cpu_gradient_trap

KINDS = ["nf4", "fp4", "int8", "full"]


@dataclass(frozen=True)
class Passed:
    """What came of one forward and backward pass."""

    out: Tensor
    grad_x: Tensor | None
    grad_a: Tensor
    grad_b: Tensor


def build_base(kind: str, num_in: int, num_out: int, dtype: torch.dtype, *, bias: bool = False) -> nn.Linear:
    """Build a frozen linear in 4 or 8 bits or in full."""
    full = nn.Linear(num_in, num_out, bias=bias).to(dtype)
    if kind == "full":
        return full.requires_grad_(False)
    if kind == "int8":
        linear = bnb.nn.Linear8bitLt(num_in, num_out, bias=bias, has_fp16_weights=False)
    else:
        linear = bnb.nn.Linear4bit(num_in, num_out, bias=bias, compute_dtype=dtype, quant_type=kind)
    linear.load_state_dict(full.state_dict())
    if kind != "int8":
        linear.weight.data = full.weight.data  # keeps the dtype that it is quantized from
    linear = linear.to("cpu").requires_grad_(False)
    close_cpu_gradient_trap(linear)
    return linear


def build_model(
    kind: str,
    num_in: int = 32,
    num_out: int = 24,
    dtype: torch.dtype = torch.float32,
    *,
    bias: bool = False,
    seed: int = 0,
    **config: object,
) -> nn.Module:
    """Build a module of one linear, `only`, with LoRA by PEFT, both of its matrices drawn."""
    torch.manual_seed(seed)
    model = nn.Module()
    model.only = build_base(kind, num_in, num_out, dtype, bias=bias)
    model.is_loaded_in_4bit, model.is_loaded_in_8bit = kind in ("nf4", "fp4"), kind == "int8"
    fields = {"r": 4, "lora_alpha": 8, "target_modules": ["only"]} | config
    inject_adapter_in_model(LoraConfig(**fields), model)
    for matrix in (*model.only.lora_A.values(), *model.only.lora_B.values()):
        matrix.float()  # as a run holds them
    for matrix in model.only.lora_B.values():
        nn.init.normal_(matrix.weight, std=0.1)
    return model.train()


def make_lean(model: nn.Module) -> nn.Module:
    """The same model, a copy, with the lean path on."""
    twin = copy.deepcopy(model)
    assert use_lean_path(twin) == 1
    return twin


def run(model: nn.Module, x: Tensor, *, autocast: torch.dtype | None = None, needs_x: bool = True) -> Passed:
    """Run the linear forward, and backward from a gradient drawn by a seed."""
    layer, given = model.only, x.clone().requires_grad_(needs_x)
    context: AbstractContextManager[object] = torch.autocast("cpu", autocast) if autocast else nullcontext()
    model.zero_grad()
    with context:
        out = layer(given)
    gradient = torch.randn(out.shape, generator=torch.Generator().manual_seed(5)).to(out.dtype)
    out.backward(gradient)
    name = layer.active_adapters[0]
    return Passed(out.detach(), given.grad, layer.lora_A[name].weight.grad, layer.lora_B[name].weight.grad)


def to_exact(model: nn.Module, x: Tensor, dtype: torch.dtype) -> Passed:
    """The same in float64, from the numbers that are multiplied: the adapter's and the input's in the compute dtype."""
    layer = model.only
    name = layer.active_adapters[0]
    a, b = (one[name].weight.detach().to(dtype).double().requires_grad_() for one in (layer.lora_A, layer.lora_B))
    base, given = layer.get_base_layer(), x.to(dtype).double().requires_grad_()
    out = given @ to_full_weight(base, dtype).double().T + given @ a.T @ b.T * layer.scaling[name]
    if base.bias is not None:
        out = out + base.bias.to(dtype).double()
    gradient = torch.randn(out.shape, generator=torch.Generator().manual_seed(5)).to(dtype)
    out.backward(gradient.double())
    return Passed(out.detach(), given.grad, a.grad, b.grad)


def error_of(ours: Tensor, exact: Tensor) -> float:
    """Distance from the exact numbers, as a share of them."""
    return float((ours.double() - exact).norm() / exact.norm())
