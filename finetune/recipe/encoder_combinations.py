"""What classification and masked-language modelling exclude, and what of theirs the other objectives do not read."""

from collections.abc import Iterator

from finetune.recipe.faults import Fault
from finetune.recipe.glue import GLUE_TASKS, METRICS_OF_NUMBERS, GlueTask
from finetune.recipe.recipe_view import RecipeView
from finetune.recipe.rows_schema import ClassificationSettings
from finetune.recipe.suggestions import list_names

__all__ = ["find_encoder_conflicts"]

_NEITHER_ANSWERS = {
    "classify": "gives labels and no answers",
    "mlm": "restores masked tokens and gives no answers",
}
_OF_ANSWERS = (
    "data.template",
    "data.train_on",
    "evaluation.questions",
    "evaluation.preferences",
    "evaluation.general_text",
    "evaluation.answer_pattern",
    "evaluation.num_samples",
    "evaluation.metric",
    "evaluation.max_new_tokens",
    "evaluation.batch_size",
)
_TAKE_OUT = "Take the line out."


def find_encoder_conflicts(settings: RecipeView) -> Iterator[Fault]:
    """Find settings that classification, masking or the other objectives do not read, or that exclude each other."""
    yield from _check_strangers(settings)
    if settings.objective in _NEITHER_ANSWERS:
        yield from _check_answers(settings)
    if settings.objective == "classify":
        for check in (_check_task, _check_problem, _check_metric):
            yield from check(settings)


def _check_strangers(settings: RecipeView) -> Iterator[Fault]:
    """Check that what belongs to these objectives is not typed under another."""
    if settings.objective != "mlm" and settings.is_typed("data.mask_fraction"):
        what = f"`data.mask_fraction` hides tokens, and `objective: {settings.objective}` hides none."
        yield settings.fault("data.mask_fraction", what, _TAKE_OUT)
    if settings.objective == "classify":
        return
    for name in ClassificationSettings.model_fields:
        if settings.is_typed(f"classification.{name}"):
            what = f"`classification.{name}` is read by `objective: classify` alone; it is {settings.objective} here."
            yield settings.fault(f"classification.{name}", what, "Take the section out, or set objective: classify.")


def _check_answers(settings: RecipeView) -> Iterator[Fault]:
    objective = settings.objective
    for path in _OF_ANSWERS:
        if settings.is_typed(path) and settings.value(path) not in (None, 0):
            what = f"`objective: {objective}` {_NEITHER_ANSWERS[objective]}, so `{path}` is not read."
            yield settings.fault(path, what, _TAKE_OUT)
    if settings.value("data.packing") is True:
        what = f"`objective: {objective}` reads each row whole, so rows cannot be packed together."
        yield settings.fault("data.packing", what, _TAKE_OUT)
    if settings.value("adapter.init_from") is not None:
        what = f"`adapter.init_from` continues an adapter that answers; `objective: {objective}` begins a fresh one."
        yield settings.fault("adapter.init_from", what, _TAKE_OUT)


def _find_task(settings: RecipeView) -> GlueTask | None:
    name = settings.value("classification.task")
    return next((task for task in GLUE_TASKS.values() if task.name == name), None)


def _check_task(settings: RecipeView) -> Iterator[Fault]:
    task = _find_task(settings)
    if task is None:
        return
    if task.name == "ax":
        what = "`task: ax` has no rows to train on: a model of MNLI answers them."
        yield settings.fault(
            "classification.task", what, "Set task: mnli, and classification.predict: {path: …, subset: ax}."
        )
    if isinstance(settings.value("data.train"), list):
        what = f"`task: {task.name}` reads the benchmark's rows from one place; `data.train` lists several."
        yield settings.fault("data.train", what, "Name one, or take the task out and give `labels` and columns.")
    predict = settings.value("classification.predict")
    for place in range(len(predict)) if isinstance(predict, list) else [None]:
        path = "classification.predict" + ("" if place is None else f".{place}")
        if settings.value(f"{path}.subset") == "ax" and task.name not in ("ax", "mnli"):
            what = f"`subset: ax` is answered by a model of MNLI; it is of {task.name} here."
            yield settings.fault(f"{path}.subset", what, "Set task: mnli, or take the line out.")
    problem = settings.value("classification.problem_type")
    if problem not in (None, task.problem_type):
        what = f"`task: {task.name}` is a {task.problem_type.replace('_', ' ')}; found {problem}."
        yield settings.fault("classification.problem_type", what, _TAKE_OUT)
    labels = settings.value("classification.labels")
    if isinstance(labels, list) and list(map(str, labels)) != list(task.labels):
        # Also in another order: F1 is of the second one.
        known = f"Its labels, in this order: {list_names(task.labels)}." if task.labels else "It gives a number."
        yield settings.fault("classification.labels", f"`task: {task.name}` has other labels than these.", known)


def _check_problem(settings: RecipeView) -> Iterator[Fault]:
    """Check that a number is not given labels, and labels are told apart."""
    task = _find_task(settings)
    problem = settings.value("classification.problem_type") or (None if task is None else task.problem_type)
    labels = settings.value("classification.labels")
    if problem == "regression":
        for name in ("labels", "shots"):
            if settings.value(f"classification.{name}") is not None and not (task is not None and name == "labels"):
                what = f"`classification.{name}` is of labels, and a regression gives a number."
                yield settings.fault(f"classification.{name}", what, _TAKE_OUT)
        if settings.value("training.label_smoothing_factor"):
            what = "`training.label_smoothing_factor` smooths labels, and a regression gives a number."
            yield settings.fault("training.label_smoothing_factor", what, _TAKE_OUT)
    if isinstance(labels, list) and len(set(map(str, labels))) < len(labels):
        yield settings.fault("classification.labels", "`classification.labels` names a label twice.", "Name each once.")


def _check_metric(settings: RecipeView) -> Iterator[Fault]:
    """Check that a score goes with what is answered, as far as the recipe says what that is."""
    path = "classification.metric"
    metric, task = settings.value(path), _find_task(settings)
    labels = settings.value("classification.labels") or (None if task is None else task.labels)
    problem = settings.value("classification.problem_type") or (None if task is None else task.problem_type)
    if metric in (None, "combined"):
        return
    is_of_numbers = metric in METRICS_OF_NUMBERS
    if (problem == "regression" and not is_of_numbers) or (is_of_numbers and labels):
        answered = "numbers" if problem == "regression" else "labels"
        advice = (
            f"Of numbers: {list_names(METRICS_OF_NUMBERS)}; of labels: accuracy, macro_f1, matthews_correlation, f1."
        )
        yield settings.fault(path, f"`metric: {metric}` does not score {answered}.", advice)
    elif metric == "f1" and isinstance(labels, list | tuple) and len(labels) != 2:
        what = f"`metric: f1` is of two labels, the second one sought, and there are {len(labels)}."
        yield settings.fault(path, what, "Of more: macro_f1, the mean over the labels.")
