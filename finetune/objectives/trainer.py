"""What must sit inside the training step, in one mixin: the only inheritance in the house.

It counts real tokens, averages the held-out loss over tokens instead of batches, stops on a loss
that is not finite, and keeps the adapter in float32.
"""

import math
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from peft import PeftModel
from torch.utils.data import Sampler
from transformers import Trainer
from transformers.trainer_utils import EvalLoopOutput

from finetune.data.batches import IGNORE_INDEX
from finetune.errors import DivergedError
from finetune.model.adapters import cast_adapter
from finetune.objectives.order import LengthGroupedOrder

__all__ = ["StepMixin"]


class StepMixin(Trainer):
    """Goes in front of a TRL trainer: `class SupervisedTrainer(StepMixin, SFTTrainer)`."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._tokens_not_noted = 0
        self._eval_loss_sum = 0.0
        self._eval_tokens = 0
        # TRL casts the trainable weights of a quantized model to bfloat16 whatever the device. The
        # GradScaler of a float16 run (a T4) cannot unscale those, and small updates vanish in them.
        cast_adapter(self.model, torch.float32)

    def _get_train_sampler(self, train_dataset: Dataset | None = None) -> Sampler[int] | None:
        if self.args.train_sampling_strategy != "group_by_length":
            return super()._get_train_sampler(train_dataset)
        rows = self.args.train_batch_size * self.args.gradient_accumulation_steps * self.args.world_size
        lengths = (self.train_dataset if train_dataset is None else train_dataset)["length"]
        return LengthGroupedOrder(lengths, rows, self.args.seed)

    def create_model_card(self, *args: Any, **kwargs: Any) -> None:
        """Write none: the result gets the run's own card, and a checkpoint needs none."""

    def compute_loss(self, model: Any, inputs: dict[str, Any], *args: Any, **kwargs: Any) -> Any:
        """Compute the loss, counting the batch's tokens without its padding."""
        num_real_tokens = inputs.pop("num_real_tokens")
        if self.model.training:
            self._tokens_not_noted += num_real_tokens
        return super().compute_loss(model, inputs, *args, **kwargs)

    def prediction_step(self, model: Any, inputs: dict[str, Any], *args: Any, **kwargs: Any) -> Any:
        """Evaluate a batch, weighing its mean loss by the tokens that it is a mean of."""
        trained_tokens = int((inputs["labels"][:, 1:] != IGNORE_INDEX).sum())
        loss, logits, labels = super().prediction_step(model, inputs, *args, **kwargs)
        self._eval_loss_sum += loss.item() * trained_tokens
        self._eval_tokens += trained_tokens
        return loss, logits, labels

    def evaluation_loop(self, *args: Any, metric_key_prefix: str = "eval", **kwargs: Any) -> EvalLoopOutput:
        """Evaluate; the loss reported is the mean over all held-out trained tokens of all processes."""
        self._eval_loss_sum, self._eval_tokens = 0.0, 0
        output = super().evaluation_loop(*args, metric_key_prefix=metric_key_prefix, **kwargs)
        loss_sum, num_tokens = self._sum_over_processes(self._eval_loss_sum, float(self._eval_tokens))
        output.metrics[f"{metric_key_prefix}_loss"] = loss_sum / num_tokens
        return output

    def log(self, logs: dict[str, float], *args: Any, **kwargs: Any) -> None:
        """Log with the number of real tokens trained so far in all processes; stop on a loss that is not finite.

        Raises:
            DivergedError: the loss or the gradient's norm is NaN or infinite.
        """
        self._note_tokens()
        logs["num_real_tokens"] = self.state.num_input_tokens_seen
        super().log(logs, *args, **kwargs)
        for name in ("loss", "grad_norm"):
            if not math.isfinite(logs.get(name, 0.0)):
                raise DivergedError(
                    f"step {self.state.global_step}: `{name}` is {logs[name]}; the run cannot recover from it.\n"
                    f"  Usual causes: a learning rate that is too high, float16 overflow, a broken base.\n"
                    f"  Lower `training.learning_rate`, then `--overwrite`, or `--resume` from the last checkpoint."
                )

    def _note_tokens(self) -> None:
        """Add what all processes trained since the last time to the trainer's state, which checkpoints carry."""
        (tokens,) = self._sum_over_processes(float(self._tokens_not_noted))
        self._tokens_not_noted = 0
        self.state.num_input_tokens_seen += int(tokens)

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        """Save with the count of tokens up to this step, whenever the last log was."""
        self._note_tokens()
        super()._save_checkpoint(model, trial)

    def _run_epoch(self, *args: Any, **kwargs: Any) -> None:
        """Run an epoch, unless all steps are done already.

        Resumed from a checkpoint of the last step in mid-epoch, transformers (5.17) would train one more.
        """
        if self.state.global_step >= self.state.max_steps:
            self.control.should_training_stop = True
            return
        super()._run_epoch(*args, **kwargs)

    def load_best(self) -> bool:
        """Put the weights of the best evaluation back into the model; True where they were not the last ones."""
        best = self.state.best_model_checkpoint
        if best is None or self.state.best_global_step == self.state.global_step:
            return False
        self._load_best_model()
        return True

    def save_weights(self, folder: Path, *, dtype: torch.dtype) -> None:
        """Save what was trained as safetensors: a PEFT adapter in float32, or a whole model in `dtype`."""
        if isinstance(self.model, PeftModel):
            # "auto" would ask the Hub whether the vocabulary grew; ours never grows.
            self.model.save_pretrained(folder, save_embedding_layers=False)
        else:
            self.model.to(dtype).save_pretrained(folder)

    def _sum_over_processes(self, *values: float) -> list[float]:
        if self.args.world_size == 1:
            return list(values)
        sums = self.accelerator.reduce(torch.tensor(values, dtype=torch.float64, device=self.args.device))
        return sums.tolist()
