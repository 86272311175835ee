"""A run that was stopped and taken up again is the run that was never stopped, in every figure and byte."""

import math
import re
import signal
from pathlib import Path

import pytest

from finetune.run.layout import find_checkpoints, find_step
from tests.end_to_end.small_runs import (
    CHATS,
    hash_files,
    read_figures,
    read_json,
    read_lines,
    read_weights,
    run_small,
    stopped_at_evaluation,
)

pytestmark = pytest.mark.usefixtures("tiny_base")

EVALUATED = {"data__eval": {"fraction": 0.1}, "training__eval_steps": 3, "evaluation__num_samples": 1}
# Packed rows, gradients recomputed, dropout drawn anew each step, steps of three micro-batches.
PACKED = EVALUATED | {
    "data__train": {"path": "data/tiny_world/train.json", "limit": 24},
    "data__packing": True,
    "training__gradient_checkpointing": True,
    "training__per_device_train_batch_size": 1,
    "training__gradient_accumulation_steps": 3,
    "training__max_steps": 11,
    "training__eval_steps": 7,
}
# A learning rate at which the held-out loss turns bad early.
WORSENING = EVALUATED | {
    "training__learning_rate": 0.3,
    "training__eval_steps": 1,
    "training__max_steps": 30,
    "training__early_stopping_patience": 4,
    "training__lr_scheduler_type": "constant",
}


@pytest.fixture(autouse=True)
def in_the_repository(monkeypatch) -> None:
    monkeypatch.chdir(Path(__file__).parents[2])


def test_packed_rows_with_checkpointing_resume_in_mid_epoch_as_if_never_stopped(tmp_path):
    whole = run_small(tmp_path / "whole", **PACKED)
    with stopped_at_evaluation(7):
        run_small(tmp_path / "stopped", **PACKED)
    stopped = tmp_path / "stopped" / "small"
    assert read_json(stopped / "status.json")["status"] == "interrupted"
    assert not (stopped / "adapter").exists()

    run_small(tmp_path / "stopped", **PACKED, resume=True)
    assert read_figures(stopped) == read_figures(whole)
    assert read_weights(stopped) == read_weights(whole)
    assert read_json(stopped / "summary.json")["resumed_from"] == [7]

    num_rows = read_json(whole / "data_report.json")["train"]["census"]["packed_rows"]
    steps_of_an_epoch = math.ceil(num_rows / 3)
    assert num_rows % 3 != 0, "the last step of an epoch has fewer micro-batches than the others"
    assert steps_of_an_epoch < 7 and 7 % steps_of_an_epoch != 0, "the stop came in the middle of a later epoch"


@pytest.mark.slow
def test_full_training_resumes_to_the_same_model(tmp_path):
    full = EVALUATED | {"adapter": {"method": "full"}, "model__quantization": "none"}
    whole = run_small(tmp_path / "whole", **full)
    with stopped_at_evaluation(3):
        run_small(tmp_path / "stopped", **full)
    stopped = run_small(tmp_path / "stopped", **full, resume=True)
    assert read_figures(stopped) == read_figures(whole)
    weights = "model/model.safetensors"
    assert (stopped / weights).read_bytes() == (whole / weights).read_bytes()


@pytest.fixture(scope="module")
def stopped_early(tiny_base, tmp_path_factory) -> Path:
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(Path(__file__).parents[2])
        return run_small(tmp_path_factory.mktemp("early"), **WORSENING)


def test_a_run_that_gets_worse_stops_early_and_keeps_its_best_step(stopped_early):
    summary = read_json(stopped_early / "summary.json")
    held_out = {line["step"]: line["eval_loss"] for line in read_lines(stopped_early) if line["step"] > 0}
    best_step = min(held_out, key=lambda step: held_out[step])
    assert summary["steps"] == best_step + 4 < 30
    assert summary["best_step"] == best_step
    assert summary["eval_loss"] == pytest.approx(held_out[best_step], abs=1e-6)


def test_early_stopping_counts_on_across_a_resume(stopped_early, tmp_path):
    # Between the best step and the stop: what was counted, and which step was best, must be remembered.
    stop_at = read_json(stopped_early / "summary.json")["best_step"] + 2
    with stopped_at_evaluation(stop_at):
        run_small(tmp_path, **WORSENING)
    resumed = run_small(tmp_path, **WORSENING, resume=True)
    assert read_figures(resumed) == read_figures(stopped_early)
    assert read_weights(resumed) == read_weights(stopped_early)
    first, second = (read_json(run / "summary.json") for run in (stopped_early, resumed))
    assert (second["steps"], second["best_step"]) == (first["steps"], first["best_step"])
    for run in (stopped_early, resumed):  # best and last: a stop behind the last step loses none
        kept = [find_step(one) for one in find_checkpoints(run / "checkpoints")]
        assert kept[-1] == first["steps"] and first["best_step"] in kept


def test_a_resume_evaluates_no_step_again_and_so_costs_no_patience(tmp_path):
    settings = EVALUATED | {
        "training__eval_on_start": True,
        "training__eval_steps": 1,
        "training__max_steps": 4,
        "training__early_stopping_patience": 1,
    }
    whole = run_small(tmp_path / "whole", **settings)
    with stopped_at_evaluation(2):
        run_small(tmp_path / "stopped", **settings)
    stopped = run_small(tmp_path / "stopped", **settings, resume=True)
    assert read_json(stopped / "summary.json")["steps"] == 4
    assert read_figures(stopped) == read_figures(whole)


def test_questions_changed_before_a_resume_have_no_figures_of_the_start(tmp_path, caplog):
    world = "data/tiny_world"
    asked = {
        "evaluation__questions": {"path": f"{world}/train.json", "limit": 4},
        "evaluation__preferences": {"path": f"{world}/preferences_test.jsonl", "limit": 4},
        "evaluation__general_text": {"path": f"{world}/text.jsonl.gz", "limit": 4},
    }
    with stopped_at_evaluation(3):
        run_small(tmp_path, **EVALUATED, **asked)
    changed = asked | {"evaluation__questions": {"path": f"{world}/train.json", "limit": 5}}
    summary = read_json(run_small(tmp_path, **EVALUATED, **changed, resume=True) / "summary.json")
    assert "exact_match" in summary and "answer_tokens" in summary
    assert "exact_match_before" not in summary and "answer_tokens_before" not in summary
    assert summary["general_loss_before"] and summary["preference_margin_before"] and summary["eval_loss_before"]
    assert caplog.text.count("Changed since the run began: the questions; their figures") == 1


def test_held_out_rows_changed_before_a_resume_have_no_loss_of_the_start(tmp_path, caplog):
    one, other = ({"path": "data/tiny_world/train.json", "limit": limit} for limit in (6, 8))
    with stopped_at_evaluation(3):
        run_small(tmp_path, **EVALUATED | {"data__eval": one})
    accepted = ["data.eval.limit", "held_out"]
    run = run_small(tmp_path, **EVALUATED | {"data__eval": other}, resume=True, allow_mismatch=accepted)
    summary = read_json(run / "summary.json")
    assert summary["eval_loss"] and summary["eval_loss_before"] is None
    assert caplog.text.count("Changed since the run began: the held-out rows; their figures") == 1


def test_samples_of_steps_after_the_checkpoint_are_written_once(tmp_path):
    with stopped_at_evaluation(3, signal.SIGINT):
        run_small(tmp_path, **EVALUATED)
    run = run_small(tmp_path, **EVALUATED, resume=True)
    sections = re.findall(r"^## Step (\d+)$", (run / "samples.md").read_text(), re.MULTILINE)
    assert sections == sorted(set(sections), key=int)
    assert {"0", "3"} <= set(sections)


def test_resume_of_a_finished_run_says_so_and_touches_nothing(tmp_path, capsys):
    run = run_small(tmp_path)
    before = hash_files(run)
    capsys.readouterr()
    run_small(tmp_path, resume=True)
    assert "already complete" in capsys.readouterr().err
    after = hash_files(run)
    for files in (before, after):
        files.pop(".lock", None)  # says who held the folder last
    assert after == before


def test_resume_where_no_run_is_starts_at_step_0_and_says_so(tmp_path, capsys):
    run = run_small(tmp_path, resume=True)
    assert "starting at step 0" in capsys.readouterr().err
    summary = read_json(run / "summary.json")
    assert (summary["steps"], summary["resumed_from"]) == (4, [])


def test_overwrite_starts_over_on_other_rows_and_leaves_nothing_of_the_run_before(tmp_path):
    run = run_small(tmp_path)
    (run / "notes.txt").write_text("of the run before")
    other = {"data__train": {"path": str(CHATS), "limit": 40}, "training__report_to": ["tensorboard"]}
    run_small(tmp_path, overwrite=True, training__max_steps=2, **other)
    assert any((run / "tensorboard").iterdir()), "its events were deleted with the run before"
    assert not (run / "notes.txt").exists()
    assert [line["step"] for line in read_lines(run) if "loss" in line] == [1, 2]
    assert [path.name for path in sorted((run / "checkpoints").glob("checkpoint-*"))] == ["checkpoint-2"]
