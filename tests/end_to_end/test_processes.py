"""One run in two processes: the same mathematics as in one, written by the first alone."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from safetensors.torch import load_file

from tests.end_to_end.small_runs import ROOT, build_values, read_json, read_lines, run_small, write_recipe

# The same two rows a step either way. Nothing is drawn at random in a step: each process draws for itself.
SETTINGS = {
    "adapter__lora_dropout": 0.0,
    "data__eval": {"fraction": 0.25},
    "training__gradient_checkpointing": True,
    "training__max_steps": 5,
    "training__eval_steps": 3,
}


@pytest.fixture(scope="module")
def alone(tiny_base, tmp_path_factory) -> Path:
    return run_small(tmp_path_factory.mktemp("one"), **SETTINGS, training__per_device_train_batch_size=2)


@pytest.fixture(scope="module")
def together(tiny_base, tmp_path_factory) -> Path:
    return run_two("sft", tmp_path_factory.mktemp("two"), **SETTINGS, training__per_device_train_batch_size=1)


def run_two(verb: str, folder: Path, **settings: object) -> Path:
    """Train in two processes of a launch of their own; the run's folder."""
    recipe = write_recipe(folder / "typed.yaml", build_values(folder, **settings))
    # `--cpu` would start one process whatever their number; the variable keeps these two on the CPU.
    launch = ["--multi_gpu", "--num_processes", "2", "--num_machines", "1", "--mixed_precision", "no"]
    result = subprocess.run(
        [
            sys.executable, "-m", "accelerate.commands.launch", *launch, "--dynamo_backend", "no",
            "--main_process_port", "0", "-m", f"finetune.{verb}", str(recipe),
        ],
        cwd=ROOT, env=os.environ | {"ACCELERATE_USE_CPU": "true"}, capture_output=True, text=True, timeout=280,
    )  # fmt: skip
    assert result.returncode == 0, result.stderr
    return folder / "small"


def column(run: Path, name: str) -> list[float]:
    return [line[name] for line in read_lines(run) if name in line]


def test_two_processes_are_two(together):
    assert read_json(together / "environment.json")["num_processes"] == 2


def test_two_processes_agree_on_the_layers_that_recompute_nothing(alone, together):
    spent, shared = (read_json(run / "summary.json")["memory_spending"] for run in (alone, together))
    assert (shared["num_layers"], shared["num_kept"]) == (spent["num_layers"], spent["num_kept"]) == (2, 2)
    assert "2 of 2 layers recompute nothing" in (together / "log.txt").read_text()


def test_two_processes_have_the_losses_of_one_with_the_same_rows_a_step(alone, together):
    assert column(together, "loss") == pytest.approx(column(alone, "loss"), abs=1e-5)
    assert column(together, "grad_norm") == pytest.approx(column(alone, "grad_norm"), abs=1e-4)


@pytest.mark.parametrize("figure", ["entropy", "mean_token_accuracy"])
def test_the_figures_of_a_step_are_those_of_both_processes(alone, together, figure):
    assert len(set(column(alone, figure))) > 1
    assert column(together, figure) == pytest.approx(column(alone, figure), abs=1e-5)


def test_two_processes_count_every_held_out_row_once(alone, together):
    # An odd number, so that it cannot be shared out evenly.
    assert read_json(alone / "data_report.json")["eval"]["census"]["rows"] % 2 == 1
    assert column(together, "eval_loss") == pytest.approx(column(alone, "eval_loss"), abs=1e-5)


def test_two_processes_count_the_tokens_of_both(alone, together):
    assert column(together, "tokens") == column(alone, "tokens")


def test_of_two_processes_the_first_alone_writes(alone, together):
    def names(run: Path) -> set[str]:
        found = {str(path.relative_to(run)) for path in run.rglob("*") if path.is_file()}
        # The state of each process's own random numbers, without which no resume is exact.
        return {name for name in found if "random_state" not in name}

    assert names(together) == names(alone)
    assert (together / "log.txt").read_text().count("evaluation: 15 rows of tokens from 15 read") == 1
    assert [line["step"] for line in read_lines(together)] == [line["step"] for line in read_lines(alone)]


@pytest.mark.slow
def test_two_processes_share_the_reference_and_prefer_as_one_does(tiny_base, tmp_path, monkeypatch):
    monkeypatch.chdir(ROOT)
    settings = {
        "objective": "dpo",
        "adapter__lora_dropout": 0.0,
        "data__train": {"path": "data/tiny_world/preferences.jsonl", "limit": 41},
        "evaluation__preferences": {"path": "data/tiny_world/preferences_test.jsonl", "limit": 7},
        "training__learning_rate": 5e-3,
        "training__precompute_ref_log_probs": True,
    }
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "one")
    alone = run_small(tmp_path / "one", **settings, training__per_device_train_batch_size=2)
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "two"))
    together = run_two("dpo", tmp_path / "two", **settings, training__per_device_train_batch_size=1)
    for figure in ("loss", "grad_norm", "rewards/margins", "preference_margin"):
        assert column(together, figure) == pytest.approx(column(alone, figure), abs=1e-4), figure
    kept = [load_file(*(tmp_path / name / "finetune_reference").iterdir()) for name in ("one", "two")]
    for name, values in kept[0].items():
        assert kept[1][name].tolist() == pytest.approx(values.tolist(), abs=1e-3), name
