"""What to change where a run does not fit: the smallest changes that make it fit, the rows of a step kept.

In go the settings that can be changed, as they stand, and how to estimate the peak with others; out come changes, each
of which was estimated again and fits.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

__all__ = ["Change", "Knobs", "find_changes"]

Settings = Mapping[str, Any]

_SMALLEST_LENGTH = 256
_SMALLEST_RANK = 4


@dataclass(frozen=True, slots=True, kw_only=True)
class Knobs:
    """Settings that decide how much memory a run takes, as they stand; None: it is not to be had here.

    Attributes:
        batch_size: rows of a micro-batch.
        accumulation: micro-batches of a step.
        tokens_per_batch: tokens of a micro-batch where those and no rows decide it.
        recomputes: whether every layer may recompute its activations already.
        quantization: how the base is held; None: the method trains the base itself, or its layers take no other.
        max_length: tokens of a row.
        optimizer: its name.
        r: the adapter's rank.
    """

    batch_size: int
    accumulation: int
    recomputes: bool
    quantization: str | None
    max_length: int | None
    optimizer: str
    r: int | None
    tokens_per_batch: int | None = None


@dataclass(frozen=True, slots=True)
class Change:
    """One way to make a run fit.

    Attributes:
        settings: keys of the recipe and their new values.
        peak_bytes: that it needs then.
        costs: what the change is paid with, in words.
    """

    settings: Settings
    peak_bytes: int
    costs: str

    def to_arguments(self) -> str:
        """As typed behind a recipe."""
        return " ".join(f"{key}={_to_word(value)}" for key, value in self.settings.items())


def find_changes(estimate: Callable[[Settings], int], knobs: Knobs, memory_bytes: int) -> list[Change]:
    """Find the smallest changes that make a run fit.

    Args:
        estimate: the peak in bytes with settings over the recipe's.
        knobs: the settings as they stand.
        memory_bytes: of the device.

    Returns:
        Those that do it alone, in the order of what they cost in results; where none does, the fewest that do it
        together, in that order again; none where all together do not.
    """
    ladders = [ladder for ladder in _build_ladders(knobs) if ladder]
    alone = []
    for ladder in ladders:
        for settings, costs in ladder:
            peak_bytes = estimate(settings)
            if peak_bytes <= memory_bytes:
                alone.append(Change(settings, peak_bytes, costs))
                break
    return alone or _find_together(estimate, ladders, memory_bytes)


def _find_together(
    estimate: Callable[[Settings], int], ladders: list[list[tuple[Settings, str]]], memory_bytes: int
) -> list[Change]:
    """Add the furthest rung of one ladder after another until it fits, then leave out what was not needed."""
    taken: list[tuple[Settings, str]] = []
    for ladder in ladders:
        taken.append(ladder[-1])
        if estimate(_merge(taken)) <= memory_bytes:
            break
    else:
        return []
    for place in range(len(taken) - 1, -1, -1):
        others = taken[:place] + taken[place + 1 :]
        if others and estimate(_merge(others)) <= memory_bytes:
            taken = others
    settings = _merge(taken)
    return [Change(settings, estimate(settings), "; ".join(dict.fromkeys(costs for _, costs in taken)))]


def _merge(taken: list[tuple[Settings, str]]) -> Settings:
    return {key: value for settings, _ in taken for key, value in settings.items()}


def _build_ladders(knobs: Knobs) -> list[list[tuple[Settings, str]]]:
    """Changes of each kind, from the smallest to the furthest; kinds from those that cost time alone on."""
    rows = knobs.batch_size * knobs.accumulation
    smaller = [size for size in range(knobs.batch_size - 1, 0, -1) if rows % size == 0]
    batches: list[tuple[Settings, str]] = [
        (
            {
                "training.per_device_train_batch_size": size,
                "training.gradient_accumulation_steps": rows // size,
            },
            f"{rows} rows a step as before",
        )
        for size in smaller
    ]
    budgets: list[tuple[Settings, str]] = [
        (
            {
                "data.tokens_per_batch": tokens,
                "training.gradient_accumulation_steps": knobs.accumulation * (knobs.tokens_per_batch or 0) // tokens,
            },
            "as many tokens a step as before",
        )
        for tokens in _halve(knobs.tokens_per_batch, knobs.max_length or _SMALLEST_LENGTH)
    ]
    recomputed: list[tuple[Settings, str]] = []
    if not knobs.recomputes:
        recomputed = [({"training.gradient_checkpointing": True, "training.memory": "auto"}, "a third more time")]
    held: list[tuple[Settings, str]] = []
    if knobs.quantization in ("none", "int8"):
        held = [({"model.quantization": "nf4"}, "the base rounded to 4 bits")]
    eight_bits: list[tuple[Settings, str]] = []
    if knobs.optimizer in ("adamw_torch", "adamw_torch_fused"):
        eight_bits = [({"training.optim": "adamw_8bit"}, "the optimizer's states rounded to 8 bits")]
    return [
        batches,
        budgets,
        recomputed,
        eight_bits,
        held,
        [
            ({"data.max_length": length}, "longer rows are dropped or cut")
            for length in _halve(knobs.max_length, _SMALLEST_LENGTH)
        ],
        [({"adapter.r": rank}, "a smaller adapter") for rank in _halve(knobs.r, _SMALLEST_RANK)],
    ]


def _halve(value: int | None, smallest: int) -> list[int]:
    halves = []
    while value is not None and value // 2 >= smallest:
        value //= 2
        halves.append(value)
    return halves


def _to_word(value: Any) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)
