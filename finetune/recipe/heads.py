"""What the base of an objective ends with.

How a base is given its head is in `model.heads`.
"""

from collections.abc import Mapping
from typing import Literal

__all__ = ["HEAD_OF_OBJECTIVE", "Head"]

# The words it goes on with, those it restores, labels of a text, the score of a reward model.
Head = Literal["words", "masked", "labels", "score"]

HEAD_OF_OBJECTIVE: Mapping[str, Head] = {
    "sft": "words",
    "pretrain": "words",
    "mlm": "masked",
    "dpo": "words",
    "kto": "words",
    "orpo": "words",
    "reward": "score",
    "rloo": "words",
    "grpo": "words",
    "classify": "labels",
}
