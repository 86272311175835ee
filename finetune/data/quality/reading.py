"""Rows read once: what each is compared by, and what its own text shows.

In goes a dataset of examples; out come keys, signatures, languages, lengths and the faults that one row shows
alone. No text is kept but the quotes of the first rows of each kind.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import datasets
import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from finetune.data.quality.answers import find_boilerplate, find_refusal, is_empty, is_too_short
from finetune.data.quality.damage import find_damage
from finetune.data.quality.finding import MAX_EXAMPLES, FindingName, quote
from finetune.data.quality.language import identify_answer, identify_asked
from finetune.data.quality.markers import find_leftover
from finetune.data.quality.repeats import RowKeys, to_keys
from finetune.data.quality.shingles import SIGNATURE_LENGTH, Signer, find_shingles, to_words
from finetune.data.quality.texts import RowTexts, to_texts, without_answers
from finetune.recipe.row_kinds import KINDS_OF_FINDING, Kind

__all__ = ["Flagged", "ReadRows", "iterate_texts", "read_rows"]

_BATCH_ROWS = 1000


@dataclass(slots=True)
class Flagged:
    """Rows that show one kind of fault, in order, and quotes of the first."""

    rows: list[int] = field(default_factory=list)
    quotes: list[str] = field(default_factory=list)

    def add(self, row: int, text: str, start: int) -> None:
        """Add a row, with the text that shows the fault and where in it."""
        self.rows.append(row)
        if len(self.quotes) < MAX_EXAMPLES:
            self.quotes.append(quote(text, start))


@dataclass(frozen=True, slots=True)
class ReadRows:
    """What was read of a set of rows.

    Attributes:
        keys: of every row.
        signed: indices of the rows with words that no earlier row repeats exactly.
        signatures: of those, shape (signed, 128).
        flagged: kind -> the rows that show it alone.
        languages: of what each row asks, and whether that is sure; empty where nothing was checked.
        answers: of what each row answers; likewise.
        lengths: characters of each pair's chosen and rejected answer, shape (rows, 2); of other rows no entries.
        scores: labels that are numbers, NaN for others, shape (rows,).
    """

    keys: list[RowKeys]
    signed: NDArray[np.int64]
    signatures: NDArray[np.uint32]
    flagged: dict[FindingName, Flagged]
    languages: list[tuple[str, bool]]
    answers: list[str]
    lengths: NDArray[np.int64]
    scores: NDArray[np.float64]


def iterate_texts(dataset: datasets.Dataset, kind: Kind) -> Iterator[RowTexts]:
    """Iterate over the rows' texts, a batch of rows in memory at a time."""
    for batch in dataset.select_columns(["example"]).iter(batch_size=_BATCH_ROWS):
        yield from (to_texts(example, kind) for example in batch["example"])


def read_rows(
    dataset: datasets.Dataset, kind: Kind, *, check: bool, title: str, prompts_alone: bool = False
) -> ReadRows:
    """Read every row once.

    Args:
        dataset: of examples.
        kind: of those.
        check: whether the checks of one row are run; held-out rows are only compared with.
        title: of the progress bar.
        prompts_alone: whether signatures are of the prompts, to compare them with rows of another kind.
    """
    checks = [one for name, one in _CHECKS.items() if check and kind in KINDS_OF_FINDING[name]]
    flagged: dict[FindingName, Flagged] = {}
    signer, seen = Signer(), set[int]()
    keys: list[RowKeys] = []
    signed: list[int] = []
    languages: list[tuple[str, bool]] = []
    answers: list[str] = []
    lengths: list[tuple[int, int]] = []
    signatures = np.empty((len(dataset), SIGNATURE_LENGTH), np.uint32)
    scores = np.full(len(dataset), np.nan)
    rows = tqdm(iterate_texts(dataset, kind), total=len(dataset), desc=title, unit=" rows", leave=False, disable=None)
    for row, texts in enumerate(rows):
        keys.append(to_keys(texts, kind))
        compared = without_answers(texts) if prompts_alone else texts
        if keys[-1].row not in seen and len(shingles := find_shingles(to_words(compared.words))):
            signatures[len(signed)] = signer.sign(shingles)
            signed.append(row)
        seen.add(keys[-1].row)
        for one in checks:
            for name, text, start in one(texts):
                flagged.setdefault(name, Flagged()).add(row, text, start)
        if check:
            languages.append(identify_asked(texts))
            answers.append(identify_answer(texts))
        if kind == "preference":
            lengths.append((len(texts.tails[0]), len(texts.tails[1])))
        if texts.label is not None:
            scores[row] = texts.label
    return ReadRows(
        keys=keys,
        signed=np.array(signed, np.int64),
        signatures=signatures[: len(signed)],
        flagged=flagged,
        languages=languages,
        answers=answers,
        lengths=np.array(lengths, np.int64).reshape(-1, 2),
        scores=scores,
    )


_Found = Iterator[tuple[FindingName, str, int]]


def _check_answers(texts: RowTexts) -> _Found:
    """Check every answer; a row shows each kind once, by the first answer that does."""
    shown = set[FindingName]()
    for asked, answer in texts.answers:
        for name, start in _check_answer(asked, answer):
            if name not in shown:
                shown.add(name)
                yield name, answer, start


def _check_answer(asked: str, answer: str) -> Iterator[tuple[FindingName, int]]:
    if is_empty(answer):
        yield "empty_answers", 0
        return
    if is_too_short(answer, asked):
        yield "short_answers", 0
    if (start := find_refusal(answer, asked)) is not None:
        yield "refusals", start
    if (start := find_boilerplate(answer, asked)) is not None:
        yield "boilerplate", start


def _check_markers(texts: RowTexts) -> _Found:
    if found := find_leftover(texts):
        yield "template_leftovers", *found


def _check_encoding(texts: RowTexts) -> _Found:
    if found := find_damage(texts):
        yield "encoding_damage", *found


# The checks of one row, by one of the kinds that each finds.
_CHECKS: dict[FindingName, Callable[[RowTexts], _Found]] = {
    "refusals": _check_answers,
    "template_leftovers": _check_markers,
    "encoding_damage": _check_encoding,
}
