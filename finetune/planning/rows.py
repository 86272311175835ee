"""How many rows and tokens a recipe trains on: as counted by a run or a preview before, else as the recipe assumes.

In goes a recipe; out come `Rows` with their origin in words. What is counted is kept in the cache of `datasets`, under
a key of all that decides it, so that a plan finds it again without reading a row.
"""

import hashlib
import json
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from finetune.errors import RecipeError
from finetune.planning.base import find_cache_home
from finetune.recipe.places import expand, is_local
from finetune.recipe.schema import EvalFraction, Recipe, SourceSettings

__all__ = ["Rows", "build_rows", "find_rows", "read_census", "write_census"]

# Of pairs a row is two answers.
ANSWERS_A_ROW: Mapping[str, int] = {"dpo": 2, "orpo": 2, "reward": 2}
# Of `data`, what decides neither the rows nor their tokens.
_NOT_THE_ROWS = ("assumed", "share_prompts")


@dataclass(frozen=True, slots=True, kw_only=True)
class Rows:
    """The rows to train on.

    Attributes:
        num_rows: documents, pairs or prompts.
        num_tokens: of all of them, of pairs both answers' rows.
        trained_fraction: share of the tokens that carry loss.
        longest_tokens: of the longest row, of a pair its longer answer's.
        attended_tokens: mean length of the document that a token stands in.
        num_packed: rows that the documents were packed into; None: not packed, or not yet.
        origin: where this is from, in words.
    """

    num_rows: int
    num_tokens: int
    trained_fraction: float
    longest_tokens: int
    attended_tokens: float
    num_packed: int | None
    origin: str


def find_rows(recipe: Recipe) -> Rows:
    """Find what the rows come to: by the census that was cached, else by `data.assumed`.

    Raises:
        RecipeError: neither is there.
    """
    cached = read_census(recipe)
    if cached is not None:
        return build_rows(cached["census"], recipe, f"the census of this recipe's rows, counted {cached['counted_at']}")
    assumed, max_length = recipe.data.assumed, recipe.data.max_length
    if assumed is None:
        raise RecipeError(
            "data: how many rows and tokens there are is not known: they have not been counted, and `data.assumed` is "
            "not set.\n"
            "  Count them, tokenizer and rows at hand: python -m finetune.preview RECIPE --rows 0\n"
            "  Or say what you expect: data.assumed.rows=1000 data.assumed.tokens_per_row=200"
        )
    num_rows = min([assumed.rows, *_find_limits(recipe)])
    if isinstance(recipe.data.eval, EvalFraction) and num_rows > 1:  # of what a limit has left
        num_rows -= min(max(round(num_rows * recipe.data.eval.fraction), 1), num_rows - 1)
    answers = ANSWERS_A_ROW.get(recipe.objective, 1)
    tokens_per_row = min(assumed.tokens_per_row, float(max_length * answers))
    return Rows(
        num_rows=num_rows,
        num_tokens=round(num_rows * tokens_per_row),
        trained_fraction=1.0,
        longest_tokens=max_length,
        attended_tokens=tokens_per_row / answers,
        num_packed=None,
        origin="`data.assumed` of the recipe",
    )


def build_rows(census: Mapping[str, Any], recipe: Recipe, origin: str) -> Rows:
    """Build the rows of a census, `data_report.json`'s.

    Args:
        census: of the training rows.
        recipe: read for `max_length` and the objective.
        origin: where the census is from, in words.
    """
    max_length = recipe.data.max_length
    return Rows(
        num_rows=census["rows"],
        num_tokens=census["tokens"],
        trained_fraction=census["trained_share"],
        longest_tokens=min(census["lengths"]["max"], max_length),
        attended_tokens=_find_attended(census, max_length),
        num_packed=census.get("packed_rows"),
        origin=origin,
    )


def _find_attended(census: Mapping[str, Any], max_length: int) -> float:
    """Mean length of the document that a token stands in: the sum of squared lengths over that of lengths."""
    lengths = squares = 0.0
    for bar in census["histogram"]:
        middle = min((bar["from"] + bar["to"] + 1) / 2, float(max_length))
        lengths += bar["rows"] * middle
        squares += bar["rows"] * middle**2
    return squares / lengths if lengths else 1.0


def _find_limits(recipe: Recipe) -> list[int]:
    sources = recipe.data.train if isinstance(recipe.data.train, list) else [recipe.data.train]
    limits = [source.limit for source in sources if source.limit is not None]
    return [sum(limits)] if len(limits) == len(sources) else []


# ---- the cache


def read_census(recipe: Recipe) -> dict[str, Any] | None:
    """Read the census that a run or a preview has counted: `census` and `counted_at`; None where none has."""
    path = _find_path(recipe)
    if not path.is_file():
        return None
    try:
        found = json.loads(path.read_text("utf-8"))
    except (OSError, ValueError):  # torn by a kill: the next run counts anew
        return None
    return found if isinstance(found, dict) and "census" in found else None


def write_census(recipe: Recipe, census: Mapping[str, Any]) -> None:
    """Keep a census for later plans; a cache that cannot be written keeps none."""
    path = _find_path(recipe)
    kept = {"counted_at": datetime.now(UTC).strftime("%Y-%m-%d"), "census": dict(census)}
    part = path.with_name(f"{path.name}.{os.getpid()}.part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        part.write_text(json.dumps(kept), encoding="utf-8")
        part.replace(path)
    except OSError:
        part.unlink(missing_ok=True)


def _find_path(recipe: Recipe) -> Path:
    parts = {
        "objective": recipe.objective,
        "seed": recipe.seed,
        "data": recipe.data.model_dump(mode="json", exclude=set(_NOT_THE_ROWS)),
        "task": recipe.classification.model_dump(mode="json"),
        "tokenizer": [recipe.model.tokenizer_name_or_path or recipe.model.model_name_or_path, recipe.model.revision],
        "files": sorted(_list_files(recipe)),
    }
    key = hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:32]
    return find_datasets_cache() / "finetune_census" / f"{key}.json"


def _list_files(recipe: Recipe) -> Iterator[tuple[str, int, int]]:
    """Name, size and time of every local file of the rows and of the tokenizer: a changed one is counted anew."""
    sources = recipe.data.train if isinstance(recipe.data.train, list) else [recipe.data.train]
    held_out = [recipe.data.eval] if isinstance(recipe.data.eval, SourceSettings) else []
    tokenizer = recipe.model.tokenizer_name_or_path or recipe.model.model_name_or_path
    for name in [*(source.path for source in (*sources, *held_out)), *([tokenizer] if tokenizer else [])]:
        if not is_local(name):
            continue
        place = Path(expand(name))
        inside = [path for path in place.iterdir() if path.is_file()] if place.is_dir() else [place]
        for path in inside:
            if path.is_file():
                found = path.stat()
                yield str(path.resolve()), found.st_size, found.st_mtime_ns


def find_datasets_cache() -> Path:
    """Find the cache of `datasets`, by the variables that it reads."""
    return Path(expand(os.environ.get("HF_DATASETS_CACHE") or str(find_cache_home() / "datasets")))
