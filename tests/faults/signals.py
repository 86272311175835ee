"""Rows 3, 4 and 10: SIGTERM in every phase, Ctrl-C once and twice, and a run that is stopped and continued.

SIGTERM and a single Ctrl-C come in chains, as in kills: one run is interrupted several times. In each phase a moment is
drawn between its mark and the next one: a training step, an evaluation, a save, the rows being read and tokenized (with
an empty cache, so that there is something to tokenize).
"""

import json
import signal
import tempfile
import time
from collections.abc import Iterator
from itertools import count
from pathlib import Path
from random import Random
from typing import Any

from tests.faults.kills import Chain, count_repeated, find_torn
from tests.faults.measures import Outcome, Rig, register
from tests.faults.recipes import STEPS
from tests.faults.reference import Reference, build_place, find_reference, keep_evidence, sort_moments
from tests.faults.runs import (
    Moment,
    Place,
    Process,
    find_differences,
    find_lost,
    find_whole_steps,
    find_wrong_start,
    judge_message,
    read_lines,
)

__all__ = ["PHASES", "interrupt_in_chain"]

KIND = "evaluated"
PHASES = ("step", "evaluation", "save", "preparation")
IN_A_CHAIN = 4
# docs/runs.md: before the first step there is nothing to save; the status may stay that of the process before.
_BEFORE_TRAINING = ("start-up", "preparation")


def interrupt_in_chain(place: Place, moments: list[Moment], number: signal.Signals) -> Chain:
    """Interrupt a run at one moment after the other, look at what each leaves, and let it run to its end."""
    chain = Chain()
    for moment in moments:
        status_before, whole_before = _read_status(place), find_whole_steps(place.checkpoints)
        with tempfile.TemporaryDirectory(prefix="cache_") as cache:
            process = place.start(env={"HF_DATASETS_CACHE": cache} if moment.mark == "preparation" else None)
            chain.processes.append(process)
            struck = process.strike(moment, number)
            code = process.wait()
        if not struck:
            if code != 0:
                chain.faults.append(f"before a signal it ended by itself with {code}: {process.read_said(4)}")
                return chain
            break  # it was done before the moment came
        if code == 0 and process.find_phase() == "after training" and _read_status(place) == "done":
            break  # docs/runs.md: once the status says that it is done, there is nothing left to stop
        strike: dict[str, Any] = {
            **moment.to_json(),
            "process": len(chain.processes) - 1,
            "phase": process.find_phase(),
            "steps_done": place.read_steps_done(),
            "exit_code": code,
            "last_step_begun": process.find_last_step(),
            "whole_before": whole_before,
            "whole": find_whole_steps(place.checkpoints),
        }
        chain.strikes.append(strike)
        chain.faults += _judge_stop(place, process, strike, number, status_before)
    last = place.start()
    chain.processes.append(last)
    code = last.wait()
    if code != 0:
        chain.faults.append(f"the last start ended with {code}: {last.read_said(4)}")
    return chain


def _judge_stop(
    place: Place, process: Process, strike: dict[str, Any], number: signal.Signals, status_before: str | None
) -> list[str]:
    """Judge what an interrupted process left: exit code, status, no result, a whole checkpoint of its last step."""
    faults = []
    where = f"after {number.name} in {strike['phase']} at step {strike['steps_done']}"
    if strike["exit_code"] != 128 + number:
        faults.append(f"{where}: exit {strike['exit_code']}: {process.read_said(4)}")
    status = _read_status(place)
    expected = {"interrupted"} if strike["phase"] not in _BEFORE_TRAINING else {"interrupted", status_before}
    if status not in expected:
        faults.append(f"{where}: status {status}")
    if place.run.joinpath("adapter").exists():
        faults.append(f"{where}: adapter/ is there")
    faults += [f"{where}: {fault}" for fault in judge_message(process)]
    faults += [f"{where}: checkpoint {step} is gone" for step in find_lost(strike["whole_before"], strike["whole"])]
    if torn := find_torn(place.checkpoints):
        faults.append(f"{where}: {torn} without a record")
    return faults


def _read_status(place: Place) -> str | None:
    path = place.run / "status.json"
    return json.loads(path.read_text(encoding="utf-8"))["status"] if path.exists() else None


def judge_end(chain: Chain, reference: Reference, place: Place) -> tuple[list[str], int]:
    """Judge an interrupted run's end: what differs from the unbroken run, and how many steps were trained twice."""
    repeated = [steps or 0 for steps in count_repeated(chain)]
    faults = list(chain.faults) or find_differences(reference.place, place)
    faults += [f"{steps} steps lost with signal {number + 1}" for number, steps in enumerate(repeated) if steps]
    for strike in chain.strikes:
        number = strike["process"] + 1
        if number == len(chain.processes):
            continue  # ended by itself with a fault of its own
        # A step under way when the signal came is finished and saved: the next process begins behind it.
        saved = strike["whole"] if strike["last_step_begun"] is None else [strike["last_step_begun"]]
        is_last = number == len(chain.processes) - 1
        wrong = find_wrong_start(chain.processes[number], saved, ran_to_its_end=is_last)
        faults += [f"after the signal in {strike['phase']} at step {strike['steps_done']}: {fault}" for fault in wrong]
    return faults, sum(repeated)


class _Interrupts:
    """One signal, many times."""

    name: str
    title: str
    row: str
    target: int
    number: signal.Signals
    baseline_of = None

    def run_some(self, rig: Rig, first_case: int, deadline: float) -> Iterator[Outcome]:
        """Run chains."""
        reference = find_reference(rig, KIND)
        for case in count(first_case):
            if time.monotonic() >= deadline:
                return
            folder = Path(tempfile.mkdtemp(prefix=f"{self.name}_"))
            place = build_place(folder, KIND, rig)
            moments = draw_in_phases(reference, rig.draw(self.name, case), IN_A_CHAIN)
            chain = interrupt_in_chain(place, moments, self.number)
            faults, lost = judge_end(chain, reference, place)
            keep_evidence(rig, self.name, case, folder, passed=not faults)
            phases = [strike["phase"] for strike in chain.strikes]
            yield Outcome(
                case,
                passed=not faults,
                drawn={"signals": chain.strikes},
                detail="; ".join(faults)[:1500],
                weight=max(len(chain.strikes), bool(faults)),  # what failed by itself counts too
                figures={"steps_lost": lost, **{f"in_{name}": phases.count(name) for name in sorted(set(phases))}},
            )


def draw_in_phases(reference: Reference, random: Random, number: int) -> list[Moment]:
    """Draw a moment in each of some phases, in the order in which the run comes to them."""
    moments = [reference.draw_moment(random, phase=random.choice(PHASES)) for _ in range(number)]
    training = sort_moments([moment for moment in moments if moment.mark != "preparation"])
    # Every start reads the rows, so that such a moment can stand anywhere.
    for moment in moments:
        if moment.mark == "preparation":
            training.insert(random.randint(0, len(training)), moment)
    return training


@register
class Sigterm(_Interrupts):
    """SIGTERM."""

    name = "sigterm"
    title = (
        "SIGTERM in a step, an evaluation, a save, tokenization: exit 143, `interrupted`, no adapter, no step lost, "
        "then equal"
    )
    row = "3"
    target = 100
    number = signal.SIGTERM


@register
class CtrlC(_Interrupts):
    """Ctrl-C once."""

    name = "ctrl_c"
    title = "Ctrl-C once: exit 130, saved, no step lost, then equal"
    row = "4"
    target = 12
    number = signal.SIGINT


@register
class CtrlCTwice:
    """Ctrl-C a second time while the step is still under way."""

    name = "ctrl_c_twice"
    title = "Ctrl-C twice: leaves without ending its step of 30 seconds, the previous checkpoint intact, then equal"
    row = "4"
    target = 6
    baseline_of = None

    def run_some(self, rig: Rig, first_case: int, deadline: float) -> Iterator[Outcome]:
        """Make one step take thirty seconds, and press twice in it."""
        reference = find_reference(rig, "sft")
        for case in count(first_case):
            if time.monotonic() >= deadline:
                return
            random = rig.draw(self.name, case)
            folder = Path(tempfile.mkdtemp(prefix=f"{self.name}_"))
            place = build_place(folder, "sft", rig)
            step = random.randint(7, STEPS - 1)
            process = place.start(slow={"step": step, "seconds": 30.0})
            faults: list[str] = []
            seconds = 0.0
            if process.strike(Moment("step", step, random.uniform(0.0, 0.5)), signal.SIGINT):
                time.sleep(random.uniform(0.7, 1.5))  # what comes within half a second is one key press
                whole_before = find_whole_steps(place.checkpoints)
                pressed = time.monotonic()
                process.popen.send_signal(signal.SIGINT)
                code = process.wait()
                seconds = time.monotonic() - pressed
                if code != 130:
                    faults.append(f"exit {code}: {process.read_said(4)}")
                if process.marks[-1]["step"] != step or process.marks[-1]["mark"] != "step" or seconds > 20:
                    faults.append(f"left {seconds:.1f} seconds after the second Ctrl-C, at {process.marks[-1]}")
                faults += judge_message(process)
                lost = find_lost(whole_before, find_whole_steps(place.checkpoints))
                faults += [f"checkpoint {step} is gone" for step in lost]
                if find_torn(place.checkpoints) or (place.run / "adapter").exists():
                    faults.append("left something that looks finished or is torn")
            else:
                faults.append(f"ended before: {process.read_said(4)}")
            whole = find_whole_steps(place.checkpoints)
            again = place.start()
            code = again.wait()
            faults += find_wrong_start(again, whole, ran_to_its_end=True)
            faults += [f"resumed: {code}: {again.read_said(4)}"] if code else find_differences(reference.place, place)
            keep_evidence(rig, self.name, case, folder, passed=not faults)
            drawn = {"step": step, "left_after_seconds": round(seconds, 2)}
            yield Outcome(case, passed=not faults, drawn=drawn, detail="; ".join(faults)[:1500])


@register
class Stopped:
    """SIGSTOP and SIGCONT, as a batch system or a closed laptop does."""

    name = "stopped"
    title = "SIGSTOP and SIGCONT, up to three times a run: ends by itself, equal, no negative durations"
    row = "10"
    target = 8
    baseline_of = None

    def run_some(self, rig: Rig, first_case: int, deadline: float) -> Iterator[Outcome]:
        """Stop a run three times for a while."""
        reference = find_reference(rig, KIND)
        for case in count(first_case):
            if time.monotonic() >= deadline:
                return
            random = rig.draw(self.name, case)
            folder = Path(tempfile.mkdtemp(prefix=f"{self.name}_"))
            place = build_place(folder, KIND, rig)
            process, stops = place.start(), []
            for moment in sort_moments([reference.draw_moment(random) for _ in range(3)]):
                seconds = random.uniform(0.2, 1.5)
                if process.strike(moment, signal.SIGSTOP):
                    time.sleep(seconds)
                    process.popen.send_signal(signal.SIGCONT)
                    stops.append({**moment.to_json(), "stopped_seconds": round(seconds, 2)})
            code = process.wait()
            faults = (
                [f"ended with {code}: {process.read_said(4)}"] if code else find_differences(reference.place, place)
            )
            if not stops:
                faults.append("it ended before it could be stopped")
            lines = read_lines(place.run / "metrics.jsonl")
            times = [value for line in lines for key, value in line.items() if key.endswith("seconds")]
            if any(value is not None and value < 0 for value in times):
                faults.append("a negative duration in metrics.jsonl")
            keep_evidence(rig, self.name, case, folder, passed=not faults)
            yield Outcome(
                case,
                passed=not faults,
                drawn={"stops": stops},
                detail="; ".join(faults)[:1500],
                figures={"stops": len(stops)},
            )
