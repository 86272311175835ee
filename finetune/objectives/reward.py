"""A reward model: one number for an answer, higher for those that people chose, on TRL's RewardTrainer.

The base ends with a score head instead of words; head and adapter are trained on ready rows of pairs. The number
is read at a row's last token, so that it judges prompt and answer as a whole.
"""

from functools import partial
from typing import Any

from datasets import Dataset
from torch import Tensor
from trl import RewardConfig, RewardTrainer

from finetune.data.batches import PairCollator
from finetune.data.preference_tokens import build_pair_rows
from finetune.data.rendering import Renderer
from finetune.data.sources import LoadedExamples
from finetune.data.tokens import TokenRows
from finetune.objectives.building import BY_LENGTH, RunArguments, build, build_config
from finetune.objectives.trainer import StepMixin
from finetune.recipe.schema import DataSettings, TrainingSettings

__all__ = ["ScoreTrainer", "build_arguments", "build_rows", "build_trainer"]


class ScoreTrainer(StepMixin, RewardTrainer):
    """TRL's RewardTrainer with what must sit inside the step, on rows that are ready."""

    scores_per_token = False
    answers_a_row = 2

    def _prepare_dataset(self, dataset: Dataset, *args: Any, **kwargs: Any) -> Dataset:
        return dataset

    def compute_loss(self, model: Any, inputs: dict[str, Any], *args: Any, **kwargs: Any) -> Any:
        """Compute the loss of whole rows: the model takes no mask of the answers."""
        del inputs["completion_mask"]
        return super().compute_loss(model, inputs, *args, **kwargs)

    def score_part(self, part: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
        """Score the answers of a part by the head, and count their tokens."""
        ids, mask = part["input_ids"], part["attention_mask"]
        scores = self.model(input_ids=ids, attention_mask=mask, use_cache=False).logits[:, 0]
        return scores, part["completion_mask"][:, 1:].sum(1)


def build_rows(loaded: LoadedExamples, renderer: Renderer, data: DataSettings) -> TokenRows:
    """Render pairs into rows whose score is trained, and no token of which carries loss by itself."""
    too_long = data.too_long or "drop"
    return build_pair_rows(loaded, renderer, max_length=data.max_length, too_long=too_long, trains_tokens=False)


def build_arguments(training: TrainingSettings, run: RunArguments) -> RewardConfig:
    """Build the trainer's own config.

    Raises:
        RecipeError: the library refuses a setting.
    """
    return build_config(RewardConfig, training, run, {"max_length": None, **BY_LENGTH})


# The base has to end with a score. TRL tells the model the tokenizer's pad token, by which it finds a row's last one.
build_trainer = partial(build, ScoreTrainer, PairCollator)
