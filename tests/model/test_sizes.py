"""Parameters counted before any weight is there: the number that is trained in the end."""

import pytest
import torch

from finetune.model.adapters import attach_adapter, count_parameters
from finetune.model.base import load_base
from finetune.model.sizes import estimate_parameters, find_tokenizer_bytes
from finetune.recipe.schema import AdapterSettings, ModelSettings
from tests.end_to_end.small_runs import SHAPE, TINY

SHAPED = {"weights": "random", "config": SHAPE, "quantization": "none", "device": "cpu", "compute_dtype": "float32"}
COUNTED = [
    {"r": 8},
    {"r": 8, "init_lora_weights": "pissa"},
    {"r": 8, "use_dora": True, "target_modules": ["q_proj", "v_proj"]},
    {"r": 4, "modules_to_save": ["lm_head"]},
    {"method": "ia3"},
    {"method": "prefix_tuning", "num_virtual_tokens": 4},
    {"method": "bitfit"},
    {"method": "full"},
    {"method": "top_k", "layers": 1},
]


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("fields", COUNTED, ids=str)
def test_the_count_without_weights_is_the_count_with_them(fields):
    model, adapter = ModelSettings.model_validate(SHAPED), AdapterSettings.model_validate(fields)
    held = count_parameters(attach_adapter(load_base(model), adapter, seed=0))
    assert estimate_parameters(model, adapter) == held


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("method", ["boft", "unilora"])
def test_a_method_that_reads_the_weights_is_counted_on_the_high_side(method):
    model, adapter = ModelSettings.model_validate(SHAPED), AdapterSettings(method=method)
    held = count_parameters(attach_adapter(load_base(model), adapter, seed=0))
    assert estimate_parameters(model, adapter).trainable > held.trainable


def test_counting_leaves_the_generators_and_the_default_device_to_the_run():
    model = ModelSettings.model_validate(SHAPED)
    torch.manual_seed(5)
    estimate_parameters(model, AdapterSettings())
    assert torch.empty(1).device.type == "cpu"


def test_the_tokenizers_files_are_measured_where_they_lie():
    named = ModelSettings.model_validate(SHAPED | {"tokenizer_name_or_path": str(TINY)})
    assert find_tokenizer_bytes(named) >= (TINY / "tokenizer.json").stat().st_size
    assert find_tokenizer_bytes(ModelSettings.model_validate(SHAPED)) == 0
