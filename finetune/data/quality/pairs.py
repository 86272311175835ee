"""Length bias: whether pairs can be told apart by the answers' lengths alone.

Source: Singhal et al. 2023 (arXiv:2310.03716): reward models learn length first where it predicts the choice.
"""

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

__all__ = ["LengthBias", "find_length_bias"]

# Of the pairs whose lengths differ, the share in which the favoured length was chosen.
_MIN_SHARE = 0.6
_MIN_SHARE_OF_WARNING = 0.7
# By a two-sided sign test: a set of a hundred fair pairs is reported once in a thousand.
_MAX_P_VALUE = 0.001


@dataclass(frozen=True, slots=True)
class LengthBias:
    """How far length predicts which answer was chosen.

    Attributes:
        favours: `longer` or `shorter` answers.
        pairs: in which the favoured length was chosen.
        share: of the pairs whose lengths differ.
        p_value: of a two-sided sign test, normal approximation.
        mean_chosen_characters: mean length of the chosen answers.
        mean_rejected_characters: mean length of the rejected answers.
        is_strong: whether the share is 70 % or more.
    """

    favours: str
    pairs: int
    share: float
    p_value: float
    mean_chosen_characters: float
    mean_rejected_characters: float
    is_strong: bool

    def to_words(self) -> str:
        """Say which length is favoured, and by how much."""
        return (
            f"The {self.favours} answer is the chosen one in {self.share:.0%} of the pairs whose answers differ in "
            f"length: {self.mean_chosen_characters:.0f} characters on average, {self.mean_rejected_characters:.0f} of "
            "the rejected ones."
        )


def find_length_bias(chosen: NDArray[np.int64], rejected: NDArray[np.int64]) -> LengthBias | None:
    """Find whether one length is favoured.

    Args:
        chosen: characters of each chosen answer.
        rejected: characters of each rejected one.

    Returns:
        None: below 60 % of the pairs whose lengths differ, or what chance gives once in a thousand sets.
    """
    longer, shorter = int(np.sum(chosen > rejected)), int(np.sum(chosen < rejected))
    num_pairs, favoured = longer + shorter, max(longer, shorter)
    if not num_pairs:
        return None
    # Continuity-corrected: at n pairs the number of either side has mean n/2 and variance n/4.
    p_value = math.erfc(max(0.0, favoured - num_pairs / 2 - 0.5) / math.sqrt(num_pairs / 2))
    share = favoured / num_pairs
    if share < _MIN_SHARE or p_value >= _MAX_P_VALUE:
        return None
    return LengthBias(
        favours="longer" if longer > shorter else "shorter",
        pairs=favoured,
        share=round(share, 4),
        p_value=p_value,
        mean_chosen_characters=round(float(np.mean(chosen)), 1),
        mean_rejected_characters=round(float(np.mean(rejected)), 1),
        is_strong=share >= _MIN_SHARE_OF_WARNING,
    )
