"""The order in which rows of unequal length are trained, fixed by the seed and the epoch alone."""

from collections.abc import Iterator, Sequence

import torch
from torch.utils.data import Sampler
from transformers.trainer_pt_utils import get_length_grouped_indices

__all__ = ["LengthGroupedOrder"]


class LengthGroupedOrder(Sampler[int]):
    """Rows of like length stand together, so that little is padded; the groups come in random order.

    Transformers' own sampler draws from the global generator, so a resumed run would see another
    order than the one it continues, and walks from long to short rows over and over.

    Args:
        lengths: tokens of each row.
        group_size: rows of an optimizer step.
        seed: with the epoch it decides the order.
    """

    def __init__(self, lengths: Sequence[int], group_size: int, seed: int) -> None:
        self._lengths = lengths
        self._group_size = group_size
        self._seed = seed
        self._epoch = 0

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch; the data loader calls it."""
        self._epoch = epoch

    def __len__(self) -> int:
        return len(self._lengths)

    def __iter__(self) -> Iterator[int]:
        generator = torch.Generator().manual_seed(self._seed + self._epoch)
        rows = get_length_grouped_indices(self._lengths, self._group_size, generator=generator)
        starts = list(range(0, len(rows), self._group_size))
        # The first group holds the longest row, so that a batch too large for the device shows at once;
        # a last one that is not full stays last, or it would tear the others apart.
        is_ragged = len(rows) % self._group_size != 0 and len(starts) > 1
        movable = starts[1:-1] if is_ragged else starts[1:]
        shuffled = [movable[place] for place in torch.randperm(len(movable), generator=generator).tolist()]
        for start in [starts[0], *shuffled, *(starts[-1:] if is_ragged else [])]:
            yield from rows[start : start + self._group_size]
