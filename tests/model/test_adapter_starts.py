import bitsandbytes as bnb
import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file

from finetune.model.adapters import attach_adapter
from finetune.recipe.schema import AdapterSettings
from tests.model.tiny_models import load_tiny

TOKENS = torch.arange(24).reshape(2, 12)
STARTS = ["pissa", "pissa_niter_4", "olora"]
FLAGS = [
    {"use_rslora": True},
    {"use_dora": True},
    {"init_lora_weights": "gaussian"},
    *({"init_lora_weights": start} for start in STARTS),
]


def lora(**fields: object) -> AdapterSettings:
    return AdapterSettings(method="lora", **({"r": 4, "lora_alpha": 8} | fields))


def logits_of(model: torch.nn.Module) -> torch.Tensor:
    with torch.no_grad():
        return model.eval()(input_ids=TOKENS).logits


def train(model: torch.nn.Module, num_steps: int = 1) -> None:
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-2, weight_decay=0)
    for _ in range(num_steps):
        model.train()(input_ids=TOKENS, labels=TOKENS).loss.backward()
        optimizer.step()
        optimizer.zero_grad()


def q_proj(model: torch.nn.Module) -> torch.nn.Module:
    return model.base_model.model.model.layers[0].self_attn.q_proj


@pytest.mark.parametrize("quantization", ["nf4", "int8", "none"])
@pytest.mark.parametrize("fields", FLAGS, ids=str)
def test_loras_own_flags_change_nothing_at_the_start_and_train(tiny_model, tmp_path, quantization, fields):
    if quantization == "int8" and "use_dora" in fields:
        pytest.skip("refused with the recipe")
    before = logits_of(load_tiny(tiny_model, quantization).model)
    model = attach_adapter(load_tiny(tiny_model, quantization), lora(**fields), seed=0)
    torch.testing.assert_close(logits_of(model), before, rtol=1e-4, atol=1e-4)
    train(model)
    assert not torch.allclose(logits_of(model), before, atol=1e-4)
    model.save_pretrained(tmp_path)
    opened = PeftModel.from_pretrained(load_tiny(tiny_model, quantization).model, tmp_path)
    torch.testing.assert_close(logits_of(opened), logits_of(model), rtol=0, atol=1e-6)


@pytest.mark.parametrize("start", STARTS)
@pytest.mark.parametrize("use_rslora", [False, True])
def test_a_start_against_the_base_is_saved_as_a_plain_lora_of_twice_the_rank(tiny_model, start, use_rslora):
    plain = attach_adapter(load_tiny(tiny_model), lora(use_rslora=use_rslora), seed=0)
    model = attach_adapter(load_tiny(tiny_model), lora(use_rslora=use_rslora, init_lora_weights=start), seed=0)
    config = model.peft_config["default"]
    assert (config.r, config.init_lora_weights) == (8, True)
    assert q_proj(model).scaling["default"] == pytest.approx(q_proj(plain).scaling["default"])


@pytest.mark.parametrize("start", ["pissa", "olora"])
def test_a_start_against_the_base_takes_the_steps_that_pefts_own_takes(tiny_model, start):
    ours = attach_adapter(load_tiny(tiny_model), lora(init_lora_weights=start), seed=0)
    from peft import LoraConfig, get_peft_model

    config = LoraConfig(r=4, lora_alpha=8, init_lora_weights=start, target_modules="all-linear", task_type="CAUSAL_LM")
    theirs = get_peft_model(load_tiny(tiny_model).model, config)
    torch.testing.assert_close(logits_of(ours), logits_of(theirs), rtol=1e-4, atol=1e-4)
    for model in (ours, theirs):
        train(model, num_steps=3)
    torch.testing.assert_close(logits_of(ours), logits_of(theirs), rtol=1e-2, atol=1e-2)


def test_the_half_that_is_subtracted_stays_where_it_started(tiny_model):
    model = attach_adapter(load_tiny(tiny_model, "nf4"), lora(init_lora_weights="pissa"), seed=0)
    lora_A, lora_B = q_proj(model).lora_A["default"].weight, q_proj(model).lora_B["default"].weight
    fixed = lora_A[4:].detach().clone(), lora_B[:, 4:].detach().clone()
    trained = lora_A[:4].detach().clone(), lora_B[:, :4].detach().clone()
    train(model, num_steps=2)
    assert torch.equal(lora_A[4:], fixed[0])
    assert torch.equal(lora_B[:, 4:], fixed[1])
    assert not torch.equal(lora_A[:4], trained[0])
    assert not torch.equal(lora_B[:, :4], trained[1])


def test_pissa_starts_at_the_largest_singular_values(tiny_model):
    model = attach_adapter(load_tiny(tiny_model), lora(init_lora_weights="pissa"), seed=0)
    layer = q_proj(model)
    product = layer.scaling["default"] * layer.lora_B["default"].weight[:, :4] @ layer.lora_A["default"].weight[:4]
    expected = torch.linalg.svdvals(layer.get_base_layer().weight)
    torch.testing.assert_close(torch.linalg.svdvals(product)[:4], expected[:4], rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("lora_alpha", [4, 16])
def test_loftq_mends_a_part_of_the_rounding_whatever_the_scaling(tiny_model, tmp_path, lora_alpha):
    model = attach_adapter(
        load_tiny(tiny_model, "nf4"), lora(init_lora_weights="loftq", r=16, lora_alpha=lora_alpha), seed=0
    )
    layer = q_proj(model)
    true = load_file(tiny_model / "model.safetensors")["model.layers.0.self_attn.q_proj.weight"]
    held = layer.get_base_layer().weight
    held = bnb.functional.dequantize_4bit(held.data, held.quant_state).float()
    mended = held + layer.get_delta_weight("default").float()
    assert (true - mended).norm() < 0.8 * (true - held).norm()
    train(model)
    model.save_pretrained(tmp_path)
    opened = PeftModel.from_pretrained(load_tiny(tiny_model, "nf4").model, tmp_path)
    torch.testing.assert_close(logits_of(opened), logits_of(model), rtol=0, atol=1e-6)


@pytest.mark.parametrize("start", ["mica", "orthogonal"])
def test_a_start_that_reads_16_bit_weights_trains_on_them(tiny_model, start):
    train(attach_adapter(load_tiny(tiny_model), lora(init_lora_weights=start), seed=0))
