"""Repeats of rows: the same again, the same as a held-out row, and other answers to the same prompt.

In go keys, numbers of 64 bits that are equal where folded texts are; out come groups of rows of which one can stay,
or pairs of a row and a held-out one.
"""

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from finetune.data.quality.finding import Group
from finetune.data.quality.texts import RowTexts, fold, fold_answer, fold_loosely, hash_texts
from finetune.recipe.row_kinds import Kind

__all__ = ["RowKeys", "find_conflicts", "find_overlap", "find_repeats", "to_keys"]

# Scores of two annotators differ a little; by more than a tenth of all scores' range they say different things.
_MAX_LIKE_SCORES = 0.1


@dataclass(frozen=True, slots=True)
class RowKeys:
    """What a row is compared by.

    Attributes:
        row: of all its texts, its verdict and which of its answers are trained.
        question: of what a verdict or an answer is given to: the prompt; of labelled texts the texts, of judged
            answers prompt and answer, of pairs the prompt and both answers in either order.
        answer: of what was given; 0 where there is none, or none that is trained.
        overlap: of what a held-out row must not share with a training row: the prompt, or the texts where there are no
            prompts; without case.
        taught: the same of everything that the row teaches to answer, earlier turns of a conversation included.
    """

    row: int
    question: int
    answer: int
    overlap: int
    taught: tuple[int, ...]


def to_keys(texts: RowTexts, kind: Kind) -> RowKeys:
    """Convert a row's texts to its keys."""
    prompt = fold(texts.prompt)
    tails = [fold(tail) for tail in texts.tails]
    row = hash_texts(prompt, *tails, texts.verdict, str(texts.weights))
    overlap = hash_texts(fold_loosely(texts.prompt))
    taught = tuple(hash_texts(fold_loosely(one)) for one in texts.taught if one != texts.prompt)
    match kind:
        case "labelled":
            overlap = hash_texts(*map(fold_loosely, (texts.prompt, *texts.tails)))
            question, answer = hash_texts(prompt, *tails), hash_texts(texts.verdict) if texts.verdict else 0
        case "judged":
            question, answer = hash_texts(prompt, *tails), hash_texts(texts.verdict)
        case "preference":
            question, answer = hash_texts(prompt, *sorted(tails)), hash_texts(*tails)
        case _:
            is_trained = bool(texts.tails) and texts.weights[-1:] != (0,)
            question, answer = hash_texts(prompt), hash_texts(*map(fold_answer, texts.tails)) if is_trained else 0
    return RowKeys(row, question, answer, overlap, (overlap, *taught))


def find_repeats(keys: NDArray[np.uint64]) -> list[Group]:
    """Find the groups of rows that have one key."""
    _, first, place = np.unique(keys, return_index=True, return_inverse=True)
    groups: dict[int, list[int]] = {}
    for row in np.flatnonzero(first[place] != np.arange(len(keys))).tolist():
        groups.setdefault(int(first[place[row]]), []).append(row)
    return [Group([one, *others]) for one, others in groups.items()]


def find_overlap(train: Iterable[RowKeys], held_out: Iterable[RowKeys]) -> list[tuple[int, int]]:
    """Find the rows that teach to answer what a held-out row asks, each with the first of those."""
    first: dict[int, int] = {}
    for row, keys in enumerate(held_out):
        first.setdefault(keys.overlap, row)
    found = [(row, [first[key] for key in keys.taught if key in first]) for row, keys in enumerate(train)]
    return [(row, min(others)) for row, others in found if others]


def find_conflicts(
    questions: NDArray[np.uint64], answers: NDArray[np.uint64], scores: NDArray[np.float64] | None = None
) -> list[Group]:
    """Find the groups of rows that have one question and not one answer.

    Args:
        questions: key of each row's question.
        answers: key of each row's answer; 0: it has none and contradicts nothing.
        scores: answers that are numbers, NaN for others; they differ by more than a tenth of the range of all.
    """
    answered = np.flatnonzero(answers)
    if scores is None or not len(answered) or np.isnan(scores[answered]).any():
        # Any two answers are further apart than the one unit within which numbers say the same.
        says = 2.0 * np.unique(answers, return_inverse=True)[1]
    else:
        says = scores / (_MAX_LIKE_SCORES * float(np.ptp(scores[answered])) or 1.0)
    groups = [answered[group.rows] for group in find_repeats(questions[answered])]
    found = [Group(rows.tolist(), says[rows].tolist()) for rows in groups]
    return [group for group in found if group.find_spare()]


def stack_keys(keys: Iterable[RowKeys]) -> dict[str, NDArray[np.uint64]]:
    """Stack rows' keys to one array each."""
    rows = [(key.row, key.question, key.answer) for key in keys]
    columns = np.array(rows, np.uint64).reshape(-1, 3).T
    return dict(zip(("row", "question", "answer"), columns, strict=True))
