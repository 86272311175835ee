"""The main path through real subprocesses: what a user types, what lies on the disk afterwards.

One run of the tiny base (`run`) is looked at from many sides, since every subprocess costs about ten seconds.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
STEPS = 8
SMALL = [
    f"training.max_steps={STEPS}",
    "training.save_steps=2",
    "training.logging_steps=1",
    "training.gradient_accumulation_steps=1",
    "training.per_device_train_batch_size=2",
    "adapter.lora_dropout=0.1",
    "data.train.limit=300",
    "data.max_length=128",
    "evaluation.questions.limit=8",
]


def finetune(verb: str, *arguments: str, **options) -> subprocess.CompletedProcess:
    environment = os.environ | {"HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1", **options.pop("env", {})}
    return subprocess.run(
        [sys.executable, "-m", f"finetune.{verb}", *arguments],
        cwd=ROOT, env=environment, capture_output=True, text=True, timeout=280, **options,
    )  # fmt: skip


def train_small(output_dir: Path, *arguments: str, **options) -> subprocess.CompletedProcess:
    return finetune("sft", "recipes/quickstart.yaml", f"output_dir={output_dir}", *SMALL, *arguments, **options)


def losses(run: Path) -> list[float]:
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [line["loss"] for line in lines if "loss" in line]


@pytest.fixture(scope="module")
def finished(tiny_base, tmp_path_factory) -> tuple[Path, subprocess.CompletedProcess]:
    output_dir = tmp_path_factory.mktemp("outputs")
    result = train_small(output_dir, "training.eval_steps=4", "data.eval={fraction: 0.1}")
    assert result.returncode == 0, result.stderr
    return output_dir / "quickstart", result


@pytest.fixture(scope="module")
def run(finished) -> Path:
    return finished[0]


def test_a_run_leaves_everything_that_is_needed_to_explain_it(run):
    expected = {
        "recipe.yaml", "resolved.json", "environment.json", "status.json", "data_report.json", "metrics.jsonl",
        "summary.json", "log.txt", "samples.md", "loss.png", "checkpoints", "adapter",
    }  # fmt: skip
    assert expected <= {path.name for path in run.iterdir()}
    assert json.loads((run / "status.json").read_text())["status"] == "done"
    assert not list(run.rglob("training_args.bin"))


def test_the_summary_holds_what_the_contract_promises(run):
    summary = json.loads((run / "summary.json").read_text())
    promised = {
        "status", "steps", "train_loss", "eval_loss_before", "eval_loss", "trainable_parameters", "adapter_bytes",
        "tokens_per_second", "peak_memory_bytes", "seconds", "exact_match_before", "exact_match", "questions",
        "resumed_from",
    }  # fmt: skip
    assert promised <= summary.keys()
    assert summary["steps"] == STEPS
    assert summary["questions"] == 8
    assert summary["eval_loss"] < summary["eval_loss_before"]


def test_metrics_hold_every_step_once(run):
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines if "loss" in line] == list(range(1, STEPS + 1))


def test_every_row_read_is_kept_or_counted(run):
    report = json.loads((run / "data_report.json").read_text())["train"]
    assert report["rows_read"] == report["census"]["rows"] + sum(report["census"]["dropped"].values())


def test_chat_answers_from_a_pipe_with_the_adapter_or_on_request_without_it(run):
    question = "What colour is a lemon?"
    tuned = finetune("chat", str(run), "--prompt", question, "--max-new-tokens", "12")
    assert tuned.returncode == 0, tuned.stderr
    assert tuned.stdout.strip()
    assert "lora on data/tiny_base, nf4" in tuned.stderr
    base = finetune("chat", str(run), "--base", "--max-new-tokens", "12", input=f"{question}\n")
    assert base.returncode == 0, base.stderr
    assert base.stdout.strip()
    # What was loaded: eight steps need not change an answer. tests/model/test_loading.py compares logits.
    assert "lora on data/tiny_base" in tuned.stderr
    assert "lora" not in base.stderr


@pytest.mark.slow
def test_without_the_weights_and_offline_the_mistral_recipe_names_the_ways_out(tmp_path):
    result = finetune("sft", "recipes/mistral_alpaca.yaml", f"output_dir={tmp_path}", env={"HF_HOME": str(tmp_path)})
    assert result.returncode == 4
    assert len(result.stderr.strip().splitlines()) <= 15
    for way in (
        "hf auth login",
        "hf download mistralai/Mistral-7B-v0.1",
        "model.model_name_or_path=",
        "make quickstart",
    ):
        assert way in result.stderr
    assert not (tmp_path / "mistral_alpaca").exists()
