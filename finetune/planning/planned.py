"""The plan itself: what a run needs and how long it takes, on a device and on those of the table.

Filled by `estimate`; `plan.json`, the verb's `--json` and its tables are made from it.
"""

from dataclasses import dataclass
from typing import Any, Literal

from finetune.budget.devices import Device
from finetune.budget.duration import ASSUMPTIONS, HOST_KEEPS_UP, LEAST_HOST_TOKENS, Work
from finetune.budget.fitting import Change
from finetune.budget.memory import Memory, render_assumptions
from finetune.budget.spending import Spending
from finetune.planning.rows import Rows
from finetune.planning.schedule import Schedule

__all__ = ["DevicePlan", "Plan", "Verdict"]

# `may not fit`: by less than what the plan may be wrong by.
Verdict = Literal["fits", "may not fit", "does not fit"]


@dataclass(frozen=True, slots=True, kw_only=True)
class DevicePlan:
    """A run on one device.

    Attributes:
        device: it.
        memory: at the peak.
        spending: which layers keep their activations, and copies of weights.
        verdict: whether the peak is no more than the device has, and by a margin: five hundredths of its memory, or
            what the plan was wrong by at worst. A device that has not got what the recipe names does not fit.
        seconds: of training; None where it does not fit, the device's speed is not known, or the run samples answers.
        cost: in US dollars; None where there is no price or no time.
    """

    device: Device
    memory: Memory
    spending: Spending
    verdict: Verdict
    seconds: float | None
    cost: float | None

    @property
    def fits(self) -> bool:
        """Whether the peak is no more than the device has, with a margin or without."""
        return self.verdict != "does not fit"


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """What a run needs.

    Attributes:
        chosen: on the device that was asked for.
        others: on every device of the table.
        schedule: steps and what is in them.
        rows: trained on, and where their number is from.
        work: of one micro-batch on the chosen device.
        trainable_parameters: numbers trained.
        total_parameters: of base and adapter.
        adapter_bytes: of the result's weights on the disk.
        checkpoint_bytes: of the tensors in a checkpoint: what is trained, and the optimizer's states.
        disk_bytes: that the run writes at most, the base's download not counted.
        changes: ways to make it fit, where it does not.
        work_kind: base and objective in words, by which a CPU's measured speed is found again.
        base_from: where the base's shape is from.
        adapter_from: what the adapter's shape stands on where it is not the recipe's own section.
        estimates: what is estimated that is otherwise counted.
        not_planned: what of the run this plan leaves out.
    """

    chosen: DevicePlan
    others: tuple[DevicePlan, ...]
    schedule: Schedule
    rows: Rows
    work: Work
    trainable_parameters: int
    total_parameters: int
    adapter_bytes: int
    checkpoint_bytes: int
    disk_bytes: int
    changes: tuple[Change, ...]
    work_kind: str
    base_from: str
    adapter_from: str | None
    estimates: tuple[str, ...]
    not_planned: tuple[str, ...]

    @property
    def flops(self) -> float:
        """Operations of the whole run."""
        return self.work.flops * self.schedule.micro_batches * self.schedule.num_processes

    @property
    def assumptions(self) -> list[str]:
        """Every figure that stands on no count, with its source."""
        device = self.chosen.device
        speed = [] if self.chosen.seconds is None or device.is_cpu else list(ASSUMPTIONS)
        if speed and self.schedule.tokens_per_batch >= LEAST_HOST_TOKENS:
            speed.append(HOST_KEEPS_UP)
        return [*render_assumptions(on_cpu=device.is_cpu), *speed, *device.assumptions]

    def to_json(self) -> dict[str, Any]:
        """The object of `plan --json` and of plan.json."""
        chosen = self.chosen
        return {
            "device": chosen.device.name,
            "fits": chosen.fits,
            "verdict": chosen.verdict,
            "peak_memory_bytes": chosen.memory.peak_bytes,
            "memory_bytes": chosen.device.memory_bytes,
            "parts": chosen.memory.to_json(),
            "steps": self.schedule.steps,
            "rows_per_step": round(self.schedule.rows_per_step, 2),
            "tokens_per_step": round(self.schedule.tokens_per_step, 1),
            "micro_batches": self.schedule.micro_batches,
            "flops": self.flops,
            "seconds": None if chosen.seconds is None else round(chosen.seconds, 1),
            "tokens_per_second": _round(self.tokens_per_second),
            "cost": _round(chosen.cost),
            "price_per_hour": chosen.device.price_per_hour,
            "trainable_parameters": self.trainable_parameters,
            "total_parameters": self.total_parameters,
            "adapter_bytes": self.adapter_bytes,
            "checkpoint_bytes": self.checkpoint_bytes,
            "disk_bytes": self.disk_bytes,
            "rows": self.rows.num_rows,
            "tokens": self.rows.num_tokens,
            "rows_from": self.rows.origin,
            "base_from": self.base_from,
            "adapter_from": self.adapter_from,
            "recomputed_layers": chosen.spending.num_recomputed,
            "partly_recomputed_layers": chosen.spending.num_partly_recomputed,
            "spending": chosen.spending.to_json(),
            "devices": [_to_short(one) for one in self.others],
            "changes": [
                {"settings": dict(one.settings), "peak_memory_bytes": one.peak_bytes, "costs": one.costs}
                for one in self.changes
            ],
            "estimates": list(self.estimates),
            "not_planned": list(self.not_planned),
            "assumptions": self.assumptions,
        }

    @property
    def tokens_per_second(self) -> float | None:
        """Real tokens trained on, by the seconds of the chosen device."""
        if not self.chosen.seconds:
            return None
        return self.schedule.tokens_per_step * self.schedule.steps / self.chosen.seconds


def _to_short(one: DevicePlan) -> dict[str, Any]:
    return {
        "device": one.device.name,
        "memory_bytes": one.device.memory_bytes,
        "fits": one.fits,
        "verdict": one.verdict,
        "peak_memory_bytes": one.memory.peak_bytes,
        "recomputed_layers": one.spending.num_recomputed,
        "partly_recomputed_layers": one.spending.num_partly_recomputed,
        "seconds": _round(one.seconds),
        "price_per_hour": one.device.price_per_hour,
        "cost": _round(one.cost),
    }


def _round(value: float | None) -> float | None:
    return None if value is None else round(value, 2)
