"""Masked-language modelling: an encoder restores tokens that were hidden from it, on transformers' Trainer.

What BERT and RoBERTa were made by, for a small encoder of one's own or for going on with another's on texts of a
field. The head and the loss are computed at the masked places alone: elsewhere nothing is asked, and with a
vocabulary of thousands the head is half of a small model's work.

Shape suffixes: B rows, T tokens, M masked tokens of the batch, H hidden size.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from datasets import Dataset, concatenate_datasets
from peft import PeftModel
from torch.nn import functional as F
from torch.utils.data import DataLoader
from transformers import PreTrainedModel, PreTrainedTokenizerBase, TrainingArguments

from finetune.data.batches import IGNORE_INDEX, MaskedCollator
from finetune.data.masked_rows import build_masked_rows
from finetune.data.sources import LoadedExamples
from finetune.data.tokens import TokenRows
from finetune.errors import RecipeError
from finetune.objectives.building import BY_LENGTH, RunArguments, TrainerParts, build, build_config
from finetune.objectives.resumable import ResumableTrainer
from finetune.objectives.trainer import StepMixin
from finetune.recipe.schema import DataSettings, TrainingSettings

__all__ = ["MaskedTrainer", "build_arguments", "build_rows", "build_trainer", "masked_loss"]


def masked_loss(
    outputs: Any,
    labels_1M: torch.Tensor,
    *,
    num_items_in_batch: torch.Tensor | int | None = None,
    label_smoothing: float = 0.0,
) -> torch.Tensor:
    """Cross entropy of the masked tokens, in float32.

    Args:
        outputs: of the model, with `logits` of shape (1, M, V), V pieces.
        labels_1M: the tokens that stood there.
        num_items_in_batch: masked tokens of the whole step, over which the mean is taken; None: of this batch.
        label_smoothing: share of each label that is spread over all; 0 to 1.

    Returns:
        A scalar, in nats.
    """
    logits_MV = outputs["logits"][0].float()
    total = F.cross_entropy(logits_MV, labels_1M[0], reduction="sum", label_smoothing=label_smoothing)
    return total / (labels_1M.numel() if num_items_in_batch is None else num_items_in_batch)


class MaskedTrainer(StepMixin):
    """transformers' Trainer with what must sit inside the step.

    Args:
        data_collator: builds the batches.
        **kwargs: the Trainer's.
    """

    counts = ("_tokens_not_noted",)

    def __init__(self, *, data_collator: MaskedCollator, **kwargs: Any) -> None:
        self._masking = data_collator
        self._smoothing = kwargs["args"].label_smoothing_factor
        # Of the models' own losses some (BERT's, RoBERTa's) take each micro-batch's mean, whatever the step's count.
        super().__init__(data_collator=data_collator, compute_loss_func=self._compute_masked_loss, **kwargs)
        self.label_smoother = None  # the loss smooths by itself

    figures = ResumableTrainer.figures  # transformers' own trainer averages the loss alone

    def _run_epoch(self, *args: Any, epoch: int, **kwargs: Any) -> None:
        """Run an epoch with masks of its own, the same after a resume."""
        self._masking.set_epoch(epoch)
        super()._run_epoch(*args, epoch=epoch, **kwargs)

    def get_eval_dataloader(self, eval_dataset: Any = None) -> DataLoader[Any]:
        """Build the loader of held-out rows, whose masks never change."""
        self.data_collator = self._masking.for_evaluation()
        try:
            return super().get_eval_dataloader(eval_dataset)
        finally:
            self.data_collator = self._masking

    def compute_loss(self, model: Any, inputs: dict[str, Any], *args: Any, **kwargs: Any) -> Any:
        """Compute the loss of the masked tokens, a mean over those of the whole step."""
        labels = inputs["labels"]
        is_masked_BT = labels != IGNORE_INDEX
        with _only_at(self.model, is_masked_BT):
            return super().compute_loss(model, inputs | {"labels": labels[is_masked_BT][None]}, *args, **kwargs)

    def _compute_masked_loss(
        self, outputs: Any, labels_1M: torch.Tensor, *, num_items_in_batch: torch.Tensor | int | None = None
    ) -> torch.Tensor:
        """Smooth the tokens that are trained on, and never those that are measured on."""
        smoothing = self._smoothing if self.model.training else 0.0
        return masked_loss(outputs, labels_1M, num_items_in_batch=num_items_in_batch, label_smoothing=smoothing)

    def sum_loss(self, loss: float, inputs: dict[str, Any]) -> tuple[float, float]:
        """Sum a batch's loss over its masked tokens."""
        return self.sum_counted_loss(loss, float((inputs["labels"] != IGNORE_INDEX).sum()))


@contextmanager
def _only_at(model: torch.nn.Module, is_masked_BT: torch.Tensor) -> Iterator[None]:
    """Hand the head the hidden states of some tokens alone, as one row of shape (1, M, H)."""
    whole = model.get_base_model() if isinstance(model, PeftModel) else model
    assert isinstance(whole, PreTrainedModel)
    body = whole.base_model

    def select(module: torch.nn.Module, inputs: Any, outputs: Any) -> Any:
        outputs.last_hidden_state = outputs.last_hidden_state[is_masked_BT][None]
        return outputs

    hook = body.register_forward_hook(select)
    try:
        yield
    finally:
        hook.remove()


def build_rows(loaded: LoadedExamples, tokenizer: PreTrainedTokenizerBase, data: DataSettings) -> TokenRows:
    """Turn plain text into rows; a text that is too long becomes several unless the recipe says otherwise.

    Raises:
        RecipeError: the tokenizer has no mask token.
    """
    if tokenizer.mask_token_id is None:
        raise RecipeError(
            "`objective: mlm`: the tokenizer has no mask token, so nothing can be hidden from the model.\n"
            "  Name that of an encoder: model.tokenizer_name_or_path=…     For a language model: objective: pretrain"
        )
    return build_masked_rows(
        loaded,
        tokenizer,
        max_length=data.max_length,
        too_long=data.too_long or "split",
        special_tokens_in_data=data.special_tokens_in_data,
    )


def build_arguments(training: TrainingSettings, run: RunArguments) -> TrainingArguments:
    """Build the trainer's own config.

    Raises:
        RecipeError: the library refuses a setting.
    """
    return build_config(TrainingArguments, training, run, {"label_names": ["labels"], **BY_LENGTH})


def build_trainer(parts: TrainerParts) -> MaskedTrainer:
    """Build the trainer of one run; the tokenizer brings the mask token."""
    tokenizer, arguments = parts.tokenizer, parts.arguments
    masking = partial(
        MaskedCollator,
        mask_token_id=tokenizer.mask_token_id,
        vocab_size=len(tokenizer),
        special_ids=tokenizer.all_special_ids,
        mask_fraction=parts.data.mask_fraction,
        seed=arguments.seed,
    )
    if parts.held_out is not None:
        held_out = replace(parts.held_out, dataset=_fill_up(parts.held_out.dataset, tokenizer, arguments))
        parts = replace(parts, held_out=held_out)
    return build(MaskedTrainer, masking, parts)


def _fill_up(rows: Dataset, tokenizer: PreTrainedTokenizerBase, arguments: TrainingArguments) -> Dataset:
    """Fill up the last batches of several processes with rows of no text; accelerate would repeat real ones."""
    num_missing = -len(rows) % (arguments.per_device_eval_batch_size * arguments.world_size)
    if arguments.world_size == 1 or num_missing == 0:
        return rows
    marks = tokenizer("")["input_ids"]
    fillers = [{"input_ids": marks, "length": len(marks)}] * num_missing
    return concatenate_datasets([rows, Dataset.from_list(fillers, features=rows.features)])
