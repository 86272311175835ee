"""Which of the base's own weights are trained, in float32, and what is told where that cannot be."""

import pytest
import torch
from transformers import OPTConfig, OPTForCausalLM

from finetune.errors import RecipeError
from finetune.model.adapters import attach_adapter, count_parameters
from finetune.model.base import load_base
from finetune.model.whole import free_weights
from finetune.recipe.schema import AdapterSettings, ModelSettings
from tests.model.tiny_models import load_tiny


def top_k(**fields: object) -> AdapterSettings:
    return AdapterSettings(method="top_k", **fields)


def freed(model: torch.nn.Module) -> set[str]:
    return {name for name, parameter in model.named_parameters() if parameter.requires_grad}


def test_the_last_layer_is_trained_with_what_stands_above_it(tiny_model):
    model = attach_adapter(load_tiny(tiny_model), top_k(layers=1), seed=0)
    last = len(model.model.layers) - 1
    assert {name for name in freed(model) if name.startswith("model.layers.")} == {
        name for name, _ in model.named_parameters() if name.startswith(f"model.layers.{last}.")
    }
    assert freed(model) - {name for name in freed(model) if name.startswith("model.layers.")} == {
        "model.norm.weight",
        "lm_head.weight",
    }


def test_without_the_head_the_layers_alone_are_trained(tiny_model):
    model = attach_adapter(load_tiny(tiny_model), top_k(layers=2, train_head=False), seed=0)
    assert {name.split(".")[1] for name in freed(model)} == {"layers"}


def test_with_no_layer_the_base_is_a_source_of_features(tiny_model):
    model = attach_adapter(load_tiny(tiny_model), top_k(layers=0), seed=0)
    assert freed(model) == {"model.norm.weight", "lm_head.weight"}
    sizes = {name: parameter.numel() for name, parameter in model.named_parameters()}
    assert count_parameters(model).trainable == sizes["model.norm.weight"] + sizes["lm_head.weight"]


def test_what_is_trained_is_held_in_float32_and_the_rest_as_it_was(tiny_model):
    model = attach_adapter(load_tiny(tiny_model, compute_dtype="bfloat16"), top_k(layers=1), seed=0)
    for name, parameter in model.named_parameters():
        assert parameter.dtype == (torch.float32 if parameter.requires_grad else torch.bfloat16), name


@pytest.mark.parametrize(
    ("fields", "told"),
    [
        ({"layers": 99}, "`adapter.layers` is 99, and the model has 2"),
        ({"layers": 0, "train_head": False}, "nothing is left to train"),
    ],
    ids=str,
)
def test_what_cannot_be_trained_is_told(tiny_model, fields, told):
    with pytest.raises(RecipeError, match=told):
        attach_adapter(load_tiny(tiny_model), top_k(**fields), seed=0)


def test_a_head_that_is_the_table_of_embeddings_stays_as_it_is(tiny_model, caplog):
    caplog.set_level("INFO", logger="finetune")
    base = load_tiny(tiny_model)
    base.model.lm_head.weight = base.model.model.embed_tokens.weight
    model = attach_adapter(base, top_k(layers=0), seed=0)
    assert freed(model) == {"model.norm.weight"}
    assert "the table of embeddings" in caplog.text


def test_a_norm_that_stands_before_the_layers_is_found_too():
    config = OPTConfig(
        vocab_size=64, hidden_size=16, num_hidden_layers=2, num_attention_heads=2, ffn_dim=32, word_embed_proj_dim=16
    )
    model = OPTForCausalLM(config).requires_grad_(False)
    free_weights(model, top_k(layers=0))
    assert {name.rpartition(".")[0] for name in freed(model)} == {"model.decoder.final_layer_norm"}


def test_the_score_of_a_reward_model_is_always_trained(tiny_model):
    settings = ModelSettings(model_name_or_path=str(tiny_model), quantization="none", device="cpu")
    model = attach_adapter(load_base(settings, head="score"), top_k(layers=1, train_head=False), seed=0)
    assert "score.weight" in freed(model)
    assert "model.norm.weight" not in freed(model)
