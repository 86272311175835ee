"""The lean path against PEFT's own forward and against the same numbers in float64."""

import copy

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from peft import get_peft_model_state_dict
from torch import nn
from torch.utils.checkpoint import checkpoint

from finetune.model.adapters import attach_adapter
from finetune.model.lean import forget_shared_weights, use_lean_path
from finetune.recipe.schema import AdapterSettings
from tests.end_to_end.small_runs import read_lines, read_weights, run_small
from tests.model.lean_layers import KINDS, build_model, error_of, make_lean, run, to_exact
from tests.model.tiny_models import load_tiny

EPSILON = {torch.float32: 1e-6, torch.bfloat16: 1e-2}
FEW = 16
TOKENS = torch.arange(48).reshape(2, 24)


@settings(derandomize=True, deadline=None, max_examples=20)
@given(
    kind=st.sampled_from(KINDS),
    dtype=st.sampled_from([torch.float32, torch.bfloat16]),
    shape=st.tuples(st.integers(2, 40), st.integers(1, 40), *[st.integers(1, 9)] * 3),
    is_flat=st.booleans(),
    bias=st.booleans(),
    needs_x=st.booleans(),
    alpha=st.sampled_from([1, 8, 13]),
    seed=st.integers(0, 99),
)
def test_outputs_and_gradients_are_as_exact_as_pefts(kind, dtype, shape, is_flat, bias, needs_x, alpha, seed):
    half_in, num_out, r, num_rows, num_tokens = shape
    theirs = build_model(kind, 2 * half_in, num_out, dtype, bias=bias, seed=seed, r=r, lora_alpha=alpha)
    ours = make_lean(theirs)
    x = torch.randn(*(() if is_flat else (num_rows,)), num_tokens, 2 * half_in).to(dtype)
    autocast = None if dtype == torch.float32 else dtype
    passed = run(ours, x, autocast=autocast, needs_x=needs_x), run(theirs, x, autocast=autocast, needs_x=needs_x)
    exact = to_exact(theirs, x, dtype)
    for part in ("out", "grad_x", "grad_a", "grad_b"):
        mine, peft, true = (getattr(one, part) for one in (*passed, exact))
        if part == "grad_x" and not needs_x:
            assert mine is None
            continue
        assert mine.dtype == peft.dtype
        # A few numbers may round unluckily; a whole tensor is not further off than PEFT's.
        assert error_of(mine, true) <= 1.5 * error_of(peft, true) + EPSILON[dtype] / 4, part
        if true.numel() >= FEW:  # of fewer, all may be small differences of large numbers
            assert error_of(mine, true) <= EPSILON[dtype], part


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_fresh_adapter_changes_no_bit_and_its_gradients_are_pefts_to_the_bit(kind, dtype):
    theirs = build_model(kind, 64, 48, dtype)
    nn.init.zeros_(theirs.only.lora_B["default"].weight)
    x = torch.randn(2, 24, 64).to(dtype)
    autocast = None if dtype == torch.float32 else dtype
    mine, peft = run(make_lean(theirs), x, autocast=autocast), run(theirs, x, autocast=autocast)
    assert torch.equal(mine.out, peft.out)
    assert torch.equal(mine.grad_x, peft.grad_x)
    assert torch.equal(mine.grad_a, peft.grad_a)
    assert torch.equal(mine.grad_b, peft.grad_b)
    assert mine.grad_b.abs().max() > 0


@pytest.mark.parametrize("kind", ["nf4", "full"])
def test_a_float32_input_under_autocast_comes_back_as_peft_gives_it(kind):
    theirs = build_model(kind, dtype=torch.bfloat16)
    x = torch.randn(3, 32)
    mine, peft = (run(model, x, autocast=torch.bfloat16) for model in (make_lean(theirs), theirs))
    assert mine.out.dtype == peft.out.dtype
    assert mine.grad_x.dtype == torch.float32
    torch.testing.assert_close(mine.out, peft.out, rtol=0.02, atol=0.02)
    torch.testing.assert_close(mine.grad_x, peft.grad_x, rtol=0.02, atol=0.02)


def test_what_is_changed_between_two_calls_counts_in_the_second():
    theirs = build_model("nf4")
    ours, x = make_lean(theirs), torch.randn(5, 32)
    before = run(ours, x).out
    for model in (ours, theirs):
        model.only.set_scale("default", 3.0)
        with torch.no_grad():
            model.only.lora_A["default"].weight.mul_(2)
    mine, peft = run(ours, x), run(theirs, x)
    assert not torch.allclose(mine.out, before)
    torch.testing.assert_close(mine.out, peft.out)
    torch.testing.assert_close(mine.grad_a, peft.grad_a)


def test_the_adapter_that_is_switched_to_is_the_one_that_is_added():
    theirs = build_model("nf4")
    theirs.only.update_layer("other", 2, lora_alpha=2, config=theirs.peft_config["default"])
    nn.init.normal_(theirs.only.lora_B["other"].weight)
    ours, x = make_lean(theirs), torch.randn(5, 32)
    for name in ("other", "default"):
        for model in (ours, theirs):
            model.only.set_adapter(name)
        torch.testing.assert_close(run(ours, x).out, run(theirs, x).out)


def test_gradients_of_micro_batches_add_up_and_a_scaled_loss_scales_them():
    model = make_lean(build_model("nf4", dtype=torch.float16))
    x = torch.randn(4, 32).half()
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
    grads = []
    for parts, factor in (([x], 1.0), (x.split(2), 1.0), ([x], 1024.0)):
        model.zero_grad()
        for part in parts:
            with torch.autocast("cpu", torch.float16):
                loss = model.only(part).float().square().sum()
            (scaler.scale(loss) if factor > 1 else loss).backward()
        grads.append(model.only.lora_A["default"].weight.grad / factor)
    assert grads[0].dtype == torch.float32
    torch.testing.assert_close(grads[1], grads[0], rtol=1e-2, atol=1e-2)
    torch.testing.assert_close(grads[2], grads[0], rtol=1e-2, atol=1e-2)


def test_a_frozen_adapter_passes_the_gradient_on_and_gets_none():
    theirs = build_model("nf4")
    ours, x = make_lean(theirs), torch.randn(5, 32)
    grads = []
    for model in (ours, theirs):
        model.requires_grad_(False)
        grads.append(run(model, x))
    assert grads[0].grad_a is None
    torch.testing.assert_close(grads[0].grad_x, grads[1].grad_x)


@pytest.mark.parametrize("use_reentrant", [True, False])
@pytest.mark.parametrize("kind", KINDS)
def test_recomputation_changes_no_bit(kind, use_reentrant):
    model = make_lean(build_model(kind, dtype=torch.bfloat16))
    x = torch.randn(2, 6, 32).bfloat16()
    kept = run(model, x, autocast=torch.bfloat16)
    model.zero_grad()
    given = x.clone().requires_grad_()
    with torch.autocast("cpu", torch.bfloat16):
        out = checkpoint(model.only, given, use_reentrant=use_reentrant)
    out.backward(torch.randn(out.shape, generator=torch.Generator().manual_seed(5)).to(out.dtype))
    assert torch.equal(out, kept.out)
    assert torch.equal(given.grad, kept.grad_x)
    assert torch.equal(model.only.lora_A["default"].weight.grad, kept.grad_a)
    assert model.only.shared_OI is None


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("training", [True, False])
def test_its_output_can_be_written_into(kind, training):
    model = make_lean(build_model(kind)).train(training)
    x = torch.randn(2, 5, 32, requires_grad=True)
    out = model.only(x)
    out += 1
    out.sum().backward()
    assert torch.isfinite(x.grad).all()


def test_a_distributed_model_gets_the_same_gradients(tmp_path):
    model = make_lean(build_model("nf4"))
    x = torch.randn(5, 32)
    expected = run(model, x)
    torch.distributed.init_process_group("gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    try:
        model.zero_grad()
        wrapped = nn.parallel.DistributedDataParallel(model.only, find_unused_parameters=True)
        out = wrapped(x)
        out.backward(torch.randn(out.shape, generator=torch.Generator().manual_seed(5)))
    finally:
        torch.distributed.destroy_process_group()
    assert torch.equal(model.only.lora_A["default"].weight.grad, expected.grad_a)


# ---- whole models


@pytest.mark.parametrize("quantization", ["nf4", "int8", "none"])
def test_a_whole_model_trains_saves_and_merges_as_pefts_does(tiny_model, quantization):
    settings = AdapterSettings(method="lora", r=4, lora_dropout=0.0, init_lora_weights="gaussian")
    models = [attach_adapter(load_tiny(tiny_model, quantization), settings, seed=3) for _ in range(2)]
    assert use_lean_path(models[0]) == 14
    grads = []
    for model in models:
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                nn.init.constant_(parameter, 0.01)
        loss = model.train()(input_ids=TOKENS, labels=TOKENS).loss
        loss.backward()
        grads.append({name: one.grad for name, one in model.named_parameters() if one.grad is not None})
    assert grads[0].keys() == grads[1].keys()
    for name, mine in grads[0].items():
        torch.testing.assert_close(mine, grads[1][name], rtol=1e-4, atol=1e-6, msg=name)
    saved = [get_peft_model_state_dict(model) for model in models]
    assert list(saved[0]) == list(saved[1])
    assert all(torch.equal(saved[0][name], saved[1][name]) for name in saved[0])
    assert list(models[0].state_dict()) == list(models[1].state_dict())


@pytest.mark.filterwarnings("ignore:Merge lora module")
@pytest.mark.parametrize("quantization", ["nf4", "none"])
def test_the_saved_file_and_the_merged_model_are_pefts_to_the_byte(tiny_model, quantization, tmp_path):
    settings = AdapterSettings(method="lora", r=4, lora_dropout=0.0, init_lora_weights="gaussian")
    merged = []
    for place in ("lean", "peft"):
        model = attach_adapter(load_tiny(tiny_model, quantization), settings, seed=3)
        if place == "lean":
            use_lean_path(model)
            copy.deepcopy(model)(TOKENS)
        model.save_pretrained(tmp_path / place)
        merged.append(model.merge_and_unload().state_dict())
    files = [
        sorted(one.relative_to(tmp_path / place) for one in (tmp_path / place).iterdir()) for place in ("lean", "peft")
    ]
    assert files[0] == files[1]
    for name in ("adapter_model.safetensors", "adapter_config.json"):
        assert (tmp_path / "lean" / name).read_bytes() == (tmp_path / "peft" / name).read_bytes()
    assert merged[0].keys() == merged[1].keys()
    assert all(torch.equal(merged[0][name], merged[1][name]) for name in merged[0])


@pytest.mark.slow
def test_a_run_goes_the_same_way_with_and_without(tmp_path, monkeypatch):
    fields = {"adapter__lora_dropout": 0.0, "training__max_steps": 3, "training__gradient_checkpointing": True}
    fields |= {"data__train__limit": 12}
    lean = run_small(tmp_path / "lean", **fields)
    monkeypatch.setattr("finetune.train.use_lean_path", lambda model: 0)
    plain = run_small(tmp_path / "plain", **fields)
    losses = [[line["loss"] for line in read_lines(one) if "loss" in line] for one in (lean, plain)]
    assert len(losses[0]) == 3
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)
    assert len(read_weights(lean)) == len(read_weights(plain))


def test_other_methods_than_lora_keep_their_forward(tiny_model):
    model = attach_adapter(load_tiny(tiny_model, "nf4"), AdapterSettings(method="ia3"), seed=3)
    assert use_lean_path(model) == 0


def test_a_weight_dequantized_for_a_gradient_that_never_came_is_given_back():
    model = make_lean(build_model("nf4"))
    x = torch.randn(3, 32, requires_grad=True)
    out = checkpoint(lambda value: _Interrupted.apply(model.only(value)), x, use_reentrant=False)
    with pytest.raises(torch.OutOfMemoryError):
        out.sum().backward()
    assert model.only.shared_OI is not None, "nothing was left behind, so that nothing is shown"
    forget_shared_weights(model)
    assert model.only.shared_OI is None


class _Interrupted(torch.autograd.Function):
    """Saves what it is given, so that it is recomputed, and has no memory for its gradient."""

    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return x.clone()

    @staticmethod
    def backward(ctx, grad):
        _ = ctx.saved_tensors
        raise torch.OutOfMemoryError("out of memory")
