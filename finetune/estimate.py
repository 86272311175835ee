"""The plan of a run: what it needs and how long it takes, before anything is loaded.

In goes a recipe; out comes a `Plan`: peak memory by part, steps, operations, seconds and price on a device, the same in
short for every device of the table, and what to change where it does not fit. Neither torch nor a weight is needed, and
the plan of a run that is about to start is made by the same arithmetic from the rows it has counted.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from finetune.budget.architecture import Architecture, Head, build_architecture
from finetune.budget.computing import Computing
from finetune.budget.devices import CPU, DEVICES, Device
from finetune.budget.duration import Passes, Work, estimate_seconds, estimate_work
from finetune.budget.fitting import Change, Knobs, find_changes
from finetune.budget.memory import (
    Setup,
    estimate_layers,
    estimate_memory,
    find_trained_shapes,
)
from finetune.budget.optimizer_states import estimate_state_bytes
from finetune.budget.spending import (
    RATES,
    Keeps,
    Option,
    Rates,
    Spending,
    build_options,
    estimate_layer_work,
    find_spendable,
    spend,
)
from finetune.budget.weights import Holding, is_quantized
from finetune.errors import RecipeError
from finetune.planning.adapter import FoundAdapter, find_adapter
from finetune.planning.base import find_config
from finetune.planning.device_rules import check_device, find_attention, find_compute_bytes, is_refused
from finetune.planning.disk import estimate_disk, estimate_result, estimate_saved
from finetune.planning.machine import find_cpu, find_gpu, name_gpu, with_measured_speed
from finetune.planning.notes import FEWEST_LABELS, is_in_float32, list_estimates, list_not_planned
from finetune.planning.planned import DevicePlan, Plan
from finetune.planning.rows import Rows, find_rows
from finetune.planning.schedule import SAMPLED, Schedule, build_schedule, find_setting, name_rows
from finetune.recipe.glue import GLUE_TASKS
from finetune.recipe.reading import build_recipe, to_resolved
from finetune.recipe.saved_quantization import agree_on_saved_quantization
from finetune.recipe.schema import Recipe

__all__ = ["DevicePlan", "Plan", "choose_device", "estimate_plan"]

_HEADS: Mapping[str, Head] = {"classify": "labels", "mlm": "masked", "reward": "score"}
_LOGITS = frozenset({"dpo", "kto", "orpo", "mlm", "rloo", "grpo"})  # that compute all logits at once


@dataclass(frozen=True, slots=True)
class _Subject:
    """A recipe with all that does not hang on the device."""

    recipe: Recipe
    architecture: Architecture
    adapter: FoundAdapter
    rows: Rows
    schedule: Schedule


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
    found = find_config(recipe.model)
    if recipe.model.weights == "pretrained":
        agree_on_saved_quantization(found.fields, recipe.model, recipe.model.model_name_or_path or found.origin)
    head = _HEADS.get(recipe.objective, "words")
    outputs = _count_outputs(recipe) if num_outputs is None else num_outputs
    architecture = build_architecture(found.fields, head=head, num_outputs=outputs or FEWEST_LABELS)
    adapter = find_adapter(recipe, architecture, recipe_path)
    rows = rows or find_rows(recipe)
    schedule = build_schedule(recipe, rows, num_processes=num_processes)
    subject = _Subject(recipe, architecture, adapter, rows, schedule)

    def with_price(device: Device) -> Device:
        return device if price_per_hour is None else device.with_price(price_per_hour)

    table = [with_price(one) for one in DEVICES]
    others = tuple(_plan_on(subject, one) for one in table) if compares_devices else ()
    kind = f"{architecture.model_type} {architecture.hidden_size}x{architecture.num_layers} {recipe.objective}"
    unknown_gpu = _find_unknown_gpu(recipe) if device is None else None
    device = with_price(with_measured_speed(device or choose_device(recipe, others), kind))
    check_device(recipe, device)
    chosen = _plan_on(subject, device)
    changes = () if chosen.fits else tuple(_find_changes(subject, chosen.device))
    if not chosen.fits and not changes and not others:  # where it would fit is what there is left to say
        others = tuple(_plan_on(subject, one) for one in table)
    shape, optimizer = adapter.shape, str(find_setting(recipe, "optim"))
    setup = _build_setup(subject, chosen.device)
    states_bytes = estimate_state_bytes(optimizer, find_trained_shapes(architecture, shape))
    return Plan(
        chosen=chosen,
        others=others,
        schedule=subject.schedule,
        rows=rows,
        work=_estimate_batch(subject, setup, chosen.spending),
        trainable_parameters=shape.num_parameters,
        total_parameters=architecture.num_parameters + (0 if shape.is_whole else shape.num_parameters),
        adapter_bytes=estimate_result(recipe, found.fields, architecture, shape),
        checkpoint_bytes=estimate_saved(architecture, shape) + states_bytes,
        disk_bytes=estimate_disk(recipe, architecture, shape, optimizer),
        changes=changes,
        work_kind=kind,
        base_from=found.origin,
        adapter_from=adapter.note,
        estimates=tuple(list_estimates(setup, labels_are_known=outputs is not None, unknown_gpu=unknown_gpu)),
        not_planned=tuple(list_not_planned(recipe.objective, setup, schedule, device)),
    )


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
    return next((one.device for one in plans if one.fits), DEVICES[-1])


def _find_unknown_gpu(recipe: Recipe) -> str | None:
    """This machine's GPU by its driver's name, where the run would take it and the table does not know it."""
    return name_gpu() if recipe.model.device != CPU and find_gpu() is None else None


def _plan_on(subject: _Subject, device: Device) -> DevicePlan:
    setup = _build_setup(subject, device)
    spending = _decide(subject, setup, device)
    memory = estimate_memory(setup, spending)
    fits = memory.peak_bytes <= device.memory_bytes and not is_refused(subject.recipe, device)
    seconds = None
    if fits and subject.recipe.objective not in SAMPLED and not is_in_float32(setup, device):
        batch_seconds = estimate_seconds(_estimate_batch(subject, setup, spending), device)
        seconds = None if batch_seconds is None else batch_seconds * subject.schedule.micro_batches
    price = device.price_per_hour
    cost = None if seconds is None or price is None else seconds / 3600 * price * subject.schedule.num_processes
    return DevicePlan(device=device, memory=memory, spending=spending, fits=fits, seconds=seconds, cost=cost)


def _build_setup(subject: _Subject, device: Device) -> Setup:
    recipe, training = subject.recipe, subject.recipe.training
    compute_bytes = find_compute_bytes(recipe, device)
    holding = Holding(recipe.model.quantization, recipe.model.double_quantization, compute_bytes)
    return Setup(
        architecture=subject.architecture,
        adapter=subject.adapter.shape,
        holding=holding,
        batch=subject.schedule.largest,
        computing=_build_computing(subject, device, holding),
        optimizer=str(find_setting(recipe, "optim")),
        may_recompute=training.gradient_checkpointing and training.memory != "recompute_none",
        has_copy=subject.adapter.has_copy,
    )


def _build_computing(subject: _Subject, device: Device, holding: Holding) -> Computing:
    recipe, shape = subject.recipe, subject.adapter.shape
    is_simple = shape.method == "lora" and shape.dropout == 0 and not shape.is_weight_decomposed
    loss = "head" if subject.architecture.output is None else "chunks"
    return Computing(
        compute_bytes=holding.compute_bytes,
        attention=find_attention(recipe, subject.architecture.model_type, device),
        loss="logits" if recipe.objective in _LOGITS else loss,
        is_lean=recipe.model.backend == "transformers" and is_simple,
        is_quantized=is_quantized(holding),
        on_cpu=device.is_cpu,
    )


def _decide(subject: _Subject, setup: Setup, device: Device) -> Spending:
    """Decide as a run does what idle memory is spent on: layers that recompute nothing, then copies of weights."""
    base, training = setup.architecture, subject.recipe.training
    plain = Spending(num_layers=base.num_layers, num_kept=0 if setup.may_recompute else base.num_layers)
    if training.memory != "auto" or subject.recipe.model.backend != "transformers":
        return plain
    options = _build_options(setup, device) if setup.may_recompute else {}
    residents: list[int] = []
    if setup.holding.quantization in ("nf4", "fp4"):
        each = [one.num_weights * setup.holding.compute_bytes for one in base.linears]
        residents = each * base.num_layers
    coming_bytes = estimate_memory(setup, plain).peak_bytes
    spendable_bytes = find_spendable(device.memory_bytes, device.memory_bytes, coming_bytes)
    spending = spend(spendable_bytes, base.num_layers, options, residents)
    return spending if setup.may_recompute else replace(spending, num_kept=base.num_layers)


def _build_options(setup: Setup, device: Device) -> dict[Keeps, Option]:
    base = setup.architecture
    layer = estimate_layers(setup)
    weights = {part: sum(one.num_weights for one in base.linears if one.part == part) for part in ("attention", "mlp")}
    last = base.linears[-1].num_weights if setup.computing.is_lean else 0
    rates = RATES["cpu" if device.is_cpu else "cuda"]
    if device.flops_per_second is not None and device.bytes_per_second is not None:
        rates = Rates(device.flops_per_second, device.bytes_per_second)
    work = estimate_layer_work(
        rates,
        tokens=setup.batch.num_tokens,
        attention_weights=weights["attention"],
        mlp_weights=weights["mlp"],
        attention_width=base.num_heads * base.head_dim,
        document_tokens=setup.batch.document_tokens,
        skipped_weights=(0, last),
        dequantizes=setup.computing.is_quantized,
    )
    return build_options(
        work,
        kept_bytes=layer.kept_bytes,
        input_bytes=layer.input_bytes,
        attention_bytes=max(layer.kept_bytes - layer.mlp_bytes - layer.input_bytes, 0),
        mlp_bytes=max(layer.mlp_bytes - layer.input_bytes, 0),
    )


def _estimate_batch(subject: _Subject, setup: Setup, spending: Spending) -> Work:
    recipe, rows, batch = subject.recipe, subject.rows, subject.schedule.largest
    extra = 0.0
    if recipe.objective in ("dpo", "kto") and not find_setting(recipe, "precompute_ref_log_probs"):
        extra += 1.0  # the reference
    if recipe.objective == "kto":
        extra += 1.0 + extra  # the other answers, by which it is measured how far the policy has moved
    document_tokens = rows.attended_tokens
    if batch.is_packed and setup.computing.attention in ("sdpa", "eager"):
        document_tokens = 2.0 * batch.row_tokens  # a mask hides what is computed all the same
    return estimate_work(
        setup,
        spending,
        Passes(extra, 1.0 if setup.computing.loss == "logits" else rows.trained_fraction),
        tokens=subject.schedule.tokens_per_batch,
        document_tokens=document_tokens,
    )


# ---- what to change, and what is not counted


def _find_changes(subject: _Subject, device: Device) -> list[Change]:
    recipe, training, shape = subject.recipe, subject.recipe.training, subject.adapter.shape

    def estimate(settings: Mapping[str, Any]) -> int | None:
        try:
            changed = _change(subject, settings)
        except RecipeError:
            return None
        return _plan_on(changed, device).memory.peak_bytes

    starts_fresh = recipe.adapter.init_from is None
    knobs = Knobs(
        batch_size=training.per_device_train_batch_size,
        accumulation=training.gradient_accumulation_steps,
        recomputes=training.gradient_checkpointing and training.memory != "recompute_none",
        quantization=None if shape.is_whole else recipe.model.quantization,
        max_length=recipe.data.max_length,
        tokens_per_batch=recipe.data.tokens_per_batch,
        optimizer=str(find_setting(recipe, "optim")),
        r=shape.r if shape.method == "lora" and starts_fresh else None,
        is_packed=subject.schedule.largest.is_packed,
        trains_base=shape.is_whole and starts_fresh,
        num_processes=subject.schedule.num_processes,
        row_name=name_rows(recipe.objective, is_packed=subject.schedule.largest.is_packed),
    )
    return find_changes(estimate, knobs, device.memory_bytes)


def _change(subject: _Subject, settings: Mapping[str, Any]) -> _Subject:
    """The same with settings of the recipe changed.

    Raises:
        RecipeError: the reader of recipes refuses them.
    """
    values = to_resolved(subject.recipe)
    for path, value in settings.items():
        section, key = path.split(".")
        values[section][key] = value
    recipe = build_recipe(values)
    max_length, rows = recipe.data.max_length, subject.rows
    if max_length < subject.recipe.data.max_length:
        rows = _cut(rows, max_length)
    if recipe.data.tokens_per_batch != subject.recipe.data.tokens_per_batch:
        rows = replace(rows, num_packed=None)
    adapter = subject.adapter
    if any(path.startswith("adapter.") for path in settings):
        adapter = find_adapter(recipe, subject.architecture, None)
    schedule = build_schedule(recipe, rows, num_processes=subject.schedule.num_processes)
    return _Subject(recipe, subject.architecture, adapter, rows, schedule)


def _cut(rows: Rows, max_length: int) -> Rows:
    """Rows of at most so many tokens, longer ones cut; how many would be dropped is not known."""
    longest = min(rows.longest_tokens, max_length)
    attended = min(rows.attended_tokens, float(max_length))
    return replace(rows, longest_tokens=longest, attended_tokens=attended, num_packed=None)


def _count_outputs(recipe: Recipe) -> int | None:
    """Count the labels of a classifier, 1 for numbers and for all else; None where the rows alone will tell."""
    settings = recipe.classification
    if recipe.objective != "classify" or settings.problem_type == "regression":
        return 1
    if settings.labels is not None:
        return len(settings.labels)
    return max(len(GLUE_TASKS[settings.task].labels), 1) if settings.task is not None else None
