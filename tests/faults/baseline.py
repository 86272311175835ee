"""The same kills, torn saves and SIGTERMs on the plain TRL script: the column beside ours.

The script is given the same chances: the same command again after every fault, which continues by itself where the
script's folder holds a checkpoint. Each case that does not end equal says how: it ended otherwise, or it could not be
continued (the first line of its error).
"""

import json
import shutil
import signal
import tempfile
import time
from collections.abc import Iterator
from itertools import count
from pathlib import Path

from tests.faults.kills import Chain, count_repeated, kill_in_chain
from tests.faults.measures import Outcome, Rig, register
from tests.faults.recipes import ROOT, SHAPE, TINY
from tests.faults.reference import Reference, draw_moments, find_reference, keep_evidence
from tests.faults.runs import Place, find_differences, hold
from tests.faults.torn_saves import plan_tears, tear_in_chain

__all__ = ["build_plain_place"]

_ROWS = 77
# Slowed down, so that the three seconds that transformers waits before it saves lie within the run.
_JIT_STEP_SECONDS = 0.15


def build_plain_place(folder: Path, rig: Rig, *, jit: bool = False) -> Place:
    """Build a place of the plain script, on a model and rows that are made once."""
    model, rows = find_material(rig)
    folder.mkdir(parents=True, exist_ok=True)
    arguments = ["--model", str(model), "--rows", str(rows), "--output", str(folder / "run")]
    return Place(folder, "tests.faults.plain_trl", (*arguments, *(["--jit-checkpoint"] if jit else [])))


def find_material(rig: Rig) -> tuple[Path, Path]:
    """Find the model's folder and the rows' file, making them where they are not there yet."""
    folder = rig.work_dir / "plain_material"
    with hold(rig.work_dir / "plain_material.lock"):
        if not (folder / "rows.jsonl").exists():
            shutil.rmtree(folder, ignore_errors=True)
            write_model(folder / "model")
            rows = json.loads((ROOT / "data" / "tiny_world" / "train.json").read_text(encoding="utf-8"))[:_ROWS]
            lines = [{"prompt": f"{row['instruction']}\n{row['input']}\n", "completion": row["output"]} for row in rows]
            text = "".join(json.dumps(line) + "\n" for line in lines)
            (folder / "rows.jsonl").write_text(text, encoding="utf-8")
    return folder / "model", folder / "rows.jsonl"


def write_model(folder: Path) -> None:
    """Write the programme's shape with random weights, and the tiny base's tokenizer, as any model's folder."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

    torch.manual_seed(3)
    shape = dict(SHAPE)
    AutoModelForCausalLM.from_config(AutoConfig.for_model(shape.pop("model_type"), **shape)).save_pretrained(folder)
    AutoTokenizer.from_pretrained(TINY).save_pretrained(folder)


def judge_plain(chain: Chain, reference: Reference, place: Place) -> tuple[str, str]:
    """Judge a chain of the plain script: `equal`, `differs` or `crashed`, and the evidence."""
    if chain.faults:
        return "crashed", find_error(chain)
    differences = find_differences(reference.place, place)
    return ("differs", "; ".join(differences)[:600]) if differences else ("equal", "")


def find_error(chain: Chain) -> str:
    """Find the line that names the error a process ended with."""
    said = chain.processes[-1].said.read_text(encoding="utf-8", errors="replace").strip().splitlines()
    errors = [line for line in said if line[:1].isalpha() and "Error" in line.split(":")[0]]
    return (errors or said or ["nothing was said"])[-1][:300]


class _Plain:
    """A fault done to the plain script."""

    name: str
    title: str
    row: str
    target: int
    baseline_of: str
    jit = False

    def run_some(self, rig: Rig, first_case: int, deadline: float) -> Iterator[Outcome]:
        """Run chains."""
        reference = find_reference(rig, "plain")
        for case in count(first_case):
            if time.monotonic() >= deadline:
                return
            folder = Path(tempfile.mkdtemp(prefix=f"{self.name}_"))
            place = build_plain_place(folder, rig, jit=self.jit)
            chain = self.break_run(rig, reference, place, case)
            how, detail = judge_plain(chain, reference, place)
            lost = sum(steps or 0 for steps in count_repeated(chain))
            keep_evidence(rig, self.name, case, folder, passed=True)
            weight = len(chain.strikes)  # what crashed without a fault done to it says nothing of faults
            yield Outcome(
                case,
                passed=how == "equal",
                drawn={"strikes": chain.strikes},
                detail=f"{how}: {detail}" if detail else how,
                weight=weight,
                figures={"differs": weight * (how == "differs"), "crashed": weight * (how == "crashed"),
                         "steps_repeated": lost},
            )  # fmt: skip

    def break_run(self, rig: Rig, reference: Reference, place: Place, case: int) -> Chain:
        """Do the fault to a run, and let it run to its end."""
        raise NotImplementedError


@register
class PlainKills(_Plain):
    """Kills at random moments."""

    name = "plain_kill"
    title = "kill -9, the plain script"
    row = "1"
    target = 40
    baseline_of = "kill_sft"

    def break_run(self, rig: Rig, reference: Reference, place: Place, case: int) -> Chain:
        """Kill once: in a chain the kills before one that cannot be continued would count as failed too."""
        return kill_in_chain(place, draw_moments(reference, rig.draw(self.name, case), 1))


@register
class PlainTornSaves(_Plain):
    """Saves torn, one a run: a chain would end at the first one that cannot be continued."""

    name = "plain_torn"
    title = "kill -9 inside a save, the plain script"
    row = "2"
    target = 30
    baseline_of = "torn_saves"

    def break_run(self, rig: Rig, reference: Reference, place: Place, case: int) -> Chain:
        """Tear one save, the tears spread over all of a save's operations; every second one at a random moment of it.

        Most of this script's files are written by C++ and Rust, which the hook does not hear.
        """
        if case % 2:
            moment = reference.draw_moment(rig.draw(self.name, case), phase="save")
            return kill_in_chain(place, [moment])
        tears = plan_tears(reference, rig.draw(self.name, case).randrange(10**6))
        return tear_in_chain(place, [tears[case // 2 % len(tears)]], marks_broken=False)


@register
class PlainSigterm(_Plain):
    """SIGTERM as the script has it by default: Python ends at once."""

    name = "plain_sigterm"
    title = "SIGTERM, the plain script"
    row = "3"
    target = 20
    baseline_of = "sigterm"
    signal_step_seconds = 0.0

    def break_run(self, rig: Rig, reference: Reference, place: Place, case: int) -> Chain:
        """End a run once with SIGTERM in the middle of training."""
        chain = Chain()
        moment = reference.draw_moment(rig.draw(self.name, case))
        process = place.start(step_seconds=self.signal_step_seconds)
        chain.processes.append(process)
        struck = process.strike(moment, signal.SIGTERM)
        code = process.wait()
        if struck:
            chain.strikes.append({**moment.to_json(), "process": 0, "phase": process.find_phase(), "exit_code": code,
                                  "steps_done": place.read_steps_done()})  # fmt: skip
        elif code != 0:
            chain.faults.append("died or hung before the signal")
            return chain
        last = place.start()
        chain.processes.append(last)
        if last.wait() != 0:
            chain.faults.append("not continued")
        return chain


@register
class PlainJit(PlainSigterm):
    """SIGTERM with transformers' own answer to it switched on."""

    name = "plain_sigterm_jit"
    title = "SIGTERM, the plain script with enable_jit_checkpoint"
    target = 12
    jit = True
    signal_step_seconds = _JIT_STEP_SECONDS
