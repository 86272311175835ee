"""Resident weights give bitsandbytes' numbers to the bit, and nobody but the products sees them."""

import copy

import bitsandbytes as bnb
import pytest
import torch
from peft import get_peft_model_state_dict
from torch import nn

from finetune.model import frozen_weights
from finetune.model.adapters import attach_adapter
from finetune.model.frozen_weights import (
    find_quantized,
    find_resident,
    forget_resident,
    keep_resident,
    to_full_weight,
)
from finetune.model.lean import use_lean_path
from finetune.recipe.schema import AdapterSettings
from tests.model.lean_layers import build_base
from tests.model.tiny_models import load_tiny

TOKENS = torch.arange(48).reshape(2, 24)
DTYPES = [torch.float32, torch.bfloat16, torch.float16]


def pass_through(linear: nn.Linear, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Output and the input's gradient."""
    given = x.clone().requires_grad_()
    out = linear(given)
    out.backward(torch.linspace(-1, 1, out.numel()).reshape(out.shape).to(out.dtype))
    return out.detach(), given.grad


@pytest.mark.parametrize("kind", ["nf4", "fp4"])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("x_dtype", [None, torch.float32], ids=["same", "float32"])
@pytest.mark.parametrize("shape", [(1, 70), (3, 70), (2, 5, 70)], ids=str)
def test_a_copy_changes_no_bit_forward_or_backward(kind, dtype, x_dtype, shape):
    linear = build_base(kind, 70, 33, dtype, bias=True).train()
    x = torch.randn(shape).to(x_dtype or dtype)
    expected = pass_through(linear, x)
    assert keep_resident(linear) == 70 * 33 * dtype.itemsize
    found = pass_through(linear, x)
    assert all(torch.equal(one, other) for one, other in zip(found, expected, strict=True))
    assert [one.dtype for one in found] == [x.dtype, x.dtype]
    with torch.no_grad():
        assert torch.equal(linear.eval()(x), expected[0])


def test_a_copy_is_used_until_it_is_forgotten():
    linear = build_base("nf4", 32, 16, torch.float32)
    keep_resident(linear)
    find_resident(linear).zero_()
    assert linear(torch.ones(2, 32)).abs().max() == 0
    forget_resident(linear)
    forget_resident(linear)
    assert type(linear) is bnb.nn.Linear4bit
    assert linear(torch.ones(2, 32)).abs().max() > 0


def test_a_second_call_keeps_the_copy_that_is_there():
    linear = build_base("nf4", 32, 16, torch.float32)
    first = keep_resident(linear), find_resident(linear).data_ptr()
    assert (keep_resident(linear), find_resident(linear).data_ptr()) == first


CHANGES = {
    "another parameter": lambda linear: setattr(linear, "weight", copy.deepcopy(linear.weight)),
    "written in place": lambda linear: linear.weight.zero_(),
    "other bytes": lambda linear: setattr(linear.weight, "data", linear.weight.data.clone()),
    "another dtype of the products": lambda linear: setattr(linear, "compute_dtype", torch.bfloat16),
}


@pytest.mark.parametrize("change", CHANGES)
def test_a_copy_of_a_weight_that_has_changed_is_given_back(change):
    linear = build_base("nf4", 32, 16, torch.float32)
    keep_resident(linear)
    CHANGES[change](linear)
    assert linear(torch.ones(2, 32)).shape == (2, 16)
    assert type(linear) is bnb.nn.Linear4bit
    assert "resident" not in vars(linear)


def test_what_a_copy_would_not_equal_is_not_found_and_refused():
    other_dtype = build_base("nf4", 32, 16, torch.float32)
    other_dtype.compute_dtype = torch.bfloat16
    layer = nn.ModuleList([build_base(kind, 32, 16, torch.float32) for kind in ("nf4", "int8", "full", "fp4")])
    layer.append(other_dtype)
    assert find_quantized(layer) == [layer[0], layer[3]]
    for one in (layer[1], other_dtype):
        with pytest.raises(ValueError, match="computes in another dtype or way"):
            keep_resident(one)


@pytest.mark.parametrize("kind", ["nf4", "fp4", "int8"])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_the_full_weight_is_the_one_that_the_gradient_goes_by(kind, dtype):
    linear = build_base(kind, 64, 32, dtype).train()
    x = torch.zeros(32, 64, dtype=dtype, requires_grad=True)
    linear(x).backward(torch.eye(32, dtype=dtype))
    assert torch.equal(to_full_weight(linear, dtype), x.grad)


def test_a_weight_from_another_dtype_is_dequantized_straight_to_the_one_of_the_products():
    linear = build_base("nf4", 64, 32, torch.float32)
    exact = to_full_weight(linear, torch.float32)
    linear.weight.quant_state.dtype = torch.float16
    assert torch.equal(to_full_weight(linear, torch.float32), exact)
    assert linear.weight.quant_state.dtype == torch.float16


@pytest.mark.parametrize("is_lean", [True, False])
def test_a_models_loss_and_gradients_keep_every_bit(tiny_model, is_lean):
    results = []
    for keeps in (False, True):
        base = load_tiny(tiny_model, "nf4")
        settings = AdapterSettings(method="lora", r=4, lora_dropout=0.0, init_lora_weights="gaussian")
        model = attach_adapter(base, settings, seed=3).train()
        assert not is_lean or use_lean_path(model) == 14
        if keeps:
            layers = model.base_model.model.model.layers
            num_bytes = sum(keep_resident(one) for layer in layers for one in find_quantized(layer))
            assert num_bytes == 2 * 4 * (2 * 64 * 64 + 2 * 64 * 32 + 3 * 64 * 128)
        loss = model(input_ids=TOKENS, labels=TOKENS).loss
        loss.backward()
        results.append([loss.detach(), *(one.grad for one in model.parameters() if one.grad is not None)])
    assert all(torch.equal(one, other) for one, other in zip(*results, strict=True))


@pytest.mark.filterwarnings("ignore:Merge lora module")
def test_saving_merging_and_moving_do_not_see_the_copies(tiny_model):
    settings = AdapterSettings(method="lora", r=4, init_lora_weights="gaussian")
    models = [attach_adapter(load_tiny(tiny_model, "nf4"), settings, seed=3).eval() for _ in range(2)]
    for linear in find_quantized(models[0]):
        keep_resident(linear)
    names = [[name for name, _ in (*one.named_buffers(), *one.named_parameters())] for one in models]
    assert names[0] == names[1]
    for states in ([one.state_dict() for one in models], [get_peft_model_state_dict(one) for one in models]):
        assert states[0].keys() == states[1].keys()
        assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])
    twin = copy.deepcopy(models[0])
    with torch.no_grad():
        expected = models[1](TOKENS).logits
        assert torch.equal(models[0](TOKENS).logits, expected)
        assert torch.equal(twin(TOKENS).logits, expected)
        assert torch.equal(models[0].to("cpu")(TOKENS).logits, expected)
    merged = [model.merge_and_unload() for model in models]
    with torch.no_grad():
        logits = [model(TOKENS).logits for model in merged]
    assert torch.equal(*logits)
    assert all(find_resident(one) is None for one in merged[0].modules())


def test_where_memory_runs_out_between_copies_none_is_left(monkeypatch):
    linears = [build_base("nf4", 16, 16, torch.float32) for _ in range(3)]

    def run_out(linear: nn.Module) -> int:
        if linear is linears[2]:
            raise torch.OutOfMemoryError("out of memory")
        return keep_resident(linear)

    monkeypatch.setattr(frozen_weights, "keep_resident", run_out)
    with pytest.raises(torch.OutOfMemoryError):
        frozen_weights.keep_first(linears, 3)
    assert [find_resident(one) for one in linears] == [None] * 3
    frozen_weights.keep_first(linears, 2)
    assert [find_resident(one) is not None for one in linears] == [True, True, False]
