"""Chance that is the same everywhere: draws by `random.Random.random()` alone, which Python promises never to change."""

from collections.abc import Sequence
from random import Random
from typing import TypeVar

Item = TypeVar("Item")


class Dice:
    """A named source of draws; two dice of one name give the same draws."""

    def __init__(self, name: str) -> None:
        self._random = Random(name)

    def pick(self, items: Sequence[Item]) -> Item:
        """One of the items, each as likely as any other."""
        return items[int(self._random.random() * len(items))]

    def happens(self, chance_fraction: float) -> bool:
        """True in `chance_fraction` of all draws."""
        return self._random.random() < chance_fraction

    def shuffle(self, items: Sequence[Item]) -> list[Item]:
        """The items in a drawn order."""
        keys = [self._random.random() for _ in items]
        return [items[position] for position in sorted(range(len(items)), key=keys.__getitem__)]
