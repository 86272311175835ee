"""What a plan says of the figures that it has not counted."""

import pytest

from finetune.budget.activations import BatchShape
from finetune.budget.adapter import build_adapter
from finetune.budget.architecture import build_architecture
from finetune.budget.computing import Computing
from finetune.budget.memory import Setup
from finetune.budget.weights import Holding
from finetune.planning.notes import list_estimates
from finetune.recipe.reading import build_recipe

RECIPE = build_recipe(
    {
        "name": "noted",
        "model": {"model_name_or_path": "mistralai/Mistral-7B-v0.1"},
        "data": {"train": {"path": "org/rows"}, "template": "alpaca"},
    }
)


def list_of(config, **adapter):
    base = build_architecture(config)
    recipe = RECIPE.model_copy(update={"adapter": RECIPE.adapter.model_validate(adapter)})
    setup = Setup(
        architecture=base,
        adapter=build_adapter(base, recipe.adapter),
        holding=Holding("nf4", True, 2),
        batch=BatchShape(num_rows=1, row_tokens=64, document_tokens=64),
        computing=Computing(
            compute_bytes=2,
            attention="sdpa",
            loss="chunks",
            is_lean=True,
            is_lean_elementwise=True,
            is_quantized=True,
            on_cpu=False,
        ),
        optimizer="adamw_torch_fused",
        may_recompute=True,
    )
    return " | ".join(list_estimates(recipe, setup, labels_are_known=True, unknown_gpu=None))


@pytest.mark.parametrize(
    "adapter",
    [{"method": "lora"}, {"method": "lora", "bias": "all"}, {"method": "hra"}, {"method": "ia3"}],
    ids=lambda adapter: "-".join(adapter.values()),
)
def test_what_is_counted_is_not_called_an_estimate(adapter):
    assert list_of({"model_type": "mistral"}, **adapter) == ""


def test_what_no_rule_counts_is_said_by_what_it_is():
    mistral = {"model_type": "mistral"}
    assert "activations of `loha` with these settings" in list_of(mistral, method="loha")
    of_oft = list_of(mistral, method="oft")
    assert "the numbers of `oft` with these settings are not counted here: taken as LoRA's with r=64" in of_oft
    assert "weights of the experts: in the compute dtype" in list_of({"model_type": "mixtral"}, method="lora")
    with_images = {"model_type": "gemma3", "text_config": {}}
    of_images = list_of(with_images, method="lora")
    assert "the base's tower for images" in of_images
    assert "r=64" not in of_images
