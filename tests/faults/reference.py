"""The unbroken run that the others are held against, made once for each kind and kept; and moments drawn from it."""

import json
import shutil
import time
from bisect import bisect_right
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Any

from tests.faults.measures import Rig
from tests.faults.recipes import STEPS
from tests.faults.runs import Moment, Place, find_differences, hold, read_lines, read_trace

__all__ = ["Reference", "UnmadeReference", "draw_moments", "find_reference", "keep_evidence", "sort_moments"]

# Of these a moment's mark is made; the marks inside a step are left out.
_MARKS = ("step", "save", "evaluation", "preparation", "prepared", "evaluated", "trained")
# Share of moments drawn from all before the end of training, imports included; and as many behind it.
_FROM_THE_START = 0.1


class UnmadeReference(RuntimeError):
    """There is no unbroken run to hold others against: no fault of a case."""


@dataclass(frozen=True, slots=True)
class Reference:
    """An unbroken run.

    Attributes:
        place: where it lies.
        marks: its trace's marks that moments are made of, in order, each with its time `t`.
        ended_seconds: when its process ended, by the same clock as `t`.
    """

    place: Place
    marks: list[dict[str, Any]]
    ended_seconds: float

    @property
    def started_seconds(self) -> float:
        """When its hook was loaded."""
        return float(read_lines(self.place.trace)[0]["t"])

    def draw_moment(self, random: Random, *, phase: str | None = None) -> Moment:
        """Draw a moment, every one between the first training step and the end of training alike.

        Args:
            random: the case's.
            phase: name of a mark; the moment is drawn between one of these, each alike, and the mark behind it.
        """
        names = [mark["mark"] for mark in self.marks]
        times = [mark["t"] for mark in self.marks] + [self.ended_seconds]
        if phase is None:
            at = random.uniform(times[names.index("step")], times[names.index("trained")])
            number = bisect_right(times, at) - 1
        else:
            number = random.choice([number for number, name in enumerate(names) if name == phase])
            at = random.uniform(times[number], times[number + 1])
        mark = self.marks[number]
        return Moment(mark["mark"], mark["step"], at - mark["t"])


def find_reference(rig: Rig, kind: str) -> Reference:
    """Find a kind's unbroken run, making it where there is none yet.

    Raises:
        UnmadeReference: it cannot be made, so that nothing can be held against it.
    """
    folder = rig.work_dir / "references" / kind
    with hold(folder.with_suffix(".lock")):
        if not (folder / "ended.json").exists():
            shutil.rmtree(folder, ignore_errors=True)
            build_place(folder, kind, rig)
            make_reference(folder, kind, rig)
    ended = json.loads((folder / "ended.json").read_text(encoding="utf-8"))
    place = build_place(folder, kind, rig)
    marks = [mark for mark in read_lines(place.trace) if mark["mark"] in _MARKS and not mark.get("micro")]
    return Reference(place, marks, ended["t"])


def build_place(folder: Path, kind: str, rig: Rig) -> Place:
    """Build the place of a run: of the verb, or of the plain script where the kind is `plain`."""
    if kind == "plain":
        from tests.faults.baseline import build_plain_place

        return build_plain_place(folder, rig)
    return Place.make(folder, kind)


def make_reference(folder: Path, kind: str, rig: Rig) -> None:
    """Run a kind twice without a fault: once with every file operation of its saves traced, once without the hook.

    Raises:
        UnmadeReference: one did not run to its end, has not all steps, or the two are not equal.
    """
    place = build_place(folder, kind, rig)
    process = place.start(events=True, fresh=True)
    code, ended_seconds = process.wait(), time.monotonic()
    if code != 0:
        raise UnmadeReference(f"the unbroken run of kind {kind} ended with {code}:\n{process.read_said()}")
    check_is_full(place, kind)
    second = folder.with_name(f"{kind}_second")
    shutil.rmtree(second, ignore_errors=True)
    other = build_place(second, kind, rig)
    process = other.start(hooked=False)
    code = process.wait()
    if code != 0:
        raise UnmadeReference(f"the second unbroken run of kind {kind} ended with {code}:\n{process.read_said()}")
    if differences := find_differences(place, other, is_traced=False):
        raise UnmadeReference(f"two unbroken runs of kind {kind} differ: {'; '.join(differences)[:1000]}")
    shutil.rmtree(second)
    (folder / "ended.json").write_text(json.dumps({"t": ended_seconds, "is_equal": True}), encoding="utf-8")


def check_is_full(place: Place, kind: str) -> None:
    """Check that there is something to be equal to: each step's figures and rows, and an adapter.

    Raises:
        UnmadeReference: something is missing.
    """
    steps = list(range(1, STEPS + 1))
    measured = [line["step"] for line in read_lines(place.run / "metrics.jsonl") if "loss" in line]
    traced = sorted(read_trace(place))
    if measured != steps or traced != steps or not (place.path / place.adapter).exists():
        raise UnmadeReference(
            f"the unbroken run of kind {kind} has losses of {len(measured)} steps, rows of {len(traced)} and "
            f"{'an' if (place.path / place.adapter).exists() else 'no'} adapter; {STEPS} steps were asked for"
        )


def draw_moments(reference: Reference, random: Random, number: int) -> list[Moment]:
    """Draw the moments of a chain: in the run's order, and between them some counted from the process's start.

    In order, because a run that is taken up again does not pass what it has behind it.
    """
    moments = sort_moments([reference.draw_moment(random) for _ in range(number)])
    trained = next(mark for mark in reference.marks if mark["mark"] == "trained")
    up_to_trained_seconds = trained["t"] - reference.started_seconds
    for place in range(number):
        if random.random() < _FROM_THE_START:
            moments[place] = Moment("start", 0, random.uniform(0, up_to_trained_seconds))
    if random.random() < _FROM_THE_START:  # behind it there is nothing left to kill
        behind_seconds = reference.ended_seconds - trained["t"]
        moments[-1] = Moment("trained", trained["step"], random.uniform(0, behind_seconds))
    return moments


def sort_moments(moments: list[Moment]) -> list[Moment]:
    """Put moments in the order in which a run passes them."""
    order = ["preparation", "prepared", "step", "evaluation", "evaluated", "save", "trained"]
    return sorted(moments, key=lambda moment: (moment.step, order.index(moment.mark), moment.seconds))


def keep_evidence(rig: Rig, measure: str, case: int, folder: Path, passed: bool) -> None:
    """Keep a failed case's folder beside the results, delete the others."""
    if not passed:
        kept = rig.work_dir / "failed" / f"{measure}_{case}"
        shutil.rmtree(kept, ignore_errors=True)
        kept.parent.mkdir(exist_ok=True)
        shutil.copytree(folder, kept, symlinks=True)
    shutil.rmtree(folder, ignore_errors=True)
