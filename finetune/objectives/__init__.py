"""The objectives by name: how rows become tokens, and which trainer runs them.

What kind of example the rows are read as stands in `recipe.row_kinds`.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

from transformers import TrainingArguments
from trl import GRPOConfig, RLOOConfig

from finetune.model.heads import Head
from finetune.objectives import classify, dpo, kto, masked, orpo, reinforcement, reward, supervised
from finetune.objectives.labelled import load_labelled_rows
from finetune.objectives.trainer import StepMixin

__all__ = ["OBJECTIVES", "Objective"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Objective:
    """One way to train.

    Attributes:
        build_rows: examples and renderer to rows of tokens; of labelled texts the sections themselves.
        build_arguments: the recipe's `training` section to the trainer's own config, before a weight is loaded.
        build_trainer: rows and model to the trainer.
        head: what the base ends with.
        reads_start: whether the trainer, so configured, reads the model as it was when training began at every step.
        reference_columns: what is put beside each row where that is computed once instead, by TRL's names.
    """

    build_rows: Callable[..., Any]
    build_arguments: Callable[..., TrainingArguments]
    build_trainer: Callable[..., StepMixin]
    head: Head = "words"
    reads_start: Callable[[Any], bool] = lambda arguments: False
    reference_columns: tuple[str, ...] = ()


OBJECTIVES = {
    "sft": Objective(
        build_rows=supervised.build_conversation_rows,
        build_arguments=supervised.build_arguments,
        build_trainer=supervised.build_trainer,
    ),
    "pretrain": Objective(
        build_rows=supervised.build_document_rows,
        build_arguments=supervised.build_arguments,
        build_trainer=supervised.build_trainer,
    ),
    "mlm": Objective(
        build_rows=masked.build_rows,
        build_arguments=masked.build_arguments,
        build_trainer=masked.build_trainer,
        head="masked",
    ),
    "dpo": Objective(
        build_rows=dpo.build_rows,
        build_arguments=dpo.build_arguments,
        build_trainer=dpo.build_trainer,
        reads_start=lambda arguments: not arguments.precompute_ref_log_probs,
        reference_columns=dpo.REFERENCE_COLUMNS,
    ),
    "kto": Objective(
        build_rows=kto.build_rows,
        build_arguments=kto.build_arguments,
        build_trainer=kto.build_trainer,
        reads_start=lambda arguments: not arguments.precompute_ref_log_probs,
        reference_columns=kto.REFERENCE_COLUMNS,
    ),
    "orpo": Objective(
        build_rows=dpo.build_rows,
        build_arguments=orpo.build_arguments,
        build_trainer=orpo.build_trainer,
    ),
    "reward": Objective(
        build_rows=reward.build_rows,
        build_arguments=reward.build_arguments,
        build_trainer=reward.build_trainer,
        head="score",
    ),
    "rloo": Objective(
        build_rows=partial(reinforcement.build_rows, "rloo"),
        build_arguments=partial(reinforcement.build_arguments, RLOOConfig),
        build_trainer=partial(reinforcement.build_trainer, reinforcement.LeaveOneOutTrainer),
        reads_start=lambda arguments: arguments.beta > 0,
    ),
    "grpo": Objective(
        build_rows=partial(reinforcement.build_rows, "grpo"),
        build_arguments=partial(reinforcement.build_arguments, GRPOConfig),
        build_trainer=partial(reinforcement.build_trainer, reinforcement.GroupTrainer),
        reads_start=lambda arguments: arguments.beta > 0,
    ),
    "classify": Objective(
        build_rows=load_labelled_rows,
        build_arguments=classify.build_arguments,
        build_trainer=classify.build_trainer,
        head="labels",
    ),
}
