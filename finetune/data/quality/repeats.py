"""Repeats of rows: the same again, the same as a held-out row, and other answers to the same prompt.

In go keys, numbers of 64 bits that are equal where folded texts are; out come pairs of a row and the first one it
repeats or contradicts.
"""

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from finetune.data.quality.texts import RowTexts, fold, fold_answer, hash_texts
from finetune.recipe.row_kinds import Kind

__all__ = ["RowKeys", "find_conflicts", "find_overlap", "find_repeats", "to_keys"]

# Scores of two annotators differ a little; by more than a tenth of all scores' range they say different things.
_MAX_LIKE_SCORES = 0.1


@dataclass(frozen=True, slots=True)
class RowKeys:
    """What a row is compared by.

    Attributes:
        row: of all its texts and its verdict.
        question: of what a verdict or an answer is given to: the prompt; of labelled texts the texts, of judged
            answers prompt and answer, of pairs the prompt and both answers in either order.
        answer: of what was given; 0 where there is none.
        overlap: of what a held-out row must not share: the prompt, or the texts where there are no prompts.
    """

    row: int
    question: int
    answer: int
    overlap: int


def to_keys(texts: RowTexts, kind: Kind) -> RowKeys:
    """Convert a row's texts to its keys."""
    prompt = fold(texts.prompt)
    tails = [fold(tail) for tail in texts.tails]
    row = hash_texts(prompt, *tails, texts.verdict)
    asked = hash_texts(prompt)
    match kind:
        case "labelled":
            asked = hash_texts(prompt, *tails)
            return RowKeys(row, asked, hash_texts(texts.verdict) if texts.verdict else 0, asked)
        case "judged":
            return RowKeys(row, hash_texts(prompt, *tails), hash_texts(texts.verdict), asked)
        case "preference":
            return RowKeys(row, hash_texts(prompt, *sorted(tails)), hash_texts(*tails), asked)
        case "document":
            return RowKeys(row, asked, 0, asked)
    return RowKeys(row, asked, hash_texts(*map(fold_answer, texts.tails)) if texts.tails else 0, asked)


def find_repeats(keys: NDArray[np.uint64]) -> list[tuple[int, int]]:
    """Find the rows whose key an earlier row has, each with the first of those."""
    _, first, place = np.unique(keys, return_index=True, return_inverse=True)
    rows = np.flatnonzero(first[place] != np.arange(len(keys)))
    return list(zip(rows.tolist(), first[place[rows]].tolist(), strict=True))


def find_overlap(keys: NDArray[np.uint64], held_out: NDArray[np.uint64]) -> list[tuple[int, int]]:
    """Find the rows whose key a held-out row has, each with the first of those."""
    known, first = np.unique(held_out, return_index=True)
    if not len(known):
        return []
    place = np.minimum(np.searchsorted(known, keys), len(known) - 1)
    rows = np.flatnonzero(known[place] == keys)
    return list(zip(rows.tolist(), first[place[rows]].tolist(), strict=True))


def find_conflicts(
    questions: NDArray[np.uint64], answers: NDArray[np.uint64], scores: NDArray[np.float64] | None = None
) -> list[tuple[int, int]]:
    """Find the rows that answer what the first row with their question answers otherwise, each with that first row.

    Args:
        questions: key of each row's question.
        answers: key of each row's answer; 0: it has none and contradicts nothing.
        scores: answers that are numbers, NaN for others; they differ by more than a tenth of the range of all.
    """
    answered = np.flatnonzero(answers)
    pairs = [(int(answered[row]), int(answered[first])) for row, first in find_repeats(questions[answered])]
    different = [(row, first) for row, first in pairs if answers[row] != answers[first]]
    if scores is None or np.isnan(scores).all():
        return different
    tolerance = _MAX_LIKE_SCORES * float(np.nanmax(scores) - np.nanmin(scores))
    return [(row, first) for row, first in different if not abs(scores[row] - scores[first]) <= tolerance]


def stack_keys(keys: Iterable[RowKeys]) -> dict[str, NDArray[np.uint64]]:
    """Stack rows' keys to one array each."""
    rows = [(key.row, key.question, key.answer, key.overlap) for key in keys]
    columns = np.array(rows, np.uint64).reshape(-1, 4).T
    return dict(zip(("row", "question", "answer", "overlap"), columns, strict=True))
