"""What the fault programme measures: the list of measures, and what each of them has to offer.

A measure draws cases and says of each what became of it. `python -m tests.faults` runs the measures in turn, each in
a process of its own, writes every outcome down at once and goes on at the next call with the first case that has none.

To add one: a class with the attributes and the method of `Measure`, and `@register` above it, in a module `inputs_*.py`
or one that `_MODULES` names. Module level imports must be light (no torch): every slice of time imports all of them.

    @register
    class BrokenLines:
        name = "broken_lines"
        title = "malformed data lines named with file, line and reason"
        row = "23"
        target = 2000
        baseline_of = None

        def run_some(self, rig: Rig, first_case: int, deadline: float) -> Iterator[Outcome]:
            for case in count(first_case):
                if time.monotonic() >= deadline:
                    return
                random = rig.draw(self.name, case)      # the seed and the case decide everything
                ...
                yield Outcome(case, passed=…, drawn={"fault": "BOM"}, detail="what was said instead")
"""

import importlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from typing import Any, Protocol

__all__ = ["LEAST_SHARES", "Measure", "Outcome", "Rig", "find_measures", "register"]

# Modules that register measures, in the order of the table; those on inputs come behind them, by name.
_MODULES = ("kills", "torn_saves", "altered_files", "signals", "full_disk", "baseline")
# The share of cases that has to pass, where it is not all of them.
LEAST_SHARES = {"misspelled_keys": 0.95}


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of one case.

    Attributes:
        case: its number; with the programme's seed it decides everything that was drawn.
        passed: whether all was as it has to be.
        drawn: what was done to the run or the program, as JSON: enough to see what this case was.
        detail: where it did not pass, the evidence; the first lines of what was said, for instance.
        weight: how many of the target it stands for: the kills of a chain; 0 where nothing was met (the run was over).
        figures: numbers to be added up over all cases and shown beside the count, by name: `{"steps_lost": 0}`.
    """

    case: int
    passed: bool
    drawn: dict[str, Any] = field(default_factory=dict)
    detail: str = ""
    weight: int = 1
    figures: dict[str, float] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Rig:
    """What a measure is handed.

    Attributes:
        seed: of the programme.
        work_dir: a folder for files of the measures that share it, kept from call to call (references, bases).
        ready_path: socket of the interpreter that runs are forked from; None: each starts one of its own.
    """

    seed: int
    work_dir: Path
    ready_path: Path | None = None

    def draw(self, measure: str, case: int) -> Random:
        """Build the generator of a case: the same numbers for the same seed, measure and case."""
        return Random(f"{self.seed}:{measure}:{case}")


class Measure(Protocol):
    """One row of the table.

    Attributes:
        name: of the measure on the command line and in the results, in snake_case.
        title: what is counted, as the table's first column says it.
        row: the number of the fault in the table of docs/reliability.md, e.g. `1`, or several: `23, 24`.
        target: cases (by weight) after which it is done.
        baseline_of: name of the measure whose column it fills for a plain TRL script; None: it is one of ours.
    """

    name: str
    title: str
    row: str
    target: int
    baseline_of: str | None

    def run_some(self, rig: Rig, first_case: int, deadline: float) -> Iterator[Outcome]:
        """Run cases from `first_case` on, one outcome each, numbered without a gap.

        Args:
            rig: seed and folder.
            first_case: number of the first case that has no outcome yet.
            deadline: of `time.monotonic()`; no case begins behind it. Whoever asks may also stop asking.
        """
        ...


_MEASURES: dict[str, Measure] = {}


def register(measure: type) -> type:
    """Add a measure to the list; its class is built without arguments."""
    built = measure()
    assert built.name not in _MEASURES, f"two measures are named {built.name}"
    _MEASURES[built.name] = built
    return measure


def find_measures() -> dict[str, Measure]:
    """Find all measures by name, in the order of the table."""
    folder = Path(__file__).parent
    for module in (*_MODULES, *sorted(path.stem for path in folder.glob("inputs_*.py"))):
        importlib.import_module(f"tests.faults.{module}")
    return dict(_MEASURES)
