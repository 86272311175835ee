import itertools
import json

import pytest
import torch
from torch.profiler import ProfilerActivity, profile
from transformers import AutoConfig, AutoModelForCausalLM, set_seed

from finetune.errors import RecipeError
from finetune.model.adapters import count_parameters
from finetune.model.base import BaseModel, check_base, load_base
from finetune.recipe.schema import ModelSettings
from tests.model.tiny_models import SHAPE, load_tiny

TOKENS = torch.arange(24).reshape(2, 12)


def load_random(seed: int = 1, quantization: str = "none", **fields: object) -> BaseModel:
    settings = {"weights": "random", "config": SHAPE, "compute_dtype": "float32", "device": "cpu"} | fields
    return load_base(ModelSettings(quantization=quantization, **settings), seed=seed)


@pytest.mark.parametrize("quantization", ["nf4", "int8", "none"])
def test_a_random_model_is_built_as_a_loaded_one_is(tiny_model, quantization):
    built, loaded = load_random(quantization=quantization).model, load_tiny(tiny_model, quantization).model
    assert [(name, type(module)) for name, module in built.named_modules()] == [
        (name, type(module)) for name, module in loaded.named_modules()
    ]
    for ours, theirs in zip(built.named_parameters(), loaded.named_parameters(), strict=True):
        assert ours[0] == theirs[0]
        assert describe(ours[1]) == describe(theirs[1])
    assert torch.equal(built.model.rotary_emb.inv_freq, loaded.model.rotary_emb.inv_freq)
    assert torch.isfinite(built(TOKENS).logits).all()


def describe(parameter: torch.nn.Parameter) -> tuple[object, ...]:
    return type(parameter), parameter.shape, parameter.dtype, parameter.device, parameter.requires_grad


def test_the_same_seed_gives_the_same_numbers_and_another_seed_others():
    first, again, other = (load_random(seed, "nf4").model(TOKENS).logits for seed in (1, 1, 2))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_building_leaves_the_callers_random_numbers_as_they_were():
    set_seed(7)
    expected = torch.rand(3)
    set_seed(7)
    load_random()
    assert torch.equal(torch.rand(3), expected)


def test_the_numbers_are_spread_as_the_architecture_spreads_them():
    ours = load_random(config=SHAPE | {"initializer_range": 0.3}).model
    set_seed(1)
    theirs = AutoModelForCausalLM.from_config(AutoConfig.for_model(**SHAPE, initializer_range=0.3))
    for (name, mine), (_, other) in zip(ours.named_parameters(), theirs.named_parameters(), strict=True):
        if mine.ndim == 2:
            assert mine.std().item() == pytest.approx(other.std().item(), rel=0.1), name
            assert abs(mine.mean().item()) < 0.03, name
        else:
            assert torch.equal(mine, other), name


def test_quantized_numbers_are_the_unquantized_ones_rounded():
    exact = load_random(quantization="none").model.model.layers[1].mlp.down_proj.weight
    layer = load_random(quantization="nf4").model.model.layers[1].mlp.down_proj
    identity = torch.eye(layer.in_features)
    rounded = layer(identity).T
    assert torch.nn.functional.cosine_similarity(exact.flatten(), rounded.flatten(), dim=0) > 0.99


@pytest.mark.parametrize("quantization", ["nf4", "none"])
def test_tied_embeddings_are_one_tensor(quantization):
    model = load_random(quantization=quantization, config=SHAPE | {"tie_word_embeddings": True}).model
    assert model.lm_head.weight is model.model.embed_tokens.weight
    assert torch.isfinite(model(TOKENS).logits).all()


@pytest.mark.parametrize(
    "fields",
    [
        {"model_type": "gpt2", "n_embd": 64, "n_layer": 2, "n_head": 4, "vocab_size": 128, "n_positions": 64},
        {
            "model_type": "gemma2",
            "vocab_size": 128,
            "hidden_size": 64,
            "intermediate_size": 128,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "head_dim": 16,
        },
        {
            "model_type": "qwen2",
            "vocab_size": 128,
            "hidden_size": 64,
            "intermediate_size": 128,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
        },
    ],
    ids=lambda fields: fields["model_type"],
)
def test_other_architectures_are_built_too(fields):
    model = load_random(quantization="nf4", config=fields).model
    assert not any(tensor.is_meta for tensor in [*model.parameters(), *model.buffers()])
    assert torch.isfinite(model(TOKENS).logits).all()


def test_the_shape_may_be_a_file_a_folder_or_the_models_own(tiny_model, tmp_path):
    path = tmp_path / "config.json"
    path.write_text(json.dumps(SHAPE), encoding="utf-8")
    other = tmp_path / "small.json"
    other.write_text(json.dumps(SHAPE), encoding="utf-8")
    for place in ({"config": str(path)}, {"config": str(tmp_path)}, {"config": str(other)}):
        assert load_random(**place).model.config.hidden_size == 64
    settings = ModelSettings(weights="random", model_name_or_path=str(tiny_model), quantization="none", device="cpu")
    assert load_base(settings).model.config.hidden_size == 64


def test_a_misspelled_field_of_the_shape_is_an_error():
    with pytest.raises(RecipeError, match=r"mistral has no `hiden_size`"):
        check_base(ModelSettings(weights="random", config=SHAPE | {"hiden_size": 32}, device="cpu"))


def test_an_unknown_architecture_of_the_shape_is_an_error():
    for fields in ({"hidden_size": 64}, {"model_type": "mistrall"}):
        with pytest.raises(RecipeError, match="transformers has no such architecture"):
            check_base(ModelSettings(weights="random", config=fields, device="cpu"))


def test_a_shape_without_a_dtype_is_saved_in_bfloat16_and_one_with_it_in_its_own():
    assert load_random().stored_dtype == torch.bfloat16
    assert load_random(config=SHAPE | {"dtype": "float16"}).stored_dtype == torch.float16


def test_a_7b_shape_has_mistrals_layers():
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(AutoConfig.for_model("mistral"))
    layer = model.model.layers[0]
    assert len(model.model.layers) == 32
    assert layer.self_attn.k_proj.weight.shape == (1024, 4096)
    assert layer.mlp.down_proj.weight.shape == (4096, 14336)
    assert sum(parameter.numel() for parameter in model.parameters()) == 7_241_732_096


def test_a_model_in_nf4_takes_its_own_size_and_one_layer_more_while_it_is_built():
    shape = SHAPE | {"hidden_size": 256, "intermediate_size": 1024, "num_hidden_layers": 24}
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as recorded:
        model = load_random(quantization="nf4", config=shape).model
    changes = [event.nbytes() for event in recorded.profiler.kineto_results.events() if event.name() == "[memory]"]
    peak_bytes = max(itertools.accumulate(changes))
    layer_bytes = 4 * model.model.layers[0].mlp.up_proj.weight.quant_state.shape.numel()
    unquantized_bytes = 4 * count_parameters(model).total
    assert unquantized_bytes > 60 * layer_bytes
    # The layer, the copies its rounding takes, and a megabyte for embeddings, norms and scales.
    assert peak_bytes < unquantized_bytes / 8 + 4 * layer_bytes + 2**20
