"""The objectives by name: what a row is made of, how rows become tokens, and which trainer runs them."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from finetune.data.tokens import TokenRows
from finetune.objectives import supervised

__all__ = ["OBJECTIVES", "Objective"]


@dataclass(frozen=True, slots=True)
class Objective:
    """One way to train.

    Attributes:
        reads: the kind of example its rows are read as.
        build_rows: examples and renderer to rows of tokens.
        build_trainer: rows and model to the trainer.
    """

    reads: Literal["conversation", "document"]
    build_rows: Callable[..., TokenRows]
    build_trainer: Callable[..., supervised.SupervisedTrainer]


OBJECTIVES = {
    "sft": Objective("conversation", supervised.build_conversation_rows, supervised.build_trainer),
    "pretrain": Objective("document", supervised.build_document_rows, supervised.build_trainer),
}
