"""The account of a row: how long it was, what became of it, and how its answers begin and end.

In go a row's ids, which of them are trained, and how many are kept; out come the columns that every kind of token
rows has beside its ids, and that the census counts.
"""

from collections.abc import Sequence, Set
from dataclasses import dataclass
from typing import Any

from datasets import Value

__all__ = ["ACCOUNT_FEATURES", "Ends", "build_account", "build_ends"]

ACCOUNT_FEATURES = {
    "length": Value("int32"),
    "trained": Value("int32"),
    "full_length": Value("int32"),  # before it was cut
    "full_trained": Value("int32"),
    "verdict": Value("string"),
    "control_tokens": Value("int32"),  # that stood in the row's own text
    "answer_lost": Value("bool"),
    "end_lost": Value("bool"),
    "unended": Value("bool"),
    "begins_twice": Value("bool"),
    "source": Value("string"),
    "row": Value("int64"),
}

_SEEN_AT_THE_END = 3  # tokens: white space that a template writes behind the end token may be trained with it


@dataclass(frozen=True, slots=True)
class Ends:
    """How a row begins and how its trained answers end.

    Attributes:
        answer_lost: the cut took a whole answer, or all of its words.
        end_lost: the cut took an answer's end token and none of its words.
        unended: a trained answer stays whose end token does not.
        begins_twice: the row begins with two beginning-of-sequence tokens.
    """

    answer_lost: bool = False
    end_lost: bool = False
    unended: bool = False
    begins_twice: bool = False

    def __or__(self, other: "Ends") -> "Ends":
        """What holds of either of two rows, such as the two answers of a pair."""
        return Ends(
            self.answer_lost or other.answer_lost,
            self.end_lost or other.end_lost,
            self.unended or other.unended,
            self.begins_twice or other.begins_twice,
        )


def build_ends(
    ids: list[int],
    answers: Sequence[tuple[int, int]],
    num_kept: int,
    *,
    stop_ids: Set[int],
    bos_id: int | None,
) -> Ends:
    """Look at a row's beginning and at the end of each of its answers.

    Args:
        ids: of the whole row.
        answers: that carry loss: the first token of each and the one behind its last, in order.
        num_kept: tokens that are left of the row.
        stop_ids: tokens that end an answer; empty where none does.
        bos_id: the token that a row begins with; None: there is none.
    """
    answer_lost = end_lost = unended = False
    for start, end in answers:
        if end <= num_kept:
            unended |= bool(stop_ids) and stop_ids.isdisjoint(ids[max(start, end - _SEEN_AT_THE_END) : end])
        elif start >= num_kept:
            answer_lost = True
        else:
            end_lost = ids[num_kept] in stop_ids
            unended |= bool(stop_ids)
    return Ends(answer_lost, end_lost, unended, begins_twice=bos_id is not None and ids[:2] == [bos_id, bos_id])


def build_account(
    *,
    length: int,
    full_length: int,
    verdict: str,
    trained: int = 0,
    full_trained: int = 0,
    control_tokens: int = 0,
    ends: Ends = Ends(),
) -> dict[str, Any]:
    """Build the columns of one row, all but its place. Lengths are in tokens, the full ones before a cut."""
    return {
        "length": length,
        "trained": trained,
        "full_length": full_length,
        "full_trained": full_trained,
        "verdict": verdict,
        "control_tokens": control_tokens,
        "answer_lost": ends.answer_lost,
        "end_lost": ends.end_lost,
        "unended": ends.unended,
        "begins_twice": ends.begins_twice,
    }
