"""What the trainer's settings ask of each other: rhythm, the learning rate's schedule, the loss.

The libraries refuse the same, but once the weights are loaded or at the first step.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from finetune.recipe.faults import Fault, quote
from finetune.recipe.nearest import find_nearest
from finetune.recipe.recipe_view import RecipeView
from finetune.recipe.suggestions import list_names

__all__ = ["SCHEDULES", "ReadWith", "Schedule", "find_training_conflicts", "find_unread_settings"]


@dataclass(frozen=True, slots=True)
class Schedule:
    """What a learning rate's schedule takes in `lr_scheduler_kwargs`.

    Attributes:
        takes: names; None where another library's class decides.
        needs: of these exactly one has to be there.
        counts_evaluations: it moves by the evaluations: the held-out loss, reward or score.
    """

    takes: tuple[str, ...] | None = ()
    needs: tuple[str, ...] = ()
    counts_evaluations: bool = False


# transformers 5.17; a test holds it to the signatures of the library's functions.
SCHEDULES: Mapping[str, Schedule] = {
    "linear": Schedule(),
    "cosine": Schedule(takes=("num_cycles",)),
    "cosine_with_restarts": Schedule(takes=("num_cycles",)),
    "polynomial": Schedule(takes=("lr_end", "power")),
    "constant": Schedule(),
    "constant_with_warmup": Schedule(),
    "inverse_sqrt": Schedule(takes=("timescale",)),
    "reduce_lr_on_plateau": Schedule(takes=None, counts_evaluations=True),
    "cosine_with_min_lr": Schedule(takes=("num_cycles", "min_lr", "min_lr_rate"), needs=("min_lr", "min_lr_rate")),
    "cosine_warmup_with_min_lr": Schedule(
        takes=("num_cycles", "min_lr", "min_lr_rate", "warmup_lr_rate"), needs=("min_lr", "min_lr_rate")
    ),
    "warmup_stable_decay": Schedule(
        takes=("num_decay_steps", "num_stable_steps", "warmup_type", "decay_type", "min_lr_ratio", "num_cycles"),
        needs=("num_decay_steps",),
    ),
    "greedy": Schedule(takes=None, counts_evaluations=True),
}
_EXAMPLES = {"min_lr": "{min_lr: 1e-5}", "num_decay_steps": "{num_decay_steps: 100}"}


def find_training_conflicts(settings: RecipeView) -> Iterator[Fault]:
    """Find settings of the trainer that exclude each other, or that need another one."""
    for check in (_check_rhythm, _check_evaluations, _check_schedule, _check_optimizer, _check_memory, _check_loss):
        yield from check(settings)


def _check_rhythm(settings: RecipeView) -> Iterator[Fault]:
    for name in ("warmup_steps", "eval_steps", "save_steps"):
        steps = settings.value(f"training.{name}")
        if isinstance(steps, float) and steps > 1 and not steps.is_integer():
            what = f"`training.{name}` is {steps}; above 1 it is a number of whole steps."
            yield settings.fault(f"training.{name}", what, f"Write {int(steps)}; below 1 it is a share of all steps.")
    if settings.value("training.max_steps") == 0:
        what = "`training.max_steps` is 0; it must be at least 1, or -1 to let the epochs decide."
        yield settings.fault("training.max_steps", what, "To check everything and train nothing: --dry-run.")


def _check_evaluations(settings: RecipeView) -> Iterator[Fault]:
    """Check that there are evaluations where something counts on them."""
    schedule = settings.value("training.lr_scheduler_type")
    example = "E.g. 'data.eval={fraction: 0.02}' training.eval_steps=0.1; or take the line out."
    asked = [
        ("early_stopping_patience", "counts evaluations", settings.value("training.early_stopping_patience")),
        ("lr_scheduler_type", f"{schedule} goes by the evaluations", _find_schedule(settings).counts_evaluations),
    ]
    for name, why, is_asked in asked:
        needed = [path for path in ("data.eval", "training.eval_steps") if settings.value(path) is None]
        if is_asked and needed:
            missing = " and ".join(f"`{path}`" for path in needed)
            yield settings.fault(f"training.{name}", f"`{name}` {why}, which need {missing}.", example)
    if settings.value("training.eval_on_start") is True and settings.value("data.eval") is None:
        what = "`eval_on_start` evaluates before the first step, which needs `data.eval`."
        yield settings.fault("training.eval_on_start", what, "E.g. 'data.eval={fraction: 0.02}'; or take the line out.")


def _find_schedule(settings: RecipeView) -> Schedule:
    name = settings.value("training.lr_scheduler_type")
    return SCHEDULES.get(name, Schedule(takes=None)) if isinstance(name, str) else Schedule(takes=None)


def _check_schedule(settings: RecipeView) -> Iterator[Fault]:
    path, name = "training.lr_scheduler_kwargs", settings.value("training.lr_scheduler_type")
    schedule, given = _find_schedule(settings), settings.value(path)
    if isinstance(given, str):
        what = "`training.lr_scheduler_kwargs` wants a group of settings; found a text."
        yield settings.fault(path, what, "Write e.g. {num_cycles: 0.5}.")
        return
    names = given if isinstance(given, dict) else {}
    for key in names:
        if schedule.takes is not None and key not in schedule.takes:
            near = find_nearest(key, schedule.takes)
            meant = f"Did you mean `{near[0]}`? " if near else ""
            takes = f"It takes {list_names(schedule.takes)}." if schedule.takes else "It takes none."
            what = f"`lr_scheduler_kwargs`: the schedule {name} has no {quote(key)}."
            yield settings.fault(path, what, f"{meant}{takes}")
    found = [key for key in schedule.needs if names.get(key) is not None]
    if schedule.needs and len(found) != 1:
        which = f"one of {list_names(schedule.needs)}" if len(schedule.needs) > 1 else f"`{schedule.needs[0]}`"
        what = f"`lr_scheduler_type: {name}` needs {which} in `lr_scheduler_kwargs`."
        advice = f"E.g. training.lr_scheduler_kwargs={_EXAMPLES[schedule.needs[0]]}"
        yield settings.fault(path if found else "training.lr_scheduler_type", what, advice)


def _check_optimizer(settings: RecipeView) -> Iterator[Fault]:
    """Check that weights move only once a step's loss and gradient were looked at."""
    name = settings.value("training.optim")
    if isinstance(name, str) and (name in ("lomo", "adalomo") or name.endswith("_layerwise")):
        what = f"`optim: {name}` changes weights within the backward pass, before a step can be checked or left out."
        instead = name.removesuffix("_layerwise") if name.endswith("_layerwise") else "adafactor"
        yield settings.fault("training.optim", what, f"Choose another, e.g. training.optim={instead}")


def _check_memory(settings: RecipeView) -> Iterator[Fault]:
    """Check that what is said of all layers is not said otherwise by another setting."""
    choice, path = settings.value("training.memory"), "training.memory"
    if choice == "recompute_all" and settings.value("training.gradient_checkpointing") is False:
        what = "`memory: recompute_all` recomputes every layer, and `gradient_checkpointing: false` recomputes none."
        yield settings.fault(path, what, "Keep one of the two.")
    kwargs = settings.value("training.gradient_checkpointing_kwargs")
    every = kwargs.get("every_n_layers", 1) if isinstance(kwargs, dict) else 1
    if choice in ("recompute_all", "recompute_none") and every != 1:
        what = (
            f"`memory: {choice}` is for every layer, and `gradient_checkpointing_kwargs` sets every_n_layers {every}."
        )
        yield settings.fault(path, what, "Keep one of the two.")


def _check_loss(settings: RecipeView) -> Iterator[Fault]:
    """Check the loss of sft and pretrain; two modules of their own know those of preferences and reinforcement."""
    if settings.objective not in ("sft", "pretrain"):
        return
    loss, has_liger = settings.value("training.loss_type"), settings.value("training.use_liger_kernel") is True
    smoothing = settings.value("training.label_smoothing_factor")
    if smoothing not in (None, 0) and (loss != "nll" or has_liger):
        # The other losses never see the labels that the smoother takes out of the batch, or pass it over.
        what = "`label_smoothing_factor` works with `loss_type: nll` alone, and without the Liger kernels."
        yield settings.fault("training.label_smoothing_factor", what, "Set training.loss_type: nll.")
    if loss == "chunked_nll" and has_liger:
        what = "`loss_type: chunked_nll` and `use_liger_kernel` exclude each other: both compute the loss in chunks."
        yield settings.fault("training.loss_type", what, "Keep one of the two.")


@dataclass(frozen=True, slots=True)
class ReadWith:
    """A setting of `training` that is read while another one has certain values, and passed over otherwise."""

    name: str
    other: str
    values: tuple[str | bool, ...]


def find_unread_settings(settings: RecipeView, table: Sequence[ReadWith]) -> Iterator[Fault]:
    """Find typed settings that would have no effect."""
    for rule in table:
        path = f"training.{rule.name}"
        typed = settings.training_value(rule.other)
        chosen = typed if isinstance(typed, list) else [typed]
        if settings.is_typed(path) and not any(value in rule.values for value in chosen):
            with_what = " or ".join("true" if value is True else str(value) for value in rule.values)
            what = f"`{rule.name}` is read with `{rule.other}: {with_what}` alone."
            yield settings.fault(path, what, f"Take the line out, or set training.{rule.other}.")
