"""What must sit inside the training step, in one mixin; a trainer that samples its answers builds on it.

It keeps what is trained in float32, counts real tokens, averages the held-out loss over tokens
instead of batches, stops on a loss that is not finite before anything of it is saved, and says what
to do where memory or the disk runs out.
"""

import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from peft import PeftModel
from safetensors import SafetensorError
from torch.utils.data import Sampler
from transformers import EarlyStoppingCallback
from transformers.trainer_utils import EvalLoopOutput

from finetune.errors import PlaceError
from finetune.model.rank_allocation import put_rank_state_back, whole_ranks, write_rank_state
from finetune.objectives.batch_parts import Batch, Part, join_answers, join_predictions
from finetune.objectives.changes import warn_of_changes
from finetune.objectives.finite import FiniteCheck, check_weights
from finetune.objectives.full_memory import first_line, is_out_of_memory
from finetune.objectives.idle_memory import IdleMemory
from finetune.objectives.micro_batches import MicroBatches
from finetune.objectives.order import LengthGroupedOrder
from finetune.objectives.pairs import answer_logps
from finetune.objectives.postponed import PostponingTrainer
from finetune.objectives.training_state import check_no_pickle

__all__ = ["StepMixin"]


class StepMixin(PostponingTrainer):
    """Goes in front of a TRL trainer: `class SupervisedTrainer(StepMixin, SFTTrainer)`.

    Attributes:
        scores_per_token: whether `score_answers` gives sums over tokens; else one score for the whole answer.
        answers_a_row: rows of a batch's tensors that make one row of the data: two where answers are compared.
        reference_columns: what `precompute_ref_log_probs` puts beside each row, as TRL names it.
        counts: what a step counts up, by TRL's (1.14) names too: one that is repeated begins with them as they were.
        micro_batches: how many rows are trained and evaluated at once where memory ran out.
        idle_memory: what memory that is left is spent on.
    """

    scores_per_token = True
    answers_a_row = 1
    reference_columns: tuple[str, ...] = ()
    counts: tuple[str, ...] = ("_tokens_not_noted", "_total_train_tokens")

    def __init__(self, *, model: torch.nn.Module, **kwargs: Any) -> None:
        # TRL rounds the trainable weights of a quantized model to bfloat16 whatever the device. A float16
        # run's GradScaler (a T4) cannot unscale those, small updates vanish in them, and a start such as
        # LoftQ's loses its last digits: they get back the numbers they had, in float32.
        trainable = [(parameter, parameter.data) for parameter in model.parameters() if parameter.requires_grad]
        asked = dict(vars(kwargs["args"]))
        super().__init__(model=model, **kwargs)
        warn_of_changes(asked, self.args)
        for parameter, before in trainable:
            parameter.data = before.float().to(parameter.device)
        self._tokens_not_noted = 0
        self._trained: torch.nn.ParameterList | None = None
        self._operations_a_token: int | None = None
        self.micro_batches = MicroBatches(self)
        self.idle_memory = IdleMemory(self)
        self._eval_loss_sum = 0.0
        self._eval_weight = 0.0
        self._eval_began_seconds = 0.0
        self.finite = FiniteCheck(self)

    def _get_train_sampler(self, train_dataset: Dataset | None = None) -> Sampler[int] | None:
        if self.args.train_sampling_strategy != "group_by_length":
            return super()._get_train_sampler(train_dataset)
        rows = self.args.train_batch_size * self.args.gradient_accumulation_steps
        return self._group_by_length(self.train_dataset if train_dataset is None else train_dataset, rows)

    def _get_eval_sampler(self, eval_dataset: Dataset) -> Sampler[int] | None:
        if self.args.train_sampling_strategy != "group_by_length":
            return super()._get_eval_sampler(eval_dataset)
        return self._group_by_length(eval_dataset, self.args.eval_batch_size)

    def _group_by_length(self, dataset: Dataset, rows_of_a_process: int) -> LengthGroupedOrder:
        rows = rows_of_a_process * self.args.world_size
        return LengthGroupedOrder(dataset["length"][:], rows, self.args.seed)

    def create_model_card(self, *args: Any, **kwargs: Any) -> None:
        """Write none: the result gets the run's own card, and a checkpoint needs none."""

    def check_before_start(self) -> None:
        """Check what only the loaded model on its device can show; a trainer with such a check says which."""

    @property
    def figures(self) -> dict[str, dict[str, list[Any]]]:
        """What TRL (1.14) notes of every batch and averages for the next line of the log."""
        return self._metrics

    @property
    def awaited_columns(self) -> tuple[str, ...]:
        """Columns that the rows get only after the trainer is built: the reference's, where it is computed once."""
        return self.reference_columns if self.reference_columns and self.args.precompute_ref_log_probs else ()

    # ---- the step

    def training_step(self, model: Any, inputs: dict[str, Any], num_items_in_batch: Any = None) -> torch.Tensor:
        """Train on a micro-batch, in parts and the whole step again where memory runs out.

        Raises:
            PlaceError: memory does not hold a single row of it.
        """
        with self.idle_memory.watching(inputs):
            loss = self.micro_batches.train(model, inputs, num_items_in_batch, super().training_step)
        self.finite.note(loss, inputs)
        return loss

    def _clip_grad_norm(self, model: torch.nn.Module) -> Any:
        """Clip the gradient of what is trained."""
        return super()._clip_grad_norm(self._list_trained(model))

    def _get_grad_norm(self, model: torch.nn.Module, grad_norm: Any = None) -> Any:
        """Measure the gradient, which transformers (5.17) does right before each update, and check the step.

        Raises:
            DivergedError: the loss or the gradient is not finite, unless such a step is left out.
        """
        grad_norm = super()._get_grad_norm(self._list_trained(model), grad_norm)
        self.finite.check(grad_norm)
        return grad_norm

    def _list_trained(self, model: torch.nn.Module) -> torch.nn.Module:
        """List what is trained once, in the model's order, which decides the last bits of the gradient's norm.

        transformers (5.17) goes through all modules of the model for it at every step: 4 ms of the host's time for 32
        layers. Shards are found by the model that holds them.
        """
        if self.is_fsdp_enabled or self.is_deepspeed_enabled:
            return model
        if self._trained is None:
            self._trained = torch.nn.ParameterList(one for one in model.parameters() if one.requires_grad)
        return self._trained

    def floating_point_ops(self, inputs: dict[str, Any]) -> int:
        """Count a micro-batch's operations as transformers (5.17) does, but the model's weights once.

        It goes through all modules for them, twice for every micro-batch: 10 ms for 32 layers. The count is so many a
        token.
        """
        if "input_ids" not in inputs:
            return int(super().floating_point_ops(inputs))
        if self._operations_a_token is None:
            self._operations_a_token = int(super().floating_point_ops({"input_ids": inputs["input_ids"].new_empty(1)}))
        return self._operations_a_token * int(inputs["input_ids"].numel())

    def compute_loss(self, model: Any, inputs: dict[str, Any], *args: Any, **kwargs: Any) -> Any:
        """Compute the loss, counting the batch's tokens without its padding."""
        num_real_tokens = inputs.pop("num_real_tokens")
        loss = super().compute_loss(model, inputs, *args, **kwargs)
        if self.model.training:
            if self._tokens_not_noted == 0 and self.state.global_step == 0:
                self.check_first_loss(loss, inputs)
            self._tokens_not_noted += num_real_tokens
            if self.micro_batches.share != 1.0:  # of a part; evaluations sum up theirs
                loss = loss * self.micro_batches.share
        return loss

    def check_first_loss(self, loss: torch.Tensor, inputs: dict[str, Any]) -> None:
        """Check the loss of a run's first batch, where a trainer knows what it has to be."""

    # ---- a batch in parts, where memory does not hold it

    def find_why_whole(self, batch: Any) -> str | None:
        """Say why a batch to be trained, evaluated or scored cannot be cut and come to the same; None where it can."""
        return None

    def as_part(self, part: Part, whole: Batch) -> AbstractContextManager[None]:
        """Compute the loss of a part within, each of its terms counting for as much as it does in the whole batch.

        The loss is weighed by the part's share; a trainer with a term that is a mean over something else weighs that.

        Args:
            part: of the batch, one of several.
            whole: the batch.
        """
        return nullcontext()

    # ---- the held-out loss

    def measure_held_out(self) -> dict[str, float]:
        """Measure the held-out loss with the weights as they are, without a log or a callback.

        Returns:
            Figures by their name in metrics.jsonl; a trainer that measures another one says so.

        Not through the trainer's own loop: before training it would register the model as prepared for evaluation
        alone, and several processes would then train without sharing their gradients (transformers 5.17).
        """
        self._eval_loss_sum, self._eval_weight = 0.0, 0.0
        with self.as_in_training():
            for inputs in self.get_eval_dataloader():
                self.prediction_step(self.model, inputs, prediction_loss_only=True)
        self.forget_figures()
        return {"eval_loss": self._to_mean_loss()}

    def forget_figures(self) -> None:
        """Forget what was noted of an evaluation that is not logged; the next one would be averaged with it."""
        self.figures["eval"].clear()

    def score_answers(self, batch: dict[str, Any]) -> tuple[torch.Tensor, torch.Tensor]:
        """Score each answer of a batch as `score_part` does, in smaller parts where memory runs out; each (B,)."""

        def score(part: dict[str, Any]) -> tuple[torch.Tensor, torch.Tensor]:
            on_device = {name: value.to(self.args.device) for name, value in part.items() if torch.is_tensor(value)}
            return self.score_part(on_device)

        return join_answers([scored for _, scored in self.micro_batches.evaluate(batch, score)], self.answers_a_row)

    def score_part(self, part: dict[str, torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
        """Score the answers of a part on the device by their log-probability in nats, and count their tokens."""
        return answer_logps(self.model, part)

    @contextmanager
    def as_in_training(self, *, float32_logits: bool = True) -> Iterator[None]:
        """Evaluate with the numbers of the training loop, which the model is only wrapped for when it starts.

        Products in the compute dtype, and logits in float32: a sum of log-probabilities from 16-bit logits is off by
        so much that a reference taken from it would not be the policy's start.

        Args:
            float32_logits: False where whoever reads the logits casts what it needs of them.

        Raises:
            PlaceError: memory does not hold a batch, or a single row where batches are evaluated in parts.
        """

        def to_float32(model: torch.nn.Module, inputs: Any, outputs: Any) -> Any:
            if isinstance(outputs.logits, torch.Tensor):  # Unsloth has computed the loss without them
                outputs.logits = outputs.logits.float()
            return outputs

        was_training = self.model.training
        self.model.eval()
        hook = self.model.register_forward_hook(to_float32) if float32_logits else None
        try:
            with torch.no_grad(), self.accelerator.autocast():
                yield
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
            raise PlaceError(
                f"Memory is full while rows are evaluated ({first_line(error)}).\n"
                f"  Fewer at once: training.per_device_eval_batch_size, now {self.args.per_device_eval_batch_size} "
                f"(of a reference: training.precompute_ref_batch_size)\n"
                f"  Shorter rows: data.max_length"
            ) from error
        finally:
            if hook is not None:
                hook.remove()
            self.model.train(was_training)

    def prediction_step(self, model: Any, inputs: dict[str, Any], *args: Any, **kwargs: Any) -> Any:
        """Evaluate a batch, in parts where memory runs out, weighing its mean loss by what it is a mean of."""
        predict = super().prediction_step
        found = self.micro_batches.evaluate(inputs, lambda part: predict(model, part, *args, **kwargs))
        for part, (loss, _, _) in found:
            loss_sum, weight = self.sum_loss(loss.item(), part)
            self._eval_loss_sum += loss_sum
            self._eval_weight += weight
        return join_predictions([predicted for _, predicted in found])

    def sum_loss(self, loss: float, inputs: dict[str, Any]) -> tuple[float, float]:
        """Turn a batch's mean loss into a sum, and say over how many: its rows, unless a trainer counts otherwise."""
        num_rows = len(inputs["input_ids"]) // self.answers_a_row
        return loss * num_rows, num_rows

    def sum_counted_loss(self, loss: float, count: float) -> tuple[float, float]:
        """Sum a loss that the trainer has divided by the number of what was predicted in the batches of all processes.

        Each process's loss is then its own sum over the mean number of all.
        """
        (count_of_all,) = self.sum_over_processes(count)
        if not count_of_all:  # rows that only fill up the last batch
            return 0.0, 0.0
        return loss * count_of_all / self.args.world_size, count

    def evaluate(self, *args: Any, **kwargs: Any) -> dict[str, float]:
        """Evaluate and log, timed by a clock that cannot be set back."""
        self._eval_began_seconds = time.monotonic()
        figures: dict[str, float] = super().evaluate(*args, **kwargs)
        return figures

    def evaluation_loop(self, *args: Any, metric_key_prefix: str = "eval", **kwargs: Any) -> EvalLoopOutput:
        """Evaluate; the loss reported is the mean over all held-out tokens (or pairs), not over batches."""
        self._eval_loss_sum, self._eval_weight = 0.0, 0.0
        output = super().evaluation_loop(*args, metric_key_prefix=metric_key_prefix, **kwargs)
        output.metrics[f"{metric_key_prefix}_loss"] = self._to_mean_loss()
        return output

    def _to_mean_loss(self) -> float:
        loss_sum, weight = self.sum_over_processes(self._eval_loss_sum, self._eval_weight)
        return loss_sum / weight

    # ---- what is said and saved

    def _maybe_log_save_evaluate(self, *args: Any, **kwargs: Any) -> None:
        """Log at the last step too, and where an evaluation may make it the last: every step is in a line's figures."""
        stops_early = any(isinstance(one, EarlyStoppingCallback) for one in self.callback_handler.callbacks)
        if self.state.global_step >= self.state.max_steps or (stops_early and self.control.should_evaluate):
            self.control.should_log = True
        super()._maybe_log_save_evaluate(*args, **kwargs)

    def log(self, logs: dict[str, float], *args: Any, **kwargs: Any) -> None:
        """Log with the number of real tokens trained so far in all processes; steps left out are in no mean."""
        self._note_tokens()
        logs["num_real_tokens"] = self.state.num_input_tokens_seen
        if "eval_runtime" in logs:  # transformers (5.17) takes it by the clock on the wall, which may be set back
            logs["eval_runtime"] = round(time.monotonic() - self._eval_began_seconds, 4)
        self.finite.correct_mean(logs)
        logs |= self.micro_batches.take_news() | self.idle_memory.take_news()
        super().log(logs, *args, **kwargs)

    def _note_tokens(self) -> None:
        """Add what all processes trained since the last time to the trainer's state, which checkpoints carry."""
        (tokens,) = self.sum_over_processes(float(self._tokens_not_noted))
        self._tokens_not_noted = 0
        self.state.num_input_tokens_seen += int(tokens)

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        """Save with the count of tokens up to this step; nothing that is not finite.

        Raises:
            DivergedError: a weight is not finite.
            PlaceError: the disk does not take it.
        """
        check_weights(self.model, self.state.global_step)
        self._note_tokens()
        try:
            super()._save_checkpoint(model, trial)
            if self.args.should_save:
                checkpoint = Path(self.args.output_dir) / f"checkpoint-{self.state.global_step}"
                self.micro_batches.write(checkpoint)
                self.idle_memory.write(checkpoint)
        except (OSError, SafetensorError) as error:
            raise PlaceError(
                f"step {self.state.global_step}: the checkpoint cannot be written ({first_line(error)}).\n"
                f"  Earlier checkpoints are whole. Make room in {self.args.output_dir}, then: --resume"
            ) from error

    def _save(self, output_dir: str | None = None, state_dict: dict[str, Any] | None = None) -> None:
        """Save weights and tokenizer, and how AdaLoRA has weighed its ranks."""
        with whole_ranks(self.model):
            super()._save(output_dir, state_dict)
        write_rank_state(self.model, Path(output_dir or self.args.output_dir))

    def _load_from_checkpoint(self, resume_from_checkpoint: str, *args: Any, **kwargs: Any) -> None:
        """Take up the weights of a checkpoint, and how AdaLoRA had weighed its ranks."""
        with whole_ranks(self.model):
            super()._load_from_checkpoint(resume_from_checkpoint, *args, **kwargs)
        put_rank_state_back(self.model, Path(resume_from_checkpoint))

    def find_best_checkpoint_name(self) -> str | None:
        """Find the name of the best step's checkpoint; None where that is the last step, or none was evaluated.

        By its step: the trainer's own path is of the place where the folder was when it was written.
        """
        best = self.state.best_global_step
        return None if best is None or best == self.state.global_step else f"checkpoint-{best}"

    def load_weights(self, checkpoint: Path) -> None:
        """Put the weights of a checkpoint into the model."""
        check_no_pickle(checkpoint)
        self.state.best_model_checkpoint = str(checkpoint)
        with whole_ranks(self.model):
            self._load_best_model()
        put_rank_state_back(self.model, checkpoint)

    def save_weights(self, folder: Path, *, dtype: torch.dtype) -> None:
        """Save what was trained as safetensors: a PEFT adapter in float32, or a whole model in `dtype`.

        Raises:
            DivergedError: a weight is not finite, or the adapter is all zeros; nothing is saved.
        """
        if not isinstance(self.model, PeftModel):
            self.model.to(dtype)
        check_weights(self.model, self.state.global_step, is_result=True)
        if isinstance(self.model, PeftModel):
            # "auto" would ask the Hub whether the vocabulary grew; ours never grows.
            self.model.save_pretrained(folder, selected_adapters=["default"], save_embedding_layers=False)
        else:
            self.model.save_pretrained(folder)

    def sum_over_processes(self, *values: float) -> list[float]:
        """Add each value up over the processes of the launch."""
        if self.args.world_size == 1:
            return list(values)
        sums = self.accelerator.reduce(torch.tensor(values, dtype=torch.float64, device=self.args.device))
        return sums.tolist()
