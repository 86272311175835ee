"""Adapters are counted as PEFT attaches and saves them: every trained number, every tensor of the file by its name."""

import logging

import pytest
from peft import PeftModel, get_peft_model_state_dict

from finetune.budget.adapter import build_adapter
from finetune.budget.architecture import build_architecture
from finetune.errors import RecipeError
from finetune.model.adapters import attach_adapter, count_parameters
from finetune.recipe.schema import AdapterSettings
from tests.budget.real_models import build_base, build_fields

METHODS = [
    {"method": "lora"},
    {"method": "lora", "r": 3, "target_modules": ["q_proj", "down_proj"]},
    {"method": "lora", "target_modules": r".*\.1\..*_proj"},
    {"method": "lora", "use_dora": True, "exclude_modules": ["up_proj"]},
    {"method": "lora", "rank_pattern": {"q_proj": 5, "layers.1.mlp.up_proj": 7}},
    {"method": "lora", "lora_bias": True, "target_modules": ["v_proj"], "layers_to_transform": [0, 2]},
    {"method": "lora", "modules_to_save": ["lm_head", "embed_tokens"]},
    {"method": "adalora", "total_step": 100},
    {"method": "vera", "r": 5},
    {"method": "loha"},
    {"method": "hra", "r": 6},
    {"method": "ia3"},
    {"method": "bitfit"},
    {"method": "ln_tuning"},
    {"method": "bottleneck", "size": 5},
    {"method": "bottleneck", "variant": "pfeiffer"},
]
# Their vectors are made by a network, and a model without memory has none to save.
PROMPTS = [
    {"method": "prompt_tuning", "num_virtual_tokens": 5},
    {"method": "p_tuning", "num_virtual_tokens": 5, "encoder_hidden_size": 7},
    {"method": "prefix_tuning", "num_virtual_tokens": 5},
    {"method": "prefix_tuning", "num_virtual_tokens": 5, "prefix_projection": True, "encoder_hidden_size": 9},
    {"method": "combined", "parts": [{"method": "lora", "r": 4}, {"method": "bitfit"}]},
    {"method": "full"},
    {"method": "top_k"},
    {"method": "top_k", "layers": 3, "train_head": False},
]
# Of what PEFT says about layers without a bias, and about norms, whose own switch is another one.
pytestmark = [
    pytest.mark.filterwarnings("ignore:`lora_bias=True` was passed"),
    pytest.mark.filterwarnings("ignore:Unsupported layer type"),
    pytest.mark.filterwarnings("ignore:Adapter 'default'"),
    pytest.mark.filterwarnings("ignore:Invalid `oft_block_size`"),
]
ENCODER_METHODS = [{"method": name} for name in ("lora", "ia3", "bitfit", "ln_tuning", "full", "top_k")]


@pytest.fixture(autouse=True)
def quiet():
    logging.disable(logging.WARNING)
    yield
    logging.disable(logging.NOTSET)


def attach(kind, head, num_outputs, settings, **changes):
    fields = build_fields(kind, **changes)
    section = AdapterSettings.model_validate(settings)
    shape = build_adapter(build_architecture(fields, head=head, num_outputs=num_outputs), section)
    return shape, attach_adapter(build_base(fields, head=head, num_outputs=num_outputs), section, seed=0)


@pytest.mark.parametrize("settings", METHODS, ids=lambda settings: "-".join(map(str, settings.values()))[:40])
def test_an_adapters_tensors_are_those_that_peft_saves(settings):
    check_tensors(*attach("mistral", "words", 1, settings))


@pytest.mark.parametrize("bias", ["lora_only", "all"])
def test_biases_of_the_base_are_counted_where_lora_trains_them(bias):
    settings = {"method": "lora", "bias": bias, "target_modules": ["q_proj", "down_proj"]}
    check_tensors(*attach("qwen2", "words", 1, settings))


def test_an_adapter_beside_experts_is_counted():
    check_tensors(*attach("mixtral", "words", 1, {"method": "lora"}))


def test_a_reward_models_adapter_is_saved_with_its_score():
    check_tensors(*attach("qwen3", "score", 1, {"method": "lora", "modules_to_save": ["embed_tokens"]}))


def check_tensors(shape, model):
    assert shape.is_exact
    assert shape.num_parameters == count_parameters(model).trainable
    saved = {name: tuple(tensor.shape) for name, tensor in get_peft_model_state_dict(model).items()}
    assert {tensor.name: tensor.shape for tensor in shape.tensors if tensor.is_saved} == saved


@pytest.mark.parametrize("settings", PROMPTS, ids=lambda settings: "-".join(map(str, settings.values()))[:40])
def test_what_has_no_file_without_memory_is_counted_too(settings):
    shape, model = attach("mistral", "words", 1, settings)
    assert shape.is_exact
    assert shape.num_parameters == count_parameters(model).trainable
    assert shape.is_whole is not isinstance(model, PeftModel)


@pytest.mark.parametrize("kind", ["roberta", "bert", "modernbert", "distilbert"])
def test_a_classifier_is_counted_with_its_head(kind):
    for settings in ENCODER_METHODS:
        if settings["method"] == "ia3" and kind in ("modernbert", "distilbert"):
            continue  # PEFT has no targets for these kinds
        shape, model = attach(kind, "labels", 3, settings)
        assert shape.is_exact
        assert shape.num_parameters == count_parameters(model).trainable, settings


@pytest.mark.parametrize("method", ["oft", "lokr", "hira"])
def test_a_method_without_a_rule_is_an_estimate_on_the_high_side_and_says_so(method):
    shape, model = attach("mistral", "words", 1, {"method": method})
    assert not shape.is_exact
    assert shape.num_parameters >= count_parameters(model).trainable


def test_a_start_beside_the_base_doubles_the_rank():
    architecture = build_architecture(build_fields("mistral"))
    plain, started = (
        build_adapter(architecture, AdapterSettings.model_validate({"method": "lora", "r": 4, **start}))
        for start in ({}, {"init_lora_weights": "pissa"})
    )
    assert (plain.r, started.r) == (4, 8)
    assert started.num_parameters == 2 * plain.num_parameters


def test_a_layer_that_is_not_there_is_told_with_those_that_are():
    settings = AdapterSettings.model_validate({"method": "lora", "target_modules": ["query"]})
    with pytest.raises(RecipeError, match="no linear layer is called query") as told:
        build_adapter(build_architecture(build_fields("mistral")), settings)
    assert "q_proj" in str(told.value)
