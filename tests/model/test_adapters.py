from pathlib import Path

import pytest
import torch
from peft import PeftModel
from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING
from transformers import AutoConfig, TrainerControl, TrainerState

from finetune.errors import PlaceError, RecipeError
from finetune.model.adapters import (
    OWN_TARGETS,
    adapter_bytes,
    attach_adapter,
    check_adapter,
    count_parameters,
)
from finetune.model.base import load_base
from finetune.model.rank_allocation import RankAllocation
from finetune.recipe.catalogue import EMBEDDING_METHODS, PROMPT_METHODS, QUANTIZABLE_METHODS, UNTRAINABLE_METHODS
from finetune.recipe.schema import AdapterSettings, ModelSettings
from tests.model.tiny_models import NUM_PARAMETERS, SHAPE, load_tiny

TOKENS = torch.arange(24).reshape(2, 12)
METHODS = sorted(kind.value.lower() for kind in PEFT_TYPE_TO_CONFIG_MAPPING)

# What a method needs beside its defaults, or its defaults are too large for layers of 64.
FIELDS: dict[str, dict[str, object]] = {
    "adalora": {"total_step": 10},
    "combined": {"parts": [{"method": "bottleneck", "size": 4}, {"method": "bitfit"}]},
    "adaption_prompt": {"adapter_len": 4, "adapter_layers": 2},
    "c3a": {"block_size": 16},
    "cartridge": {"num_virtual_tokens": 4, "num_frozen_tokens": 0},
    "p_tuning": {"num_virtual_tokens": 4},
    "prefix_tuning": {"num_virtual_tokens": 4},
    "prompt_tuning": {"num_virtual_tokens": 4},
    "road": {"group_size": 16},
    "shira": {"r": 2},
    "trainable_tokens": {"token_indices": [1, 2]},
    "vblora": {"vector_length": 16, "num_vectors": 8},
    "waveft": {"n_frequency": 64},
}
# Methods that are not tried here, and why.
SKIPPED = UNTRAINABLE_METHODS
# PEFT's own words to whoever chooses these methods; not faults.
WORDS_OF_PEFT = pytest.mark.filterwarnings("ignore::UserWarning:peft", "ignore::RuntimeWarning:peft")


def adapter(method: str = "lora", **fields: object) -> AdapterSettings:
    return AdapterSettings(method=method, **(FIELDS.get(method, {}) | fields))


def take_a_step(model: torch.nn.Module) -> None:
    trainable = [parameter for parameter in model.parameters() if parameter.requires_grad]
    model.train()(input_ids=TOKENS, labels=TOKENS).loss.backward()
    gradients = [parameter.grad for parameter in trainable if parameter.grad is not None]
    assert gradients
    assert all(torch.isfinite(gradient).all() for gradient in gradients)
    torch.optim.SGD(trainable, lr=0.1).step()


def logits_of(model: torch.nn.Module) -> torch.Tensor:
    with torch.no_grad():
        return model.eval()(input_ids=TOKENS).logits


def check_trains_saves_and_opens(tiny_model: Path, quantization: str, method: str, folder: Path) -> None:
    base = load_tiny(tiny_model, quantization)
    parameters_of_base = {id(parameter) for parameter in base.model.parameters()}
    model = attach_adapter(base, adapter(method), seed=0)
    trainable = [parameter for parameter in model.parameters() if parameter.requires_grad]
    assert trainable
    assert not any(id(parameter) in parameters_of_base for parameter in trainable)
    take_a_step(model)
    model.save_pretrained(folder)
    opened = PeftModel.from_pretrained(load_tiny(tiny_model, quantization).model, folder)
    torch.testing.assert_close(logits_of(opened), logits_of(model), rtol=0, atol=1e-6)


@WORDS_OF_PEFT
@pytest.mark.parametrize("method", [method for method in METHODS if method not in SKIPPED])
def test_a_method_trains_alone_and_opens_as_it_was_saved(tiny_model, tmp_path, method):
    check_trains_saves_and_opens(tiny_model, "none", method, tmp_path)


@WORDS_OF_PEFT
@pytest.mark.parametrize("quantization", ["nf4", "int8"])
@pytest.mark.parametrize("method", sorted(QUANTIZABLE_METHODS | PROMPT_METHODS | EMBEDDING_METHODS))
def test_a_method_that_can_sits_on_a_quantized_base(tiny_model, tmp_path, method, quantization):
    if method in SKIPPED:
        pytest.skip(SKIPPED[method])
    check_trains_saves_and_opens(tiny_model, quantization, method, tmp_path)


def test_a_method_that_needs_a_package_names_it(tiny_model, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "sklearn", None)
    with pytest.raises(PlaceError, match="scikit-learn"):
        attach_adapter(load_tiny(tiny_model), adapter("adamss"), seed=0)


def test_every_method_is_tried_or_stands_among_those_that_are_not():
    assert set(FIELDS) | OWN_TARGETS | set(SKIPPED) <= set(METHODS)


def test_lora_sits_on_every_linear_layer_but_the_head_by_default(tiny_model):
    model = attach_adapter(load_tiny(tiny_model), adapter(r=4), seed=0)
    targets = model.peft_config["default"].target_modules
    assert targets == {"q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"}


def test_named_targets_are_the_only_ones(tiny_model):
    model = attach_adapter(load_tiny(tiny_model), adapter(r=4, target_modules=["q_proj", "v_proj"]), seed=0)
    names = {name.split(".lora_")[0].rpartition(".")[2] for name, p in model.named_parameters() if p.requires_grad}
    assert names == {"q_proj", "v_proj"}
    assert count_parameters(model).trainable == 2 * 4 * (64 + 64 + 64 + 32)


@pytest.mark.parametrize("targets", [["q_proj", "query_key_value"], "query_key_value"])
def test_one_unknown_target_is_an_error_that_lists_the_linear_layers(tiny_model, targets):
    with pytest.raises(RecipeError, match="the model has no module `query_key_value`") as refusal:
        attach_adapter(load_tiny(tiny_model), adapter(target_modules=targets), seed=0)
    assert "down_proj, gate_proj, k_proj, o_proj, q_proj, up_proj, v_proj" in str(refusal.value)


def test_a_value_that_peft_refuses_is_a_fault_of_the_recipe(tiny_model):
    with pytest.raises(RecipeError, match=r"PEFT refuses lora so: .*positive integer"):
        attach_adapter(load_tiny(tiny_model), adapter(r=0), seed=0)


def test_what_peft_asks_of_the_values_alone_is_known_before_a_weight_is_loaded():
    with pytest.raises(RecipeError, match=r"PEFT refuses adalora so: .*total_step"):
        check_adapter(AdapterSettings(method="adalora"))
    with pytest.raises(RecipeError, match=r"PEFT refuses adalora so: .*DoRA"):
        check_adapter(adapter("adalora", use_dora=True))
    for settings in (adapter(), adapter(init_lora_weights="loftq"), adapter("adalora"), adapter("full")):
        check_adapter(settings)


@pytest.mark.parametrize("quantization", ["nf4", "int8", "none"])
def test_parameters_are_counted_at_their_true_number(tiny_model, quantization):
    base = load_tiny(tiny_model, quantization)
    assert count_parameters(base.model).total == NUM_PARAMETERS
    assert count_parameters(base.model).trainable == 0
    # r (in + out) of q, k, v, o, gate, up and down, in each of two layers.
    lora = 2 * 8 * ((64 + 64) * 2 + (64 + 32) * 2 + (64 + 128) * 3)
    counted = count_parameters(attach_adapter(base, adapter(r=8), seed=0))
    assert (counted.trainable, counted.total) == (lora, NUM_PARAMETERS + lora)


def test_tied_embeddings_are_counted_once():
    settings = {"weights": "random", "config": SHAPE | {"tie_word_embeddings": True}, "device": "cpu"}
    assert count_parameters(load_base(ModelSettings(**settings)).model).total == NUM_PARAMETERS - 128 * 64


def test_full_trains_every_weight_in_float32(tiny_model):
    base = load_tiny(tiny_model, compute_dtype="bfloat16")
    model = attach_adapter(base, adapter("full"), seed=0)
    assert count_parameters(model).trainable == NUM_PARAMETERS
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}
    take_a_step(model)


def test_the_same_seed_starts_the_same_adapter_and_another_another(tiny_model):
    starts = []
    for seed in (1, 1, 2):
        model = attach_adapter(load_tiny(tiny_model), adapter(), seed=seed)
        starts.append(model.base_model.model.model.layers[0].self_attn.q_proj.lora_A["default"].weight)
    assert torch.equal(starts[0], starts[1])
    assert not torch.equal(starts[0], starts[2])


def test_the_adapter_names_its_base_and_what_it_is_for(tiny_model):
    config = attach_adapter(load_tiny(tiny_model), adapter(), seed=0).peft_config["default"]
    assert config.base_model_name_or_path == str(tiny_model)
    assert config.task_type == "CAUSAL_LM"
    assert config.revision is None


def test_the_size_of_an_adapter_is_that_of_its_weights(tiny_model, tmp_path):
    model = attach_adapter(load_tiny(tiny_model), adapter(r=8), seed=0)
    model.save_pretrained(tmp_path)
    weights_bytes = 4 * count_parameters(model).trainable
    assert weights_bytes < adapter_bytes(tmp_path) < weights_bytes + 8192
    assert adapter_bytes(tmp_path) == (tmp_path / "adapter_model.safetensors").stat().st_size


def test_adalora_prunes_its_ranks_to_the_budget_as_it_trains(tiny_model):
    settings = adapter("adalora", init_r=8, target_r=2, tinit=1, tfinal=2, deltaT=1, total_step=8)
    model = attach_adapter(load_tiny(tiny_model), settings, seed=0)
    callback = RankAllocation()
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-2)
    for step in range(7):
        model.train()(input_ids=TOKENS, labels=TOKENS).loss.backward()
        optimizer.step()
        callback.on_optimizer_step(None, TrainerState(global_step=step), TrainerControl(), model=model)
        optimizer.zero_grad()
    singular_values = [p for name, p in model.named_parameters() if "lora_E" in name]
    kept = sum(int((values != 0).sum()) for values in singular_values)
    assert kept <= 2 * len(singular_values) < 8 * len(singular_values)


def test_rank_allocation_leaves_other_adapters_alone(tiny_model):
    model = attach_adapter(load_tiny(tiny_model), adapter(), seed=0)
    RankAllocation().on_optimizer_step(None, TrainerState(), TrainerControl(), model=model)


def test_a_base_of_another_architecture_takes_all_linear_too():
    fields = {"model_type": "gpt2", "n_embd": 64, "n_layer": 2, "n_head": 4, "vocab_size": 128, "n_positions": 64}
    base = load_base(ModelSettings(weights="random", config=fields, device="cpu"))
    assert AutoConfig.for_model(**fields).model_type == base.model.config.model_type
    take_a_step(attach_adapter(base, adapter(), seed=0))
