"""The plan of a run: what it needs and how long it takes, before anything is loaded.

In goes a recipe; out comes a `Plan`: peak memory by part, steps, operations, seconds and price on a device, the same in
short for every device of the table, and what to change where it does not fit. Neither torch nor a weight is needed, and
the plan of a run that is about to start is made by the same arithmetic from the rows it has counted. What a device
makes of a recipe is `planning.on_device`'s.
"""

from dataclasses import dataclass
from pathlib import Path

from finetune.budget.architecture import build_architecture
from finetune.budget.devices import CPU, DEVICES, Device
from finetune.budget.fitting import Change
from finetune.budget.memory import find_trained_shapes
from finetune.budget.optimizer_states import estimate_state_bytes
from finetune.planning.adapter import find_adapter
from finetune.planning.base import FoundConfig, find_config
from finetune.planning.device_rules import check_device
from finetune.planning.disk import estimate_disk, estimate_result, estimate_saved
from finetune.planning.machine import find_cpu, find_gpu, name_gpu, with_measured_speed
from finetune.planning.notes import FEWEST_LABELS, list_estimates, list_not_planned
from finetune.planning.on_device import estimate_batch, plan_on
from finetune.planning.planned import DevicePlan, Plan
from finetune.planning.rows import Rows, find_rows
from finetune.planning.schedule import find_setting
from finetune.planning.subject import Subject, build_setup, find_schedule
from finetune.planning.ways_out import find_ways_out
from finetune.recipe.glue import GLUE_TASKS
from finetune.recipe.heads import HEAD_OF_OBJECTIVE
from finetune.recipe.saved_quantization import agree_on_saved_quantization
from finetune.recipe.schema import Recipe

__all__ = ["DevicePlan", "Plan", "choose_device", "estimate_plan"]


@dataclass(frozen=True, slots=True)
class _Found:
    """What a plan stands on, and where it is from.

    Attributes:
        subject: what is planned.
        config: of the base.
        labels_are_known: whether a classifier's labels are.
    """

    subject: Subject
    config: FoundConfig
    labels_are_known: bool


def estimate_plan(
    recipe: Recipe,
    *,
    device: Device | None = None,
    rows: Rows | None = None,
    recipe_path: Path | None = None,
    price_per_hour: float | None = None,
    num_processes: int = 1,
    num_outputs: int | None = None,
    compares_devices: bool = True,
) -> Plan:
    """Estimate what a run needs.

    Args:
        recipe: the run.
        device: that it will have; None: chosen as `choose_device` does.
        rows: as counted; None: found in the cache, or as the recipe assumes.
        recipe_path: where the recipe was read from; one beside it may make the adapter that this one goes on with.
        price_per_hour: in US dollars, in place of the table's.
        num_processes: that train at once, each with a device and a whole model.
        num_outputs: labels of a classifier, as counted; None: as the recipe names them.
        compares_devices: whether the other devices of the table are planned for too.

    Raises:
        RecipeError: a base of unknown shape, a setting that does not go with it, or no number of rows.
        PlaceError: the base's config is not to be had, or the device has not got what the recipe names.
    """
    found = _find_subject(recipe, rows, recipe_path, num_processes=num_processes, num_outputs=num_outputs)
    subject = found.subject

    def with_price(device: Device) -> Device:
        return device if price_per_hour is None else device.with_price(price_per_hour)

    table = [with_price(one) for one in DEVICES]
    others = tuple(plan_on(subject, one) for one in table) if compares_devices else ()
    kind = _name_work(subject)
    unknown_gpu = _find_unknown_gpu(recipe) if device is None else None
    device = with_price(with_measured_speed(device or choose_device(recipe, others), kind))
    check_device(recipe, device)
    chosen = plan_on(subject, device)
    changes = () if chosen.verdict == "fits" else tuple(find_ways_out(subject, device))
    if not chosen.fits and not changes and not others:  # where it would fit is what there is left to say
        others = tuple(plan_on(subject, one) for one in table)
    return _build_plan(found, chosen, others=others, changes=changes, kind=kind, unknown_gpu=unknown_gpu)


def choose_device(recipe: Recipe, plans: tuple[DevicePlan, ...]) -> Device:
    """Choose the device to plan for where none is named: this machine's, else the smallest of the table that fits.

    Args:
        recipe: read for `model.device`.
        plans: of the devices of the table, from the smallest on.
    """
    here = None if recipe.model.device == CPU else find_gpu()
    if here is not None:
        return here
    if recipe.model.device == CPU:
        return find_cpu()
    fitting = [one for one in plans if one.verdict == "fits"] or [one for one in plans if one.fits]
    return fitting[0].device if fitting else DEVICES[-1]


def _find_unknown_gpu(recipe: Recipe) -> str | None:
    """This machine's GPU by its driver's name, where the run would take it and the table does not know it."""
    return name_gpu() if recipe.model.device != CPU and find_gpu() is None else None


def _find_subject(
    recipe: Recipe, rows: Rows | None, recipe_path: Path | None, *, num_processes: int, num_outputs: int | None
) -> _Found:
    """Find base, adapter and rows of a recipe; for the arguments see `estimate_plan`."""
    config = find_config(recipe.model)
    if recipe.model.weights == "pretrained":
        agree_on_saved_quantization(config.fields, recipe.model, recipe.model.model_name_or_path or config.origin)
    head = HEAD_OF_OBJECTIVE[recipe.objective]
    outputs = _count_outputs(recipe) if num_outputs is None else num_outputs
    architecture = build_architecture(config.fields, head=head, num_outputs=outputs or FEWEST_LABELS)
    adapter = find_adapter(recipe, architecture, recipe_path)
    subject = Subject(recipe, architecture, adapter, rows or find_rows(recipe), num_processes)
    return _Found(subject, config, labels_are_known=outputs is not None)


def _build_plan(
    found: _Found,
    chosen: DevicePlan,
    *,
    others: tuple[DevicePlan, ...],
    changes: tuple[Change, ...],
    kind: str,
    unknown_gpu: str | None,
) -> Plan:
    """Put a plan together out of what was found and what the devices make of it."""
    subject, device = found.subject, chosen.device
    recipe, architecture, adapter = subject.recipe, subject.architecture, subject.adapter
    shape, optimizer = adapter.shape, str(find_setting(recipe, "optim"))
    setup, schedule = build_setup(subject, device), find_schedule(subject, device)
    states_bytes = estimate_state_bytes(optimizer, find_trained_shapes(architecture, shape))
    return Plan(
        chosen=chosen,
        others=others,
        schedule=schedule,
        rows=subject.rows,
        work=estimate_batch(subject, setup, chosen.spending, device),
        trainable_parameters=shape.num_parameters,
        total_parameters=architecture.num_parameters + (0 if shape.is_whole else shape.num_parameters),
        adapter_bytes=estimate_result(recipe, found.config.fields, architecture, shape),
        checkpoint_bytes=estimate_saved(architecture, shape) + states_bytes,
        disk_bytes=estimate_disk(recipe, architecture, shape, optimizer),
        changes=changes,
        work_kind=kind,
        base_from=found.config.origin,
        adapter_from=adapter.note,
        estimates=tuple(
            list_estimates(recipe, setup, labels_are_known=found.labels_are_known, unknown_gpu=unknown_gpu)
        ),
        not_planned=tuple(list_not_planned(recipe, setup, schedule, device)),
    )


def _name_work(subject: Subject) -> str:
    """Kind of base and objective: a CPU's measured speed holds for such work alone."""
    base = subject.architecture
    return f"{base.model_type} {base.hidden_size}x{base.num_layers} {subject.recipe.objective}"


def _count_outputs(recipe: Recipe) -> int | None:
    """Count the labels of a classifier, 1 for numbers and for all else; None where the rows alone will tell."""
    settings = recipe.classification
    if recipe.objective != "classify" or settings.problem_type == "regression":
        return 1
    if settings.labels is not None:
        return len(settings.labels)
    return max(len(GLUE_TASKS[settings.task].labels), 1) if settings.task is not None else None
