"""The lean path and resident weights on a real GPU, where bitsandbytes chooses its kernel by the number of rows.

`make test-gpu` runs these.
"""

import copy

import bitsandbytes as bnb
import pytest
import torch
from peft import LoraConfig, inject_adapter_in_model
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from finetune.model.frozen_weights import keep_resident, to_full_weight
from finetune.model.lean import use_lean_path

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device"),
    pytest.mark.timeout(300),
]

NUM_IN, NUM_OUT = 1024, 3072
FEW, MANY = 64, 4096  # rows: bitsandbytes multiplies few by a kernel of its own, and dequantizes for many


def choose_dtype() -> torch.dtype:
    return torch.bfloat16 if torch.cuda.get_device_capability() >= (8, 0) else torch.float16


def build(kind: str) -> nn.Module:
    """Build a module of one linear on the GPU, `only`, with LoRA by PEFT, in float32 as a run holds it."""
    torch.manual_seed(0)
    model, dtype = nn.Module(), choose_dtype()
    full = nn.Linear(NUM_IN, NUM_OUT, bias=False).to(dtype)
    if kind == "int8":
        linear = bnb.nn.Linear8bitLt(NUM_IN, NUM_OUT, bias=False, has_fp16_weights=False)
        linear.load_state_dict(full.state_dict())
    elif kind == "full":
        linear = full
    else:
        linear = bnb.nn.Linear4bit(NUM_IN, NUM_OUT, bias=False, compute_dtype=dtype, quant_type=kind)
        linear.weight.data = full.weight.data
    model.only = linear.requires_grad_(False).cuda()
    model.is_loaded_in_4bit, model.is_loaded_in_8bit = kind in ("nf4", "fp4"), kind == "int8"
    inject_adapter_in_model(LoraConfig(r=16, lora_alpha=16, target_modules=["only"]), model)
    for matrix in (model.only.lora_A["default"], model.only.lora_B["default"]):
        matrix.float().cuda()
    nn.init.normal_(model.only.lora_B["default"].weight, std=0.02)
    return model.train()


def run(model: nn.Module, num_rows: int, *, use_reentrant: bool | None = None) -> list[Tensor]:
    """Run forward and backward; output, and the gradients of input, A and B."""
    generator = torch.Generator("cuda").manual_seed(5)
    x = torch.randn(num_rows, NUM_IN, device="cuda", generator=generator).to(choose_dtype()).requires_grad_()
    gradient = torch.randn(num_rows, NUM_OUT, device="cuda", generator=generator)
    model.zero_grad()
    with torch.autocast("cuda", choose_dtype()):
        out = model.only(x) if use_reentrant is None else checkpoint(model.only, x, use_reentrant=use_reentrant)
    out.backward(gradient.to(out.dtype))
    layer = model.only
    return [out.detach(), x.grad, layer.lora_A["default"].weight.grad, layer.lora_B["default"].weight.grad]


def to_exact(model: nn.Module, num_rows: int) -> list[Tensor]:
    """The same in float64, from the numbers that are multiplied."""
    generator, dtype = torch.Generator("cuda").manual_seed(5), choose_dtype()
    x = torch.randn(num_rows, NUM_IN, device="cuda", generator=generator).to(dtype).double().requires_grad_()
    gradient = torch.randn(num_rows, NUM_OUT, device="cuda", generator=generator).to(dtype).double()
    layer = model.only
    a, b = (one["default"].weight.detach().to(dtype).double().requires_grad_() for one in (layer.lora_A, layer.lora_B))
    weight = to_full_weight(layer.get_base_layer(), dtype).double()
    out = x @ weight.T + x @ a.T @ b.T * layer.scaling["default"]
    out.backward(gradient)
    return [out.detach(), x.grad, a.grad, b.grad]


@pytest.mark.parametrize("kind", ["nf4", "fp4", "full"])
@pytest.mark.parametrize("num_rows", [FEW, MANY])
def test_outputs_and_gradients_are_as_exact_as_pefts(kind, num_rows):
    theirs = build(kind)
    ours = copy.deepcopy(theirs)
    assert use_lean_path(ours) == 1
    for mine, peft, exact in zip(run(ours, num_rows), run(theirs, num_rows), to_exact(theirs, num_rows), strict=True):
        errors = [((one.double() - exact).norm() / exact.norm()).item() for one in (mine, peft)]
        assert errors[0] <= 1.2 * errors[1]


def test_int8_gives_pefts_outputs_and_gradients_up_to_rounding():
    theirs = build("int8")
    ours = copy.deepcopy(theirs)
    assert use_lean_path(ours) == 1
    for mine, peft in zip(run(ours, MANY), run(theirs, MANY), strict=True):
        assert ((mine - peft).float().norm() / peft.float().norm()).item() < 0.01


@pytest.mark.parametrize("num_rows", [FEW, MANY])
def test_neither_recomputation_nor_a_resident_copy_changes_a_bit_of_the_lean_path(num_rows):
    model = build("nf4")
    use_lean_path(model)
    expected = run(model, num_rows)
    for keeps in (False, True):
        if keeps:
            assert keep_resident(model.only.base_layer) == NUM_IN * NUM_OUT * 2
        for use_reentrant in (None, True, False):
            found = run(model, num_rows, use_reentrant=use_reentrant)
            assert all(torch.equal(one, other) for one, other in zip(found, expected, strict=True))


@pytest.mark.parametrize("num_rows", [FEW, MANY])
def test_a_copy_gives_pefts_own_path_the_same_numbers_where_bitsandbytes_dequantizes(num_rows):
    model = build("nf4")
    expected = run(model, num_rows)
    keep_resident(model.only.base_layer)
    for mine, peft in zip(run(model, num_rows), expected, strict=True):
        if num_rows == MANY:
            assert torch.equal(mine, peft)
        else:  # its kernel for few rows sums in another order
            assert ((mine - peft).float().norm() / peft.float().norm()).item() < 0.01


def test_what_is_evaluated_does_not_depend_on_a_copy():
    model = build("nf4").eval()
    use_lean_path(model)
    x = torch.randn(1, NUM_IN, device="cuda").to(choose_dtype())
    with torch.no_grad(), torch.autocast("cuda", choose_dtype()):
        expected = model.only(x)
        keep_resident(model.only.base_layer)
        assert torch.equal(model.only(x), expected)


@pytest.mark.filterwarnings("ignore:Synchronization debug mode is a prototype")
def test_a_step_never_waits_for_the_device():
    model = build("nf4")
    use_lean_path(model)
    run(model, MANY, use_reentrant=False)
    torch.cuda.set_sync_debug_mode("error")
    try:
        run(model, MANY, use_reentrant=False)
    finally:
        torch.cuda.set_sync_debug_mode("default")


def test_a_forward_pass_takes_the_memory_of_its_output_alone():
    model = build("full")
    peaks = []
    for lean in (False, True):
        if lean:
            use_lean_path(model)
        x = torch.randn(MANY, NUM_IN, device="cuda").to(choose_dtype()).requires_grad_()
        with torch.autocast("cuda", choose_dtype()):
            model.only(x)
            torch.cuda.synchronize()
            torch.cuda.reset_peak_memory_stats()
            before = torch.cuda.memory_allocated()
            model.only(x)
        peaks.append(torch.cuda.max_memory_allocated() - before)
    output_bytes = MANY * NUM_OUT * 2
    assert peaks[0] > 2 * output_bytes
    assert peaks[1] < 1.2 * output_bytes
