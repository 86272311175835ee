"""What memory that would lie idle is spent on, by seconds saved per byte.

In go free bytes and what things cost: a decoder layer that keeps its activations for the backward pass, whole or in
part, instead of computing them twice; a frozen quantized matrix that keeps a copy in the compute dtype instead of being
dequantized at every product. Out comes a `Spending`. Arithmetic alone: the plan of a recipe and a run use the same.

Layers of one base are taken to cost alike. The last ones are kept: the backward pass frees them first, so that a layer
that is recomputed finds their room empty. Copies come after all layers: a byte of a copy saves about an eighth of the
seconds that a byte of activations does (Mistral-7B, 8,192 tokens on an H200).
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import product
from typing import Any, Literal

__all__ = [
    "RATES",
    "RESERVE_FRACTION",
    "Keeps",
    "LayerWork",
    "Option",
    "Rates",
    "Spending",
    "build_options",
    "find_spendable",
    "spend",
    "take_back",
    "to_spending",
]

# What a layer keeps for the backward pass; what it does not keep it computes again.
Keeps = Literal["nothing", "attention", "mlp", "all"]
_PARTS: tuple[Keeps, ...] = ("mlp", "attention")

# Of all memory: for what no arithmetic sees, such as fragments and libraries' workspaces.
RESERVE_FRACTION = 0.05


@dataclass(frozen=True, slots=True)
class Rates:
    """How fast a device computes; the order of what is bought hangs on the ratio of the two alone.

    Attributes:
        flops_per_second: of 16-bit matrix products.
        bytes_per_second: of its memory.
    """

    flops_per_second: float
    bytes_per_second: float


# Of an A100 (data sheet: 312 TFLOP/s, 2.0 TB/s, two thirds of both) and of two cores with AVX512-BF16.
RATES: Mapping[str, Rates] = {"cuda": Rates(2.1e14, 1.4e12), "cpu": Rates(2e11, 1e10)}


@dataclass(frozen=True, slots=True)
class Option:
    """Something that memory can be spent on.

    Attributes:
        num_bytes: it holds, beyond what a layer that is recomputed holds anyway.
        seconds: it saves in each micro-batch.
    """

    num_bytes: int
    seconds: float


@dataclass(frozen=True, slots=True)
class LayerWork:
    """Seconds of computing a second time.

    Attributes:
        whole_seconds: a whole layer.
        attention_seconds: its attention alone.
        mlp_seconds: its MLP alone. The two may come to less than the whole, as each may leave its last product out.
    """

    whole_seconds: float
    attention_seconds: float
    mlp_seconds: float


@dataclass(frozen=True, slots=True)
class Spending:
    """What was decided.

    Attributes:
        num_layers: of the base.
        num_kept: layers that recompute nothing: the last ones.
        num_mlp_kept: layers before those that recompute their attention alone.
        num_attention_kept: layers before those that recompute their MLP alone.
        layer_bytes: that the kept activations hold.
        num_resident: frozen matrices with a copy in the compute dtype: the first ones.
        resident_bytes: that the copies hold.
    """

    num_layers: int
    num_kept: int = 0
    num_mlp_kept: int = 0
    num_attention_kept: int = 0
    layer_bytes: int = 0
    num_resident: int = 0
    resident_bytes: int = 0

    @property
    def num_by_kind(self) -> tuple[int, int, int]:
        """Layers that keep all, that keep their MLP, that keep their attention."""
        return self.num_kept, self.num_mlp_kept, self.num_attention_kept

    @property
    def num_recomputed(self) -> int:
        """Layers that compute all of their activations twice."""
        return self.num_layers - self.num_kept - self.num_partly_recomputed

    @property
    def num_partly_recomputed(self) -> int:
        """Layers that compute their attention or their MLP twice."""
        return self.num_mlp_kept + self.num_attention_kept

    @property
    def layers(self) -> tuple[Keeps, ...]:
        """What each layer keeps, from the first to the last."""
        kinds: tuple[tuple[Keeps, int], ...] = (
            ("nothing", self.num_recomputed),
            ("attention", self.num_attention_kept),
            ("mlp", self.num_mlp_kept),
            ("all", self.num_kept),
        )
        return tuple(kind for kind, number in kinds for _ in range(number))

    @property
    def num_bytes(self) -> int:
        """All that is held because of it."""
        return self.layer_bytes + self.resident_bytes

    def to_json(self) -> dict[str, int]:
        """The object that `to_spending` reads."""
        return asdict(self)


def to_spending(values: Mapping[str, Any]) -> Spending:
    """Read what `Spending.to_json` wrote.

    Raises:
        ValueError: other entries, or numbers that no decision has.
        TypeError: other entries.
    """
    spending = Spending(**values)
    numbers = asdict(spending).values()
    if not all(isinstance(number, int) and number >= 0 for number in numbers) or spending.num_recomputed < 0:
        raise ValueError("it is not a decision on memory")
    return spending


def find_spendable(free_bytes: int, total_bytes: int, coming_bytes: int) -> int:
    """Find what may be spent: what is free without the reserve and without what is still to come.

    Args:
        free_bytes: now.
        total_bytes: of the device.
        coming_bytes: gradients, states of the optimizer, and a step that recomputes everything.
    """
    return free_bytes - int(total_bytes * RESERVE_FRACTION) - coming_bytes


def build_options(
    work: LayerWork,
    *,
    kept_bytes: int,
    input_bytes: int,
    attention_bytes: int | None = None,
    mlp_bytes: int | None = None,
    factor: float = 1.0,
) -> dict[Keeps, Option]:
    """Build the choices that a layer has.

    Args:
        work: of computing a layer a second time, and of its parts.
        kept_bytes: that a layer saves for the backward pass when it recomputes nothing.
        input_bytes: that it saves when it recomputes everything.
        attention_bytes: of `kept_bytes`, what is not saved where attention alone is recomputed; None: no such choice.
        mlp_bytes: the same of the MLP.
        factor: by which measuring found the estimates too low.
    """

    def cost(num_bytes: int) -> int:
        return max(1, round(num_bytes * factor))

    whole = kept_bytes - input_bytes
    options: dict[Keeps, Option] = {"all": Option(cost(whole), work.whole_seconds)}
    if attention_bytes is not None:
        options["mlp"] = Option(cost(whole - attention_bytes), work.whole_seconds - work.attention_seconds)
    if mlp_bytes is not None:
        options["attention"] = Option(cost(whole - mlp_bytes), work.whole_seconds - work.mlp_seconds)
    return options


def spend(
    free_bytes: int,
    num_layers: int,
    options: Mapping[Keeps, Option],
    residents: Sequence[int] = (),
    *,
    max_layers: int | None = None,
) -> Spending:
    """Choose what free bytes are spent on.

    Layers first: of all ways to give some of them a choice, the one that saves most seconds; of several the one that
    holds least. Then copies, from the front, as many as fit.

    Args:
        free_bytes: that may be spent.
        num_layers: of the base.
        options: what a layer can keep, and `nothing` for nothing.
        residents: bytes of a copy of each frozen quantized matrix, in the order they are taken.
        max_layers: layers that keep anything, at most; None: all of them may.
    """
    most = num_layers if max_layers is None else min(num_layers, max_layers)
    parts = [kind for kind in _PARTS if kind in options]
    best: tuple[float, int] = (0.0, 0)
    chosen: dict[Keeps, int] = {}
    tried: list[Keeps] = ["all", *parts[:-1]]
    ranges = [range(_count(free_bytes, options.get(kind), most) + 1) for kind in tried]
    for numbers in product(*ranges):
        taken = dict(zip(tried, numbers, strict=True))
        held, room = _weigh(taken, options), most - sum(numbers)
        if held[1] > free_bytes or room < 0:
            continue
        if parts:  # the last kind takes what is left
            taken[parts[-1]] = _count(free_bytes - held[1], options[parts[-1]], room)
            held = _weigh(taken, options)
        if (held[0], -held[1]) > (best[0], -best[1]):
            best, chosen = held, taken
    spending = Spending(
        num_layers=num_layers,
        num_kept=chosen.get("all", 0),
        num_mlp_kept=chosen.get("mlp", 0),
        num_attention_kept=chosen.get("attention", 0),
        layer_bytes=best[1],
    )
    return _add_residents(spending, free_bytes - best[1], residents)


def _count(free_bytes: int, option: Option | None, most: int) -> int:
    return 0 if option is None else max(0, min(most, free_bytes // option.num_bytes))


def _weigh(taken: Mapping[Keeps, int], options: Mapping[Keeps, Option]) -> tuple[float, int]:
    """Seconds and bytes of so many layers of each kind."""
    kinds = [(options[kind], taken[kind]) for kind in options if kind in taken]
    return sum(number * one.seconds for one, number in kinds), sum(number * one.num_bytes for one, number in kinds)


def _add_residents(spending: Spending, free_bytes: int, residents: Sequence[int]) -> Spending:
    held = number = 0
    for num_bytes in residents:
        if held + num_bytes > free_bytes:
            break
        held, number = held + num_bytes, number + 1
    return replace(spending, num_resident=number, resident_bytes=held)


def take_back(spending: Spending) -> Spending | None:
    """Take back part of what was spent, because memory ran out in spite of the arithmetic.

    Returns:
        At first the same without the copies; then half as many layers that keep anything; None: nothing was spent.
    """
    if spending.num_resident:
        return replace(spending, num_resident=0, resident_bytes=0)
    counts = (spending.num_kept, spending.num_mlp_kept, spending.num_attention_kept)
    if not sum(counts):
        return None
    # Of the dearest kind first.
    left = sum(counts) // 2
    kept = [0, 0, 0]
    for place in (2, 1, 0):
        kept[place] = min(counts[place], left)
        left -= kept[place]
    share = sum(kept) / sum(counts)
    return replace(
        spending,
        num_kept=kept[0],
        num_mlp_kept=kept[1],
        num_attention_kept=kept[2],
        layer_bytes=round(spending.layer_bytes * share),
    )
