"""The statistics of a comparison: what its cells scored, by method and choice, over seeds and tasks.

In go `Result`s, out come `Row`s: a point's score on each task and on the average of the tasks, its difference to the
reference, and what it cost. Standard deviations are those of a sample (n - 1); a difference is paired: the same seed,
the same tasks. Imports neither torch nor transformers.
"""

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from finetune.comparison.cells import Point
from finetune.comparison.folder import Result

__all__ = ["Row", "Spread", "build_rows", "find_best", "find_recommended", "is_lower_better", "read_score"]


@dataclass(frozen=True, slots=True)
class Spread:
    """Some numbers in short.

    Attributes:
        mean: of them; None where there are none.
        deviation: standard deviation of a sample, n - 1; None below two.
        num: how many.
    """

    mean: float | None
    deviation: float | None
    num: int

    @classmethod
    def of(cls, values: Sequence[float]) -> "Spread":
        """Mean and deviation of some numbers."""
        if not values:
            return cls(None, None, 0)
        return cls(statistics.fmean(values), statistics.stdev(values) if len(values) > 1 else None, len(values))

    @property
    def standard_error(self) -> float | None:
        """Of the mean: deviation / sqrt(n); None below two numbers."""
        return None if self.deviation is None else self.deviation / math.sqrt(self.num)


@dataclass(frozen=True, slots=True)
class Row:
    """A method with one choice of its grid, over its seeds and tasks.

    Attributes:
        point: method and choice.
        by_task: the score on each task, over the seeds.
        average: over the seeds, of the mean of all tasks; a seed counts where every task has it.
        difference: to the reference's best row, of the averages, paired by seed; None without one.
        differences: the same on each task, of the seeds that both rows have there; empty without one.
        majority: by task, what always answering the most frequent label scores.
        num_missing: cells that were not finished.
        trainable_parameters: that were trained; the most of all tasks, whose heads may differ.
        trainable_fraction: their share of the whole model.
        peak_memory_bytes: most of all its runs.
        seconds: mean of its runs.
        adapter_bytes: of a result on the disk.
        forgetting: mean rise of the loss on general text, in nats per token.
    """

    point: Point
    by_task: Mapping[str, Spread]
    average: Spread
    difference: Spread | None
    differences: Mapping[str, Spread]
    majority: Mapping[str, float]
    num_missing: int
    trainable_parameters: int | None
    trainable_fraction: float | None
    peak_memory_bytes: int | None
    seconds: float | None
    adapter_bytes: int | None
    forgetting: float | None


def is_lower_better(score: str) -> bool:
    """Whether the lower of two figures is the better one: of a loss."""
    return score.endswith("loss")


def read_score(summary: Mapping[str, Any], score: str) -> float | None:
    """A run's figure by its name in summary.json, `scores.NAME` for one of a classification's; None without it."""
    value: Any = summary
    for key in score.split("."):
        value = value.get(key) if isinstance(value, Mapping) else None
    return float(value) if isinstance(value, int | float) and math.isfinite(value) else None


def build_rows(results: Sequence[Result], score: str, reference: str | None) -> list[Row]:
    """Build a row for every point among the results, in their order.

    Args:
        results: of runs in full.
        score: figure of summary.json.
        reference: the method whose best row the differences are taken to.
    """
    by_point: dict[Point, list[Result]] = {}
    for result in results:
        by_point.setdefault(result.cell.point, []).append(result)
    found = {point: _find_by_task(own, score) for point, own in by_point.items()}
    averages = {point: _average_by_seed(by_task) for point, by_task in found.items()}
    rows = [_build_row(point, own, score, found[point], averages[point]) for point, own in by_point.items()]
    base = find_best([row for row in rows if row.point.method == reference], score)
    if base is None:
        return rows
    others = [row for row in rows if row is not base]
    compared = {
        row.point: replace(
            row,
            difference=_compare(averages[row.point], averages[base.point]),
            differences={
                task: _compare(own, found[base.point].get(task, {})) for task, own in found[row.point].items()
            },
        )
        for row in others
    }
    return [compared.get(row.point, row) for row in rows]


def _compare(own: Mapping[int, float], base: Mapping[int, float]) -> Spread:
    """The differences of the seeds that both have."""
    return Spread.of([own[seed] - base[seed] for seed in own if seed in base])


def _find_by_task(results: Sequence[Result], score: str) -> dict[str, dict[int, float]]:
    """For each task the scores that there are, by seed."""
    found: dict[str, dict[int, float]] = {}
    for result in results:
        by_seed = found.setdefault(result.cell.task, {})
        value = read_score(result.summary, score)
        if value is not None:
            by_seed[result.cell.seed] = value
    return found


def _average_by_seed(by_task: Mapping[str, Mapping[int, float]]) -> dict[int, float]:
    """For each seed the mean over all tasks; a seed that lacks one has none."""
    seeds = dict.fromkeys(seed for by_seed in by_task.values() for seed in by_seed)
    whole = [seed for seed in seeds if all(seed in by_seed for by_seed in by_task.values())]
    return {seed: statistics.fmean([by_seed[seed] for by_seed in by_task.values()]) for seed in whole}


def _build_row(
    point: Point,
    results: Sequence[Result],
    score: str,
    by_task: Mapping[str, Mapping[int, float]],
    average: Mapping[int, float],
) -> Row:
    majority: dict[str, list[float]] = {}
    for result in results:
        always = read_score(result.summary, "majority_score")
        if always is not None and score == "score":
            majority.setdefault(result.cell.task, []).append(always)
    done = [result.summary for result in results if result.state == "done"]
    rises = [
        summary["general_loss"] - summary["general_loss_before"]
        for summary in done
        if None not in (summary.get("general_loss"), summary.get("general_loss_before"))
    ]
    widest = max(done, key=lambda summary: summary["trainable_parameters"], default=None)
    return Row(
        point=point,
        by_task={task: Spread.of(list(by_seed.values())) for task, by_seed in by_task.items()},
        average=Spread.of(list(average.values())),
        difference=None,
        differences={},
        majority={task: statistics.fmean(values) for task, values in majority.items()},
        num_missing=sum(read_score(result.summary, score) is None for result in results),
        trainable_parameters=None if widest is None else widest["trainable_parameters"],
        trainable_fraction=None if widest is None else widest["trainable_parameters"] / widest["total_parameters"],
        peak_memory_bytes=max((summary["peak_memory_bytes"] for summary in done), default=None),
        seconds=statistics.fmean([summary["seconds"] for summary in done]) if done else None,
        adapter_bytes=max((summary["adapter_bytes"] for summary in done), default=None),
        forgetting=statistics.fmean(rises) if rises else None,
    )


def find_best(rows: Sequence[Row], score: str) -> Row | None:
    """The row with the best mean; rows with a run missing count only where all have one. None without a score."""
    scored = [row for row in rows if row.average.mean is not None]
    whole = [row for row in scored if not row.num_missing] or scored
    return min(whole, key=lambda row: _to_order(row, score), default=None)


def find_recommended(rows: Sequence[Row], score: str) -> Row | None:
    """Of the rows within one standard error of the best, the one that trains fewest parameters.

    The error is that of the best row's mean; with a single seed there is none, and the best itself is recommended.
    """
    best = find_best(rows, score)
    if best is None:
        return None
    error = best.average.standard_error or 0.0
    whole = [row for row in rows if row.average.mean is not None and row.num_missing <= best.num_missing]
    near = [row for row in whole if _to_order(row, score)[0] <= _to_order(best, score)[0] + error]
    return min(near, key=lambda row: (row.trainable_parameters or 0, *_to_order(row, score)))


def _to_order(row: Row, score: str) -> tuple[float, int]:
    """A row's place: the better mean first, of equal ones the fewer parameters."""
    assert row.average.mean is not None
    return (row.average.mean if is_lower_better(score) else -row.average.mean, row.trainable_parameters or 0)
