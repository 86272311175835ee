"""Packed rows are those of TRL's best fit, hold every document whole and none twice, and are nearly full."""

import itertools

import numpy as np
import pytest
from datasets import Dataset, Features, List, Value
from trl import pack_dataset

from finetune.data.packing import choose_rows, pack_documents

IDS = Features({"input_ids": List(Value("int32")), "labels": List(Value("int32"))})


def to_documents(lengths: list[int]) -> Dataset:
    """Documents whose tokens are their own numbers, the first token of each not trained."""
    ids = [[number] * length for number, length in enumerate(lengths)]
    labels = [[-100, *row[1:]] for row in ids]
    return Dataset.from_dict({"input_ids": ids, "labels": labels}, features=IDS)


def test_each_document_goes_where_the_least_room_is_left():
    order, num_documents = choose_rows(np.array([3, 6, 4, 7, 1]), max_length=10)
    rows = np.split(order, np.cumsum(num_documents)[:-1])
    assert [row.tolist() for row in rows] == [[3, 0], [1, 2], [4]]


@pytest.mark.parametrize(("max_length", "count"), [(7, 90), (64, 500), (2048, 1500)])
def test_the_rows_are_those_of_trl(max_length, count):
    lengths = np.minimum(np.random.default_rng(max_length).geometric(3 / max_length, count), max_length)
    documents = to_documents(lengths.tolist())
    ours = pack_documents(documents, max_length, f"documents of {max_length}")
    theirs = pack_dataset(documents, max_length, strategy="bfd", map_kwargs={"batch_size": 20_000})
    assert ours.features == theirs.features
    for name in ("input_ids", "labels", "seq_lengths"):
        assert ours[name][:] == theirs[name][:]


@pytest.mark.parametrize("draw_seed", [None, 7])
def test_no_document_is_torn_lost_or_taken_twice(draw_seed):
    lengths = [5, 9, 2, 2, 8, 1]
    packed = pack_documents(to_documents(lengths), 10, "six documents", draw_seed=draw_seed)
    documents = []
    for row in packed:
        assert sum(row["seq_lengths"]) == len(row["input_ids"]) == len(row["labels"]) <= 10
        starts = np.cumsum([0, *row["seq_lengths"]])
        documents += [row["input_ids"][start:end] for start, end in itertools.pairwise(starts)]
        assert all(row["labels"][start] == -100 for start in starts[:-1])
    assert sorted(documents) == [[number] * length for number, length in enumerate(lengths)]


def test_rows_of_documents_taken_from_a_larger_set_hold_those_alone():
    chosen = to_documents([4, 5, 6, 3]).select([1, 3])
    assert sorted(pack_documents(chosen, 8, "two of four")["input_ids"][:]) == [[1] * 5 + [3] * 3]


def test_a_document_as_long_as_a_row_fills_it_alone():
    assert pack_documents(to_documents([10, 10]), 10, "full rows")["seq_lengths"][:] == [[10], [10]]


def test_in_a_drawn_order_rows_mix_lengths_and_are_nearly_as_full():
    lengths = np.clip(np.random.default_rng(0).lognormal(5.3, 0.6, 5000), 20, 512).astype(int)
    spreads, fills = [], []
    for draw_seed in (None, 7):
        packed = pack_documents(to_documents(lengths.tolist()), 2048, "drawn", draw_seed=draw_seed)
        spreads.append(np.std([np.mean(row) for row in packed["seq_lengths"][:]]))
        fills.append(lengths.sum() / (len(packed) * 2048))
    assert spreads[1] < spreads[0] / 2
    assert fills[0] > 0.995 and fills[1] > 0.985


def test_rows_are_drawn_by_the_seed_alone_whatever_they_are_cached_under():
    documents = to_documents(np.random.default_rng(1).integers(1, 30, 200).tolist())
    drawn = [
        pack_documents(documents, 64, name, draw_seed=seed)["input_ids"][:]
        for name, seed in (("of today", 1), ("after an upgrade", 1), ("of today", 2))
    ]
    assert drawn[0] == drawn[1] != drawn[2]
