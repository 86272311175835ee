"""What runs are compared by: a figure of summary.json, and what a recipe needs for it to be measured.

In goes a recipe with the score that was typed, out come the figure's name or what the recipe lacks, before anything
runs. Imports neither torch nor transformers.
"""

from collections.abc import Iterator
from pathlib import Path

from finetune.recipe.comparison import Comparison
from finetune.recipe.faults import Fault, to_line_number
from finetune.recipe.glue import GLUE_TASKS
from finetune.recipe.row_kinds import KIND_OF_OBJECTIVE, SAMPLED
from finetune.recipe.rows_schema import EvalFraction, SourceSettings
from finetune.recipe.schema import Recipe

__all__ = ["find_missing_score", "find_score"]

_OF_LABELS = ("accuracy", "macro_f1", "matthews_correlation")
_OF_NUMBERS = ("pearson", "spearmanr")
_QUESTIONS = "evaluation.questions: {path: …}"
_TEXT = "evaluation.general_text: {path: …, limit: 60}"
_PAIRS = "evaluation.preferences: {path: …}"
_HELD_OUT = "data.eval: {fraction: 0.1}"


def find_score(comparison: Comparison, recipe: Recipe) -> str:
    """Find which figure of summary.json is compared."""
    if comparison.score is not None:
        return comparison.score
    if recipe.objective == "classify":
        return "score"
    if recipe.evaluation.questions is not None:
        return "exact_match"
    if KIND_OF_OBJECTIVE[recipe.objective] == "preference" or recipe.evaluation.preferences is not None:
        return "preference_accuracy"
    return "eval_reward" if recipe.objective in SAMPLED else "eval_loss"


def find_missing_score(score: str, recipe: Recipe, place: str) -> Fault | None:
    """Find that a run of this recipe would end without the figure that is compared.

    Args:
        score: the figure, one for all runs.
        recipe: of the run.
        place: where the score was typed.
    """
    found = next(_find_lacks(score, recipe), None)
    if found is None:
        return None
    lacks, advice = found
    what = f"the runs are compared by `{score}`, and {lacks}."
    return Fault(place, what, (advice,), to_line_number(place))


def _find_lacks(score: str, recipe: Recipe) -> Iterator[tuple[str, str]]:
    """What a recipe lacks to be measured by a score, and what to type."""
    evaluation, objective = recipe.evaluation, recipe.objective
    other = f"`objective: {objective}` has no such figure", "Take `score` out for the objective's own."
    if score == "score" or score.startswith("scores."):
        if objective != "classify":
            yield other
        yield from _find_unheld(recipe)
        names = _list_scores(recipe)
        if score != "score" and score.removeprefix("scores.") not in names:
            yield "the recipe measures no such score", f"It measures: {', '.join(names)}, as scores.NAME."
    elif score == "exact_match" and evaluation.questions is None:
        yield "no questions are asked", f"Ask some: settings: {{{_QUESTIONS}}}."
    elif score == "general_loss" and evaluation.general_text is None:
        yield "no general text is read", f"Name one: settings: {{{_TEXT}}}."
    elif score.startswith("preference_") and evaluation.preferences is None:
        if KIND_OF_OBJECTIVE[objective] != "preference":
            yield "no held-out pairs are read", f"Name some: settings: {{{_PAIRS}}}."
        yield from _find_unheld(recipe)
    elif score in ("eval_loss", "eval_reward"):
        if (score == "eval_reward") != (objective in SAMPLED):
            yield other
        yield from _find_unheld(recipe)


def _find_unheld(recipe: Recipe) -> Iterator[tuple[str, str]]:
    if recipe.data.eval is None:
        questions = "" if recipe.objective in ("classify", "mlm", "reward") else ", or ask evaluation.questions"
        yield "nothing is held out for it", f"Hold rows out: settings: {{{_HELD_OUT}}}{questions}."


def _list_scores(recipe: Recipe) -> list[str]:
    """The names under `scores` of a classification's summary; with several held-out parts `PART/NAME`."""
    settings, held_out = recipe.classification, recipe.data.eval
    task = None if settings.task is None else GLUE_TASKS[settings.task]
    if task is not None:
        names = [*task.metrics, *(["combined"] if len(task.metrics) > 1 and settings.metric is None else [])]
    elif settings.problem_type == "regression":
        names = [*_OF_NUMBERS]
    else:
        # F1 is of two labels; how many there are may stand in the rows alone.
        has_f1 = settings.labels is None or len(settings.labels) == 2
        names = [*_OF_LABELS, *(["f1"] if has_f1 else [])]
    if settings.metric is not None and settings.metric not in names:
        names.append(settings.metric)
    parts = [] if task is None or isinstance(held_out, EvalFraction) else [part.name for part in task.parts["eval"]]
    if len(parts) < 2:
        return names
    named = [f"{part}/{name}" for part in parts for name in names]
    is_whole = isinstance(held_out, SourceSettings) and held_out.split is None and not Path(held_out.path).is_file()
    return named if is_whole else [*names, *named]
