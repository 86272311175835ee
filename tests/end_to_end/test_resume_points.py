"""From whichever checkpoint a run is taken up, with whatever damage beside it, it ends as the one never stopped."""

import json
import logging
import shutil
from pathlib import Path

import pytest
from safetensors.torch import load_file

from finetune.errors import CheckpointError, RecipeError
from finetune.run.checkpoints import read_record, write_record
from finetune.run.layout import find_checkpoints, find_step
from tests.end_to_end.small_runs import (
    read_figures,
    read_json,
    read_lines,
    read_weights,
    run_small,
    stopped_at_evaluation,
)

pytestmark = pytest.mark.usefixtures("tiny_base")

# 10 rows in micro-batches of 2, three a step: epochs of two steps, the second of each with two micro-batches alone.
# Saved, logged and evaluated in rhythms that never meet, so that every checkpoint has something half summed up.
STEPS = {
    "data__train": {"path": "data/tiny_world/train.json", "limit": 12},
    "data__eval": {"fraction": 0.15},
    "evaluation__num_samples": 1,
    "training__gradient_accumulation_steps": 3,
    "training__max_steps": 7,
    "training__save_steps": 2,
    "training__logging_steps": 3,
    "training__eval_steps": 5,
    "training__save_total_limit": 20,
    "training__lr_scheduler_type": "cosine",
    "training__warmup_steps": 2,
}


@pytest.fixture(autouse=True)
def in_the_repository(monkeypatch) -> None:
    monkeypatch.chdir(Path(__file__).parents[2])


@pytest.fixture(scope="module")
def whole(tiny_base, tmp_path_factory) -> Path:
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(Path(__file__).parents[2])
        return run_small(tmp_path_factory.mktemp("whole"), **STEPS)


def copy_up_to(run: Path, place: Path, step: int) -> Path:
    """The run's folder as a kill after a step's checkpoint leaves it: no result, lines of later steps in the log."""
    copied = place / "small"
    shutil.copytree(run, copied)
    for checkpoint in find_checkpoints(copied / "checkpoints"):
        if find_step(checkpoint) > step:
            shutil.rmtree(checkpoint)
    shutil.rmtree(copied / "adapter")
    (copied / "summary.json").unlink()
    status = read_json(copied / "status.json") | {"status": "running", "step": step}
    (copied / "status.json").write_text(json.dumps(status))
    return copied


@pytest.mark.parametrize("step", [2, 5, *(pytest.param(one, marks=pytest.mark.slow) for one in (4, 6, 7))])
def test_from_every_checkpoint_the_run_ends_in_the_same_figures_and_bytes(whole, tmp_path, step):
    assert [find_step(one) for one in find_checkpoints(whole / "checkpoints")] == [2, 4, 5, 6, 7]
    resumed = copy_up_to(whole, tmp_path, step)
    run_small(tmp_path, **STEPS, resume=True)
    assert read_figures(resumed) == read_figures(whole)
    assert read_weights(resumed) == read_weights(whole)
    assert read_json(resumed / "summary.json")["resumed_from"] == [step]
    assert [line["step"] for line in read_lines(whole) if "loss" in line] == [3, 6, 7]


def test_no_file_of_a_run_is_a_pickle(whole):
    suffixes = {path.suffix for path in whole.rglob("*") if path.is_file() and "checkpoints" in path.parts}
    assert suffixes == {".json", ".safetensors", ".jinja", ".model", ".md"} & suffixes
    assert {".json", ".safetensors"} <= suffixes


def test_every_file_of_the_newest_checkpoint_damaged_leads_to_the_one_before(whole, tmp_path, caplog):
    resumed = copy_up_to(whole, tmp_path, 7)
    # The last is the one that is really run; which file is at fault is asked of every one in tests/run.
    weights = resumed / "checkpoints" / "checkpoint-7" / "optimizer.safetensors"
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(content)
    with caplog.at_level(logging.WARNING, logger="finetune"):
        run_small(tmp_path, **STEPS, resume=True)
    assert "optimizer.safetensors is not what was written" in caplog.text
    assert read_json(resumed / "summary.json")["resumed_from"] == [6]
    assert read_weights(resumed) == read_weights(whole)


def test_with_every_checkpoint_damaged_the_run_says_how_many_and_starts_at_step_0(whole, tmp_path, caplog):
    resumed = copy_up_to(whole, tmp_path, 4)
    for step in (2, 4):
        (resumed / "checkpoints" / f"checkpoint-{step}" / "optimizer.json").write_text("{}")
    with caplog.at_level(logging.INFO, logger="finetune"):
        run_small(tmp_path, **STEPS, resume=True)
    assert "No checkpoint is whole, and 2 set aside as .broken: starting at step 0." in caplog.text
    assert "No checkpoint yet" not in caplog.text
    assert read_json(resumed / "summary.json")["resumed_from"] == []
    assert read_weights(resumed) == read_weights(whole)


def test_a_machine_on_which_auto_is_another_precision_is_refused_and_told_what_puts_it_back(tmp_path, monkeypatch):
    monkeypatch.setattr("finetune.model.devices.has_fast_bfloat16", lambda device: True)
    auto = STEPS | {"model__compute_dtype": "auto"}
    unbroken = run_small(tmp_path / "unbroken", **auto)
    with stopped_at_evaluation(5):
        run_small(tmp_path / "moved", **auto)
    monkeypatch.setattr("finetune.model.devices.has_fast_bfloat16", lambda device: False)
    with pytest.raises(CheckpointError) as refused:
        run_small(tmp_path / "moved", **auto, resume=True)
    [row] = [line for line in str(refused.value).splitlines() if line.startswith("  compute_dtype ")]
    assert row.split() == ["compute_dtype", "bfloat16", "float32"]
    assert "Put these back (model.compute_dtype=bfloat16) and --resume" in str(refused.value)
    assert "--resume --allow-mismatch compute_dtype" in str(refused.value)
    moved = run_small(tmp_path / "moved", **(auto | {"model__compute_dtype": "bfloat16"}), resume=True)
    assert read_json(moved / "summary.json")["resumed_from"] == [5]
    assert read_figures(moved) == read_figures(unbroken)
    assert read_weights(moved) == read_weights(unbroken)


def test_a_pickle_beside_the_checkpoint_is_refused_and_nothing_is_lost(whole, tmp_path):
    resumed = copy_up_to(whole, tmp_path, 6)
    pickle = resumed / "checkpoints" / "checkpoint-6" / "optimizer.pt"
    pickle.write_bytes(b"cos\nsystem\n(S'false'\ntR.")
    with pytest.raises(CheckpointError, match=r"optimizer\.pt is a pickle"):
        run_small(tmp_path, **STEPS, resume=True)
    pickle.unlink()
    run_small(tmp_path, **STEPS, resume=True)
    assert read_weights(resumed) == read_weights(whole)


def test_a_state_that_is_none_is_refused_by_name(whole, tmp_path):
    resumed = copy_up_to(whole, tmp_path, 6)
    checkpoint = resumed / "checkpoints" / "checkpoint-6"
    record = read_record(checkpoint)
    made_from = {name: record[name] for name in ("recipe", "data", "template", "base")}
    (checkpoint / "optimizer.json").write_text('{"state": {"dict": [["param_groups", []], ["state", []]]}}')
    write_record(checkpoint, step=6, made_from=made_from)
    with pytest.raises(CheckpointError, match=r"optimizer\.json cannot be taken up: ValueError: "):
        run_small(tmp_path, **STEPS, resume=True)


def test_what_a_checkpoint_was_made_from_is_on_its_record(whole):
    record = read_record(whole / "checkpoints" / "checkpoint-7")
    identity = read_json(whole / "identity.json")
    assert {name: record[name] for name in ("data", "template", "base")} == {
        name: identity[name] for name in ("data", "template", "base")
    }
    assert all(len(record[name]) == 64 for name in ("recipe", "data", "template", "base"))


# ---- another setting on the way


def rates(run: Path) -> dict[int, float]:
    return {line["step"]: line["learning_rate"] for line in read_lines(run) if "learning_rate" in line}


EVERY_STEP = STEPS | {"training__logging_steps": 1}


@pytest.mark.slow
def test_an_accepted_learning_rate_counts_from_the_next_step(tmp_path):
    faster = EVERY_STEP | {"training__learning_rate": 5e-2}
    with stopped_at_evaluation(5):
        run_small(tmp_path / "changed", **EVERY_STEP)
    with pytest.raises(CheckpointError, match=r"--resume --allow-mismatch training\.learning_rate"):
        run_small(tmp_path / "changed", **faster, resume=True)
    with pytest.raises(RecipeError, match=r"Did you mean `training\.learning_rate`"):
        run_small(tmp_path / "changed", **faster, resume=True, allow_mismatch=["learning_rate"])
    changed = run_small(tmp_path / "changed", **faster, resume=True, allow_mismatch=["training.learning_rate"])
    as_fast = run_small(tmp_path / "fast", **faster)
    after, fast = rates(changed), rates(as_fast)
    assert after[5] * 5 == pytest.approx(fast[5]), "a cosine, so that every step has a rate of its own"
    assert (after[6], after[7]) == (fast[6], fast[7])
    assert after[6] > after[5]
    accepted = [{"key": "training.learning_rate", "then": "0.01", "now": "0.05", "step": 5}]
    assert read_json(changed / "summary.json")["accepted_mismatches"] == accepted
    assert read_json(changed / "identity.json")["accepted_mismatches"] == accepted
    assert read_json(changed / "resolved.json")["training"]["learning_rate"] == 0.05


@pytest.mark.slow
def test_an_accepted_rate_still_counts_after_a_kill_before_the_next_checkpoint(whole, tmp_path):
    faster = STEPS | {"training__learning_rate": 5e-2}
    resumed = copy_up_to(whole, tmp_path, 5)
    run_small(tmp_path, **faster, resume=True, allow_mismatch=["training.learning_rate"])
    first = load_file(resumed / "adapter" / "adapter_model.safetensors")
    for step in (6, 7):
        shutil.rmtree(resumed / "checkpoints" / f"checkpoint-{step}")
    status = read_json(resumed / "status.json") | {"status": "running"}
    (resumed / "status.json").write_text(json.dumps(status))
    run_small(tmp_path, **faster, resume=True)
    second = load_file(resumed / "adapter" / "adapter_model.safetensors")
    assert all(first[name].equal(second[name]) for name in first)
    assert any(
        not first[name].equal(value)
        for name, value in load_file(whole / "adapter" / "adapter_model.safetensors").items()
    )


def test_saving_and_logging_in_another_rhythm_needs_no_leave_and_counts(whole, tmp_path):
    resumed = copy_up_to(whole, tmp_path, 4)
    run_small(tmp_path, **(STEPS | {"training__logging_steps": 1, "training__save_steps": 1}), resume=True)
    assert [line["step"] for line in read_lines(resumed) if "loss" in line] == [3, 5, 6, 7]
    assert [find_step(one) for one in find_checkpoints(resumed / "checkpoints")] == [2, 4, 5, 6, 7]
    assert read_weights(resumed) == read_weights(whole)


# ---- the best step, in a folder that moves


# The learning rate is too high to the end: the last evaluation is not the best.
BEST_EARLY = {
    "data__eval": {"fraction": 0.1},
    "training__learning_rate": 0.3,
    "training__lr_scheduler_type": "constant",
    "training__max_steps": 8,
    "training__eval_steps": 2,
    "training__save_steps": 3,
}


@pytest.mark.slow
def test_a_moved_run_whose_best_checkpoint_is_gone_ends_with_its_last_step_and_a_word(tmp_path, caplog):
    whole = run_small(tmp_path / "here", **BEST_EARLY)
    best = read_json(whole / "summary.json")["best_step"]
    there = copy_up_to(whole, tmp_path / "there", 8)
    shutil.rmtree(tmp_path / "here")
    run_small(tmp_path / "there", **BEST_EARLY, resume=True)
    assert read_json(there / "summary.json")["best_step"] == best, "found by its step, wherever the folder lies"

    gone = copy_up_to(there, tmp_path / "gone", 8)
    shutil.rmtree(gone / "checkpoints" / f"checkpoint-{best}")
    with caplog.at_level(logging.WARNING, logger="finetune"):
        run_small(tmp_path / "gone", **BEST_EARLY, resume=True)
    assert f"checkpoint-{best} is not used: it is gone" in caplog.text
    assert read_json(gone / "summary.json")["best_step"] is None
    assert read_json(gone / "status.json")["status"] == "done"


def test_a_kill_right_behind_an_accepted_setting_leaves_the_same_command_as_the_way_on(whole, tmp_path, monkeypatch):
    run = copy_up_to(whole, tmp_path, 6)
    again = STEPS | {"training__learning_rate": 5e-2}

    def killed() -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr("finetune.train.read_environment", killed)
        run_small(tmp_path, resume=True, allow_mismatch=["training.learning_rate"], **again)
    run_small(tmp_path, resume=True, allow_mismatch=["training.learning_rate"], **again)
    (accepted,) = read_json(run / "summary.json")["accepted_mismatches"]
    assert (accepted["key"], accepted["now"]) == ("training.learning_rate", "0.05")


def test_a_finished_run_is_told_to_be_complete_on_a_disk_that_is_full_and_without_its_base(whole, monkeypatch, capsys):
    def refuse(*args: object) -> None:
        raise AssertionError("nothing of a finished run's place matters any more")

    monkeypatch.setattr("finetune.train.check_settings", refuse)
    run_small(whole.parent, resume=True, **STEPS)
    assert "already complete" in capsys.readouterr().err
