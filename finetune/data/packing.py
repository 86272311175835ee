"""Documents to full rows: each goes where the least room is left that it fits in, and is kept whole.

In go rows of one document each; out come rows that hold several, with the length of each. Taken from the longest to the
shortest, the rows are those of TRL's `pack_dataset` (strategy `bfd`, Ding et al. 2024, arXiv:2404.10830), in a third of
its time. That puts documents of like length together, which is well where a step takes many rows. Where a row is a
whole micro-batch documents are taken in a drawn order: of 2,048 tokens 99.2 % are then filled instead of 99.9, and the
documents' mean length differs a third as much from row to row.
"""

import hashlib
from collections import deque

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from datasets import Dataset, Features, List, Value
from numpy.typing import NDArray

__all__ = ["choose_rows", "pack_documents"]

_PACKED_AT_ONCE = 20_000  # documents that are chosen among: fills 99 % and stays in memory
_COLUMNS = ("input_ids", "labels")
_FEATURES = Features({name: List(Value("int32")) for name in (*_COLUMNS, "seq_lengths")})


def choose_rows(
    lengths: NDArray[np.integer], max_length: int, *, order: NDArray[np.integer] | None = None
) -> tuple[NDArray[np.int64], NDArray[np.int32]]:
    """Choose which documents share a row: each goes where the least room is left that it fits in.

    Args:
        lengths: tokens of each document, at least 1 and at most `max_length`.
        max_length: tokens of a row.
        order: in which the documents are taken; None: the longest first.

    Returns:
        The documents in the order of the rows, and how many each row holds.
    """
    if order is None:
        order = np.argsort(-np.asarray(lengths, dtype=np.int64), kind="stable")
    rows: list[list[int]] = []
    with_room: list[deque[int]] = [deque() for _ in range(max_length)]  # rows by how many tokens still fit
    rooms = 0  # the same as bits: the n-th is set where some row has room for n
    for document, length in zip(order.tolist(), lengths[order].tolist(), strict=True):
        large_enough = rooms >> length
        if large_enough:
            room = length + (large_enough & -large_enough).bit_length() - 1  # the lowest bit that is set
            row = with_room[room].popleft()
            if not with_room[room]:
                rooms ^= 1 << room
        else:
            room, row = max_length, len(rows)
            rows.append([])
        rows[row].append(document)
        if room > length:
            with_room[room - length].append(row)
            rooms |= 1 << (room - length)
    chosen = np.fromiter((document for row in rows for document in row), np.int64, len(order))
    return chosen, np.fromiter(map(len, rows), np.int32, len(rows))


def pack_documents(documents: Dataset, max_length: int, fingerprint: str, *, draw_seed: int | None = None) -> Dataset:
    """Pack documents into rows of `input_ids`, `labels` and `seq_lengths` (tokens of each document in it).

    Args:
        documents: columns `input_ids` and `labels`, one document a row, none longer than `max_length`.
        max_length: tokens of a row at most, be it a row of several in a micro-batch or a micro-batch by itself.
        fingerprint: of the documents; what was packed under it before is read from the cache.
        draw_seed: take the documents in an order drawn by it; None: the longest first. A fingerprint changes with the
            version of a library, so a seed of the documents themselves lets a resumed run have the rows it began with.
    """
    key = hashlib.sha256(f"{fingerprint} {draw_seed} {_PACKED_AT_ONCE} {max_length}".encode()).hexdigest()[:16]

    def pack(table: pa.Table) -> pa.Table:
        columns = [table[name].combine_chunks() for name in _COLUMNS]
        lengths = pc.list_value_length(columns[0]).to_numpy()
        drawn = None if draw_seed is None else np.random.default_rng(draw_seed).permutation(len(lengths))
        order, num_documents = choose_rows(lengths, max_length, order=drawn)
        ends_of_documents = np.cumsum(num_documents)
        tokens = np.concatenate([[0], np.cumsum(lengths[order])])
        offsets = tokens[np.concatenate([[0], ends_of_documents])].astype(np.int32)
        packed = [pa.ListArray.from_arrays(offsets, column.take(pa.array(order)).flatten()) for column in columns]
        starts = np.concatenate([[0], ends_of_documents]).astype(np.int32)
        packed.append(pa.ListArray.from_arrays(starts, pa.array(lengths[order], pa.int32())))
        return pa.table(packed, names=list(_FEATURES))

    return (
        documents.select_columns(list(_COLUMNS))
        .with_format("arrow")
        .map(pack, batched=True, batch_size=_PACKED_AT_ONCE, features=_FEATURES, new_fingerprint=key, desc="packing")
        .with_format(None)
    )
