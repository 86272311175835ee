"""KTO: answers judged good or bad, each on its own, without pairs, on TRL's KTOTrainer.

The rows come tokenized and labelled, each with the answer of another row behind its prompt, from which
the trainer estimates how far the policy has moved; so they may be trained in any order.
"""

from functools import partial
from typing import Any

import torch
from datasets import Dataset
from trl import KTOConfig, KTOTrainer

from finetune.data.batches import JudgedCollator
from finetune.data.preference_tokens import build_judged_rows
from finetune.data.rendering import Renderer
from finetune.data.sources import LoadedExamples
from finetune.data.tokens import TokenRows
from finetune.objectives.building import BY_LENGTH, RunArguments, build, build_config
from finetune.objectives.losses import kto_loss
from finetune.objectives.reference import WatchChosen, check_start, stand_in
from finetune.objectives.trainer import StepMixin
from finetune.recipe.schema import DataSettings, TrainingSettings

__all__ = ["JudgedTrainer", "build_arguments", "build_rows", "build_trainer"]


class JudgedTrainer(StepMixin, KTOTrainer):
    """TRL's KTOTrainer with what must sit inside the step, on rows that are ready."""

    reference_columns = ("ref_logps", "ref_KL_logps")

    def __init__(self, *, args: KTOConfig, **kwargs: Any) -> None:
        # The trainer asks for this order because it pairs neighbours while it prepares rows; these are paired already.
        args.train_sampling_strategy = "sequential"
        super().__init__(args=args, ref_model=stand_in(), **kwargs)
        args.train_sampling_strategy = BY_LENGTH["train_sampling_strategy"]
        self.ref_model = None
        self.add_callback(WatchChosen(args.beta))

    def _prepare_dataset(self, dataset: Dataset, *args: Any, **kwargs: Any) -> Dataset:
        return dataset

    def _precompute_ref_logps(self, dataset: Dataset, *args: Any, **kwargs: Any) -> Dataset:
        return dataset  # TRL would do it here, in another precision than the steps

    def find_why_whole(self, batch: Any) -> str | None:
        """Say why a batch cannot be cut: its KL is one number for all its rows. Pairs that are scored have none."""
        if "KL_input_ids" in batch:
            return "kto estimates over a whole micro-batch how far the policy has moved"
        return None

    def check_first_loss(self, loss: torch.Tensor, inputs: dict[str, Any]) -> None:
        """Hold the first loss against that of a policy equal to its reference.

        Raises:
            RecipeError: they differ.
        """
        measured = self.figures["train"]
        # A batch may hold answers of one kind alone.
        rewards: dict[str, float] = {
            kind: measured[kind][-1] for kind in ("rewards/chosen", "rewards/rejected") if kind in measured
        }
        is_desirable = inputs["label"]
        ratios = torch.zeros(len(is_desirable), device=is_desirable.device)
        weights = (self.desirable_weight, self.undesirable_weight)
        due = kto_loss(ratios, is_desirable.bool(), 0.0, self.beta, *weights).mean().item()
        check_start(self, rewards, inputs, loss.item(), due)


def build_rows(loaded: LoadedExamples, renderer: Renderer, data: DataSettings) -> TokenRows:
    """Render judged answers into rows; one that is too long is dropped unless the recipe says otherwise."""
    return build_judged_rows(loaded, renderer, max_length=data.max_length, too_long=data.too_long or "drop")


def build_arguments(training: TrainingSettings, run: RunArguments) -> KTOConfig:
    """Build the trainer's own config.

    Raises:
        RecipeError: the library refuses a setting.
    """
    return build_config(KTOConfig, training, run, {"max_length": None})


build_trainer = partial(build, JudgedTrainer, JudgedCollator)
