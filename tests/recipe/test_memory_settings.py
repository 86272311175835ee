"""What a recipe says of recomputation is said once, and to a backend that listens."""

import pytest

from finetune.errors import RecipeError
from finetune.recipe.reading import build_recipe

VALUES = {
    "name": "small",
    "model": {"model_name_or_path": "org/base"},
    "adapter": {"method": "lora"},
    "data": {"train": {"path": "rows.jsonl"}},
}
EVERY_SECOND = {"gradient_checkpointing_kwargs": {"every_n_layers": 2}}


@pytest.mark.parametrize(
    ("training", "backend", "said"),
    [
        ({"memory": "recompute_all", "gradient_checkpointing": False}, "transformers", "recomputes none"),
        ({"memory": "recompute_all"} | EVERY_SECOND, "transformers", "sets every_n_layers 2."),
        ({"memory": "recompute_none"} | EVERY_SECOND, "transformers", "sets every_n_layers 2."),
        ({"memory": "recompute_all"}, "unsloth", "`backend: unsloth` recomputes layers by a rule of its own"),
        ({"memory": "recompute_none"}, "unsloth", "To recompute none: gradient_checkpointing: false."),
        ({"memory": "some"}, "transformers", "recompute_none"),
    ],
)
def test_what_excludes_each_other_is_told(training: dict[str, object], backend: str, said: str) -> None:
    with pytest.raises(RecipeError) as refused:
        build_recipe(VALUES | {"model": {**VALUES["model"], "backend": backend}, "training": training})  # type: ignore[dict-item]
    assert said in str(refused.value)


@pytest.mark.parametrize(
    "training",
    [
        {"memory": "auto", "gradient_checkpointing": False},
        {"memory": "recompute_none", "gradient_checkpointing": False},
        {"memory": "auto"} | EVERY_SECOND,
    ],
)
def test_what_does_not_is_taken(training: dict[str, object]) -> None:
    assert build_recipe(VALUES | {"training": training}).training.memory == training["memory"]
