import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoConfig

from finetune.errors import PlaceError, RecipeError
from finetune.model.base import check_base, check_vocabulary, find_position_limit, load_base, load_config
from finetune.model.tokenizer import load_tokenizer
from finetune.recipe.schema import ModelSettings
from tests.model.tiny_models import SHAPE, load_tiny

TOKENS = torch.arange(24).reshape(2, 12)


def settings_of(folder: Path, **fields: object) -> ModelSettings:
    return ModelSettings(model_name_or_path=str(folder), **({"device": "cpu"} | fields))


@pytest.fixture
def copy_of_tiny(tiny_model: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(tiny_model, tmp_path / "copy"))


def write_fields(folder: Path, **fields: object) -> Path:
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text("utf-8")) | fields), encoding="utf-8")
    return folder


@pytest.mark.parametrize("quantization", ["nf4", "fp4", "int8", "none"])
def test_nothing_of_the_base_is_trainable_and_it_answers(tiny_model, quantization):
    base = load_tiny(tiny_model, quantization)
    assert not any(parameter.requires_grad for parameter in base.model.parameters())
    assert not base.model.training
    assert base.quantization == quantization
    assert (base.device, base.attention, base.commit) == (torch.device("cpu"), "documents", None)
    assert torch.isfinite(base.model(TOKENS).logits).all()


def test_nf4_is_held_with_all_four_settings_made(tiny_model):
    base = load_tiny(tiny_model, "nf4", compute_dtype="bfloat16")
    layer = base.model.model.layers[0].mlp.up_proj
    assert layer.weight.quant_type == "nf4"
    assert layer.weight.quant_state.nested
    assert layer.compute_dtype == torch.bfloat16
    assert layer.weight.dtype == torch.uint8


def test_without_double_quantization_the_scales_are_not_quantized(tiny_model):
    base = load_tiny(tiny_model, "nf4", double_quantization=False)
    assert not base.model.model.layers[0].mlp.up_proj.weight.quant_state.nested


def test_fp4_is_fp4_and_int8_is_int8(tiny_model):
    assert load_tiny(tiny_model, "fp4").model.model.layers[0].mlp.up_proj.weight.quant_type == "fp4"
    assert load_tiny(tiny_model, "int8").model.model.layers[0].mlp.up_proj.weight.dtype == torch.int8


def test_norms_embeddings_and_head_are_in_the_compute_dtype(tiny_model):
    base = load_tiny(tiny_model, "nf4", compute_dtype="bfloat16")
    kept = (base.model.model.embed_tokens, base.model.model.norm, base.model.lm_head)
    assert [module.weight.dtype for module in kept] == [torch.bfloat16] * 3
    assert base.stored_dtype == torch.float32


def test_the_attention_kernel_of_the_recipe_is_the_models(tiny_model):
    assert load_tiny(tiny_model, attention="eager").model.config._attn_implementation == "eager"


def test_a_base_in_nf4_is_recognised_and_computes_in_this_devices_precision(tiny_model, tmp_path):
    saved = load_tiny(tiny_model, "nf4", compute_dtype="bfloat16")
    saved.model.save_pretrained(tmp_path)
    again = load_tiny(tmp_path, "nf4", compute_dtype="float32")
    assert again.quantization == "nf4"
    layers = (saved.model.model.layers[0].mlp.up_proj, again.model.model.layers[0].mlp.up_proj)
    assert torch.equal(layers[0].weight.data, layers[1].weight.data)
    assert layers[1].compute_dtype == torch.float32
    assert not layers[1].support_avx512bf16_for_cpu


def test_a_base_in_nf4_must_agree_with_the_recipe(tiny_model, tmp_path):
    load_tiny(tiny_model, "nf4").model.save_pretrained(tmp_path)
    with pytest.raises(RecipeError, match=r"already held in nf4, and `model.quantization` is none") as refusal:
        check_base(settings_of(tmp_path, quantization="none"))
    assert "model.quantization=nf4" in str(refusal.value)
    with pytest.raises(RecipeError, match="already held in nf4 with double quantization"):
        check_base(settings_of(tmp_path, quantization="nf4", double_quantization=False))


def test_a_base_in_int8_is_recognised(tiny_model, tmp_path):
    load_tiny(tiny_model, "int8").model.save_pretrained(tmp_path)
    assert load_tiny(tmp_path, "int8").quantization == "int8"
    with pytest.raises(RecipeError, match="already held in int8"):
        check_base(settings_of(tmp_path, quantization="nf4"))


@pytest.mark.parametrize("method", ["gptq", "awq"])
def test_another_librarys_quantization_is_refused_with_the_reason(copy_of_tiny, method):
    write_fields(copy_of_tiny, quantization_config={"quant_method": method, "bits": 4})
    with pytest.raises(RecipeError, match=f"is held in {method.upper()}") as refusal:
        check_base(settings_of(copy_of_tiny))
    assert "Name the 16-bit model that it was made from" in str(refusal.value)


def test_a_length_beyond_the_models_positions_names_both_numbers(tiny_model):
    for check in (check_base, load_base):
        with pytest.raises(RecipeError, match=r"`data.max_length` is 97 tokens, and .* has positions for 96"):
            check(settings_of(tiny_model), max_length=97)
    check_base(settings_of(tiny_model), max_length=96)


@pytest.mark.parametrize(
    ("fields", "limit"),
    [
        ({"model_type": "mistral", "max_position_embeddings": 32768, "sliding_window": 4096}, 32768),
        ({"model_type": "llama", "max_position_embeddings": 4096}, 4096),
        ({"model_type": "gpt2", "n_positions": 1024}, 1024),
        ({"model_type": "llama", "max_position_embeddings": 2048,
          "rope_parameters": {"rope_type": "linear", "rope_theta": 1e4, "factor": 4.0}}, 8192),
        ({"model_type": "llama", "max_position_embeddings": 131072,
          "rope_parameters": {"rope_type": "llama3", "rope_theta": 5e5, "factor": 8.0, "low_freq_factor": 1.0,
                              "high_freq_factor": 4.0, "original_max_position_embeddings": 8192}}, 131072),
        ({"model_type": "llama", "max_position_embeddings": 131072,
          "rope_parameters": {"rope_type": "yarn", "rope_theta": 1e4, "factor": 4.0,
                              "original_max_position_embeddings": 32768}}, 131072),
        ({"model_type": "bloom"}, None),
    ],
)  # fmt: skip
def test_the_limit_of_positions_reads_scaling_and_knows_a_window_is_none(fields, limit):
    assert find_position_limit(AutoConfig.for_model(**fields)) == limit


def test_a_model_that_continues_no_text_is_refused(tmp_path):
    AutoConfig.for_model("vit").save_pretrained(tmp_path)
    with pytest.raises(RecipeError, match="is a vit model: no causal language model"):
        check_base(settings_of(tmp_path))


def test_an_architecture_that_transformers_does_not_know_is_refused(copy_of_tiny):
    write_fields(copy_of_tiny, model_type="mistrall")
    with pytest.raises(RecipeError, match="mistrall"):
        check_base(settings_of(copy_of_tiny))


def test_pickled_weights_alone_are_not_opened(copy_of_tiny):
    weights = copy_of_tiny / "model.safetensors"
    torch.save(load_file(weights), copy_of_tiny / "pytorch_model.bin")
    weights.unlink()
    for check in (check_base, load_base):
        with pytest.raises(PlaceError, match="has no safetensors weights, and pickles"):
            check(settings_of(copy_of_tiny))


def test_a_folder_without_weights_or_with_a_part_of_them_says_which(copy_of_tiny):
    (copy_of_tiny / "model.safetensors").unlink()
    with pytest.raises(PlaceError, match="holds no weights"):
        check_base(settings_of(copy_of_tiny))
    index = {"weight_map": {"a": "model-1-of-2.safetensors", "b": "model-2-of-2.safetensors"}}
    (copy_of_tiny / "model.safetensors.index.json").write_text(json.dumps(index), encoding="utf-8")
    (copy_of_tiny / "model-1-of-2.safetensors").touch()
    with pytest.raises(PlaceError, match=r"1 of its weight files are missing, the first model-2-of-2.safetensors"):
        check_base(settings_of(copy_of_tiny))


def test_weights_that_lack_a_tensor_are_refused_instead_of_filled_with_random_numbers(copy_of_tiny):
    path = copy_of_tiny / "model.safetensors"
    tensors = load_file(path)
    del tensors["model.layers.1.mlp.up_proj.weight"]
    save_file(tensors, path, {"format": "pt"})
    with pytest.raises(PlaceError, match=r"lack 1 of the model's tensors, the first model.layers.1.mlp.up_proj.weight"):
        load_base(settings_of(copy_of_tiny, quantization="none"))


def test_a_base_in_the_home_folder_is_found_by_its_tilde(copy_of_tiny, monkeypatch):
    monkeypatch.setenv("HOME", str(copy_of_tiny.parent))
    settings = ModelSettings(model_name_or_path="~/copy", quantization="none", device="cpu")
    check_base(settings)
    assert load_base(settings).model.name_or_path == str(copy_of_tiny)
    shape_alone = ModelSettings(weights="random", config="~/copy/config.json", quantization="none", device="cpu")
    assert load_config(shape_alone).hidden_size == SHAPE["hidden_size"]


def test_a_check_reads_no_weights(copy_of_tiny):
    path = copy_of_tiny / "model.safetensors"
    content = path.read_bytes()
    header = 8 + int.from_bytes(content[:8], "little")
    path.write_bytes(content[:header] + bytes(len(content) - header))  # no number of it is what it was
    check_base(settings_of(copy_of_tiny))


def test_what_the_device_lacks_is_said_before_the_model_is_looked_for(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    absent = ModelSettings(model_name_or_path="no/such_model", device="cuda")
    with pytest.raises(PlaceError, match="asks for a GPU"):
        check_base(absent)
    with pytest.raises(PlaceError, match="flash_attention_2` needs a GPU"):
        check_base(absent.model_copy(update={"device": "cpu", "attention": "flash_attention_2"}))


def test_a_recipe_without_a_model_is_told_what_to_name():
    with pytest.raises(RecipeError, match="no base model is named"):
        check_base(ModelSettings())


def test_the_shape_of_the_tests_is_what_the_files_hold(tiny_model):
    config = AutoConfig.from_pretrained(tiny_model)
    assert {name: config.to_dict()[name] for name in SHAPE} == SHAPE


def test_a_tokenizer_with_more_tokens_than_the_model_has_embeddings_is_refused(tiny_model, shared_data):
    tokenizer = load_tokenizer(ModelSettings(model_name_or_path=str(shared_data / "models" / "stories260K")))
    with pytest.raises(RecipeError, match="512 tokens and the model embeddings for 128"):
        check_vocabulary(load_tiny(tiny_model).model, tokenizer)
