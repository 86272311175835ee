"""Numbers that are finite, seen to at every optimizer step before its update.

`FiniteCheck` notes each micro-batch's loss as a flag on its device, and right before the update looks at them and at
the gradient's norm: one wait for the device a step, and none a micro-batch. What it finds stops the run or leaves the
step out, by `training.non_finite`; the rows of the step are named (`guilty_rows`) and handed to whoever writes them.
`check_weights` keeps weights that are not finite, or an adapter of zeros, from being saved.
"""

import logging
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import torch
from datasets import Dataset
from peft import PeftModel
from transformers import TrainerCallback
from transformers.trainer_callback import ExportableState
from transformers.trainer_utils import get_last_checkpoint

from finetune.errors import DivergedError, PlaceError
from finetune.model.sound_weights import changes_nothing, find_not_finite, find_not_finite_weight, is_all_zero
from finetune.objectives.guilty_rows import GuiltyRow, find_guilty_rows, render_guilty_rows

if TYPE_CHECKING:
    from finetune.objectives.trainer import StepMixin

__all__ = ["FiniteCheck", "NonFinitePolicy", "SkippedSteps", "check_weights"]

log = logging.getLogger("finetune.objectives.finite")

# A GradScaler begins at 2^16 and halves at each step it leaves out, so that a run which needs none of it has left out
# 16 at most when it is down to 1; in twenty it has not found a scale at which anything is trained.
_MOST_SCALER_SKIPS = 20
_CAUSES = "  Usual causes: a learning rate that is too high, float16 overflow, a damaged row, a broken base.\n"


@dataclass(frozen=True, slots=True)
class NonFinitePolicy:
    """What becomes of a step whose loss or gradient is not finite.

    Attributes:
        choice: `raise` stops the run; `skip` leaves the step's update out and goes on.
        max_skipped_steps: so many are left out in a whole run; the next one stops it.
        account: every row read, with its ids, `source` and `row` (`TokenRows.account`); None: rows are not looked for.
        write: keeps the rows of a step, given its number and an object for each, and says where; None: nowhere.
    """

    choice: Literal["raise", "skip"] = "raise"
    max_skipped_steps: int = 10
    account: Dataset | None = None
    write: Callable[[int, Sequence[dict[str, Any]]], Path] | None = None


class SkippedSteps(TrainerCallback, ExportableState):
    """The steps that were left out, kept in every checkpoint's trainer_state.json.

    Attributes:
        steps: their numbers, in order.
    """

    def __init__(self) -> None:
        self.steps: list[int] = []

    def state(self) -> dict[str, Any]:
        """What a checkpoint keeps, in transformers' form."""
        return {"args": {}, "attributes": {"steps": list(self.steps)}}


class FiniteCheck:
    """The check of one trainer; see the module.

    Attributes:
        policy: replaced once by whoever knows the recipe, the rows and the run's folder.
    """

    def __init__(self, trainer: "StepMixin") -> None:
        self.policy = NonFinitePolicy()
        self._trainer = trainer
        self._micro_batches: list[tuple[torch.Tensor, Any]] = []
        self._loss_before = torch.zeros(())
        self._logged_before = 0
        self._scaler_skips = 0
        trainer.add_callback(SkippedSteps())

    @property
    def skipped_steps(self) -> list[int]:
        """Numbers of the steps that were left out, before an interruption too."""
        # Asked for anew each time: a resumed trainer puts restored callbacks in the place of those it was built with.
        (kept,) = (one for one in self._trainer.callback_handler.callbacks if isinstance(one, SkippedSteps))
        return kept.steps

    def note(self, loss: torch.Tensor, inputs: Any) -> None:
        """Note a micro-batch of the step: whether its loss is finite, unread, and what it was trained on.

        Args:
            loss: of the micro-batch; stays on its device.
            inputs: as the collator made them; the trainer holds them until the step's end anyway.
        """
        if not self._micro_batches:
            # The trainer adds this loss to its sum when we are through; a step that is left out takes it back.
            self._loss_before = self._trainer._tr_loss.clone()
        self._micro_batches.append((torch.isfinite(loss.detach()), inputs))

    def check(self, grad_norm: torch.Tensor | float) -> None:
        """Check a step right before its update, in all processes alike.

        Args:
            grad_norm: of the step's gradients, clipped or not; with a float16 scaler taken back to their own scale.

        Raises:
            DivergedError: the loss or the gradient is not finite, and steps are not left out, or too many were.
        """
        trainer = self._trainer
        micro_batches, self._micro_batches = self._micro_batches, []
        self._logged_before = trainer._globalstep_last_logged
        flags = [flag for flag, _ in micro_batches]
        norm = torch.as_tensor(grad_norm, device=flags[0].device)
        *losses_are_finite, norm_is_finite = torch.stack([*flags, torch.isfinite(norm)]).tolist()
        odd_losses, odd_norms = trainer.sum_over_processes(float(not all(losses_are_finite)), float(not norm_is_finite))
        if trainer.accelerator.scaler is not None:
            self._count_scaler_skips(bool(odd_norms))
            odd_norms = 0.0
        if odd_losses or odd_norms:
            what = "the loss is not finite" if odd_losses else "the loss is finite and its gradient is not"
            batches = [(is_finite, inputs) for is_finite, (_, inputs) in zip(losses_are_finite, micro_batches)]  # noqa: B905
            self._settle(what, batches)

    def correct_mean(self, logs: dict[str, Any]) -> None:
        """Take the steps that were left out from a line's mean loss, and say in the line how many they are.

        The trainer divides by all steps since the line before; of no step at all the mean is not a number.
        """
        num_steps = self._trainer.state.global_step - self._logged_before
        num_skipped = sum(step > self._logged_before for step in self.skipped_steps)
        if "loss" in logs and num_skipped:
            num_trained = num_steps - num_skipped
            logs["loss"] = logs["loss"] * num_steps / num_trained if num_trained else math.nan
            logs["skipped"] = num_skipped

    def _count_scaler_skips(self, is_skipped: bool) -> None:
        """Leave a gradient that is not finite to the scaler, which lowers its scale; unless that leads nowhere."""
        self._scaler_skips = self._scaler_skips + 1 if is_skipped else 0
        if self._scaler_skips >= _MOST_SCALER_SKIPS:
            raise DivergedError(
                f"step {self._trainer.state.global_step + 1}: {self._scaler_skips} steps in a row had a gradient "
                "beyond float16, and the loss scale has fallen so low that nothing is trained any more.\n"
                "  On a GPU that computes in bfloat16: model.compute_dtype=bfloat16     On any: "
                "model.compute_dtype=float32\n"
                "  Or lower `training.learning_rate` and start over: --overwrite"
            )

    def _settle(self, what: str, batches: Sequence[tuple[bool, Any]]) -> None:
        """Name the rows, then stop the run or leave the step out."""
        trainer, policy = self._trainer, self.policy
        step = trainer.state.global_step + 1
        weight = find_not_finite_weight(trainer.model)
        rows = find_guilty_rows(trainer, batches, policy.account)
        place = self._keep_rows(step, rows)
        found = _say_what_was_found(weight, rows, place)
        if policy.choice == "raise" or weight is not None or len(self.skipped_steps) >= policy.max_skipped_steps:
            raise DivergedError(self._build_message(step, what, found, is_of_rows=weight is None))
        # Without gradients no optimizer touches a weight: no moment moves and no weight decays. The learning rate's
        # schedule goes on; of a step that a float16 scaler leaves out transformers holds it back.
        trainer.model.zero_grad(set_to_none=True)
        trainer._tr_loss.copy_(self._loss_before)
        _forget_not_finite(trainer.find_train_figures())
        self.skipped_steps.append(step)
        log.warning(
            "step %d: %s, so it was left out (%d of at most %d).\n%s",
            step, what, len(self.skipped_steps), policy.max_skipped_steps, found.rstrip(),
        )  # fmt: skip

    def _keep_rows(self, step: int, rows: Sequence[GuiltyRow]) -> Path | None:
        """Hand the rows to whoever writes them; a disk that does not take them is not what the run has come to."""
        if self.policy.write is None:
            return None
        try:
            return self.policy.write(step, [row.to_json(step) for row in rows])
        except (PlaceError, OSError) as error:
            log.warning("step %d: its rows are not kept (%s).", step, str(error).splitlines()[0])
            return None

    def _build_message(self, step: int, what: str, found: str, *, is_of_rows: bool) -> str:
        gives_up = self.policy.choice == "skip" and is_of_rows
        before = f", and {len(self.skipped_steps)} before it were left out" if gives_up else ""
        folder = Path(self._trainer.args.output_dir)
        newest = get_last_checkpoint(folder) if folder.is_dir() else None
        kept = "No checkpoint was saved yet." if newest is None else f"The last checkpoint is {Path(newest).name}."
        start = "--overwrite" if newest is None else "--resume"
        ways = f"  {kept} Start over with a lower rate: --overwrite training.learning_rate=…\n"
        if gives_up:
            ways += f"  Or let more be left out: {start} training.max_skipped_steps={2 * len(self.skipped_steps)}\n"
        elif is_of_rows:
            ways += f"  Or take such rows out; or leave such steps out: {start} training.non_finite=skip\n"
        return f"step {step}: {what}, so nothing of this step was kept{before}.\n{found}{_CAUSES}{ways}".rstrip()


def _forget_not_finite(figures: dict[str, list[Any]]) -> None:
    """Drop what is not finite of the figures that wait for the next line, whose means they would spoil."""
    for name, values in list(figures.items()):
        values[:] = [value for value in values if math.isfinite(value)]
        if not values:
            del figures[name]


def _say_what_was_found(weight: str | None, rows: Sequence[GuiltyRow], place: Path | None) -> str:
    """Say who is to blame, in lines that each end."""
    if weight is not None:
        return f"  The rows are not to blame: {weight} was not finite before this step.\n"
    lines = render_guilty_rows(rows)
    if place is not None and rows:
        lines.append(f"The {len(rows)} rows of this step, with their texts: {place}")
    return "".join(f"  {line}\n" for line in lines)


def check_weights(model: torch.nn.Module, step: int, *, is_result: bool = False) -> None:
    """Check what was trained before it is saved.

    An adapter that changes nothing yet is saved with a warning: a reward that is the same for every answer, or a
    run of warm-up steps alone, ends so, and its log and figures say more than a missing result would.

    Args:
        model: its trainable weights are looked at.
        step: the last one trained.
        is_result: whether this is the run's result, where an adapter of zeros is no result.

    Raises:
        DivergedError: a number that is not finite, named; or an adapter of which every number is zero.
    """
    trained = [(name, weight.data) for name, weight in model.named_parameters() if weight.requires_grad]
    name = find_not_finite(trained)
    if name is not None:
        raise DivergedError(
            f"step {step}: {name} holds numbers that are not finite, so it was not saved.\n{_CAUSES}"
            "  Earlier checkpoints are kept. Lower `training.learning_rate` and start over: --overwrite"
        )
    if not is_result or not isinstance(model, PeftModel):
        return
    if is_all_zero(trained):
        raise DivergedError(
            f"step {step}: every number of the adapter is zero, so it is no result and was not saved.\n"
            "  Nothing reached it: a learning rate that is too low, only warm-up steps, or rewards that are all equal."
        )
    if changes_nothing(trained):
        log.warning(
            "step %d: the adapter's output side is all zeros: it changes nothing, and the result answers as its base.\n"
            "  Usual causes: only warm-up steps, steps that were all left out, rewards that are all equal.",
            step,
        )
