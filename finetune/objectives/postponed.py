"""An evaluation that a signal puts off: the step is saved without it, and the resumed run begins with it.

In goes whether the run is asked to stop; out comes a checkpoint within the grace that a scheduler gives, which an
evaluation of minutes would use up: transformers (5.17) evaluates before it saves. Where the signal comes during an
evaluation, that is broken off behind the batch under way. The checkpoint then says that the evaluation is still to be
made; the resumed run makes it before its first step, with the random state that the unbroken run made it with, so that
figures, best step, early stopping and every later draw are the unbroken run's.
"""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from transformers import EarlyStoppingCallback, TrainerCallback

from finetune.objectives.resumable import ResumableTrainer
from finetune.objectives.training_state import build_random_state, put_random_state_back

__all__ = ["PostponingTrainer"]

_MARK = "postponed_evaluation.json"


class PostponingTrainer(ResumableTrainer):
    """A trainer that saves first when it is asked to stop, and evaluates when it is taken up again.

    Attributes:
        is_stopping: asks whether the run is to stop; of several processes all ask at once, and hear the same.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.is_stopping: Callable[[], bool] = _never
        self.may_break_off = False
        self._is_postponed = False
        self._random_after: dict[str, Any] | None = None  # the evaluation that was made up for
        self.add_callback(_BreakingOff(self))

    # ---- put off

    def _maybe_log_save_evaluate(self, *args: Any, **kwargs: Any) -> None:
        """Log, evaluate and save; log and save alone where the run is asked to stop before or during the evaluation."""
        if self.control.should_evaluate and self.is_stopping():
            self._postpone()
        if not self.control.should_evaluate:
            super()._maybe_log_save_evaluate(*args, **kwargs)
            return
        before = build_random_state(all_gpus=self.args.world_size > 1)
        try:
            self.may_break_off = True
            super()._maybe_log_save_evaluate(*args, **kwargs)
        except _BrokenOff:
            put_random_state_back(before, all_gpus=self.args.world_size > 1)
            self._postpone()
            super()._maybe_log_save_evaluate(*args, **kwargs)  # what was logged is not logged again
        finally:
            self.may_break_off = False

    def _postpone(self) -> None:
        self._is_postponed = True
        self.control.should_evaluate = False
        self.control.should_save = self.control.should_training_stop = True

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        """Save, with a mark where the step's evaluation is still to be made."""
        super()._save_checkpoint(model, trial)
        if self.args.should_save:
            mark = Path(self.args.output_dir) / f"checkpoint-{self.state.global_step}" / _MARK
            if self._is_postponed:
                mark.write_text(json.dumps({"step": self.state.global_step}), encoding="utf-8")
            else:
                mark.unlink(missing_ok=True)

    def _evaluate(self, *args: Any, **kwargs: Any) -> dict[str, float]:
        """Evaluate, and see that a step which that makes the last one is saved: a stop behind it loses no step.

        Not left to a callback: taken up again, transformers (5.17) puts early stopping behind all others.
        """
        metrics: dict[str, float] = super()._evaluate(*args, **kwargs)
        if self.control.should_training_stop:
            self.control.should_save = True
        return metrics

    # ---- made up for

    def _run_epoch(self, *args: Any, **kwargs: Any) -> None:
        """Run an epoch, unless all steps are done already, or an evaluation has ended the run.

        Resumed from a checkpoint of the last step in mid-epoch, transformers (5.17) would train one more; so it would
        from one at which early stopping had come to its end.
        """
        checkpoint = kwargs["resume_from_checkpoint"]
        if checkpoint is not None and kwargs["epoch"] == kwargs["epochs_trained"]:
            if (Path(checkpoint) / _MARK).exists():
                self._make_up_for_evaluation(checkpoint, kwargs["trial"], kwargs["ignore_keys_for_eval"])
            if self._has_stopped_early():
                self.control.should_training_stop = True
        if self.state.global_step >= self.state.max_steps or self.control.should_training_stop:
            self.control.should_training_stop = True
            return
        super()._run_epoch(*args, **kwargs)

    def _make_up_for_evaluation(self, checkpoint: str, trial: Any, ignore_keys: list[str] | None) -> None:
        """Evaluate as the unbroken run did behind this step."""
        self._load_rng_state(checkpoint)
        self.may_break_off = True
        try:
            metrics = self._evaluate(trial, ignore_keys)
        except _BrokenOff:
            self.control.should_training_stop = True  # the checkpoint still has its mark
            return
        finally:
            self.may_break_off = False
        self._determine_best_metric(metrics=metrics, trial=trial)
        self.control.should_save = False  # these weights are what the checkpoint holds
        self._random_after = build_random_state(all_gpus=self.args.world_size > 1)

    def _load_rng_state(self, checkpoint: str | None) -> None:
        super()._load_rng_state(checkpoint)
        if self._random_after is not None:
            put_random_state_back(self._random_after, all_gpus=self.args.world_size > 1)
            self._random_after = None

    def _has_stopped_early(self) -> bool:
        return any(
            one.early_stopping_patience_counter >= one.early_stopping_patience
            for one in self.callback_handler.callbacks
            if isinstance(one, EarlyStoppingCallback)
        )


class _BrokenOff(Exception):
    """Leaves an evaluation behind a batch."""


class _BreakingOff(TrainerCallback):
    """Leaves an evaluation where the run is asked to stop."""

    def __init__(self, trainer: PostponingTrainer) -> None:
        self._trainer = trainer

    def on_prediction_step(self, *args: Any, **kwargs: Any) -> None:
        """Ask behind each batch."""
        if self._trainer.may_break_off and self._trainer.is_stopping():
            raise _BrokenOff


def _never() -> bool:
    return False
