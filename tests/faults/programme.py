"""The programme: measures in turn, each in a process of its own, until the minutes are over or all targets are met.

What is furthest from its target goes next, so that a call of any length brings all of them forward alike. A slice of
a minute is one process: what a measure leaves behind in its process (memory, an import, a handler) ends with it.
"""

import multiprocessing
import sys
import time
import traceback
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from multiprocessing.process import BaseProcess
from pathlib import Path

from tests.faults import ready
from tests.faults.measures import Measure, Outcome, Rig, find_measures
from tests.faults.reference import UnmadeReference
from tests.faults.results import Store, Tree, read_tree

__all__ = ["run_cases", "run_programme", "run_slice"]

SLICE_SECONDS = 60.0
# What a case takes that nothing is known of yet: four starts of a run.
_FIRST_GUESS_SECONDS = 60.0
# Cases of a slice that may raise one behind the other and count as failed.
_MOST_RAISED = 3


@dataclass(slots=True)
class Running:
    """A slice under way."""

    process: BaseProcess
    deadline: float


def run_programme(
    rig: Rig, store: Store, measures: dict[str, Measure], tree: Tree, *, minutes: float, processes: int
) -> list[str]:
    """Run measures until the time is over; names of those that could not be run.

    Args:
        rig: seed and folder.
        store: of the outcomes; what it holds already is not measured again.
        measures: by name.
        tree: what is measured; once its files are others no further slice begins.
        minutes: of wall time. No slice begins behind them, nor one of a measure whose cases take longer than what is
            left; a case under way is waited for.
        processes: slices at the same time; never two of one measure.
    """
    end = time.monotonic() + minutes * 60
    context = multiprocessing.get_context("spawn")
    running: dict[str, Running] = {}
    over: set[str] = set()  # have no further case, or could not be run
    slices: Counter[str] = Counter()
    broken: list[str] = []
    try:
        while True:
            for name in [name for name, one in running.items() if not one.process.is_alive()]:
                one = running.pop(name)
                ended_early = time.monotonic() < one.deadline
                if one.process.exitcode != 0:
                    broken.append(name)
                if one.process.exitcode != 0 or ended_early:
                    over.add(name)
                _say(store, name, measures[name])
            candidates = [name for name in measures if name not in over | running.keys()]
            is_free = len(running) < processes
            ready = choose_next(store, measures, candidates, slices, end - time.monotonic()) if is_free else None
            if ready is not None and read_tree().name != tree.name:
                print("the files that decide an outcome have changed: no further case of them is run", flush=True)
                end, ready = time.monotonic(), None
            if ready is not None:
                deadline = min(time.monotonic() + SLICE_SECONDS, end)
                seconds = deadline - time.monotonic()
                process = context.Process(target=run_slice, args=(ready, rig, store.path, tree, seconds))
                process.start()
                slices[ready] += 1
                running[ready] = Running(process, deadline)
                continue
            if not running:
                return broken
            time.sleep(0.2)
    finally:
        for one in running.values():
            one.process.terminate()


def choose_next(
    store: Store, measures: dict[str, Measure], names: list[str], slices: Counter[str], seconds_left: float
) -> str | None:
    """Choose what is furthest from its target and has time for one more case; None where nothing is.

    Of measures that are equally far it is the one that has had the fewest slices: a first one may go into a reference.
    """
    parts = []
    for name in names:
        total = store.total(name)
        a_case = total.seconds / total.runs if total.runs else _FIRST_GUESS_SECONDS
        if total.cases < measures[name].target and a_case < seconds_left:
            parts.append((total.cases / measures[name].target, slices[name], name))
    return min(parts, key=lambda part: part[:2])[2] if parts else None


def run_slice(name: str, rig: Rig, store_path: Path, tree: Tree, seconds: float) -> None:
    """Run one measure's next cases, in a process of its own, until its seconds are over or its target is met.

    They are stored together at its end: where the files changed meanwhile, nothing of the slice is of this tree.
    """
    measure, store = find_measures()[name], Store(store_path)
    ready.use(rig.ready_path)
    outcomes: list[tuple[Outcome, float]] = []
    try:
        if read_tree().name == tree.name:
            first, done = store.find_next_case(name, rig.seed), store.total(name).cases
            for one in run_cases(measure, rig, first, measure.target - done, time.monotonic() + seconds):
                outcomes.append(one)
    except Exception:
        traceback.print_exc()
        sys.exit(1)
    finally:
        if read_tree().name != tree.name:
            print(f"{name}: the files changed, {len(outcomes)} outcomes of this slice are not stored", flush=True)
        else:
            for outcome, taken_seconds in outcomes:
                store.add(name, rig.seed, outcome, taken_seconds, tree)


def run_cases(
    measure: Measure, rig: Rig, first_case: int, wanted: int, deadline: float
) -> Iterator[tuple[Outcome, float]]:
    """Run cases, each with the seconds it took; one that raises has failed with the last line of its traceback.

    Args:
        measure: whose they are.
        rig: seed and folder.
        first_case: number of the first one.
        wanted: weight after which there are enough.
        deadline: of the monotonic clock; no case begins behind it.

    Raises:
        UnmadeReference: there is nothing to hold a case against, which is no case's fault.
        Exception: so many cases in a row raised that it is the measure itself that does not work.
    """
    case, num_raised = first_case, 0
    outcomes = measure.run_some(rig, case, deadline)
    while wanted > 0:
        began = time.monotonic()
        try:
            outcome = next(outcomes)
            num_raised = 0
        except StopIteration:
            return
        except UnmadeReference:
            raise
        except Exception as error:
            num_raised += 1
            if num_raised > _MOST_RAISED:
                raise
            traceback.print_exc()
            outcome = Outcome(case, passed=False, detail=traceback.format_exception_only(error)[-1].strip()[:1500])
            outcomes = measure.run_some(rig, case + 1, deadline)  # a generator that raised is over
        if not outcome.passed and measure.baseline_of is None:
            print(f"{measure.name}, case {outcome.case}: {outcome.detail}", flush=True)
        yield outcome, time.monotonic() - began
        case, wanted = outcome.case + 1, wanted - outcome.weight
        if time.monotonic() >= deadline:
            return


def _say(store: Store, name: str, measure: Measure) -> None:
    total = store.total(name)
    count = f"{total.passed:>6,} of {total.cases:>6,} passed, target {measure.target:,}"
    print(f"{time.strftime('%H:%M:%S')}  {name:<24} {count}", flush=True)
