"""Row 2: `kill -9` inside a save, at every one of its file operations, before and after the record and in the rotation.

A hook counts the operations on the checkpoints' folder during a save and lets the process die right before the n-th.
The saves of the unbroken run say how many there are that change the disk; each is tried: those of a save alone at steps
5 and 10, those of a save that removes an older checkpoint as well from step 15 on. A case is a chain with one torn save
at each of the steps 5 to 30, so that a start of the process is paid once for each. Every fourth chain is killed at
random moments of its saves instead: what C++ and Rust write is no operation that the hook hears, and is cut so.
"""

import signal
import tempfile
import time
from collections.abc import Iterator
from itertools import count
from pathlib import Path
from random import Random
from typing import Any

from tests.faults.kills import Chain, find_torn, judge_chain, kill_in_chain
from tests.faults.measures import Outcome, Rig, register
from tests.faults.recipes import SAVE_STEPS, STEPS
from tests.faults.reference import Reference, build_place, find_reference, keep_evidence, sort_moments
from tests.faults.runs import Moment, Place, find_whole_steps, read_lines, says

__all__ = ["count_operations", "draw_in_saves", "plan_tears", "tear_in_chain"]

# Two are kept, so from the third save on one is removed.
_FIRST_ROTATION = 3 * SAVE_STEPS
_IN_SAVES = 6  # moments in a chain of random ones


def count_operations(reference: Reference, step: int) -> int:
    """Count the file operations of one save of the unbroken run."""
    return sum(mark["mark"] == "event" and mark["step"] == step for mark in read_lines(reference.place.trace))


def plan_tears(reference: Reference, case: int) -> list[tuple[int, int]]:
    """Plan the saves torn in a chain: (step, number of the operation before which the process dies), each once.

    The chains together go through all operations of a save without and with a rotation, in order, and begin again.
    """
    saves = range(SAVE_STEPS, STEPS + 1, SAVE_STEPS)
    plain = [step for step in saves if step < _FIRST_ROTATION]
    rotating = [step for step in saves if step >= _FIRST_ROTATION]
    num_plain, num_rotating = (count_operations(reference, steps[0]) for steps in (plain, rotating))
    return [
        *((step, (case * len(plain) + number) % num_plain + 1) for number, step in enumerate(plain)),
        *((step, (case * len(rotating) + number) % num_rotating + 1) for number, step in enumerate(rotating)),
    ]


def count_new(reference: Reference, case: int) -> int:
    """Count the operations that a chain is the first one to tear, those of a save with and without rotation apart."""

    def plan(number: int) -> set[tuple[bool, int]]:
        return {(step >= _FIRST_ROTATION, operation) for step, operation in plan_tears(reference, number)}

    return len(plan(case) - {tear for number in range(case) for tear in plan(number)})


def draw_in_saves(reference: Reference, random: Random) -> list[Moment]:
    """Draw a moment in each of some saves."""
    return sort_moments([reference.draw_moment(random, phase="save") for _ in range(_IN_SAVES)])


def tear_in_chain(place: Place, tears: list[tuple[int, int]], *, marks_broken: bool = True) -> Chain:
    """Tear one save after the other, look at what the next start makes of each, and let the run end.

    Args:
        place: the run's.
        tears: step of the save and the operation before which the process dies.
        marks_broken: whether a torn checkpoint has to be set aside and named.
    """
    chain = Chain()
    pending: dict[str, Any] | None = None
    log = place.run / "log.txt"
    for tear in [*tears, None]:
        before = find_whole_steps(place.checkpoints)
        process = place.start(**({} if tear is None else {"kill": {"step": tear[0], "event": tear[1]}}))
        chain.processes.append(process)
        code = process.wait()
        if pending is not None and marks_broken:
            chain.faults += check_set_aside(place, pending)
        if tear is None:
            if code != 0:
                chain.faults.append(f"the last start ended with {code}: {process.read_said(4)}")
            return chain
        if code != -signal.SIGKILL:
            pending = None
            if code != 0:
                chain.faults.append(f"before the save of step {tear[0]} it ended with {code}: {process.read_said(4)}")
                return chain
            continue  # the save had fewer operations, and the run was over before the next tear
        died = next((mark for mark in process.marks if mark["mark"] == "killed"), None)
        if died is None:
            chain.faults.append(f"died or hung before the save of step {tear[0]}: {process.read_said(4)}")
            return chain
        pending = {
            "process": len(chain.processes) - 1,
            "step": tear[0],
            "operation": tear[1],
            "before": died["what"],
            "phase": "save",
            "steps_done": place.read_steps_done(),
            "log_bytes": log.stat().st_size if log.exists() else 0,
            "torn": find_torn(place.checkpoints) if place.has_records else "no records",
            "whole_before": before,
            "whole": find_whole_steps(place.checkpoints),
        }
        chain.strikes.append(pending)
    return chain


def check_set_aside(place: Place, strike: dict[str, Any]) -> list[str]:
    """Check that the start after a torn save set it aside, named it, and used the newest whole one."""
    faults = []
    log, behind = place.run / "log.txt", strike["log_bytes"]
    for name in strike["torn"]:
        if not (place.checkpoints / f"{name}.broken").is_dir():
            faults.append(f"{name}, torn before `{strike['before']}`, was not set aside as .broken")
        if not says(log, [f"{name}.broken"], behind=behind):
            faults.append(f"{name}, torn before `{strike['before']}`, is not named in log.txt")
    whole = strike["whole"]
    used = f"Continuing after step {max(whole)}." if whole else "starting at step 0"
    if not says(log, [used], behind=behind):
        faults.append(f"after the save torn before `{strike['before']}` the log has no line `{used}`")
    return faults


@register
class TornSaves:
    """Saves torn at every file operation."""

    name = "torn_saves"
    title = (
        "kill -9 inside a save, before each of its file operations: torn folder named and set aside, "
        "the one before used, end equal"
    )
    row = "2"
    target = 114  # 14 chains tear each of the 74 operations of both kinds, and the fifth ones between them
    baseline_of = None

    def run_some(self, rig: Rig, first_case: int, deadline: float) -> Iterator[Outcome]:
        """Run chains, each with a torn save at every save."""
        kinds = ("sft", "nf4")
        for case in count(first_case):
            is_random, number = case % 4 == 3, case - case // 4  # `number` counts the chains of operations alone
            kind = kinds[(case // 4 if is_random else number) % len(kinds)]
            reference = find_reference(rig, kind)
            if time.monotonic() >= deadline:
                return
            folder = Path(tempfile.mkdtemp(prefix="torn_"))
            place = build_place(folder, kind, rig)
            if is_random:
                chain = kill_in_chain(place, draw_in_saves(reference, rig.draw(self.name, case)))
                new = 0
            else:
                tears = plan_tears(reference, number // len(kinds))
                chain = tear_in_chain(place, tears)
                new = count_new(reference, number // len(kinds))
            faults = judge_chain(chain, reference, place)
            keep_evidence(rig, self.name, case, folder, passed=not faults)
            yield Outcome(
                case,
                passed=not faults,
                drawn={"kind": kind, "tears": chain.strikes},
                detail="; ".join(faults)[:1500],
                weight=max(len(chain.strikes), bool(faults)),  # what failed by itself counts too
                figures={
                    "distinct_operations": new,
                    "at_random_moments": len(chain.strikes) * is_random,
                    "folders_set_aside": sum(len(strike["torn"]) for strike in chain.strikes),
                },
            )
