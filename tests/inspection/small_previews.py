"""Rows, a tokenizer without a model, and recipes over them."""

import json
import shutil
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from finetune.recipe.reading import build_recipe
from finetune.recipe.schema import Recipe

LONG = "word " * 120


def write_rows(path: Path, rows: Iterable[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def write_model_without_weights(folder: Path, tiny_base: Path) -> Path:
    """Copy the base's config and tokenizer, and nothing else."""
    folder.mkdir()
    for name in ("config.json", "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json"):
        shutil.copy(tiny_base / name, folder / name)
    return folder


# What an objective wants beside its rows.
_FURTHER: dict[str, dict[str, Any]] = {
    "grpo": {"rewards": [{"function": "exact_match"}], "training": {"max_completion_length": 8}},
}
_UNTEMPLATED = ("pretrain", "mlm", "classify")


def build_small_recipe(model: Path, rows: Path, objective: str = "sft", **data: Any) -> Recipe:
    """Build a recipe over the rows of a file, none longer than 100 tokens unless `data` says so."""
    template = {} if objective in _UNTEMPLATED else {"template": "alpaca"}
    return build_recipe(
        {
            "name": "small",
            "objective": objective,
            "model": {"model_name_or_path": str(model), "device": "cpu"},
            "data": {"train": {"path": str(rows)}, **template, "max_length": 100, **data},
            **_FURTHER.get(objective, {}),
        }
    )
