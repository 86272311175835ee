"""The programme's short version: one NF4 run in real processes, killed, interrupted and torn, and still the same run.

Every start of an interpreter costs about ten seconds, so the faults come one behind the other in a single run, whose
processes are forked from one that has imported the libraries. The unbroken run it is held against is made in this
process. `make faults` does the same some hundred times, at drawn moments.
"""

import json
import signal
from pathlib import Path

import pytest

from finetune.recipe.reading import build_recipe
from finetune.train import train
from tests.faults import ready
from tests.faults.kills import find_torn
from tests.faults.recipes import KINDS, SAVE_STEPS, STEPS, build_values
from tests.faults.runs import Moment, Place, Process, read_figures, read_lines, read_trace, says

KIND = "nf4"
pytestmark = pytest.mark.timeout(600)  # four starts: 45 seconds on a machine of its own, minutes on a busy one


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("unbroken")
    return train(build_recipe(build_values(KIND, folder)), recipe_text="# typed by a test\n")


@pytest.fixture(scope="module")
def broken(tmp_path_factory) -> tuple[Place, dict[str, dict]]:
    """The same run: killed in step 7, interrupted by SIGTERM in step 12, killed inside the save of step 20."""
    place = Place.make(tmp_path_factory.mktemp("broken"), KIND)
    seen = {}

    def look(name: str, process: Process) -> None:
        status = json.loads((place.run / "status.json").read_text(encoding="utf-8"))["status"]
        seen[name] = {
            "code": process.wait(), "status": status, "steps_done": place.read_steps_done(),
            "torn": find_torn(place.checkpoints), "has_adapter": (place.run / "adapter").exists(),
            "said": process.read_said(),
        }  # fmt: skip

    with ready.keep_ready() as path:
        ready.use(path)
        try:
            process = place.start()
            process.strike(Moment("step", 7, 0.005), signal.SIGKILL)
            process.wait()
            look("killed", process)

            process = place.start()
            process.strike(Moment("step", 12, 0.0), signal.SIGTERM)
            process.wait()
            look("interrupted", process)

            process = place.start(kill={"step": 20, "event": 8})
            process.wait()
            look("torn", process)

            process = place.start()
            process.wait()
            look("done", process)
        finally:
            ready.use(None)
    return place, seen


def test_a_run_that_was_killed_interrupted_and_torn_ends_as_the_unbroken_one(unbroken: Path, broken) -> None:
    place, seen = broken
    assert seen["done"]["code"] == 0, seen["done"]["said"]
    assert read_figures(place.run / "metrics.jsonl") == read_figures(unbroken / "metrics.jsonl")
    adapter = "adapter/adapter_model.safetensors"
    assert (place.run / adapter).read_bytes() == (unbroken / adapter).read_bytes()


def test_a_kill_costs_the_steps_since_the_last_save_and_sigterm_none(broken) -> None:
    place, seen = broken
    assert [seen[name]["code"] for name in ("killed", "interrupted", "torn")] == [-9, 143, -9]
    first_steps = [next(mark["step"] for mark in marks if mark["mark"] == "step") for marks in split_by_process(place)]
    assert first_steps == [1, SAVE_STEPS + 1, seen["interrupted"]["steps_done"] + 1, 15 + 1]


def test_an_interrupted_run_says_so_and_leaves_nothing_that_looks_finished(broken) -> None:
    _, seen = broken
    assert seen["interrupted"]["status"] == "interrupted"
    assert not seen["interrupted"]["has_adapter"]
    assert not seen["interrupted"]["torn"]
    assert "--resume" in seen["interrupted"]["said"]


def test_a_torn_save_is_named_set_aside_and_not_used(broken) -> None:
    place, seen = broken
    assert seen["torn"]["torn"] == ["checkpoint-20"]
    assert says(place.run / "log.txt", ["checkpoint-20.broken", "COMPLETE.json"])
    assert says(place.run / "log.txt", ["Continuing after step 15."])


def test_every_step_is_trained_on_rows_in_the_order_of_one_run(broken) -> None:
    place, _ = broken
    rows = read_trace(place)
    assert list(rows) == list(range(1, STEPS + 1))
    # 77 rows: 39 micro-batches, so the twentieth step has one left over and the second epoch begins behind it.
    assert KINDS[KIND].get("data") is None
    assert [len(rows[step]) for step in (19, 20, 21)] == [2, 1, 2]


def split_by_process(place: Place) -> list[list[dict]]:
    """The trace's marks, process by process."""
    processes: list[list[dict]] = []
    for mark in read_lines(place.trace):
        if mark["mark"] == "start":
            processes.append([])
        processes[-1].append(mark)
    return processes
