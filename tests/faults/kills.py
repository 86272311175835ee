"""Row 1: `kill -9` at random moments, the same command again until it is done, and the end equal to the unbroken run.

A case is a chain: one run killed at up to four moments, so that the seconds a process takes to start are spent
once for each. Every moment between the first step and the end of training is alike; one in ten is drawn from the whole
life of a process instead: imports, tokens, the adapter's own save. What counts towards the target are kills. A chain
whose end differs fails with all its kills.
"""

import signal
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path
from typing import Any

from tests.faults.measures import Outcome, Rig, register
from tests.faults.recipes import SAVE_STEPS
from tests.faults.reference import Reference, build_place, draw_moments, find_reference, keep_evidence
from tests.faults.runs import (
    Moment,
    Place,
    Process,
    find_differences,
    find_lost,
    find_whole_steps,
    find_wrong_start,
)

__all__ = ["Chain", "count_repeated", "judge_chain", "kill_in_chain"]

KILLS_IN_A_CHAIN = 4


@dataclass(slots=True)
class Chain:
    """A run that was struck and taken up again until it was done.

    Attributes:
        processes: all its processes in order; the last one ran to its end.
        strikes: what is known of each kill.
        faults: what was not as it has to be, in words.
    """

    processes: list[Process] = field(default_factory=list)
    strikes: list[dict[str, Any]] = field(default_factory=list)
    faults: list[str] = field(default_factory=list)


def kill_in_chain(place: Place, moments: list[Moment]) -> Chain:
    """Kill a run at one moment after the other, then let it run to its end."""
    chain = Chain()
    for moment in moments:
        process = place.start(fresh=moment.mark == "start")  # it may fall into the imports
        chain.processes.append(process)
        before = find_whole_steps(place.checkpoints)
        struck = process.strike(moment, signal.SIGKILL)
        code = process.wait()
        if code != (-signal.SIGKILL if struck else 0) and code != 0:
            chain.faults.append(f"died or hung before the kill, with {code}: {process.read_said(4)}")
            return chain
        if code == 0:
            break  # it was done before the moment came
        chain.strikes.append(
            {
                **moment.to_json(),
                "process": len(chain.processes) - 1,
                "phase": process.find_phase(),
                "steps_done": place.read_steps_done(),
                "torn": find_torn(place.checkpoints) if place.has_records else "no records",
                "whole_before": before,
                "whole": find_whole_steps(place.checkpoints),
            }
        )
    last = place.start()
    chain.processes.append(last)
    code = last.wait()
    if code != 0:
        chain.faults.append(f"the last start ended with {code}: {last.read_said(4)}")
    return chain


def find_torn(checkpoints: Path) -> list[str]:
    """Find the checkpoints that a kill left without a record, which is written last."""
    if not checkpoints.is_dir():
        return []
    folders = [path for path in checkpoints.glob("checkpoint-*") if path.name.removeprefix("checkpoint-").isdigit()]
    return sorted(path.name for path in folders if not (path / "COMPLETE.json").exists())


def count_repeated(chain: Chain) -> list[int | None]:
    """Count for each kill the steps that were on the disk and trained again; None where it came before any step.

    A kill during a start counts nothing: what it cost is counted with the kill before it.
    """
    first_steps = [process.find_first_step() for process in chain.processes]
    repeated: list[int | None] = []
    for strike in chain.strikes:
        if first_steps[strike["process"]] is None:
            repeated.append(None)
            continue
        later = [step for step in first_steps[strike["process"] + 1 :] if step is not None]
        repeated.append(max(strike["steps_done"] + 1 - later[0], 0) if later else 0)
    return repeated


def judge_chain(chain: Chain, reference: Reference, place: Place) -> list[str]:
    """Judge a chain's end: what differs from the unbroken run, what was lost, and what was trained again needlessly."""
    faults = list(chain.faults)
    if not faults:
        faults += find_differences(reference.place, place)
        for strike, repeated in zip(chain.strikes, count_repeated(chain), strict=True):
            strike["repeated"] = repeated
            # Of step 12 two are lost, of step 10 five where the kill came before the record of its checkpoint.
            allowed = (strike["steps_done"] - 1) % SAVE_STEPS + 1
            if repeated is not None and strike["steps_done"] and repeated > allowed:
                faults.append(f"{repeated} steps repeated after the kill behind step {strike['steps_done']}")
            faults += judge_strike(chain, strike)
    return faults


def judge_strike(chain: Chain, strike: dict[str, Any]) -> list[str]:
    """Judge what a fault left of the checkpoints, and that the next process goes on right behind the newest whole."""
    where = f"after the kill behind step {strike['steps_done']}"
    number = strike["process"] + 1
    is_last = number == len(chain.processes) - 1
    faults = [f"{where}: checkpoint {step} is gone" for step in find_lost(strike["whole_before"], strike["whole"])]
    wrong = find_wrong_start(chain.processes[number], strike["whole"], ran_to_its_end=is_last)
    return faults + [f"{where}: {fault}" for fault in wrong]


class _Kills:
    """Kills of one kind of run."""

    kind: str
    name: str
    title: str
    row = "1"
    target = 50
    baseline_of = None

    def run_some(self, rig: Rig, first_case: int, deadline: float) -> Iterator[Outcome]:
        """Run chains."""
        reference = find_reference(rig, self.kind)
        for case in count(first_case):
            if time.monotonic() >= deadline:
                return
            yield self._run(rig, reference, case)

    def _run(self, rig: Rig, reference: Reference, case: int) -> Outcome:
        folder = Path(tempfile.mkdtemp(prefix=f"{self.name}_"))
        place = build_place(folder, self.kind, rig)
        moments = draw_moments(reference, rig.draw(self.name, case), KILLS_IN_A_CHAIN)
        chain = kill_in_chain(place, moments)
        faults = judge_chain(chain, reference, place)
        keep_evidence(rig, self.name, case, folder, passed=not faults)
        repeated = [strike.get("repeated") or 0 for strike in chain.strikes]
        return Outcome(
            case,
            passed=not faults,
            drawn={"kills": chain.strikes},
            detail="; ".join(faults)[:1500],
            weight=max(len(chain.strikes), bool(faults)),  # what failed by itself counts too
            figures={
                "steps_repeated": sum(repeated),
                "inside_a_save": sum(strike["phase"] == "save" for strike in chain.strikes),
                "outside_of_training": sum(
                    strike["phase"] in ("start-up", "preparation", "after training") for strike in chain.strikes
                ),
            },
        )


@register
class KillsOfSft(_Kills):
    """SFT in 32-bit."""

    kind = "sft"
    name = "kill_sft"
    title = "kill -9, SFT in 32-bit: equal to the unbroken run"


@register
class KillsOfNf4(_Kills):
    """SFT on a base in NF4."""

    kind = "nf4"
    name = "kill_nf4"
    title = "kill -9, SFT in 4-bit NF4: equal to the unbroken run"


@register
class KillsOfDpo(_Kills):
    """DPO."""

    kind = "dpo"
    name = "kill_dpo"
    title = "kill -9, DPO: equal to the unbroken run"


@register
class KillsOfPacked(_Kills):
    """Packed SFT."""

    kind = "packed"
    name = "kill_packed"
    title = "kill -9, packed SFT: equal to the unbroken run"
