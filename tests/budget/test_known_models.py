"""The built-in shapes are complete, and some of them are held against the numbers on the models' own pages."""

import json

import pytest

from finetune.budget.architecture import build_architecture
from finetune.planning.base import _KNOWN_MODELS_PATH, find_config
from finetune.recipe.schema import ModelSettings

KNOWN = json.loads(_KNOWN_MODELS_PATH.read_text("utf-8"))
# As safetensors' headers on the Hub count them.
PUBLISHED = {
    "mistralai/Mistral-7B-v0.1": 7_241_732_096,
    "mistralai/Mistral-7B-Instruct-v0.3": 7_248_023_552,
    "meta-llama/Llama-2-7b-hf": 6_738_415_616,
    "meta-llama/Llama-2-13b-hf": 13_015_864_320,
    "meta-llama/Llama-2-70b-hf": 68_976_648_192,
    "meta-llama/Llama-3.1-8B": 8_030_261_248,
    "meta-llama/Meta-Llama-3-70B": 70_553_706_496,
    "meta-llama/Llama-3.2-1B": 1_235_814_400,
    "Qwen/Qwen2.5-0.5B": 494_032_768,
    "Qwen/Qwen2.5-7B": 7_615_616_512,
    "Qwen/Qwen3-8B": 8_190_735_360,
    "TinyLlama/TinyLlama-1.1B-Chat-v1.0": 1_100_048_384,
    "HuggingFaceTB/SmolLM2-135M": 134_515_008,
    "google/gemma-2-2b": 2_614_341_888,
    "google/gemma-2-27b": 27_227_128_320,
    "google/gemma-3-270m": 268_098_176,
    "google/gemma-3-1b-it": 999_885_952,
    "microsoft/Phi-3-mini-4k-instruct": 3_821_079_552,
    "microsoft/Phi-3-medium-4k-instruct": 13_960_238_080,
    "microsoft/Phi-4-mini-instruct": 3_836_021_760,
    "microsoft/phi-4": 14_659_507_200,
    "mistralai/Mistral-Nemo-Base-2407": 12_247_782_400,
    "mistralai/Mistral-Small-24B-Base-2501": 23_572_403_200,
    "mistralai/Mixtral-8x7B-v0.1": 46_702_792_704,
    "Qwen/Qwen2.5-14B": 14_770_033_664,
    "Qwen/Qwen2.5-32B": 32_763_876_352,
    "Qwen/Qwen2.5-72B": 72_706_203_648,
    "Qwen/Qwen3-14B": 14_768_307_200,
    "Qwen/Qwen3-32B": 32_762_123_264,
    "HuggingFaceTB/SmolLM3-3B": 3_075_098_624,
    "huggyllama/llama-7b": 6_738_415_616,
    "unsloth/Llama-3.2-1B": 1_235_814_400,
    "unsloth/mistral-7b-v0.3": 7_248_023_552,
}
# Of text and images; the tower for images is estimated by its sizes.
WITH_IMAGES = {
    "google/gemma-3-4b-it": 4_300_079_472,
    "google/gemma-3-12b-it": 12_187_325_040,
    "google/gemma-3-27b-it": 27_432_406_640,
}


@pytest.mark.parametrize(("name", "num_parameters"), PUBLISHED.items(), ids=list(PUBLISHED))
def test_a_built_in_shape_has_the_published_number_of_parameters(name, num_parameters):
    found = find_config(ModelSettings(model_name_or_path=name, revision="a-branch-that-is-in-no-cache"))
    assert found.origin == "the built-in list of shapes"
    assert build_architecture(found.fields).num_parameters == num_parameters


@pytest.mark.parametrize(("name", "num_parameters"), WITH_IMAGES.items(), ids=list(WITH_IMAGES))
def test_a_model_of_text_and_images_has_about_the_published_number(name, num_parameters):
    fields = find_config(ModelSettings(model_name_or_path=name, revision="a-branch-that-is-in-no-cache")).fields
    assert build_architecture(fields).num_parameters == pytest.approx(num_parameters, rel=0.005)


def test_every_name_leads_to_a_shape_and_every_shape_is_used():
    assert set(KNOWN["models"].values()) == set(KNOWN["shapes"])
