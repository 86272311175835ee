"""Shapes from a config's fields are those of the model that transformers builds from it."""

import pytest
import torch
from transformers import CONFIG_MAPPING

from finetune.budget.architecture import _DEFAULTS, build_architecture
from finetune.errors import RecipeError
from tests.budget.real_models import ENCODERS, SMALL, build_fields, build_model

CASES = [
    pytest.param(kind, head, num_outputs, id=f"{kind}-{head}")
    for kind in SMALL
    for head, num_outputs in (
        (("masked", 1), ("labels", 3)) if kind in ENCODERS else (("words", 1), ("labels", 3), ("score", 1))
    )
    if (kind, head) not in (("granite", "labels"), ("granite", "score"))  # transformers has none
]
# As configs write them: tied and untied embeddings, biases where the kind lets one choose.
CHANGES = [
    {"tie_word_embeddings": False},
    {"tie_word_embeddings": True, "attention_bias": True, "mlp_bias": True, "norm_bias": True, "classifier_bias": True},
]


@pytest.mark.parametrize(("kind", "head", "num_outputs"), CASES)
def test_the_numbers_and_names_are_those_of_the_real_model(kind, head, num_outputs):
    for change in CHANGES:
        if kind in ENCODERS and head == "masked" and not change["tie_word_embeddings"]:
            continue  # BERT's kind then holds its output's bias twice
        fields = build_fields(kind, **change)
        model = build_model(fields, head=head, num_outputs=num_outputs)
        architecture = build_architecture(fields, head=head, num_outputs=num_outputs)
        assert architecture.num_parameters == sum(parameter.numel() for parameter in model.parameters())
        output = model.get_output_embeddings()
        linears = {
            name: (module.in_features, module.out_features, module.bias is not None)
            for name, module in model.named_modules()
            if isinstance(module, torch.nn.Linear) and module is not output
        }
        fresh = [(linear.path, linear) for linear in architecture.fresh_linears]
        assert linears == {
            name: (linear.in_features, linear.out_features, linear.has_bias)
            for name, linear in [*architecture.find_linears(), *fresh]
        }
        norms = {name for name, module in model.named_modules() if "norm" in type(module).__name__.lower()}
        assert norms == {name for name, _ in architecture.find_norms()}
        shapes = sorted(tuple(parameter.shape) for parameter in model.parameters())
        assert shapes == sorted(architecture.find_shapes())


@pytest.mark.parametrize("kind", sorted(_DEFAULTS))
def test_what_a_config_leaves_out_is_what_transformers_takes(kind):
    config = CONFIG_MAPPING[kind]().to_dict()
    assert {name: config[name] for name in _DEFAULTS[kind]} == _DEFAULTS[kind]
    ours = build_architecture({"model_type": kind}, head="masked" if kind in ENCODERS else "words")
    assert ours.num_kv_heads == config.get("num_key_value_heads", ours.num_heads)


@pytest.mark.parametrize("says_kind", [True, False])
def test_of_a_model_of_text_and_images_the_language_model_is_counted_and_the_rest_estimated(says_kind):
    text = {**SMALL["gemma3_text"], **({"model_type": "gemma3_text"} if says_kind else {})}
    tower = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
    fields = {"model_type": "gemma3", "text_config": text, "vision_config": tower}
    architecture = build_architecture(fields)
    model = build_model(fields)
    inside = {name: parameter for name, parameter in model.named_parameters() if "language_model" in name}
    assert architecture.num_parameters - architecture.num_other_parameters == sum(map(torch.numel, inside.values()))
    assert architecture.num_other_parameters == 2 * (4 * 32 * 32 + 2 * 32 * 64)
    names = {f"{name}.weight" for name, _ in [*architecture.find_linears(), *architecture.find_norms()]}
    assert names | {f"{architecture.embeddings_path}.weight"} == inside.keys()


def test_a_text_config_of_an_unknown_kind_is_told():
    with pytest.raises(RecipeError, match="The shapes of a `llama4_text` model are not known here"):
        build_architecture({"model_type": "llama4", "text_config": {"hidden_size": 64}})


def test_the_layers_run_in_the_order_they_are_named():
    architecture = build_architecture(build_fields("mistral"))
    names = [linear.name for linear in architecture.linears]
    assert names == ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
    # n = 2 d d + 2 d k + 3 d f with d = 48, k = 16 (two heads of 8), f = 80.
    assert architecture.num_linear_weights == 2 * 48 * 48 + 2 * 48 * 16 + 3 * 48 * 80


def test_a_kind_without_known_shapes_is_told_with_those_that_are():
    with pytest.raises(RecipeError, match="The shapes of a `mamba` model are not known here") as told:
        build_architecture({"model_type": "mamba"})
    assert "mistral" in str(told.value)


def test_a_size_that_is_no_number_is_told():
    with pytest.raises(RecipeError, match="has a size that cannot be used"):
        build_architecture({"model_type": "llama", "hidden_size": "wide"})
    for name, size in (("hidden_size", -5), ("num_hidden_layers", 0), ("vocab_size", 0.5)):
        with pytest.raises(RecipeError, match=f"`{name}` is {size}, and a size is a whole number from 1 on"):
            build_architecture({"model_type": "llama", name: size})
    with pytest.raises(RecipeError, match="names no `model_type`"):
        build_architecture({"hidden_size": 64})
