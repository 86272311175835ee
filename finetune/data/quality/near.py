"""Near repeats: pairs of rows that have almost the same words, found by signature and then verified word by word.

Signatures are cut into bands; rows that agree in a whole band are looked at. datasketch's `MinHashLSH` finds the same
pairs and keeps 6.6 kB of Python sets a row (measured), and every pair of a large bucket; sorting a
band keeps 12 bytes a row.
"""

import re
from collections.abc import Iterator, Sequence
from difflib import SequenceMatcher, get_close_matches

import numpy as np
from numpy.typing import NDArray

from finetune.data.quality.shingles import find_shingles, jaccard, to_words
from finetune.data.quality.texts import RowTexts

__all__ = ["MIN_JACCARD", "find_near_pairs", "is_near"]

# A changed word takes three shingles along: at 0.5 one in a row of 16 words, two in 20, five in 47 are still near.
MIN_JACCARD = 0.5
# Rows of one pattern with another number or name are different questions unless almost nothing else differs.
_MIN_JACCARD_OTHER_NAMES = 0.9
_MIN_JACCARD_OF_TAIL = 0.3
# Shorter rows, and shorter answers, differ in a word that matters: only punctuation may.
_MIN_WORDS = 16
_MIN_WORDS_OF_TAIL = 10
_MIN_WORDS_OF_SHORT_TAIL = 5
_MIN_RATIO_OF_SHORT_TAIL = 0.7

# At a Jaccard of 0.5, 42 bands of 3 rows miss 4 pairs in 1,000, at 0.6 none in 10,000: (1 - J^3)^42.
# Source: Leskovec et al., Mining of Massive Datasets, 3.4.2.
_BANDS = 42
_ROWS_OF_BAND = 3
# Rows of one bucket that each is compared with, the nearest before it: a pattern that all rows share fills buckets.
_MAX_NEIGHBOURS = 12
# Four standard deviations of the estimate (0.044 at 0.5) below the threshold.
_MIN_ESTIMATE = MIN_JACCARD - 0.18

# A capital inside a sentence.
_NAME = re.compile(r"(?<=[\w,;] )[A-Z]\w+")


def find_near_pairs(
    signatures: NDArray[np.uint32], others: NDArray[np.uint32] | None = None
) -> Iterator[tuple[int, int]]:
    """Find the pairs of rows whose signatures say they may be near repeats, each once, in order.

    Args:
        signatures: of the rows, shape (rows, 128).
        others: of the rows to compare with, e.g. held-out ones; None: the rows before each.

    Yields:
        A row's index, and that of a row before it, or in `others`.
    """
    pairs: set[tuple[int, int]] = set()
    for band in range(_BANDS):
        columns = slice(band * _ROWS_OF_BAND, (band + 1) * _ROWS_OF_BAND)
        keys = _to_keys(signatures[:, columns])
        found = _pair_within(keys) if others is None else _pair_between(keys, _to_keys(others[:, columns]))
        compared = signatures if others is None else others
        equal = np.mean(signatures[found[:, 0]] == compared[found[:, 1]], axis=1)
        pairs.update(map(tuple, found[equal >= _MIN_ESTIMATE].tolist()))
    yield from sorted(pairs)


def _to_keys(band: NDArray[np.uint32]) -> NDArray[np.uint64]:
    keys = np.zeros(len(band), np.uint64)
    for column in band.T:
        keys = (keys ^ column) * np.uint64(0x9E3779B97F4A7C15)
        keys ^= keys >> np.uint64(29)
    return keys


def _pair_within(keys: NDArray[np.uint64]) -> NDArray[np.int64]:
    """Pair each row with the nearest rows before it that have its key; shape (pairs, 2)."""
    order = np.argsort(keys, kind="stable")
    ordered = keys[order]
    pairs = []
    for step in range(1, min(_MAX_NEIGHBOURS, len(keys) - 1) + 1):
        same = np.flatnonzero(ordered[step:] == ordered[:-step])
        if not len(same):
            break
        pairs.append(np.stack([order[same + step], order[same]], axis=1))
    return np.concatenate(pairs) if pairs else np.empty((0, 2), np.int64)


def _pair_between(keys: NDArray[np.uint64], others: NDArray[np.uint64]) -> NDArray[np.int64]:
    """Pair each row with the first of the other rows that have its key; shape (pairs, 2)."""
    order = np.argsort(others, kind="stable")
    ordered = others[order]
    first, last = np.searchsorted(ordered, keys, "left"), np.searchsorted(ordered, keys, "right")
    pairs = []
    for step in range(_MAX_NEIGHBOURS):
        rows = np.flatnonzero(first + step < last)
        pairs.append(np.stack([rows, order[first[rows] + step]], axis=1))
    return np.concatenate(pairs)


def is_near(one: RowTexts, other: RowTexts) -> bool:
    """Whether two rows have almost the same words, all together and in each part behind the prompt."""
    words, other_words = to_words(one.words), to_words(other.words)
    if min(len(words), len(other_words)) < _MIN_WORDS:
        return words == other_words
    likeness = jaccard(find_shingles(words), find_shingles(other_words))
    if likeness < MIN_JACCARD:
        return False
    if likeness < _MIN_JACCARD_OTHER_NAMES and _differ_in_names(one.words, words, other.words, other_words):
        return False
    return len(one.tails) == len(other.tails) and all(map(_is_near_tail, one.tails, other.tails))


def _differ_in_names(text: str, words: Sequence[str], other_text: str, other_words: Sequence[str]) -> bool:
    """Whether each text has a number or a name that the other has not: one was put for another."""
    names = _find_names(text, words) - set(other_words)
    other_names = _find_names(other_text, other_words) - set(words)
    # A name with a typo is the same name; a number with one is another number.
    names = {name for name in names if not (name.isalpha() and get_close_matches(name, other_names, 1, 0.7))}
    return bool(names and other_names)


def _find_names(text: str, words: Sequence[str]) -> set[str]:
    numbers = {word for word in words if any(sign.isdigit() for sign in word)}
    return numbers | {name.lower() for name in _NAME.findall(text)}


def _is_near_tail(one: str, other: str) -> bool:
    words, other_words = to_words(one), to_words(other)
    if words == other_words:
        return True
    fewest = min(len(words), len(other_words))
    if fewest >= _MIN_WORDS_OF_TAIL:
        return jaccard(find_shingles(words), find_shingles(other_words)) >= _MIN_JACCARD_OF_TAIL
    # Too few for shingles: word by word, and never another label or number.
    return (
        fewest >= _MIN_WORDS_OF_SHORT_TAIL
        and SequenceMatcher(None, words, other_words, autojunk=False).ratio() >= _MIN_RATIO_OF_SHORT_TAIL
        and not _differ_in_names(one, words, other, other_words)
    )
