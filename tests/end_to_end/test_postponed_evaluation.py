"""A run that is stopped where an evaluation is due saves first; taken up again it is the run never stopped."""

import os
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from finetune.errors import Interrupted
from finetune.objectives.trainer import StepMixin
from finetune.run.layout import find_checkpoints, find_step
from tests.end_to_end.small_runs import read_figures, read_json, read_weights, run_small

pytestmark = pytest.mark.usefixtures("tiny_base")

# 20 rows, 4 of them held out: 8 steps an epoch of rows with dropout, evaluations of two batches.
EVALUATED: dict[str, Any] = {
    "data__train": {"path": "data/tiny_world/train.json", "limit": 20},
    "data__eval": {"fraction": 0.2},
    "evaluation__num_samples": 1,
    "training__per_device_eval_batch_size": 2,
    "training__eval_steps": 4,
    "training__max_steps": 10,
    "training__logging_steps": 3,
}
# A learning rate at which the held-out loss turns bad early.
WORSENING = EVALUATED | {
    "training__learning_rate": 0.3,
    "training__eval_steps": 1,
    "training__max_steps": 30,
    "training__early_stopping_patience": 3,
    "training__lr_scheduler_type": "reduce_lr_on_plateau",
    "training__lr_scheduler_kwargs": {"patience": 0},
}


@pytest.fixture(autouse=True)
def in_the_repository(monkeypatch) -> None:
    monkeypatch.chdir(Path(__file__).parents[2])


@pytest.fixture(scope="module")
def whole(tiny_base, tmp_path_factory) -> Path:
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(Path(__file__).parents[2])
        return run_small(tmp_path_factory.mktemp("whole"), **EVALUATED)


@contextmanager
def stopped(name: str, step: int) -> Iterator[list[str]]:
    """Expect SIGTERM to stop the run, sent as a method of the trainer first begins with so many steps done.

    Gives what the trainer did from then on.
    """
    done: list[str] = []

    def heard(method: str, function: Callable[..., Any]) -> Callable[..., Any]:
        def hears(self: StepMixin, *args: Any, **kwargs: Any) -> Any:
            if done:
                done.append(method)
            elif method == name and self.is_in_train and self.state.global_step == step:
                done.append(method)
                os.kill(os.getpid(), signal.SIGTERM)
            return function(self, *args, **kwargs)

        return hears

    with pytest.MonkeyPatch.context() as patch:
        for method in ("training_step", "evaluate", "prediction_step", "_save_checkpoint"):
            patch.setattr(StepMixin, method, heard(method, getattr(StepMixin, method)))
        with pytest.raises(Interrupted, match="saved") as told:
            yield done
    assert told.value.exit_code == 143


def find_steps(run: Path) -> list[int]:
    return [find_step(one) for one in find_checkpoints(run / "checkpoints")]


def check_same(run: Path, whole: Path) -> None:
    assert read_figures(run) == read_figures(whole)
    assert read_weights(run) == read_weights(whole)
    assert (run / "samples.md").read_text() == (whole / "samples.md").read_text()
    figures = ("steps", "best_step", "eval_loss", "train_loss")
    first, second = (read_json(one / "summary.json") for one in (run, whole))
    assert [first[name] for name in figures] == [second[name] for name in figures]


def test_a_signal_in_a_step_whose_evaluation_is_due_saves_at_once(whole, tmp_path):
    with stopped("training_step", 9) as done:
        run_small(tmp_path, **EVALUATED)
    assert done == ["training_step", "_save_checkpoint"]
    run = tmp_path / "small"
    assert find_steps(run)[-1] == 10
    run_small(tmp_path, **EVALUATED, resume=True)
    check_same(run, whole)


def test_a_signal_in_an_evaluation_breaks_it_off_behind_its_batch_and_saves(whole, tmp_path):
    with stopped("prediction_step", 4) as done:
        run_small(tmp_path, **EVALUATED)
    assert done == ["prediction_step", "_save_checkpoint"]
    run = tmp_path / "small"
    assert find_steps(run) == [4]
    run_small(tmp_path, **EVALUATED, resume=True)
    check_same(run, whole)


@pytest.mark.slow
def test_a_signal_while_an_evaluation_is_made_up_for_leaves_it_to_the_next_start(whole, tmp_path):
    with stopped("training_step", 7):  # of the last step of an epoch
        run_small(tmp_path, **EVALUATED)
    with stopped("prediction_step", 8) as done:
        run_small(tmp_path, **EVALUATED, resume=True)
    assert done == ["prediction_step"]
    run = run_small(tmp_path, **EVALUATED, resume=True)
    assert read_json(run / "summary.json")["resumed_from"] == [8, 8]
    check_same(run, whole)


@pytest.mark.slow
def test_best_step_early_stopping_and_a_rate_that_follows_the_evaluations_go_on_as_in_the_unbroken_run(tmp_path):
    whole = run_small(tmp_path / "whole", **WORSENING)
    summary = read_json(whole / "summary.json")
    best, last = summary["best_step"], summary["steps"]
    assert 1 < best < last < 30
    for step in (best, last):
        with stopped("prediction_step", step):
            run_small(tmp_path / "stopped", **WORSENING, resume=step == last)
    check_same(run_small(tmp_path / "stopped", **WORSENING, resume=True), whole)


def test_the_step_at_which_early_stopping_ends_the_run_is_saved_and_followed_by_none(tmp_path):
    whole = run_small(tmp_path, **WORSENING)
    before = read_figures(whole)
    (whole / "status.json").write_text(
        (whole / "status.json").read_text().replace('"status": "done"', '"status": "running"')
    )
    check_same(run_small(tmp_path, **WORSENING, resume=True), whole)
    assert read_figures(whole) == before
    summary = read_json(whole / "summary.json")
    assert summary["resumed_from"] == [summary["steps"]]
