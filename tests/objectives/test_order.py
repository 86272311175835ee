"""The order of rows depends on the seed and the epoch alone, and keeps like lengths together."""

import pytest
import torch

from finetune.objectives.order import LengthGroupedOrder

LENGTHS = [(index * 37) % 101 + 1 for index in range(400)]


def order(epoch: int = 0, seed: int = 7, lengths: list[int] = LENGTHS) -> list[int]:
    sampler = LengthGroupedOrder(lengths, group_size=8, seed=seed)
    sampler.set_epoch(epoch)
    return list(sampler)


@pytest.mark.parametrize("num_rows", [1, 7, 8, 9, 400, 403])
def test_every_row_comes_once(num_rows):
    lengths = (LENGTHS * 2)[:num_rows]
    assert sorted(order(lengths=lengths)) == list(range(num_rows))


def test_the_global_generator_plays_no_part():
    torch.manual_seed(1)
    first = order()
    torch.manual_seed(2)
    assert order() == first


def test_epochs_and_seeds_differ():
    assert order(epoch=0) != order(epoch=1)
    assert order(seed=7) != order(seed=8)


def test_groups_hold_rows_of_like_length_and_the_longest_comes_first():
    rows = order()
    groups = [rows[start : start + 8] for start in range(0, len(rows), 8)]
    padded = sum(len(group) * max(LENGTHS[row] for row in group) for group in groups)
    assert padded < 1.15 * sum(LENGTHS)  # in random order it is 1.8 times as many
    assert max(LENGTHS) in [LENGTHS[row] for row in groups[0]]


def test_long_and_short_groups_take_turns_at_random():
    rows = order()
    longest = [max(LENGTHS[row] for row in rows[start : start + 8]) for start in range(8, len(rows), 8)]
    assert longest != sorted(longest, reverse=True)
