"""How an answer is compared with its reference."""

import re

__all__ = ["METRICS", "exact_match", "extract_answer"]


def extract_answer(answer: str, pattern: str | None) -> str:
    """Take what the pattern's first group finds out of an answer; the whole answer where it finds nothing.

    So that a sentence which ends in the right word is right: "The capital of Arvenia is Hamra." for "Hamra".
    """
    found = re.search(pattern, answer) if pattern is not None else None
    return answer if found is None else found[1] or ""


def exact_match(answer: str, reference: str) -> float:
    """Score 1.0 where both say the same words, else 0.0.

    Spaces around and between words, upper and lower case and one final full stop do not count:
    they are matters of style, and the score is of knowledge.
    """
    return float(_normalized(answer) == _normalized(reference))


def _normalized(text: str) -> str:
    return " ".join(text.split()).removesuffix(".").rstrip().casefold()


METRICS = {"exact_match": exact_match}
