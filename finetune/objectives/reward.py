"""A reward model: one number for an answer, higher for those that people chose, on TRL's RewardTrainer.

The base ends with a score head instead of words; head and adapter are trained on ready rows of pairs. The number
is read at a row's last token, so that it judges prompt and answer as a whole.
"""

from collections.abc import Sequence
from typing import Any

import torch
from datasets import Dataset
from torch import Tensor
from transformers import PreTrainedTokenizerBase, TrainerCallback
from trl import RewardConfig, RewardTrainer

from finetune.data.batches import PairCollator
from finetune.data.tokens import TokenRows
from finetune.model.base import BaseModel
from finetune.model.tokenizer import find_pad_id
from finetune.objectives.arguments import RunArguments, build_config, choose_callbacks, drop_printer
from finetune.objectives.trainer import StepMixin
from finetune.recipe.schema import DataSettings, TrainingSettings

__all__ = ["ScoreTrainer", "build_arguments", "build_trainer"]


class ScoreTrainer(StepMixin, RewardTrainer):
    """TRL's RewardTrainer with what must sit inside the step, on rows that are ready."""

    scores_per_token = False

    def _prepare_dataset(self, dataset: Dataset, *args: Any, **kwargs: Any) -> Dataset:
        return dataset

    def compute_loss(self, model: Any, inputs: dict[str, Any], *args: Any, **kwargs: Any) -> Any:
        """Compute the loss of whole rows: the model takes no mask of the answers."""
        del inputs["completion_mask"]
        return super().compute_loss(model, inputs, *args, **kwargs)

    def sum_loss(self, loss: float, inputs: dict[str, Any]) -> tuple[float, float]:
        """Sum a batch's loss over its pairs."""
        num_pairs = len(inputs["input_ids"]) // 2
        return loss * num_pairs, num_pairs

    def score_answers(self, batch: dict[str, Any]) -> tuple[Tensor, Tensor]:
        """Score each answer of a batch of rows by the head: its score and its number of tokens, each (2B,)."""
        ids, mask = batch["input_ids"].to(self.args.device), batch["attention_mask"].to(self.args.device)
        scores = self.model(input_ids=ids, attention_mask=mask, use_cache=False).logits[:, 0]
        return scores, batch["completion_mask"][:, 1:].sum(1)


def build_arguments(training: TrainingSettings, run: RunArguments) -> RewardConfig:
    """Build the trainer's own config.

    Raises:
        RecipeError: the library refuses a setting.
    """
    return build_config(RewardConfig, training, run, {"max_length": None})


def build_trainer(
    *,
    base: BaseModel,
    model: torch.nn.Module,
    tokenizer: PreTrainedTokenizerBase,
    arguments: RewardConfig,
    train: TokenRows,
    held_out: TokenRows | None,
    data: DataSettings,
    training: TrainingSettings,
    callbacks: Sequence[TrainerCallback],
) -> ScoreTrainer:
    """Build the trainer of one run; see `supervised.build_trainer`. The base has to end with a score."""
    arguments.train_sampling_strategy = "group_by_length"
    trainer = ScoreTrainer(
        model=model,
        args=arguments,
        data_collator=PairCollator(find_pad_id(tokenizer)),
        train_dataset=train.dataset,
        eval_dataset=None if held_out is None else held_out.dataset,
        processing_class=tokenizer,  # TRL tells the model its pad token, by which it finds a row's last one
        callbacks=choose_callbacks(training, arguments, callbacks),
    )
    drop_printer(trainer)
    return trainer
