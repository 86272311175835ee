"""The path of a comparison: cells checked, short runs where there is a budget, runs in full, findings after each.

In goes a parsed `Comparison`, out come its findings and a folder that holds every run. Running it again continues:
what is finished is read from its run folder, the rest goes on.
"""

import math
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from multiprocessing.context import ForkServerContext
from pathlib import Path

from finetune.comparison.cells import Cell, Point, build_cells, build_points
from finetune.comparison.children import Failure, share_cores, start_server
from finetune.comparison.figures import find_score
from finetune.comparison.folder import Result, claim_folder, read_result, refuse_changed_cells
from finetune.comparison.runner import Interruption, run_cells
from finetune.comparison.scores import build_rows, find_recommended, read_score
from finetune.comparison.table import Findings
from finetune.comparison.writing import write_findings
from finetune.errors import CheckpointError, DataError, DivergedError, FinetuneError, PlaceError, RecipeError
from finetune.recipe.comparison import Budget, Comparison

__all__ = ["Plan", "build_plan", "compare", "raise_if_failed", "sort_fairly"]

_MOST_NAMED = 6

Say = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class Plan:
    """All that a comparison may run.

    Attributes:
        points: every method with every choice.
        cells: their runs in full.
        probes: their short runs, by steps.
        score: figure that is compared.
    """

    points: Sequence[Point]
    cells: Sequence[Cell]
    probes: Mapping[int, Sequence[Cell]]
    score: str


def build_plan(comparison: Comparison) -> Plan:
    """Build and check every run, without starting any.

    Raises:
        RecipeError: with the faults of all runs.
    """
    points = build_points(comparison)
    cells = build_cells(comparison, points, comparison.seeds)
    steps = comparison.budget.probe_steps if comparison.budget is not None else ()
    probes = {num: build_cells(comparison, points, comparison.seeds[:1], probe_steps=num) for num in steps}
    return Plan(points, cells, probes, find_score(comparison, cells[0].recipe))


def compare(comparison: Comparison, *, overwrite: bool, say: Say) -> Findings:
    """Carry a comparison to its table.

    Args:
        comparison: what to do.
        overwrite: delete what an earlier one of this name left, and start over.
        say: called with a line for every run that ended.

    Raises:
        RecipeError: a run's settings are wrong, or the folder is somebody else's.
        CheckpointError: the folder was begun with another comparison, or is being worked on.
        Interrupted: a signal came; what was under way has saved itself.
    """
    plan = build_plan(comparison)
    lock = claim_folder(comparison.folder, overwrite=overwrite)
    try:
        everything = [*plan.cells, *(cell for cells in plan.probes.values() for cell in cells)]
        refuse_changed_cells(comparison.folder, everything)
        with Interruption() as interruption, share_cores(comparison.workers):
            return _Session(comparison, plan, interruption, say).run()
    finally:
        lock.release()


def raise_if_failed(findings: Findings, folder: Path) -> None:
    """End with the exit code of the first run that failed in this session, once the table is written.

    Raises:
        FinetuneError: some runs failed.
    """
    failed = [result for result in [*findings.probes, *findings.results] if result.exit_code]
    if not failed:
        return
    kinds = (RecipeError, DataError, PlaceError, DivergedError, CheckpointError)
    kind = next((kind for kind in kinds if kind.exit_code == failed[0].exit_code), FinetuneError)
    total = len(findings.probes) + len(findings.results)
    shown = [f"  {result.cell.name}: {result.reason}" for result in failed[:_MOST_NAMED]]
    more = [f"  and {len(failed) - _MOST_NAMED} more"] if len(failed) > _MOST_NAMED else []
    raise kind(
        "\n".join(
            [f"{len(failed)} of {total} runs failed; {folder / 'table.md'} has the others.", *shown, *more,
             f"  Each one's words: {folder / 'logs'}     Try them again: the same command"]
        )
    )  # fmt: skip


def sort_fairly(cells: Sequence[Cell], points: Sequence[Point]) -> list[Cell]:
    """Every method's first choice on all tasks, then every one's second: what time leaves out is no whole method.

    Args:
        cells: to run.
        points: all that they may be of.
    """
    places = {
        point: (number, method)
        for method, own in enumerate(_group(points).values())
        for number, point in enumerate(own)
    }
    return sorted(cells, key=lambda cell: places[cell.point])


def _group(points: Sequence[Point]) -> dict[str, list[Point]]:
    """Points by their method."""
    by_method: dict[str, list[Point]] = {}
    for point in points:
        by_method.setdefault(point.method, []).append(point)
    return by_method


class _Session:
    """One sitting of a comparison, from whatever its folder holds to the end or an interruption."""

    def __init__(self, comparison: Comparison, plan: Plan, interruption: Interruption, say: Say) -> None:
        self._comparison = comparison
        self._plan = plan
        self._interruption = interruption
        self._say = say
        self._folder = comparison.folder
        self._failures: dict[str, Failure] = {}
        self._points: Sequence[Point] = plan.points  # those that are run in full
        self._probed: list[Cell] = []
        self._seconds: dict[str, float] = {}  # of this session's runs that ended, by name
        self._is_searching = comparison.budget is not None
        self._context: ForkServerContext | None = None

    def run(self) -> Findings:
        """Run what is left, and write the findings after each run."""
        if self._comparison.budget is not None:
            self._points = self._search(self._comparison.budget)
            self._is_searching = False
        self._write()
        self._run([cell for cell in self._plan.cells if cell.point in self._points], "")
        self._interruption.raise_if_received(self._folder)
        return self._write()

    # ---- runs

    def _run(self, cells: Sequence[Cell], stage: str, may_start: Callable[[], bool] = lambda: True) -> None:
        """Run those of the cells that are not finished, a line said for each."""
        left = [cell for cell in cells if self._read(cell).state != "done"]
        if not left:
            return
        if self._context is None:
            self._context = start_server([cell.recipe for cell in self._plan.cells])
        num_done = len(cells) - len(left)
        if num_done:
            self._say(f"{num_done} of {len(cells)} {stage}runs were finished before.")

        def note(cell: Cell, failure: Failure | None, seconds: float) -> None:
            nonlocal num_done
            num_done += 1
            self._seconds[cell.name] = seconds
            if failure is not None:
                self._failures[cell.name] = failure
            self._say(f"[{num_done:>{len(str(len(cells)))}}/{len(cells)}] {self._describe(cell)}  {seconds:.0f} s")
            self._write()

        run_cells(
            left,
            context=self._context,
            logs_dir=self._folder / "logs",
            workers=self._comparison.workers,
            interruption=self._interruption,
            noted=note,
            may_start=may_start,
        )

    def _describe(self, cell: Cell) -> str:
        result = self._read(cell)
        value = read_score(result.summary, self._plan.score)
        if result.state == "failed":
            return f"{cell.name}  failed: {result.reason}"
        return f"{cell.name}  {self._plan.score} {'–' if value is None else f'{value:.4f}'}"

    def _read(self, cell: Cell) -> Result:
        return read_result(self._folder, cell, self._failures)

    # ---- short runs

    def _search(self, budget: Budget) -> list[Point]:
        """Drop points rung by rung; those of methods without a choice go on unasked."""
        try:
            from finetune.comparison.halving import Halving  # a second of import
        except ModuleNotFoundError as error:
            what = "A `budget` chooses with Optuna, which is not installed."
            raise PlaceError(
                f"{what}\n  Type: {sys.executable} -m pip install -c constraints.txt -e '.[search]'\n"
                "  Or leave `budget` out."
            ) from error
        by_method = _group(self._plan.points)
        journal = self._folder / "probes.journal"
        races = [
            Halving(journal, method, points, budget=budget, score=self._plan.score)
            for method, points in by_method.items()
            if len(points) > 1
        ]
        for steps, cells in self._plan.probes.items():
            racing = {point for race in races for point in race.points}
            probes = [cell for cell in sort_fairly(cells, self._plan.points) if cell.point in racing]
            self._probed += probes
            if not all(race.has_decided(steps) for race in races):
                self._run_probes(probes, f"{steps}-step ", budget)
            values = self._average_probes(probes)
            for race in races:
                race.decide(steps, values)
        for race in races:
            race.finish()
        kept = {point for race in races for point in race.points}
        alone = {points[0] for points in by_method.values() if len(points) == 1}
        return [point for point in self._plan.points if point in kept | alone]

    def _run_probes(self, probes: Sequence[Cell], stage: str, budget: Budget) -> None:
        """Run the short runs of a rung for as long as there is time."""
        self._run(probes, stage, may_start=lambda: self._count_probe_seconds() < 60 * budget.minutes)
        self._interruption.raise_if_received(self._folder)
        left = [cell for cell in probes if self._read(cell).state not in ("done", "failed")]
        if left:
            self._say(
                f"The {budget.minutes:g} minutes of short runs are spent: {len(left)} of {len(probes)} {stage}runs are "
                "left out, and what was measured decides."
            )

    def _count_probe_seconds(self) -> float:
        """Time of the short runs: of all finished ones by their summaries, of failed ones as this session saw it."""
        names = {cell.name: self._read(cell).summary.get("seconds", 0.0) for cell in self._probed}
        return math.fsum(max(seconds, self._seconds.get(name, 0.0)) for name, seconds in names.items())

    def _average_probes(self, cells: Sequence[Cell]) -> dict[str, float]:
        """The mean score over the tasks, of every point that has one on each."""
        tasks = {cell.task for cell in cells}
        found: dict[str, list[float]] = {}
        for cell in cells:
            value = read_score(self._read(cell).summary, self._plan.score)
            if value is not None:
                found.setdefault(cell.point.name, []).append(value)
        return {name: math.fsum(values) / len(values) for name, values in found.items() if len(values) == len(tasks)}

    # ---- findings

    def _write(self) -> Findings:
        comparison, score = self._comparison, self._plan.score
        results = [self._read(cell) for cell in self._plan.cells if cell.point in self._points]
        rows = build_rows(results, score, comparison.reference)
        findings = Findings(
            name=comparison.name,
            score=score,
            reference=comparison.reference,
            tasks=list(comparison.tasks) or [""],
            methods=[method.name for method in comparison.methods],
            seeds=comparison.seeds,
            rows=rows,
            results=results,
            probes=[self._read(cell) for cell in self._probed],
            recommended=find_recommended(rows, score),
            unmeasured=self._find_unmeasured(),
        )
        write_findings(self._folder, comparison, findings)
        return findings

    def _find_unmeasured(self) -> list[str]:
        """The choices that had a short run left out, once the search is over."""
        if self._is_searching:
            return []
        left = [cell.point.name for cell in self._probed if self._read(cell).state in ("waiting", "interrupted")]
        return list(dict.fromkeys(left))
