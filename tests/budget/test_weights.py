"""A base is weighed to the byte: loaded ones whole, of the large ones one real layer as bitsandbytes holds it."""

import logging

import bitsandbytes as bnb
import pytest
import torch

from finetune.budget.adapter import build_adapter
from finetune.budget.architecture import build_architecture
from finetune.budget.weights import Holding, estimate_base_bytes, estimate_layer_bytes
from finetune.model.adapters import attach_adapter
from finetune.model.base import load_base
from finetune.model.heads import LabelSpace
from finetune.planning.base import find_config
from finetune.recipe.schema import AdapterSettings, ModelSettings
from tests.budget.real_models import build_fields, count_held

LABELS = LabelSpace(("a", "b", "c"))
LORA, FULL, TOP_K = ({"method": "lora", "r": 4}, {"method": "full"}, {"method": "top_k", "layers": 1})
CASES = [
    ("mistral", "words", "nf4", True, "bfloat16", LORA),
    ("mistral", "words", "fp4", False, "float32", LORA),
    ("mistral", "words", "int8", False, "bfloat16", LORA),
    ("mistral", "words", "none", False, "float32", FULL),
    ("mistral", "score", "nf4", True, "bfloat16", LORA),
    ("qwen2", "words", "nf4", True, "bfloat16", LORA),
    ("qwen2", "words", "none", False, "bfloat16", TOP_K),
    ("gemma2", "words", "int8", False, "float32", LORA),
    ("phi3", "labels", "nf4", True, "float32", LORA),
    ("mixtral", "words", "nf4", True, "bfloat16", LORA),  # whose experts stay as they are
    ("mixtral", "words", "none", False, "float32", FULL),
    ("roberta", "labels", "none", False, "bfloat16", LORA),
    ("bert", "labels", "nf4", True, "bfloat16", LORA),
    ("distilbert", "masked", "int8", False, "bfloat16", LORA),
    ("modernbert", "masked", "none", False, "float32", FULL),
    ("modernbert", "labels", "nf4", False, "bfloat16", LORA),
]


@pytest.mark.parametrize(("kind", "head", "quantization", "doubled", "dtype", "adapter"), CASES)
def test_a_loaded_base_weighs_what_was_estimated(kind, head, quantization, doubled, dtype, adapter):
    logging.disable(logging.WARNING)
    fields = build_fields(kind)
    settings = ModelSettings.model_validate(
        {"weights": "random", "config": fields, "quantization": quantization, "double_quantization": doubled}
        | {"compute_dtype": dtype, "device": "cpu"}
    )
    section = AdapterSettings.model_validate(adapter)
    architecture = build_architecture(fields, head=head, num_outputs=3 if head == "labels" else 1)
    shape = build_adapter(architecture, section)
    estimated = estimate_base_bytes(architecture, shape, Holding(quantization, doubled, 2 if "16" in dtype else 4))
    base = load_base(settings, head=head, labels=LABELS if head == "labels" else None)
    if not shape.is_whole:
        assert estimated == count_held(base.model)
    else:
        assert estimated == count_held(attach_adapter(base, section, seed=0))
    logging.disable(logging.NOTSET)


def weigh_layer(name: str, quantization: str, doubled: bool) -> tuple[int, int]:
    """Estimated and real bytes of one layer of a large base, its linears made one after another."""
    architecture = build_architecture(find_config(ModelSettings(model_name_or_path=name)).fields)
    real = 0
    for linear in architecture.linears:
        weight = torch.zeros(linear.out_features, linear.in_features, dtype=torch.bfloat16)
        held = bnb.nn.Params4bit(weight, requires_grad=False, quant_type=quantization, compress_statistics=doubled).to(
            "cpu"
        )
        module = torch.nn.Module()
        module.register_parameter("weight", held)
        real += count_held(module)
    real += sum(norm.num_parameters for norm in architecture.norms) * 2
    return estimate_layer_bytes(architecture, Holding(quantization, doubled, 2)), real


def test_a_layer_of_a_shape_of_this_size_weighs_what_was_estimated():
    estimated, real = weigh_layer("HuggingFaceTB/SmolLM2-135M", "nf4", True)
    assert estimated == real


@pytest.mark.slow
@pytest.mark.parametrize("doubled", [True, False])
@pytest.mark.parametrize("name", ["mistralai/Mistral-7B-v0.1", "meta-llama/Llama-2-7b-hf", "meta-llama/Llama-2-13b-hf"])
def test_a_layer_of_a_large_base_weighs_what_was_estimated(name, doubled):
    estimated, real = weigh_layer(name, "nf4", doubled)
    assert estimated == real


def test_nf4_with_double_quantization_takes_half_a_byte_and_a_scale():
    """PERFORMANCE.md: 0.516 bytes a parameter."""
    architecture = build_architecture({"model_type": "mistral"})
    layer = estimate_layer_bytes(architecture, Holding("nf4", True, 2))
    assert layer / architecture.num_linear_weights == pytest.approx(0.516, abs=0.001)
