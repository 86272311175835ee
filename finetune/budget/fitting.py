"""What to change where a run does not fit: the smallest changes that make it fit, the rows of a step kept.

In go the settings that can be changed, as they stand, and how to estimate the peak with others; out come changes, each
of which was estimated again and fits.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

__all__ = ["Change", "Estimated", "Knobs", "find_changes"]

Settings = Mapping[str, Any]

_SMALLEST_LENGTH = 256
_SMALLEST_RANK = 4
_AS_MANY_TOKENS = "as many tokens a step as before"
_ACCUMULATION = "training.gradient_accumulation_steps"


@dataclass(frozen=True, slots=True, kw_only=True)
class Knobs:
    """Settings that decide how much memory a run takes, as they stand; None: it is not to be had here.

    Attributes:
        batch_size: rows of a micro-batch.
        accumulation: micro-batches of a step.
        recomputes: whether every layer may recompute its activations already.
        quantization: how the base is held; None: the method trains the base itself, or its layers take no other.
        max_length: tokens of a row.
        optimizer: its name.
        r: the adapter's rank.
        tokens_per_batch: tokens of a micro-batch where those and no rows decide it.
        is_packed: whether a row holds as many documents as go into `max_length`.
        trains_base: whether the method trains weights of the base, where an adapter could be trained beside it.
        num_processes: that train at once, each with micro-batches of its own.
        row_name: what a row of a micro-batch is called.
    """

    batch_size: int
    accumulation: int
    recomputes: bool
    quantization: str | None
    max_length: int | None
    optimizer: str
    r: int | None
    tokens_per_batch: int | None = None
    is_packed: bool = False
    trains_base: bool = False
    num_processes: int = 1
    row_name: str = "rows"


@dataclass(frozen=True, slots=True)
class Estimated:
    """What a run needs with other settings.

    Attributes:
        peak_bytes: at its peak.
        fits: whether it fits then, what the estimate may be wrong by included.
    """

    peak_bytes: int
    fits: bool


# With settings over the recipe's; None: the recipe's reader refuses them.
Estimate = Callable[[Settings], Estimated | None]


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


@dataclass(frozen=True, slots=True)
class _Rung:
    """One change of a kind.

    Attributes:
        settings: keys of the recipe and their new values, the accumulation not among them.
        costs: what it is paid with, in words; empty: with time alone.
        keeps: what a step keeps, in words; of several changes the last one's holds for all.
        accumulates: micro-batches that come in place of one, so that a step keeps it.
    """

    settings: Settings
    costs: str
    keeps: str = ""
    accumulates: Fraction = Fraction(1)


@dataclass(frozen=True, slots=True)
class _Tried:
    change: Change
    fits: bool


def find_changes(estimate: Estimate, knobs: Knobs) -> list[Change]:
    """Find the smallest changes that make a run fit.

    Args:
        estimate: what it needs with settings over the recipe's; None where they are refused.
        knobs: the settings as they stand.

    Returns:
        Those that do it alone, in the order of what they cost in results; where none does, the smallest that do it
        together, in that order again; none where all together do not.
    """
    alone, ladders = [], []
    for ladder in _build_ladders(knobs):
        too_small = []
        for rung in ladder:
            tried = _try([rung], estimate, knobs)
            if tried is not None and tried.fits:
                alone.append(tried.change)
                break
            if tried is not None:
                too_small.append(rung)
        ladders.append(too_small)
    return alone or _find_together(estimate, [ladder for ladder in ladders if ladder], knobs)


def _find_together(estimate: Estimate, ladders: Sequence[Sequence[_Rung]], knobs: Knobs) -> list[Change]:
    """Add the furthest rung of one ladder after another until it fits, then step back wherever less does it too.

    Stepped back is from the costliest kind to the cheapest, so that what costs results is left as it is before what
    costs time alone.
    """

    def fits(rungs: Sequence[_Rung]) -> bool:
        tried = _try(rungs, estimate, knobs)
        return tried is not None and tried.fits

    taken: list[_Rung] = []
    for ladder in ladders:
        taken.append(ladder[-1])
        if fits(taken):
            break
    else:
        return []
    for place in range(len(taken) - 1, -1, -1):
        before, behind = taken[:place], taken[place + 1 :]
        options = [[], *([rung] for rung in ladders[place][:-1])]
        smaller = next((one for one in options if fits([*before, *one, *behind])), [taken[place]])
        taken = [*before, *smaller, *behind]
    tried = _try(taken, estimate, knobs)
    assert tried is not None
    return [tried.change]


def _try(rungs: Sequence[_Rung], estimate: Estimate, knobs: Knobs) -> _Tried | None:
    """Estimate several rungs at once; None where their settings are refused."""
    settings = {key: value for rung in rungs for key, value in rung.settings.items()}
    accumulation = max(round(knobs.accumulation * math.prod(rung.accumulates for rung in rungs)), 1)
    if accumulation != knobs.accumulation:
        settings[_ACCUMULATION] = accumulation
    estimated = estimate(settings)
    if estimated is None:
        return None
    kept = [rung.keeps for rung in rungs if rung.keeps]
    said = [*kept[-1:], *(rung.costs for rung in rungs if rung.costs)]
    return _Tried(Change(settings, estimated.peak_bytes, "; ".join(said)), fits=estimated.fits)


def _build_ladders(knobs: Knobs) -> list[list[_Rung]]:
    """Changes of each kind, from the smallest to the furthest; kinds from those that cost time alone on."""
    rows = knobs.batch_size * knobs.accumulation
    as_many = f"{rows * knobs.num_processes} {knobs.row_name} a step as before"
    batches = [
        _Rung({"training.per_device_train_batch_size": size}, "", as_many, Fraction(knobs.batch_size, size))
        for size in _find_divisors(rows, below=knobs.batch_size)
        if knobs.tokens_per_batch is None
    ]
    budgets = [
        _Rung(
            {"data.tokens_per_batch": tokens},
            "",
            _AS_MANY_TOKENS,
            Fraction(knobs.tokens_per_batch or tokens, tokens),
        )
        for tokens in _halve(knobs.tokens_per_batch, knobs.max_length or _SMALLEST_LENGTH)
    ]
    recomputed = []
    if not knobs.recomputes:
        recomputed = [_Rung({"training.gradient_checkpointing": True, "training.memory": "auto"}, "a third more time")]
    held = []
    if knobs.quantization in ("none", "int8"):
        held = [_Rung({"model.quantization": "nf4"}, "the base rounded to 4 bits")]
    eight_bits = []
    if knobs.optimizer in ("adamw_torch", "adamw_torch_fused"):
        eight_bits = [_Rung({"training.optim": "adamw_8bit"}, "the optimizer's states rounded to 8 bits")]
    ranks = [_Rung({"adapter.r": rank}, "a smaller adapter") for rank in _halve(knobs.r, _SMALLEST_RANK)]
    beside = []
    if knobs.trains_base:
        costs = "an adapter is trained beside the base, which is rounded to 4 bits"
        beside = [_Rung({"adapter.method": "lora", "model.quantization": "nf4"}, costs)]
    return [batches, budgets, recomputed, eight_bits, held, _build_lengths(knobs), ranks, beside]


def _build_lengths(knobs: Knobs) -> list[_Rung]:
    """Shorter rows; packed ones hold fewer documents, so more of them make a step unless tokens fill a micro-batch."""
    costs = "longer rows are dropped or cut"
    if not knobs.is_packed or knobs.tokens_per_batch is not None:
        return [_Rung({"data.max_length": length}, costs) for length in _halve(knobs.max_length, _SMALLEST_LENGTH)]
    return [
        _Rung(
            {"data.max_length": length},
            costs,
            _AS_MANY_TOKENS,
            Fraction(knobs.max_length or length, length),
        )
        for length in _halve(knobs.max_length, _SMALLEST_LENGTH)
    ]


def _find_divisors(number: int, *, below: int) -> list[int]:
    """Divisors that are smaller than `below`, from the largest on."""
    small = [divisor for divisor in range(1, math.isqrt(number) + 1) if number % divisor == 0]
    found = {*small, *(number // divisor for divisor in small)}
    return sorted((divisor for divisor in found if divisor < below), reverse=True)


def _halve(value: int | None, smallest: int) -> list[int]:
    halves = []
    while value is not None and value // 2 >= smallest:
        value //= 2
        halves.append(value)
    return halves


def _to_word(value: Any) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)
