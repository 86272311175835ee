"""The plan that opens a run, from the rows it has counted and the device it has; and how near it came.

In go a recipe and what was prepared; out comes the `Plan` that is logged, saved and printed beside what was measured.
A plan is no condition: where the shapes of a base are not known there is none, and the rehearsal judges the memory.
"""

import logging
from datetime import UTC, datetime
from typing import Any

import torch

from finetune.budget.devices import Device, find_device_by_model
from finetune.errors import FinetuneError
from finetune.model.devices import choose_device
from finetune.planning.console import render_line, render_verdict
from finetune.planning.estimate import Plan, estimate_plan
from finetune.planning.machine import find_cpu, write_rate
from finetune.planning.rows import build_rows, write_census
from finetune.prepare import Prepared
from finetune.recipe.schema import Recipe
from finetune.run.metrics import Totals

__all__ = ["open_with_plan", "to_prediction", "write_speed"]

log = logging.getLogger("finetune.predicting")

# Fewer steps tell more of the start than of the speed.
_LEAST_STEPS = 10


def open_with_plan(recipe: Recipe, prepared: Prepared, *, num_processes: int) -> Plan | None:
    """Plan a run from its own rows, say it in a line, and keep the rows' numbers for `python -m finetune.plan`.

    Args:
        recipe: the run.
        prepared: its rows.
        num_processes: that train at once.

    Returns:
        The plan; None where the shape of the base is not known.
    """
    census = prepared.train.report["census"]
    write_census(recipe, census)
    rows = build_rows(census, recipe, "this run's own rows")
    try:
        plan = estimate_plan(
            recipe,
            device=_find_device(recipe),
            rows=rows,
            num_processes=num_processes,
            num_outputs=None if prepared.labelled is None else prepared.labelled.labels.num_outputs,
            compares_devices=False,
        )
    except FinetuneError as error:
        log.info("No plan: %s", str(error).splitlines()[0])
        return None
    if plan.chosen.fits:
        log.info("%s", render_line(plan))
    else:
        log.warning("%s", render_verdict(plan, recipe))
    return plan


def to_prediction(plan: Plan | None) -> dict[str, Any] | None:
    """What a plan has said of figures that the summary measures, by their names there; None without a plan.

    Memory is what is measured: tensors alone on a GPU, the whole process on a CPU.
    """
    if plan is None:
        return None
    memory = plan.chosen.memory
    peak_bytes = memory.peak_bytes if plan.chosen.device.is_cpu else memory.held_bytes
    return {
        "steps": plan.schedule.steps,
        "trainable_parameters": plan.trainable_parameters,
        "adapter_bytes": plan.adapter_bytes,
        "tokens_per_second": None if plan.tokens_per_second is None else round(plan.tokens_per_second, 1),
        "peak_memory_bytes": peak_bytes,
    }


def write_speed(plan: Plan | None, totals: Totals, name: str) -> None:
    """Write down how fast this CPU was, for later plans: operations by the seconds trained."""
    if plan is None or not plan.chosen.device.is_cpu or totals.tokens_per_second is None:
        return
    if totals.steps < _LEAST_STEPS or totals.tokens == 0:
        return
    flops = plan.flops * totals.steps / plan.schedule.steps
    seconds = totals.tokens / totals.tokens_per_second
    write_rate(plan.work_kind, flops / seconds, run=name, at=datetime.now(UTC).strftime("%Y-%m-%d"))


def _find_device(recipe: Recipe) -> Device:
    """Find the device of this run, with its own memory; its speed where the table knows it."""
    device = choose_device(recipe.model.device)
    if device.type != "cuda":
        return find_cpu()
    properties = torch.cuda.get_device_properties(device)
    known = find_device_by_model(properties.name)
    return Device(
        name=properties.name if known is None else known.name,
        label=properties.name,
        memory_bytes=properties.total_memory,
        flops_per_second=None if known is None else known.flops_per_second,
        bytes_per_second=None if known is None else known.bytes_per_second,
        has_bfloat16=properties.major >= 8,
        price_per_hour=None if known is None else known.price_per_hour,
        assumptions=() if known is None else known.assumptions,
    )
