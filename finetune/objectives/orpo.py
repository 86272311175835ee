"""ORPO: supervised fine-tuning and preference in one loss, without a reference, on TRL's ORPOTrainer.

The trainer is among TRL's experimental ones: its interface may change from release to release. The rows
come tokenized and labelled, and a masked token is not trained (TRL's own loss trains the prompt too).
"""

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from datasets import Dataset

from finetune.data.batches import IGNORE_INDEX, PairCollator
from finetune.objectives.batch_parts import EXPERTS_BALANCE, Batch, Part, find_chosen_factor
from finetune.objectives.building import BY_LENGTH, RunArguments, build, build_config
from finetune.objectives.trainer import StepMixin
from finetune.recipe.schema import TrainingSettings

with warnings.catch_warnings():
    # Each import of `trl.experimental` says that it is experimental; the verb's help says so too.
    warnings.filterwarnings("ignore", message=".*trl.experimental.*")
    from trl.experimental.orpo import ORPOConfig, ORPOTrainer

__all__ = ["OddsRatioTrainer", "build_arguments", "build_trainer"]

# The trainer prepares its rows while it is built, from text; it gets this one, and then the rows that are ready.
_TEXT = {"prompt": "a", "chosen": "b", "rejected": "c"}
_TEXT_TOKENS = 512


class OddsRatioTrainer(StepMixin, ORPOTrainer):
    """TRL's ORPOTrainer with what must sit inside the step, on rows that are ready."""

    answers_a_row = 2
    counts = ("_tokens_not_noted",)
    _nll_factor = 1.0

    def __init__(self, *, train_dataset: Dataset, eval_dataset: Dataset | None, **kwargs: Any) -> None:
        text = Dataset.from_list([_TEXT])
        super().__init__(train_dataset=text, eval_dataset=text, **kwargs)
        self.train_dataset = train_dataset
        self.eval_dataset = eval_dataset
        self.use_dpo_data_collator = True  # as far as the trainer is concerned

    def concatenated_forward(self, model: torch.nn.Module, batch: dict[str, Any]) -> tuple[torch.Tensor, ...]:
        """Run both answers of each pair through the model.

        Returns:
            Mean log-probability per token of the chosen and of the rejected answers, each (B,); the logits of both,
            each (B, T - 1, V); the cross entropy over the chosen answers' trained tokens, in a part of a batch
            weighed by those; and, where it is trained, the experts' balance.
        """
        ids, mask = batch["input_ids"].to(self.args.device), batch["completion_mask"].to(self.args.device)
        attention_mask = batch["attention_mask"].to(self.args.device)
        balance = {"output_router_logits": True} if self.aux_loss_enabled else {}
        output = model(input_ids=ids, attention_mask=attention_mask, use_cache=False, **balance)
        logits = output.logits
        labels = torch.where(mask == 1, ids, IGNORE_INDEX)
        sums = self.get_batch_logps(logits, labels)
        tokens = mask[:, 1:].sum(1)
        chosen, rejected = (sums / tokens).chunk(2)
        chosen_logits, rejected_logits = logits[:, :-1].chunk(2)
        num_pairs = len(ids) // 2
        nll = -sums[:num_pairs].sum() / tokens[:num_pairs].sum()
        found = chosen, rejected, chosen_logits, rejected_logits, nll * self._nll_factor
        return (*found, output.aux_loss) if self.aux_loss_enabled else found

    @property
    def figures(self) -> dict[str, dict[str, list[Any]]]:
        """What TRL (1.14) notes, under another name than in its other trainers."""
        return self._stored_metrics

    def find_why_whole(self, batch: Any) -> str | None:
        """Say why a batch cannot be cut: the experts' balance is no mean over pairs."""
        return EXPERTS_BALANCE if self.aux_loss_enabled else None

    @contextmanager
    def as_part(self, part: Part, whole: Batch) -> Iterator[None]:
        """Weigh the cross entropy, a mean over the chosen answers' tokens, by those."""
        self._nll_factor = find_chosen_factor(part, whole)
        try:
            yield
        finally:
            self._nll_factor = 1.0


def build_arguments(training: TrainingSettings, run: RunArguments) -> ORPOConfig:
    """Build the trainer's own config.

    Raises:
        RecipeError: the library refuses a setting.
    """
    return build_config(ORPOConfig, training, run, {"max_length": _TEXT_TOKENS, **BY_LENGTH})


build_trainer = partial(build, OddsRatioTrainer, PairCollator)
