"""The names nearest to a misspelled one, by edits."""

from collections.abc import Iterable

__all__ = ["find_nearest"]

_MAX_NAME_LENGTH = 60  # of longer ones no name is near


def find_nearest(name: str, candidates: Iterable[str]) -> list[str]:
    """The names fewest edits away, at most three; none where that is more than a third of the name.

    An edit is a letter put in, left out or changed, or two neighbours swapped.
    """
    if len(name) > _MAX_NAME_LENGTH:
        return []
    limit = max(1, len(name) // 3)
    nearest: list[str] = []
    for candidate in candidates:
        edits = _count_edits(name.lower(), candidate.lower(), limit)
        if edits < limit:
            nearest, limit = [candidate], edits
        elif edits == limit:
            nearest.append(candidate)
    return nearest[:3]


def _count_edits(first: str, second: str, limit: int) -> int:
    """Edits between two words (optimal string alignment); any number above the limit where it is exceeded."""
    if abs(len(first) - len(second)) > limit:
        return limit + 1
    before_last: list[int] = []
    last = list(range(len(second) + 1))
    for row, letter in enumerate(first, start=1):
        current = [row]
        for column, other in enumerate(second, start=1):
            edits = min(last[column] + 1, current[-1] + 1, last[column - 1] + (letter != other))
            if row > 1 and column > 1 and letter == second[column - 2] and first[row - 2] == other:
                edits = min(edits, before_last[column - 2] + 1)
            current.append(edits)
        if min(current) > limit:
            return limit + 1
        before_last, last = last, current
    return last[-1]
