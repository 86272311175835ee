"""How an answer is compared with its reference."""

__all__ = ["METRICS", "exact_match"]


def exact_match(answer: str, reference: str) -> float:
    """Score 1.0 where both say the same words, else 0.0.

    Spaces around and between words, upper and lower case and one final full stop do not count:
    they are matters of style, and the score is of knowledge.
    """
    return float(_normalized(answer) == _normalized(reference))


def _normalized(text: str) -> str:
    return " ".join(text.split()).removesuffix(".").rstrip().casefold()


METRICS = {"exact_match": exact_match}
