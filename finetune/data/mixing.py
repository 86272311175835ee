"""Which rows are taken and in which order: sources mixed by weight, and rows held out.

Numbers of rows go in and indices come out; no row is read.
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

__all__ = ["mix_rows", "split_rows"]


def mix_rows(num_rows: Sequence[int], weights: Sequence[float], seed: int) -> tuple[NDArray[np.int64], list[int]]:
    """Mix sources in proportion to their weights until one of them is used up.

    The k-th row of a source (from 0, its rows shuffled by the seed) stands at (k + 1/2) / weight, and the mix
    reads all sources by that position: so every stretch of it holds them in proportion, not only the whole.

    Args:
        num_rows: rows of each source.
        weights: share of each, relative to the others.
        seed: of the shuffling.

    Returns:
        Indices into the sources laid end to end, and how many rows each gave.
    """
    end = min(rows / weight for rows, weight in zip(num_rows, weights, strict=True))
    generator = np.random.default_rng(seed)
    positions, indices, taken = [], [], []
    start = 0
    for rows, weight in zip(num_rows, weights, strict=True):
        order = generator.permutation(rows) + start
        # The source that ends the mix gives all its rows, whatever the division rounded to.
        count = min(rows, int(np.floor(end * weight + 0.5 + 1e-9)))
        positions.append((np.arange(count) + 0.5) / weight)
        indices.append(order[:count])
        taken.append(count)
        start += rows
    by_position = np.argsort(np.concatenate(positions), kind="stable")
    return np.concatenate(indices)[by_position], taken


def split_rows(num_rows: int, fraction: float, seed: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Split rows in two by the seed: those kept and those held out, each in their own order and never empty.

    Args:
        num_rows: at least 2.
        fraction: share held out.
        seed: of the choice.
    """
    num_held_out = min(max(round(num_rows * fraction), 1), num_rows - 1)
    order = np.random.default_rng(seed).permutation(num_rows)
    return np.sort(order[num_held_out:]), np.sort(order[:num_held_out])
