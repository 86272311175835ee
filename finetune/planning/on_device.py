"""A run on one device: what it holds there, whether that fits, how long it takes and what it costs.

In go a `Subject` and a `Device`; out comes a `DevicePlan`.
"""

from dataclasses import replace

from finetune.budget.devices import Device
from finetune.budget.duration import Passes, Work, estimate_seconds, estimate_work
from finetune.budget.memory import Memory, Setup, estimate_error, estimate_memory
from finetune.budget.spending import RESERVE_FRACTION, Spending
from finetune.planning.deciding import build_plain, decide
from finetune.planning.device_rules import is_refused
from finetune.planning.notes import is_in_float32
from finetune.planning.planned import DevicePlan, Verdict
from finetune.planning.schedule import find_setting
from finetune.planning.subject import Subject, build_setup, find_schedule
from finetune.recipe.row_kinds import SAMPLED

__all__ = ["estimate_batch", "plan_on"]


def plan_on(subject: Subject, device: Device) -> DevicePlan:
    """Plan a run on a device; of a CPU's memory and speed each process has its share."""
    if device.is_cpu and subject.num_processes > 1:
        device = _share(device, subject.num_processes)
    recipe, setup, schedule = subject.recipe, build_setup(subject, device), find_schedule(subject, device)
    spending = decide(recipe, setup, device)
    memory = estimate_memory(setup, spending)
    least = estimate_memory(setup, build_plain(recipe, setup)) if recipe.training.memory == "auto" else memory
    verdict = "does not fit" if is_refused(recipe, device) else _judge(setup, memory, least, device)
    seconds = None
    if verdict != "does not fit" and recipe.objective not in SAMPLED and not is_in_float32(setup, device):
        batch_seconds = estimate_seconds(estimate_batch(subject, setup, spending, device), device)
        seconds = None if batch_seconds is None else batch_seconds * schedule.micro_batches
    price = device.price_per_hour
    cost = None if seconds is None or price is None else seconds / 3600 * price * subject.num_processes
    return DevicePlan(device=device, memory=memory, spending=spending, verdict=verdict, seconds=seconds, cost=cost)


def _share(device: Device, num_processes: int) -> Device:
    """What each of several processes has of a device that they share."""
    speed = device.flops_per_second
    return replace(
        device,
        label=f"a process's share of {device.label} (1 of {num_processes})",
        memory_bytes=device.memory_bytes // num_processes,
        flops_per_second=None if speed is None else speed / num_processes,
    )


def _judge(setup: Setup, memory: Memory, least: Memory, device: Device) -> Verdict:
    """Judge whether a run fits by so much that neither the plan's own error nor what no arithmetic sees undoes it.

    Args:
        setup: of the run.
        memory: at its peak.
        least: at the peak with nothing spent that the run can take back.
        device: that it is to fit on.
    """
    if memory.peak_bytes > device.memory_bytes:
        return "does not fit"
    margin_bytes = max(int(device.memory_bytes * RESERVE_FRACTION), estimate_error(setup, least))
    return "fits" if least.peak_bytes + margin_bytes <= device.memory_bytes else "may not fit"


def estimate_batch(subject: Subject, setup: Setup, spending: Spending, device: Device) -> Work:
    """Estimate what the mean micro-batch takes on a device.

    Args:
        subject: the run.
        setup: of it on the device.
        spending: what its idle memory is spent on.
        device: to run on.
    """
    recipe, rows, batch = subject.recipe, subject.rows, setup.batch
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
        tokens=find_schedule(subject, device).tokens_per_batch,
        document_tokens=document_tokens,
    )
