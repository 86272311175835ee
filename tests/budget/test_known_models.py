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
}


@pytest.mark.parametrize(("name", "num_parameters"), PUBLISHED.items(), ids=list(PUBLISHED))
def test_a_built_in_shape_has_the_published_number_of_parameters(name, num_parameters):
    found = find_config(ModelSettings(model_name_or_path=name, revision="a-branch-that-is-in-no-cache"))
    assert found.origin == "the built-in list of shapes"
    assert build_architecture(found.fields).num_parameters == num_parameters


def test_every_name_leads_to_a_shape_and_every_shape_is_used():
    assert set(KNOWN["models"].values()) == set(KNOWN["shapes"])
