"""Killed, torn, interrupted, diverging and short of memory on Mistral-7B's true shape: rows 1, 2, 3, 16 and 20.

Real processes, random weights, an adapter in 32 bits over NF4, the parts of the fault programme (tests/faults). The
true shape wants a CUDA device of 24 GB (`make test-gpu`); the tiny one goes the same way on a CPU (`make test-slow`).
"""

import json
import signal
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from tests.faults.kills import find_torn, judge_chain, kill_in_chain
from tests.faults.recipes import ROOT, SAVE_STEPS, build_values
from tests.faults.reference import Reference
from tests.faults.runs import Moment, Place, find_whole_steps, judge_message, read_lines, says
from tests.faults.signals import interrupt_in_chain, judge_end
from tests.faults.torn_saves import count_operations, tear_in_chain

pytestmark = pytest.mark.timeout(900)

TRUE_RECIPE = ROOT / "benchmarks" / "recipes" / "mistral_7b_shape.yaml"
VERB = "finetune.sft"
FAULTY = "tests.gpu.faulty_training"


@dataclass(frozen=True, slots=True)
class Shape:
    """A base, and what its runs differ by from the fault programme's.

    Attributes:
        model: put over the recipe's section.
        training: the same.
        tolerance: of losses, relative, where the rows of a step go through the model in other parts.
    """

    model: dict[str, Any] = field(default_factory=dict)
    training: dict[str, Any] = field(default_factory=dict)
    tolerance: float = 1e-4


def build_true_shape() -> Shape:
    config = yaml.safe_load(TRUE_RECIPE.read_text(encoding="utf-8"))["model"]["config"]
    model = {"config": config, "device": "cuda", "compute_dtype": "auto"}
    return Shape(model, {"learning_rate": 1e-4}, tolerance=1e-2)


SHAPES = {"tiny": Shape(), "mistral_7b": build_true_shape()}
HAS_DEVICE = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
PARAMETERS = [
    pytest.param("tiny", marks=pytest.mark.slow),
    pytest.param("mistral_7b", marks=[pytest.mark.gpu, pytest.mark.slow, HAS_DEVICE]),
]
SHORT = ("training.max_steps=8",)
# Rows in other parts draw other dropout; and what idle memory is spent on would be taken back before rows are cut.
WIDE = (
    "training.max_steps=4", "training.per_device_train_batch_size=16", "training.gradient_accumulation_steps=1",
    "training.memory=recompute_none", "adapter.lora_dropout=0",
)  # fmt: skip


@pytest.fixture(scope="module", params=PARAMETERS)
def shape(request) -> Shape:
    return SHAPES[request.param]


def make_place(folder: Path, shape: Shape, fault: Sequence[str] = (), overrides: Sequence[str] = ()) -> Place:
    """Write the recipe into a folder; the run is there, its process with a fault inside or without."""
    values = build_values("nf4", folder)
    for section in ("model", "training"):
        values[section] |= asdict(shape)[section]
    folder.mkdir(parents=True, exist_ok=True)
    recipe = folder / "recipe.yaml"
    recipe.write_text(yaml.safe_dump(values, sort_keys=False), encoding="utf-8")
    module, *arguments = (*fault, VERB)
    return Place(folder, module, (*arguments, str(recipe), "--resume", *overrides))


def run(place: Place) -> tuple[int, str]:
    """Run a place's command without the programme's hook; its exit code and what it said."""
    process = place.start(hooked=False)
    code = process.wait()
    assert judge_message(process) == []
    return code, process.said.read_text(encoding="utf-8", errors="replace")


def read_json(path: Path) -> dict[str, Any]:
    values: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return values


@pytest.fixture(scope="module")
def unbroken(shape, tmp_path_factory) -> Reference:
    place = make_place(tmp_path_factory.mktemp("unbroken"), shape)
    process = place.start(events=True)
    assert process.wait() == 0, process.read_said()
    return Reference(place, read_lines(place.trace), time.monotonic())


def test_a_run_killed_between_two_saves_ends_as_the_unbroken_one(shape, unbroken, tmp_path):
    place = make_place(tmp_path, shape)
    chain = kill_in_chain(place, [Moment("step", SAVE_STEPS + 3, 0.0)])
    assert judge_chain(chain, unbroken, place) == []
    assert [strike["whole"] for strike in chain.strikes] == [[SAVE_STEPS]]


def test_a_save_killed_inside_and_behind_its_record_is_set_aside_or_used(shape, unbroken, tmp_path):
    place = make_place(tmp_path, shape)
    plain, rotating = 2 * SAVE_STEPS, 4 * SAVE_STEPS
    inside, last = count_operations(unbroken, plain) // 2, count_operations(unbroken, rotating)
    chain = tear_in_chain(place, [(plain, inside), (rotating, last)])
    assert judge_chain(chain, unbroken, place) == []
    torn, whole = chain.strikes
    assert torn["torn"] == [f"checkpoint-{plain}"]
    assert whole["torn"] == []
    assert rotating in whole["whole"]


def test_a_run_stopped_by_sigterm_loses_no_step_and_ends_as_the_unbroken_one(shape, unbroken, tmp_path):
    place = make_place(tmp_path, shape)
    chain = interrupt_in_chain(place, [Moment("step", 2 * SAVE_STEPS + 2, 0.0)], signal.SIGTERM)
    assert judge_end(chain, unbroken, place) == ([], 0)
    assert [strike["exit_code"] for strike in chain.strikes] == [128 + signal.SIGTERM]


def test_a_loss_that_is_no_number_stops_before_the_update_and_is_left_out_where_asked(shape, tmp_path):
    fault = (FAULTY, str(SAVE_STEPS + 1), "nan")
    place = make_place(tmp_path, shape, fault, SHORT)
    code, said = run(place)
    assert code == 5, said
    status = read_json(place.run / "status.json")
    assert status["status"] == "failed"
    assert status["reason"].startswith(f"step {SAVE_STEPS + 2}: the loss is not finite")
    checkpoints = place.run / "checkpoints"
    assert find_whole_steps(checkpoints) == [SAVE_STEPS]
    assert find_torn(checkpoints) == []
    assert not (place.run / "adapter").exists()
    assert {line["step"] for line in read_lines(place.run / "non_finite.jsonl")} == {SAVE_STEPS + 2}

    code, said = run(make_place(tmp_path, shape, fault, (*SHORT, "training.non_finite=skip")))
    assert code == 0, said
    assert says(place.run / "log.txt", [f"Continuing after step {SAVE_STEPS}."])
    assert read_json(place.run / "summary.json")["skipped_steps"] == 1
    skipped = [line["step"] for line in read_lines(place.run / "metrics.jsonl") if line.get("skipped")]
    assert skipped == [SAVE_STEPS + 2]


def test_memory_that_runs_out_in_a_step_halves_the_rows_and_the_losses_stay(shape, tmp_path):
    losses = {}
    for name, fault in (("enough", ()), ("short", (FAULTY, "2", "0.6"))):
        place = make_place(tmp_path / name, shape, fault, WIDE)
        code, said = run(place)
        assert code == 0, said
        rows = read_json(place.run / "summary.json")["micro_batch_rows"]
        assert rows is None if name == "enough" else rows < 16
        losses[name] = [line["loss"] for line in read_lines(place.run / "metrics.jsonl") if "loss" in line]
    assert says(tmp_path / "short" / "run" / "log.txt", ["step 3: memory ran out"])
    assert len(losses["enough"]) == 4
    assert losses["short"] == pytest.approx(losses["enough"], rel=shape.tolerance)


def test_memory_that_does_not_hold_one_row_ends_the_run_with_what_would_help(shape, tmp_path):
    place = make_place(tmp_path, shape, (FAULTY, "2", "0"), WIDE)
    code, said = run(place)
    assert code == 4, said
    assert "memory is full at a single row" in said
    assert read_json(place.run / "status.json")["status"] == "failed"
    assert not (place.run / "adapter").exists()
