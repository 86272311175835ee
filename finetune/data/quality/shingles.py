"""A text to what it is compared by word for word: its shingles, their MinHash signature, their exact Jaccard.

Hashes are fixed functions of the words, so that the same rows give the same signatures in every process.
"""

import re
import zlib
from collections.abc import Sequence

import numpy as np
from datasketch import MinHash
from numpy.typing import NDArray

__all__ = ["SIGNATURE_LENGTH", "Signer", "find_shingles", "jaccard", "to_words"]

SIGNATURE_LENGTH = 128
_SHINGLE_WORDS = 3
_MAX_KNOWN_WORDS = 1_000_000

# A word; a letter of a script that sets no spaces; a sign of arithmetic, without which 2 + 3 would be 2 - 3.
_UNSPACED = "\u0e00-\u0e7f\u3040-\u30ff\u3400-\u9fff\uac00-\ud7af"
_SIGNS = r"(?<=\w)#|[+=<>%^$€£]|[-*/](?=\s*\d)"
_WORDS = re.compile(rf"[^\W{_UNSPACED}]+|[{_UNSPACED}]|{_SIGNS}")
_ASCII_WORDS = re.compile(rf"\w+|{_SIGNS}", re.ASCII)


def to_words(text: str) -> list[str]:
    """Split a text into lower-case words; punctuation is left out."""
    return (_ASCII_WORDS if text.isascii() else _WORDS).findall(text.lower())


class _WordHashes(dict[str, int]):
    """Words to hashes, computed once for each word."""

    def __missing__(self, word: str) -> int:
        data = word.encode("utf-8", "surrogatepass")
        self[word] = value = zlib.crc32(data) << 32 | zlib.crc32(data, 0xFFFFFFFF)
        return value


_HASHES = _WordHashes()


def find_shingles(words: Sequence[str]) -> NDArray[np.uint64]:
    """Find the hashes of every three words in a row, sorted and each once; of fewer words the one of all of them."""
    if len(_HASHES) > _MAX_KNOWN_WORDS:
        _HASHES.clear()
    hashes = np.fromiter(map(_HASHES.__getitem__, words), np.uint64, len(words))
    if not len(hashes):
        return hashes
    width = min(_SHINGLE_WORDS, len(hashes))
    mixed = np.zeros(len(hashes) - width + 1, np.uint64)
    for place in range(width):
        mixed = _mix(mixed + hashes[place : place + len(mixed)])
    return np.unique(mixed)


def _mix(values: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """Spread every bit over all others. Source: SplitMix64's finalizer, Steele et al. 2014."""
    values = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    values = (values ^ (values >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return values ^ (values >> np.uint64(31))


def jaccard(one: NDArray[np.uint64], other: NDArray[np.uint64]) -> float:
    """The share of shingles that two texts have in common, of all that either has; two empty ones are equal."""
    common = len(np.intersect1d(one, other, assume_unique=True))
    either = len(one) + len(other) - common
    return common / either if either else 1.0


class Signer:
    """Signs sets of shingles by MinHash, with one fixed set of permutations."""

    def __init__(self) -> None:
        self._minhash = MinHash(num_perm=SIGNATURE_LENGTH, seed=1, hashfunc=int)

    def sign(self, shingles: NDArray[np.uint64]) -> NDArray[np.uint32]:
        """Sign shingles: the share of equal numbers of two signatures estimates their Jaccard; shape (128,)."""
        self._minhash.clear()
        self._minhash.update_batch((shingles >> np.uint64(32)).tolist())
        return self._minhash.hashvalues
