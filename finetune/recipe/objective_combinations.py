"""What the objective asks of the rows and of the evaluation: formats, which tokens are trained, what is answered."""

import re
import warnings
from collections.abc import Iterator

from finetune.recipe.faults import Fault
from finetune.recipe.recipe_view import RecipeView
from finetune.recipe.row_kinds import (
    FORMAT_KINDS,
    HOLDS,
    KIND_OF_OBJECTIVE,
    KINDS_OF_FINDING,
    READ_FROM,
    find_formats,
)
from finetune.recipe.suggestions import list_names

__all__ = ["find_objective_conflicts", "find_pattern_faults"]

# Why no token is chosen, or packed, by the recipe.
_TRAINS = {
    "dpo": "compares the last answers of a pair",
    "kto": "judges the last answer of a row",
    "orpo": "compares the last answers of a pair",
    "reward": "scores the last answers of a pair",
    "rloo": "trains the answers that it generates",
    "grpo": "trains the answers that it generates",
}


def find_objective_conflicts(settings: RecipeView) -> Iterator[Fault]:
    """Find settings of `data` and `evaluation` that the objective has no use for."""
    checks = (_check_formats, _check_text, _check_whole_rows, _check_token_budget, _check_findings, _check_evaluation)
    for check in checks:
        yield from check(settings)


def _check_formats(settings: RecipeView) -> Iterator[Fault]:
    objective = f"`objective: {settings.objective}`"
    kind = KIND_OF_OBJECTIVE[settings.objective]
    asked = [
        ("data.train", objective, kind),
        ("data.eval", objective, kind),
        ("evaluation.questions", "`evaluation.questions`", "conversation"),
        ("evaluation.preferences", "`evaluation.preferences`", "preference"),
        ("evaluation.general_text", "`evaluation.general_text`", "document"),
        ("classification.predict", "`classification.predict`", "labelled"),
    ]
    for section, reader, wanted in asked:
        for path, name in _find_typed_formats(settings, section):
            if FORMAT_KINDS.get(name, wanted) not in READ_FROM[wanted]:
                what = f"{reader} reads {HOLDS[wanted]}; `format: {name}` holds {HOLDS[FORMAT_KINDS[name]]}."
                yield settings.fault(path, what, f"Choose auto, {list_names(find_formats(wanted))}.")


def _find_typed_formats(settings: RecipeView, section: str) -> Iterator[tuple[str, str]]:
    value = settings.value(section)
    sources = enumerate(value) if isinstance(value, list) else [(None, value)]
    for number, source in sources:
        if isinstance(source, dict) and isinstance(source.get("format"), str):
            yield f"{section}.format" if number is None else f"{section}.{number}.format", source["format"]


def _check_findings(settings: RecipeView) -> Iterator[Fault]:
    """Check that a policy is given only for what can be found in these rows."""
    kind = KIND_OF_OBJECTIVE[settings.objective]
    for name, kinds in KINDS_OF_FINDING.items():
        path = f"data.findings.{name}"
        if settings.value(path) in (None, "report"):  # what every finding has by itself
            continue
        if kind not in kinds:
            what = f"`{name}` is nothing that {HOLDS[kind]} can show, which `objective: {settings.objective}` reads."
            yield settings.fault(path, what, "Take the line out.")
        elif name in ("eval_overlap", "near_eval_overlap") and not _has_held_out(settings):
            what = f"`{name}` compares with rows that are evaluated, and there are none: `data.eval` is null."
            yield settings.fault(path, what, "Give `data.eval` rows, or take the line out.")


def _has_held_out(settings: RecipeView) -> bool:
    """Whether rows are evaluated; a task of GLUE brings its own."""
    places = ("data.eval", "classification.task", "evaluation.questions", "evaluation.preferences")
    return any(settings.value(place) is not None for place in places)


def _check_text(settings: RecipeView) -> Iterator[Fault]:
    """Check that what belongs to conversations is not asked of plain text, nor the other way round."""
    if settings.objective == "mlm":
        return
    if settings.objective != "pretrain":
        if settings.value("data.too_long") == "split":
            torn = "labelled text" if settings.objective == "classify" else "conversation"
            what = f"`too_long: split` would tear a {torn}; it is for `objective: pretrain` and `mlm`."
            yield settings.fault("data.too_long", what, "Choose drop, truncate or error.")
        return
    if settings.value("data.train_on") != "everything" and settings.is_typed("data.train_on"):
        what = "`objective: pretrain` trains on every token of a text."
        yield settings.fault("data.train_on", what, "Take the line out; for answers alone it is objective: sft.")
    if settings.is_typed("data.template"):
        what = "`objective: pretrain` reads plain text, which no template is put around."
        yield settings.fault("data.template", what, "Take the line out; for conversations it is objective: sft.")


def _check_whole_rows(settings: RecipeView) -> Iterator[Fault]:
    """Check that rows which are compared or answered are neither packed nor trained whole."""
    trains = _TRAINS.get(settings.objective)
    if trains is None:
        return
    if settings.value("data.packing") is True:
        what = f"`objective: {settings.objective}` {trains}, so rows cannot be packed together."
        yield settings.fault("data.packing", what, "Take the line out.")
    if settings.value("data.train_on") == "everything":
        what = f"`objective: {settings.objective}` {trains}; `train_on: everything` would train the prompts."
        yield settings.fault("data.train_on", what, "Take the line out.")


def _check_token_budget(settings: RecipeView) -> Iterator[Fault]:
    """Check that a micro-batch of so many tokens is one packed row that holds any document."""
    path = "data.tokens_per_batch"
    budget, longest = settings.value(path), settings.value("data.max_length")
    if budget is None:
        return
    if settings.value("data.packing") is not True:
        what = "`tokens_per_batch` packs documents into one row, and `packing` is false."
        is_packable = settings.objective in ("sft", "pretrain")
        yield settings.fault(path, what, "Set data.packing: true." if is_packable else "Take the line out.")
    if settings.value("model.backend") == "unsloth":
        what = "`backend: unsloth` reads rows of `max_length`, and `tokens_per_batch` makes longer ones."
        yield settings.fault(path, what, "Take the line out, or set model.backend: transformers.")
    if isinstance(budget, int) and isinstance(longest, int) and budget < longest:
        what = f"`tokens_per_batch` {budget} has no room for a document of `max_length` {longest}."
        yield settings.fault(path, what, f"Set it to {longest} or more, or lower data.max_length.")
    for name in ("per_device_train_batch_size", "per_device_eval_batch_size"):
        size = settings.value(f"training.{name}")
        if settings.is_typed(f"training.{name}") and size != 1:
            what = f"`tokens_per_batch` makes one row of a micro-batch, and `{name}` is {size}."
            yield settings.fault(f"training.{name}", what, "Take the line out; for more at once raise the tokens.")


def _check_evaluation(settings: RecipeView) -> Iterator[Fault]:
    if settings.objective == "reward":
        scores = "`objective: reward` trains a model that scores answers and gives none"
        if settings.value("evaluation.questions") is not None:
            what = f"{scores}, so `evaluation.questions` cannot be asked."
            yield settings.fault("evaluation.questions", what, "Held-out pairs: data.eval, or evaluation.preferences.")
        if settings.value("evaluation.general_text") is not None:
            what = f"{scores}, so it has no loss of plain text."
            yield settings.fault("evaluation.general_text", what, "Take the line out.")
        if settings.is_typed("evaluation.num_samples") and settings.value("evaluation.num_samples") != 0:
            yield settings.fault("evaluation.num_samples", f"{scores}, so there are no samples.", "Take the line out.")
    yield from find_pattern_faults(settings, "evaluation.answer_pattern", has_group=True)


def find_pattern_faults(settings: RecipeView, path: str, *, has_group: bool = False) -> Iterator[Fault]:
    """Find what is wrong with a regular expression.

    Args:
        settings: the recipe.
        path: of the expression, `section.key`.
        has_group: whether it has to say, in brackets, which part of what it finds is meant.
    """
    pattern, name = settings.value(path), re.sub(r"\.(\d+)", r"[\1]", path)
    if not isinstance(pattern, str):
        return
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)  # of `[[`, which means today what it says
            num_groups = re.compile(pattern).groups
    except (re.error, OverflowError, RecursionError) as error:
        what = f"`{name}` is no regular expression of Python's: {error}."
        yield settings.fault(path, what, r"Signs such as ( [ * + ? . are taken literally after a backslash: \(")
        return
    if has_group and num_groups == 0:
        what = f"`{name}` has no group, so it says not which part of an answer is scored."
        yield settings.fault(path, what, r"Put brackets around that part, e.g. (\w+)\W*$ for the last word.")
