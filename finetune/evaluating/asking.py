"""What is to be measured, and by which recipe: a run's own with a few settings otherwise, or one that is named.

In go a result's name and what was typed; out comes an `Evaluated`. No weight is loaded.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from finetune.errors import PlaceError, RecipeError
from finetune.model.targets import find_run_dir
from finetune.recipe.reading import build_recipe, read_recipe
from finetune.recipe.schema import EvalFraction, Recipe
from finetune.run.layout import RunLayout, name_runs_beside
from finetune.run.own_files import read_object

__all__ = ["FREE_SETTINGS", "Evaluated", "read_evaluated"]

# What may be set otherwise than in training; anything else would measure another model than the run's.
FREE_SETTINGS = (
    "data.eval", "data.on_bad_rows", "evaluation", "classification.predict", "classification.metric",
    "training.per_device_eval_batch_size", "model.device",
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Evaluated:
    """What is to be measured.

    Attributes:
        name: of the result, as typed.
        recipe: with what is set otherwise.
        run: the folder of the run whose result it is; None: an adapter of another origin.
        is_own_rows: whether the held-out rows are the run's own.
    """

    name: str
    recipe: Recipe
    run: Path | None
    is_own_rows: bool


def read_evaluated(
    name: str, overrides: Sequence[str] = (), *, rows: str | None = None, recipe_path: Path | None = None
) -> Evaluated:
    """Read by what recipe a result is measured.

    Args:
        name: a run's folder or its result's; with a recipe whatever `chat` takes.
        overrides: `section.key=value`; of a run those of `FREE_SETTINGS` alone.
        rows: a file or a dataset on the Hub, in place of the held-out rows.
        recipe_path: for an adapter of another origin: what says rows, template and settings.

    Raises:
        PlaceError: there is no run of that name.
        RecipeError: a setting that would measure another model than the run's, rows that were trained on, or a recipe
            that cannot be read.
    """
    asked = [*([] if rows is None else [f"data.eval={{path: {json.dumps(rows)}}}"]), *overrides]
    if recipe_path is not None:
        return Evaluated(name, read_recipe(recipe_path, asked), None, is_own_rows=False)
    run = find_run_dir(Path(name))
    if run is None:
        raise PlaceError(_say_no_run(Path(name)))
    for override in overrides:
        key = override.partition("=")[0]
        if not any(key == free or key.startswith(f"{free}.") for free in FREE_SETTINGS):
            raise RecipeError(
                f"command line: `{key}` is the run's own: set otherwise, it would measure another model.\n"
                f"  Free to set: {', '.join(FREE_SETTINGS)}"
            )
    layout = RunLayout(run)
    values = read_object(layout.resolved_path)
    if not values:
        raise PlaceError(f"{layout.resolved_path} is damaged.\n  A run's record is written whole; restore it.")
    own, recipe = build_recipe(values).data.eval, build_recipe(values, asked)
    if isinstance(recipe.data.eval, EvalFraction) and recipe.data.eval != own:
        raise RecipeError(
            "command line: `data.eval.fraction` would measure rows that this run was trained on.\n"
            "  Name others: --rows FILE"
        )
    return Evaluated(name, recipe, run, is_own_rows=recipe.data.eval == own)


def _say_no_run(path: Path) -> str:
    return (
        f"{path} holds no run (resolved.json), which says how a result is measured.\n  {name_runs_beside(path)}\n"
        f"  An adapter of another origin: name the recipe to measure it by: --recipe FILE"
    )
