"""A run in a process of its own, watched through its trace, and what makes two runs equal.

Goes in: a program (the verb with a recipe, or the plain TRL script) and a folder. Comes out: processes that can be
waited for and struck at a moment, and the differences between what two runs left.
"""

import hashlib
import json
import math
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from fcntl import LOCK_EX, flock
from pathlib import Path
from typing import Any

from tests.faults import ready
from tests.faults.recipes import KEPT, ROOT, RUN_NAME, STEPS, find_verb, write_recipe

__all__ = [
    "Moment",
    "Place",
    "Process",
    "find_differences",
    "find_lost",
    "find_whole_steps",
    "find_wrong_start",
    "hold",
    "judge_message",
    "read_figures",
    "read_lines",
    "read_trace",
    "says",
]

POLL_SECONDS = 0.003
MOST_SECONDS = 300.0  # a run takes about 12; what takes this long hangs
MOST_LINES = 15  # of a message, as the house promises
# Lines that say how far the run is, and nothing of how it ended.
_PROGRESS = re.compile(r"(step \d+ of \d+|before the first step|Rehearsal:|training:|evaluation:|  lengths:)")
# What the clock and the memory decide.
_OF_THE_MACHINE = ("seconds", "tokens_per_second", "peak_memory_bytes", "step_time", "profiling/total", "runtime")


@dataclass(frozen=True, slots=True)
class Place:
    """A folder with one run in it, and how the run's process is started.

    Attributes:
        path: the folder; the run is in `run/`, the trace and what was said beside it.
        module: what `python -m` runs.
        arguments: behind it, the same at every start.
        adapter: the weights that the run ends in, relative to `path`.
    """

    path: Path
    module: str
    arguments: tuple[str, ...]
    adapter: str = f"{RUN_NAME}/adapter/adapter_model.safetensors"

    @classmethod
    def make(cls, path: Path, kind: str, *, output_dir: Path | None = None) -> "Place":
        """Write a kind's recipe into a new folder. The command carries --resume from the first start on.

        Args:
            path: the folder.
            kind: of recipe.
            output_dir: where the run's folder is made, when that is another place.
        """
        recipe = write_recipe(path / "recipe.yaml", kind, output_dir or path)
        return cls(path, f"finetune.{find_verb(kind)}", (str(recipe), "--resume"))

    @property
    def run(self) -> Path:
        """The run's folder."""
        return self.path / RUN_NAME

    @property
    def checkpoints(self) -> Path:
        """Its checkpoints; a plain script's lie in the folder itself."""
        return self.run / "checkpoints" if self.has_records else self.run

    @property
    def has_records(self) -> bool:
        """Whether its checkpoints are closed by a record: those of a verb, and not a plain script's."""
        return self.module.startswith("finetune.")

    @property
    def trace(self) -> Path:
        """What the hook wrote, all processes of the run one behind the other."""
        return self.path / "trace.jsonl"

    def start(
        self, *, env: dict[str, str] | None = None, hooked: bool = True, fresh: bool = False, **plan: Any
    ) -> "Process":
        """Start the command in a new process with a plan for its hook.

        Args:
            env: further variables; the process is then an interpreter of its own.
            hooked: whether there is a hook; without one it is the bare command.
            fresh: start an interpreter of its own, imports and all, though one is ready to be forked.
            plan: for the hook.
        """
        checkpoints = self.checkpoints.resolve()
        plan_path = self.path / "plan.json"
        values = {"trace": str(self.trace), "checkpoints": str(checkpoints), **plan}
        plan_path.write_text(json.dumps(values), encoding="utf-8")
        offset = self.trace.stat().st_size if self.trace.exists() else 0
        said = self.path / f"said_{len(list(self.path.glob('said_*.txt')))}.txt"
        environment = os.environ | {"HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"} | (env or {})
        if ready.is_ready() and hooked and not fresh and not env:
            arguments = [str(plan_path), "-m", self.module, *self.arguments]
            return Process(ready.fork(arguments, environment, said), self.trace, offset, said)
        hook = ["-m", "tests.faults.hooked", str(plan_path)] if hooked else []
        with said.open("wb") as file:
            popen = subprocess.Popen(
                [sys.executable, *hook, "-m", self.module, *self.arguments],
                cwd=ROOT, env=environment, stdin=subprocess.DEVNULL, stdout=file, stderr=subprocess.STDOUT,
            )  # fmt: skip
        return Process(popen, self.trace, offset, said)

    def read_steps_done(self) -> int:
        """Read the last step whose figures are on the disk."""
        return max((line["step"] for line in read_lines(self.run / "metrics.jsonl")), default=0)


class Process:
    """A started run: its trace is followed, and it can be struck.

    Attributes:
        marks: the trace's lines of this process so far.
        said: file with all it said.
        started_seconds: of the monotonic clock, when it was started.
    """

    def __init__(self, popen: "subprocess.Popen[bytes] | ready.Forked", trace: Path, offset: int, said: Path) -> None:
        self.popen = popen
        self.marks: list[dict[str, Any]] = []
        self.said = said
        self.started_seconds = time.monotonic()
        self._trace = trace
        self._offset = offset
        self._struck_seconds = math.inf  # it may die of its own hook

    def read_said(self, max_lines: int = 15) -> str:
        """Read the end of what it said."""
        return "\n".join(self.said.read_text(encoding="utf-8", errors="replace").strip().splitlines()[-max_lines:])

    def read_message(self) -> list[str]:
        """Read what it said behind its last progress line: the message it ended with, line by line."""
        lines = self.said.read_text(encoding="utf-8", errors="replace").strip().splitlines()
        last = max((number for number, line in enumerate(lines) if _PROGRESS.match(line)), default=-1)
        return lines[last + 1 :]

    def find_first_step(self) -> int | None:
        """Find the first step it trained; None where it came to none."""
        return next((mark["step"] for mark in self.marks if mark["mark"] == "step"), None)

    def find_last_step(self) -> int | None:
        """Find the last step it began; None where it came to none."""
        return next((mark["step"] for mark in reversed(self.marks) if mark["mark"] == "step"), None)

    def follow(self) -> None:
        """Read what the trace has got since the last time."""
        if not self._trace.exists() or self._trace.stat().st_size <= self._offset:
            return
        with self._trace.open("rb") as file:
            file.seek(self._offset)
            new = file.read()
        whole = new[: new.rfind(b"\n") + 1]
        self._offset += len(whole)
        self.marks += [json.loads(line) for line in whole.splitlines()]

    def wait_for_mark(self, wanted: "Moment") -> float | None:
        """Wait until the run has come to a moment's mark, or past it.

        Returns:
            When that was, of the monotonic clock; None where the process had ended before.
        """
        seen = 0
        while True:
            ended = self.popen.poll() is not None
            self.follow()
            for mark in self.marks[seen:]:
                if wanted.is_reached(mark):
                    return float(mark["t"])
            seen = len(self.marks)
            if ended:
                return None
            self._give_up_when_late()
            time.sleep(POLL_SECONDS)

    def strike(self, moment: "Moment", number: signal.Signals) -> bool:
        """Send a signal at a moment; False where the process had ended before.

        Seconds were measured in another run: where this one is quicker and comes to the next mark, that is the moment.
        """
        at = self.wait_for_mark(moment)
        if at is None:
            return False
        while time.monotonic() < at + moment.seconds and not self._is_behind(moment, at):
            time.sleep(min(POLL_SECONDS, max(at + moment.seconds - time.monotonic(), 0)))
        if self.popen.poll() is not None:
            return False
        self._struck_seconds = time.monotonic()
        self.popen.send_signal(number)
        return True

    def wait(self, max_seconds: float = MOST_SECONDS) -> int:
        """Wait for the end; the exit code. One that hangs is killed: -9."""
        try:
            self.popen.wait(max_seconds)
        except subprocess.TimeoutExpired:
            self.popen.kill()
            self.popen.wait()
        self.follow()
        return int(self.popen.returncode)

    def find_phase(self) -> str:
        """Name what the run was at when it was struck last, by its last mark before that."""
        before = [mark for mark in self.marks if mark["t"] <= self._struck_seconds]
        last = before[-1] if before else {"mark": "start"}
        names = {"start": "start-up", "prepared": "start-up", "evaluated": "step", "trained": "after training"}
        return names.get(last["mark"], last["mark"])

    def _is_behind(self, moment: "Moment", at: float) -> bool:
        """Whether the mark behind a moment's own has come, or the process's end."""
        self.follow()
        later = [mark for mark in self.marks if mark["t"] > at and not mark.get("micro") and mark["mark"] != "event"]
        if moment.mark == "start":
            later = [mark for mark in later if mark["mark"] == "trained"]
        return self.popen.poll() is not None or bool(later)

    def _give_up_when_late(self) -> None:
        if time.monotonic() - self.started_seconds > MOST_SECONDS:
            self.popen.kill()


@dataclass(frozen=True, slots=True)
class Moment:
    """A moment of a run: so many seconds after a mark of its trace.

    Attributes:
        mark: the mark's name; `start` for the process's first one.
        step: the mark's step.
        seconds: after it.
    """

    mark: str
    step: int
    seconds: float

    def is_reached(self, mark: dict[str, Any]) -> bool:
        """Whether a mark is the one meant, or comes after it in every run."""
        if self.mark == "start":
            return mark["mark"] == "start"
        if mark["mark"] == self.mark and mark["step"] == self.step:
            return True
        # What belongs to a step's end (a save, an evaluation) is past when a later step begins, or none does.
        return mark["mark"] == "trained" or (mark["mark"] == "step" and mark["step"] > self.step)

    def to_json(self) -> dict[str, Any]:
        """As it is written down."""
        return {"after": self.mark, "step": self.step, "seconds": round(self.seconds, 4)}


@contextmanager
def hold(path: Path) -> Iterator[None]:
    """Hold a lock file, so that two measures do not make the same reference."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w") as file:
        flock(file, LOCK_EX)
        yield


# ---- what a run left


def read_lines(path: Path) -> list[dict[str, Any]]:
    """Read a file of one JSON object a line; a torn last line is left out, a missing file is empty."""
    if not path.exists():
        return []
    *whole, _torn = path.read_text(encoding="utf-8").split("\n")
    return [json.loads(line) for line in whole]


def read_trace(place: Place) -> dict[int, list[str]]:
    """Read the rows of every step as they were trained last: the hashes of its micro-batches' ids.

    A step that a kill cut is trained again by the next process, so that the later writing stands.
    """
    rows: dict[int, list[str]] = {}
    for mark in read_lines(place.trace):
        if mark["mark"] == "step":
            if mark["micro"] == 0:
                rows[mark["step"]] = []
            rows.setdefault(mark["step"], []).append(mark["ids"])
    return rows


def find_differences(reference: Place, other: Place, *, is_traced: bool = True) -> list[str]:
    """Find what differs between an unbroken run and another, in words: figures, row order, adapter.

    Args:
        reference: the unbroken run.
        other: the other one.
        is_traced: whether the other one ran with the hook, which notes its rows.
    """
    lines, others = (read_figures(place.run / "metrics.jsonl") for place in (reference, other))
    steps, other_steps = ([line["step"] for line in each] for each in (lines, others))
    found = [] if steps == other_steps else [f"metrics.jsonl has the steps {other_steps} instead of {steps}"]
    by_step = {line["step"]: line for line in others}
    for line in lines:
        got = by_step.get(line["step"], {})
        found += [f"{key} of step {line['step']}: {got.get(key)} instead of {line.get(key)}"
                  for key in sorted(line.keys() | got.keys()) if got.get(key) != line.get(key)]  # fmt: skip
    if is_traced:
        rows, other_rows = read_trace(reference), read_trace(other)
        found += [f"rows of step {step} differ" for step in sorted(rows.keys() | other_rows.keys())
                  if rows.get(step) != other_rows.get(step)]  # fmt: skip
    if _hash(reference.path / reference.adapter) != _hash(other.path / other.adapter):
        found.append("the adapter's bytes differ")
    return found


def read_figures(path: Path) -> list[dict[str, Any]]:
    """Read what each line measured, in the file's order, without what the clock and the memory decide."""
    return [
        {key: value for key, value in line.items() if not key.endswith(_OF_THE_MACHINE)} for line in read_lines(path)
    ]


def find_whole_steps(checkpoints: Path) -> list[int]:
    """Find the steps of the checkpoints that have their record, in order."""
    names = [path.parent.name.removeprefix("checkpoint-") for path in checkpoints.glob("checkpoint-*/COMPLETE.json")]
    return sorted(int(name) for name in names if name.isdigit())


def find_lost(before: Sequence[int], after: Sequence[int]) -> list[int]:
    """Find the checkpoints that were whole and are gone although the rotation keeps the two newest."""
    return [step for step in sorted({*before, *after})[-KEPT:] if step not in after]


def find_wrong_start(process: Process, whole: Sequence[int], *, ran_to_its_end: bool) -> list[str]:
    """Find whether a process began anywhere but at the step behind the newest whole checkpoint.

    Args:
        process: the one that took the run up.
        whole: steps of the checkpoints it found.
        ran_to_its_end: whether nothing ended it before it could come to a step.
    """
    first, expected = process.find_first_step(), max(whole, default=0) + 1
    if first is None and (not ran_to_its_end or expected > STEPS):
        return []
    return [] if first == expected else [f"went on at step {first} and not at {expected}, with {list(whole)} whole"]


def judge_message(process: Process) -> list[str]:
    """Judge what a process said as it ended: no traceback anywhere, and a message of at most 15 lines."""
    faults = []
    if "Traceback" in process.said.read_text(encoding="utf-8", errors="replace"):
        faults.append(f"a traceback: {process.read_said()}")
    message = process.read_message()
    if len(message) > MOST_LINES:
        faults.append(f"{len(message)} lines as it ended: {message[0]}")
    return faults


def _hash(path: Path) -> str | None:
    return hashlib.sha256(path.read_bytes()).hexdigest() if path.exists() else None


def says(path: Path, words: Sequence[str], *, behind: int = 0) -> bool:
    """Whether a file has a line with all of some words, from a byte on."""
    if not path.exists():
        return False
    lines = path.read_bytes()[behind:].decode(errors="replace").splitlines()
    return any(all(word in line for word in words) for line in lines)
