"""The programme: measures in turn, each in a process of its own, until the minutes are over or all targets are met.

What is furthest from its target goes next, so that a call of any length brings all of them forward alike. A slice of
a minute is one process: what a measure leaves behind in its process (memory, an import, a handler) ends with it.
"""

import multiprocessing
import sys
import time
import traceback
from collections import Counter
from dataclasses import dataclass
from multiprocessing.process import BaseProcess
from pathlib import Path

from tests.faults.measures import Measure, Rig, find_measures
from tests.faults.results import Store

__all__ = ["run_programme", "run_slice"]

SLICE_SECONDS = 60.0
# What a case takes that nothing is known of yet: four starts of a run.
_FIRST_GUESS_SECONDS = 60.0


@dataclass(slots=True)
class Running:
    """A slice under way."""

    process: BaseProcess
    deadline: float


def run_programme(rig: Rig, store: Store, measures: dict[str, Measure], *, minutes: float, processes: int) -> list[str]:
    """Run measures until the time is over; names of those that could not be run.

    Args:
        rig: seed and folder.
        store: of the outcomes; what it holds already is not measured again.
        measures: by name.
        minutes: of wall time. A case that would go over them is not begun.
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
            if ready is not None:
                deadline = min(time.monotonic() + SLICE_SECONDS, end)
                seconds = deadline - time.monotonic()
                process = context.Process(target=run_slice, args=(ready, rig, store.path, seconds))
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


def run_slice(name: str, rig: Rig, store_path: Path, seconds: float) -> None:
    """Run one measure's next cases, in a process of its own, until its seconds are over or its target is met."""
    measure, store = find_measures()[name], Store(store_path)
    deadline = time.monotonic() + seconds
    done = store.total(name).cases
    began = time.monotonic()
    try:
        for outcome in measure.run_some(rig, store.find_next_case(name, rig.seed), deadline):
            now = time.monotonic()
            store.add(name, rig.seed, outcome, now - began)
            began = now
            if not outcome.passed and measure.baseline_of is None:
                print(f"{name}, case {outcome.case}: {outcome.detail}", flush=True)
            done += outcome.weight
            if done >= measure.target or now >= deadline:
                return
    except Exception:
        traceback.print_exc()
        sys.exit(1)


def _say(store: Store, name: str, measure: Measure) -> None:
    total = store.total(name)
    count = f"{total.passed:>6,} of {total.cases:>6,} passed, target {measure.target:,}"
    print(f"{time.strftime('%H:%M:%S')}  {name:<24} {count}", flush=True)
