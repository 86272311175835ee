"""Direct preference optimization: chosen answers made likelier than rejected ones, on TRL's DPOTrainer.

The rows come tokenized and labelled, so the trainer's own preparation is switched off. The reference is
the start of the run, held as TRL holds it or, with `precompute_ref_log_probs`, taken once.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from datasets import Dataset
from trl import DPOConfig, DPOTrainer

from finetune.data.batches import PairCollator
from finetune.data.preference_tokens import build_pair_rows
from finetune.data.rendering import Renderer
from finetune.data.sources import LoadedExamples
from finetune.data.tokens import TokenRows
from finetune.objectives.batch_parts import EXPERTS_BALANCE, Batch, Part, find_chosen_factor
from finetune.objectives.building import BY_LENGTH, RunArguments, TrainerParts, build, build_config
from finetune.objectives.losses import LossSettings, loss_at_start
from finetune.objectives.pairs import answer_logps
from finetune.objectives.reference import WatchChosen, check_start, stand_in
from finetune.objectives.shared_prompts import SharedPrompts, choose_prompts
from finetune.objectives.trainer import StepMixin
from finetune.recipe.schema import DataSettings, TrainingSettings

__all__ = ["PreferenceTrainer", "build_arguments", "build_rows", "build_trainer"]

# Losses that sort the pairs of a micro-batch against each other.
_SORTED_LOSSES = {"aot", "aot_unpaired"}


class PreferenceTrainer(StepMixin, DPOTrainer):
    """TRL's DPOTrainer with what must sit inside the step, on rows that are ready.

    Attributes:
        shared_prompts: what lets the model compute a pair's prompt once; None: each answer has its own.
    """

    answers_a_row = 2
    reference_columns = ("ref_chosen_logps", "ref_rejected_logps")
    shared_prompts: SharedPrompts | None = None
    loss_weights: list[float]  # TRL's

    def __init__(self, *, args: DPOConfig, **kwargs: Any) -> None:
        super().__init__(args=args, ref_model=stand_in(), **kwargs)
        self.ref_model = None
        self.add_callback(WatchChosen(args.beta))

    def _prepare_dataset(self, dataset: Dataset, *args: Any, **kwargs: Any) -> Dataset:
        return dataset

    def _precompute_ref_logps(self, dataset: Dataset, *args: Any, **kwargs: Any) -> Dataset:
        return dataset  # TRL would do it here, in another precision than the steps

    @contextmanager
    def _with_prompts_once(self, inputs: dict[str, Any]) -> Iterator[dict[str, Any]]:
        """Give what the model is to be called with within, and its logits compared with."""
        if self.shared_prompts is None:
            yield inputs
        else:
            with self.shared_prompts.in_force(inputs) as answers:
                yield answers

    # TRL (1.14) calls the model, and the reference, in these two methods and nowhere else.

    def _compute_loss(self, model: Any, inputs: dict[str, Any], return_outputs: bool) -> Any:
        with self._with_prompts_once(inputs) as answers:
            return super()._compute_loss(model, answers, return_outputs)

    def _compute_ref_log_probs(self, model: Any, inputs: dict[str, Any]) -> Any:
        with self._with_prompts_once(inputs) as answers:
            return super()._compute_ref_log_probs(model, answers)

    def score_part(self, part: dict[str, torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
        """Score the answers of a part by their log-probability, in the layout that the steps have."""
        with self._with_prompts_once(part) as answers:
            return answer_logps(self.model, answers)

    def find_why_whole(self, batch: Any) -> str | None:
        """Say why a batch cannot be cut: a loss that is no mean over its pairs."""
        if self.aux_loss_enabled:
            return EXPERTS_BALANCE
        losses = set(self.loss_types)
        if losses & _SORTED_LOSSES or ("sft" in losses and self.use_weighting):
            return f"training.loss_type {sorted(losses)} compares the pairs of a micro-batch with each other"
        return None

    @contextmanager
    def as_part(self, part: Part, whole: Batch) -> Iterator[None]:
        """Weigh `sft`, a mean over the chosen answers' tokens, by those."""
        weights, factor = self.loss_weights, find_chosen_factor(part, whole)
        self.loss_weights = [
            weight * (factor if kind == "sft" else 1.0) for kind, weight in zip(self.loss_types, weights, strict=True)
        ]
        try:
            yield
        finally:
            self.loss_weights = weights

    def check_first_loss(self, loss: torch.Tensor, inputs: dict[str, Any]) -> None:
        """Hold the first loss against that of a policy equal to its reference.

        Raises:
            RecipeError: they differ.
        """
        measured = self.figures["train"]
        rewards = {name: measured[name][-1] for name in ("rewards/chosen", "rewards/rejected")}
        settings = LossSettings(
            beta=self.beta,
            label_smoothing=self.label_smoothing,
            f_divergence_type=self.f_divergence_type,
            f_alpha_divergence_coef=self.f_alpha_divergence_coef,
            discopop_tau=self.args.discopop_tau,
        )
        due = None if self.use_weighting else loss_at_start(self.loss_types, self.loss_weights, settings)
        check_start(self, rewards, inputs, loss.item(), due)


def build_rows(loaded: LoadedExamples, renderer: Renderer, data: DataSettings) -> TokenRows:
    """Render pairs into rows; one that is too long is dropped unless the recipe says otherwise."""
    return build_pair_rows(loaded, renderer, max_length=data.max_length, too_long=data.too_long or "drop")


def build_arguments(training: TrainingSettings, run: RunArguments) -> DPOConfig:
    """Build the trainer's own config.

    Raises:
        RecipeError: the library refuses a setting.
    """
    return build_config(DPOConfig, training, run, {"max_length": None, **BY_LENGTH})


def build_trainer(parts: TrainerParts) -> PreferenceTrainer:
    """Build the trainer of one run, and choose whether it computes a pair's prompt once.

    Raises:
        RecipeError: prompts are to be shared always, with something that excludes it.
        PlaceError: the same, and this device computes something else so.
    """
    trainer = build(PreferenceTrainer, PairCollator, parts)
    trainer.shared_prompts = choose_prompts(trainer, parts.data.share_prompts, parts.base)
    return trainer
