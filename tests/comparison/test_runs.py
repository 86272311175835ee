"""A comparison that is stopped and killed goes on, and ends with the table of one that never was."""

import csv
import fcntl
import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from finetune.comparison.comparing import compare, raise_if_failed
from finetune.errors import CheckpointError, RecipeError
from finetune.recipe.comparison import read_comparison
from finetune.recipe.reading import read_recipe
from tests.end_to_end.small_runs import ROOT, build_values, write_recipe

pytestmark = pytest.mark.slow

STEPS = 40
# The second method asks for layers that are not there, which the run alone can find out.
GRID = f"""\
name: grid
recipe: base.yaml
settings: {{training.max_steps: {STEPS}, training.save_steps: 10, data.eval: {{fraction: 0.1}}}}
methods:
  lora:
    adapter.method: lora
    adapter.target_modules: all-linear
    grid: {{adapter.r: [2, 4]}}
  broken: {{adapter.method: lora, adapter.target_modules: [no_such_layer]}}
seeds: [3]
reference: lora
"""
_OF_THE_MACHINE = ("seconds", "peak_memory_bytes")


def read_table(folder: Path) -> list[dict[str, str]]:
    """table.csv without what the clock and the memory say."""
    with (folder / "table.csv").open(newline="") as file:
        return [{key: text for key, text in row.items() if key not in _OF_THE_MACHINE} for row in csv.DictReader(file)]


def begin(path: Path, *overrides: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "finetune.compare", str(path), *overrides]
    return subprocess.Popen(command, cwd=ROOT, stderr=subprocess.PIPE, text=True, start_new_session=True)


def wait_for_step(run: Path, step: int, process: subprocess.Popen[str]) -> None:
    """Wait until a run has logged a step."""
    until = time.monotonic() + 120
    metrics = run / "metrics.jsonl"
    while not metrics.exists() or f'"step": {step},' not in metrics.read_text():
        assert process.poll() is None, process.communicate()[1]
        assert time.monotonic() < until, f"{run.name} never came to step {step}"
        time.sleep(0.02)


def wait_until_unlocked(run: Path) -> None:
    """Wait until the process that works on a run has ended."""
    until = time.monotonic() + 10
    with (run / ".lock").open("r+") as file:
        while time.monotonic() < until:
            try:
                return fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                time.sleep(0.05)
    raise AssertionError(f"{run.name} goes on although its comparison is dead")


def test_a_grid_that_was_stopped_and_killed_ends_with_the_table_of_one_that_never_was(tmp_path: Path) -> None:
    write_recipe(tmp_path / "base.yaml", build_values(tmp_path))
    path = tmp_path / "grid.yaml"
    path.write_text(GRID)
    folder = tmp_path / "stopped" / "grid"
    first, second = folder / "runs" / "lora-r2-seed3", folder / "runs" / "lora-r4-seed3"

    # SIGTERM: the run under way saves itself, and nothing else begins.
    process = begin(path, f"output_dir={tmp_path}/stopped")
    wait_for_step(first, 5, process)
    with pytest.raises(CheckpointError, match="is being worked on by process"):
        compare(read_comparison(path, [f"output_dir={tmp_path}/stopped"]), overwrite=False, say=print)
    process.send_signal(signal.SIGTERM)
    said = process.communicate(timeout=60)[1]
    assert process.returncode == 143
    assert "was stopped by SIGTERM; the runs under way were saved" in said
    assert json.loads((first / "status.json").read_text())["status"] == "interrupted"
    assert not second.exists()

    # kill -9 of the comparison alone: its run dies with it, and can be taken up.
    process = begin(path, f"output_dir={tmp_path}/stopped")
    wait_for_step(second, 12, process)
    process.kill()
    said = process.communicate()[1]
    wait_until_unlocked(second)
    assert "[1/3] lora-r2-seed3  eval_loss" in said
    assert json.loads((first / "summary.json").read_text())["status"] == "done"
    assert json.loads((second / "status.json").read_text())["status"] == "running"

    said_by: dict[str, list[str]] = {"stopped": [], "whole": []}
    findings = {
        name: compare(read_comparison(path, [f"output_dir={tmp_path}/{name}"]), overwrite=False, say=lines.append)
        for name, lines in said_by.items()
    }
    assert said_by["stopped"][0] == "1 of 3 runs were finished before."
    assert [line.split()[:2] for line in said_by["whole"]] == [
        ["[1/3]", "lora-r2-seed3"], ["[2/3]", "lora-r4-seed3"], ["[3/3]", "broken-seed3"]
    ]  # fmt: skip
    assert json.loads((second / "summary.json").read_text())["resumed_from"]
    whole = tmp_path / "whole" / "grid"
    assert read_table(folder) == read_table(whole)
    states = {row["cell"]: (row["state"], row["steps"]) for row in read_table(whole)}
    assert states == {
        "lora-r2-seed3": ("done", str(STEPS)), "lora-r4-seed3": ("done", str(STEPS)), "broken-seed3": ("failed", "")
    }  # fmt: skip
    with pytest.raises(RecipeError, match=r"1 of 3 runs failed.*\n  broken-seed3: .*no_such_layer"):
        raise_if_failed(findings["whole"], whole)
    assert "- broken-seed3: failed: " in (whole / "table.md").read_text()
    assert read_recipe(folder / "recommended.yaml").adapter.fields["r"] in (2, 4)
    assert len(list((whole / "runs").iterdir())) == 2, "a run that could not begin leaves no folder"

    # Changed cells are refused before anything runs, new ones are not.
    with pytest.raises(CheckpointError, match=rf"lora-r2-seed3: training.max_steps was {STEPS}, now 41"):
        compare(
            read_comparison(path, [f"output_dir={tmp_path}/whole", "settings.training.max_steps=41"]),
            overwrite=False,
            say=print,
        )
    with pytest.raises(CheckpointError, match="lora-r4-seed3 is no cell of the comparison any more"):
        compare(
            read_comparison(path, [f"output_dir={tmp_path}/whole", "methods.lora.grid.adapter.r=[2]"]),
            overwrite=False,
            say=print,
        )
    assert read_table(folder) == read_table(whole)
