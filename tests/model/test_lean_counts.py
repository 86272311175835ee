"""What a step runs, counted: base products, dequantizations, large tensors; nothing here depends on a clock."""

import weakref
from collections import Counter
from dataclasses import dataclass
from functools import cache
from typing import Any

import pytest
import torch
from peft.tuners.lora import LoraLayer
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from finetune.model import lean
from finetune.model.adapters import attach_adapter
from finetune.model.base import load_base
from finetune.model.frozen_weights import find_quantized, keep_resident
from finetune.model.lean import use_lean_path
from finetune.recipe.schema import AdapterSettings, ModelSettings
from tests.model.lean_layers import build_model, make_lean, run
from tests.model.tiny_models import SHAPE

NUM_LAYERS = 4
NUM_LINEARS = 7 * NUM_LAYERS
TOKENS = torch.arange(48).reshape(2, 24)


class Counting(TorchDispatchMode):
    """Counts operators of one pass.

    Attributes:
        names: of operators, with how often each ran.
        num_base_products: products of an input with a frozen linear's whole weight.
    """

    def __init__(self, shapes: set[tuple[int, int]]) -> None:
        super().__init__()
        self.names: Counter[str] = Counter()
        self.num_base_products = 0
        self._shapes = shapes

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = str(func.overloadpacket).rpartition(".")[2]
        self.names[name] += 1
        if name == "gemm_4bit":
            self.num_base_products += 1
        if name == "mm" and args[1].stride(0) == 1 and tuple(args[1].T.shape) in self._shapes:
            self.num_base_products += 1  # by the turned weight; the input's gradient is by the weight as it lies
        return func(*args, **(kwargs or {}))


def build(*, lean: bool, checkpointing: bool | None, **fields: object) -> torch.nn.Module:
    """Build a model of four layers in NF4, on the recomputation asked for: None, or whether it is the reentrant one."""
    settings = {
        "weights": "random",
        "config": SHAPE | {"num_hidden_layers": NUM_LAYERS, "vocab_size": 100},
        "device": "cpu",
    }
    settings |= {"quantization": "nf4", "compute_dtype": "bfloat16"} | fields
    base = load_base(ModelSettings(**settings), seed=1)
    base.model.config.use_cache = False
    model = attach_adapter(base, AdapterSettings(method="lora", r=4, lora_dropout=0.0), seed=3).train()
    if checkpointing is not None:
        model.gradient_checkpointing_enable({"use_reentrant": checkpointing})
    model.enable_input_require_grads()
    assert not lean or use_lean_path(model) == NUM_LINEARS
    return model


@dataclass(frozen=True)
class Step:
    """What one step came to and ran."""

    loss: Tensor
    grads: list[Tensor]
    forward: Counting
    backward: Counting

    @property
    def names(self) -> Counter[str]:
        return self.forward.names + self.backward.names

    def equals(self, other: "Step") -> bool:
        mine, theirs = ([one.loss, *one.grads] for one in (self, other))
        return all(torch.equal(one, two) for one, two in zip(mine, theirs, strict=True))


def run_step(model: torch.nn.Module) -> Step:
    linears = [one.get_base_layer() for one in model.modules() if isinstance(one, LoraLayer)]
    shapes = {(one.out_features, one.in_features) for one in linears}
    model.zero_grad()
    with Counting(shapes) as forward, torch.autocast("cpu", torch.bfloat16):
        loss = model(input_ids=TOKENS, labels=TOKENS).loss
    with Counting(shapes) as backward:
        loss.backward()
    grads = [one.grad for one in model.parameters() if one.grad is not None]
    return Step(loss.detach(), grads, forward, backward)


@cache
def measure(*, lean: bool, checkpointing: bool | None, keeps: bool = False, quantization: str = "nf4") -> Step:
    """Run a step of a model of its own, with its weights resident or not."""
    model = build(lean=lean, checkpointing=checkpointing, quantization=quantization)
    for linear in find_quantized(model) if keeps else ():
        keep_resident(linear)
    return run_step(model)


@pytest.mark.parametrize(
    ("checkpointing", "lean", "num_recomputed", "num_dequantizations"),
    [
        (None, False, 0, 56),
        (None, True, 0, 56),
        (True, False, 28, 84),
        (True, True, 28, 56),
        (False, False, 28, 84),
        (False, True, 24, 56),
    ],
)
def test_a_recomputed_layer_leaves_out_its_last_product_and_dequantizes_a_weight_once(
    checkpointing, lean, num_recomputed, num_dequantizations
):
    step = measure(lean=lean, checkpointing=checkpointing)
    assert (step.forward.num_base_products, step.backward.num_base_products) == (28, num_recomputed)
    # bitsandbytes dequantizes inside its product.
    assert step.names["dequantize_4bit"] + step.names["gemm_4bit"] == num_dequantizations


@pytest.mark.parametrize("quantization", ["none", "int8"])
def test_a_recomputed_layer_leaves_out_its_last_product_however_its_base_is_held(quantization):
    for is_lean, num_recomputed in ((False, 28), (True, 24)):
        step = measure(lean=is_lean, checkpointing=False, quantization=quantization)
        assert (step.forward.num_base_products, step.backward.num_base_products) == (28, num_recomputed)
        assert step.names["dequantize_4bit"] + step.names["gemm_4bit"] == 0


@pytest.mark.parametrize("checkpointing", [None, True, False])
def test_neither_recomputation_nor_resident_weights_change_a_bit(checkpointing):
    expected = measure(lean=True, checkpointing=None)
    assert measure(lean=True, checkpointing=checkpointing).equals(expected)
    resident = measure(lean=True, checkpointing=checkpointing, keeps=True)
    assert resident.equals(expected)
    assert resident.names["dequantize_4bit"] + resident.names["gemm_4bit"] == 0


@pytest.mark.parametrize("checkpointing", [None, True, False])
def test_a_step_waits_for_the_device_no_oftener_than_pefts(checkpointing):
    ours, theirs = (measure(lean=lean, checkpointing=checkpointing).names for lean in (True, False))
    waiting = ("_local_scalar_dense", "item", "nonzero", "equal")
    assert [ours[name] for name in waiting] == [theirs[name] for name in waiting]


def test_a_step_casts_and_copies_less_than_pefts():
    ours, theirs = (measure(lean=lean, checkpointing=None).names for lean in (True, False))
    assert ours["clone"] <= theirs["clone"] - NUM_LINEARS
    assert ours["mul"] <= theirs["mul"] - 2 * NUM_LINEARS  # the scaling, of the output and of its gradient
    assert ours["_to_copy"] < 0.6 * theirs["_to_copy"]


def test_the_input_of_one_linear_is_kept_once_for_all_that_read_it():
    model, kept = build(lean=True, checkpointing=None), {}

    def note(tensor: Tensor) -> Tensor:
        kept[tensor.untyped_storage().data_ptr()] = tensor.shape
        return tensor

    model.requires_grad_(False)
    layer = model.base_model.model.model.layers[0].self_attn
    x = torch.randn(2, 24, 64).bfloat16()
    for one in (layer.q_proj, layer.k_proj, layer.v_proj):
        one.lora_A.requires_grad_(True)
        one.lora_B.requires_grad_(True)
    noting = torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor)
    with noting, torch.autocast("cpu", torch.bfloat16):
        outs = [one(x) for one in (layer.q_proj, layer.k_proj, layer.v_proj)]
    assert len(outs) == 3
    assert [shape for shape in kept.values() if shape[-1] == 64 and shape[0] == 2] == [(2, 24, 64)]


def test_a_shared_weight_is_given_back_when_its_gradient_is_computed():
    model = build(lean=True, checkpointing=False)
    made: list[weakref.ref[Tensor]] = []

    class Noting(TorchDispatchMode):
        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            out = func(*args, **(kwargs or {}))
            if "dequantize_4bit" in str(func):
                made.append(weakref.ref(out))
                # Those of one layer at most, and the one that is being made.
                assert sum(one() is not None for one in made) <= 7
            return out

    with torch.autocast("cpu", torch.bfloat16):
        loss = model(input_ids=TOKENS, labels=TOKENS).loss
    with Noting():
        loss.backward()
    assert len(made) == NUM_LINEARS
    assert all(one() is None for one in made)


@pytest.mark.parametrize("alpha", [4, 8])
def test_a_scale_of_one_is_no_pass_of_its_own_and_changes_no_bit(alpha, monkeypatch):
    passed, muls = [], []
    for scale in (lean._scale_, Tensor.mul_):
        monkeypatch.setattr(lean, "_scale_", scale)
        model = make_lean(build_model("full", lora_alpha=alpha))
        with Counting(set()) as counted:
            passed.append(run(model, torch.randn(6, 32, generator=torch.Generator().manual_seed(2))))
        muls.append(counted.names["mul_"])
    assert muls[1] - muls[0] == (2 if alpha == 4 else 0)
    for name in ("out", "grad_x", "grad_a", "grad_b"):
        assert torch.equal(getattr(passed[0], name), getattr(passed[1], name))
