"""The objectives by name: how rows become tokens, and which trainer runs them.

What kind of example the rows are read as, and what the base ends with, stands in `recipe.row_kinds`.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

from transformers import PreTrainedTokenizerBase, TrainingArguments
from trl import GRPOConfig, RLOOConfig

from finetune.data.rendering import Renderer
from finetune.data.sources import LoadedExamples
from finetune.data.tokens import TokenRows
from finetune.objectives import classify, dpo, kto, masked, orpo, reinforcement, reward, supervised
from finetune.objectives.trainer import StepMixin
from finetune.recipe.schema import DataSettings, TrainingSettings

__all__ = ["OBJECTIVES", "Objective", "RowParts"]


@dataclass(frozen=True, slots=True, kw_only=True)
class RowParts:
    """What rows are built with, beside their examples.

    Attributes:
        data: the recipe's section: how long a row may be, and what becomes of a longer one.
        training: the recipe's section, for the answer that a prompt is to leave room for.
        tokenizer: of the base.
        renderer: of the run's one template; None where no template is put around a text.
    """

    data: DataSettings
    training: TrainingSettings
    tokenizer: PreTrainedTokenizerBase
    renderer: Renderer | None


RowBuilder = Callable[[LoadedExamples, RowParts], TokenRows]


@dataclass(frozen=True, slots=True, kw_only=True)
class Objective:
    """One way to train.

    Attributes:
        build_rows: examples to rows of tokens; None: labelled texts, which `labelled` loads and builds in one.
        build_arguments: the recipe's `training` section to the trainer's own config, before a weight is loaded.
        build_trainer: rows and model to the trainer.
        reads_start: whether the trainer, so configured, reads the model as it was when training began at every step.
        reference_columns: what is put beside each row where that is computed once instead, by TRL's names.
    """

    build_rows: RowBuilder | None
    build_arguments: Callable[..., TrainingArguments]
    build_trainer: Callable[..., StepMixin]
    reads_start: Callable[[Any], bool] = lambda arguments: False
    reference_columns: tuple[str, ...] = ()


def _rendered(build: Callable[[LoadedExamples, Renderer, DataSettings], TokenRows]) -> RowBuilder:
    """Rows that a template is put around."""

    def build_rows(loaded: LoadedExamples, parts: RowParts) -> TokenRows:
        assert parts.renderer is not None
        return build(loaded, parts.renderer, parts.data)

    return build_rows


def _prompts(objective: str) -> RowBuilder:
    """Prompts that leave room for the longest answer that the objective's trainer samples."""

    def build_rows(loaded: LoadedExamples, parts: RowParts) -> TokenRows:
        assert parts.renderer is not None
        return reinforcement.build_rows(objective, loaded, parts.renderer, parts.data, parts.training)

    return build_rows


def _masked(loaded: LoadedExamples, parts: RowParts) -> TokenRows:
    """Plain text as it is."""
    return masked.build_rows(loaded, parts.tokenizer, parts.data)


OBJECTIVES = {
    "sft": Objective(
        build_rows=_rendered(supervised.build_conversation_rows),
        build_arguments=supervised.build_arguments,
        build_trainer=supervised.build_trainer,
    ),
    "pretrain": Objective(
        build_rows=_rendered(supervised.build_document_rows),
        build_arguments=supervised.build_arguments,
        build_trainer=supervised.build_trainer,
    ),
    "mlm": Objective(
        build_rows=_masked,
        build_arguments=masked.build_arguments,
        build_trainer=masked.build_trainer,
    ),
    "dpo": Objective(
        build_rows=_rendered(dpo.build_rows),
        build_arguments=dpo.build_arguments,
        build_trainer=dpo.build_trainer,
        reads_start=lambda arguments: not arguments.precompute_ref_log_probs,
        reference_columns=dpo.PreferenceTrainer.reference_columns,
    ),
    "kto": Objective(
        build_rows=_rendered(kto.build_rows),
        build_arguments=kto.build_arguments,
        build_trainer=kto.build_trainer,
        reads_start=lambda arguments: not arguments.precompute_ref_log_probs,
        reference_columns=kto.JudgedTrainer.reference_columns,
    ),
    "orpo": Objective(
        build_rows=_rendered(dpo.build_rows),
        build_arguments=orpo.build_arguments,
        build_trainer=orpo.build_trainer,
    ),
    "reward": Objective(
        build_rows=_rendered(reward.build_rows),
        build_arguments=reward.build_arguments,
        build_trainer=reward.build_trainer,
    ),
    "rloo": Objective(
        build_rows=_prompts("rloo"),
        build_arguments=partial(reinforcement.build_arguments, RLOOConfig),
        build_trainer=partial(reinforcement.build_trainer, reinforcement.LeaveOneOutTrainer),
        reads_start=lambda arguments: arguments.beta > 0,
    ),
    "grpo": Objective(
        build_rows=_prompts("grpo"),
        build_arguments=partial(reinforcement.build_arguments, GRPOConfig),
        build_trainer=partial(reinforcement.build_trainer, reinforcement.GroupTrainer),
        reads_start=lambda arguments: arguments.beta > 0,
    ),
    "classify": Objective(
        build_rows=None,
        build_arguments=classify.build_arguments,
        build_trainer=classify.build_trainer,
    ),
}
