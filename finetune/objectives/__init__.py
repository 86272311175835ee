"""The objectives by name: what a row is made of, how rows become tokens, and which trainer runs them."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from trl import SFTConfig

from finetune.data.tokens import TokenRows
from finetune.objectives import supervised
from finetune.objectives.trainer import StepMixin

__all__ = ["OBJECTIVES", "Objective"]


@dataclass(frozen=True, slots=True)
class Objective:
    """One way to train.

    Attributes:
        reads: the kind of example its rows are read as.
        build_rows: examples and renderer to rows of tokens.
        build_arguments: the recipe's `training` section to the trainer's own config, before a weight is loaded.
        build_trainer: rows and model to the trainer.
    """

    reads: Literal["conversation", "document"]
    build_rows: Callable[..., TokenRows]
    build_arguments: Callable[..., SFTConfig]
    build_trainer: Callable[..., StepMixin]


OBJECTIVES = {
    "sft": Objective(
        "conversation", supervised.build_conversation_rows, supervised.build_arguments, supervised.build_trainer
    ),
    "pretrain": Objective(
        "document", supervised.build_document_rows, supervised.build_arguments, supervised.build_trainer
    ),
}
