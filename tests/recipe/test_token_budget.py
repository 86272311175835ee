"""A token budget that cannot be had is refused with what would help."""

from typing import Any

import pytest

from finetune.errors import RecipeError
from finetune.recipe.reading import build_recipe, to_resolved


def build(objective: str = "sft", **sections: Any) -> Any:
    values: dict[str, Any] = {
        "name": "r",
        "objective": objective,
        "model": {"model_name_or_path": "base"} | sections.get("model", {}),
        "data": {"train": {"path": "rows.jsonl"}, "max_length": 512} | sections.get("data", {}),
        "training": sections.get("training", {}),
    }
    return build_recipe(values)


@pytest.mark.parametrize(
    ("sections", "what", "advice"),
    [
        ({"data": {"tokens_per_batch": 256}}, "256 has no room for a document of `max_length` 512", "512 or more"),
        ({"data": {"tokens_per_batch": 512, "packing": False}}, "and `packing` is false", "Set data.packing: true"),
        ({"objective": "dpo", "data": {"tokens_per_batch": 512}}, "and `packing` is false", "Take the line out"),
        (
            {"data": {"tokens_per_batch": 512}, "training": {"per_device_train_batch_size": 4}},
            "makes one row of a micro-batch, and `per_device_train_batch_size` is 4",
            "raise the tokens",
        ),
        (
            {"data": {"tokens_per_batch": 512}, "training": {"per_device_eval_batch_size": 8}},
            "and `per_device_eval_batch_size` is 8",
            "raise the tokens",
        ),
        ({"data": {"tokens_per_batch": 512}, "model": {"backend": "unsloth"}}, "makes longer ones", "transformers"),
    ],
)
def test_a_token_budget_that_cannot_be_had_is_refused(sections, what, advice):
    with pytest.raises(RecipeError) as refused:
        build(**sections)
    assert what in str(refused.value)
    assert advice in str(refused.value)


@pytest.mark.parametrize("training", [{}, {"per_device_train_batch_size": 1, "per_device_eval_batch_size": 1}])
@pytest.mark.parametrize("objective", ["sft", "pretrain"])
def test_a_token_budget_goes_with_packing_and_a_resolved_recipe_keeps_it(objective, training):
    recipe = build(objective, data={"tokens_per_batch": 8192}, training=training)
    assert recipe.data.tokens_per_batch == 8192
    assert build_recipe(to_resolved(recipe)) == recipe
