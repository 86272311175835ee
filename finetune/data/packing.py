"""Documents to full rows: best fit, the longest first, and each document kept whole.

In go rows of one document each; out come rows that hold several, with the length of each. The rows are those of
TRL's `pack_dataset` (strategy `bfd`, Ding et al. 2024, arXiv:2404.10830), in a third of its time.
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


def choose_rows(lengths: NDArray[np.integer], max_length: int) -> tuple[NDArray[np.int64], NDArray[np.int32]]:
    """Choose which documents share a row: each goes where the least room is left that it fits in.

    Args:
        lengths: tokens of each document, at least 1 and at most `max_length`.
        max_length: tokens of a row.

    Returns:
        The documents in the order of the rows, and how many each row holds.
    """
    longest_first = np.argsort(-np.asarray(lengths, dtype=np.int64), kind="stable")
    rows: list[list[int]] = []
    with_room: list[deque[int]] = [deque() for _ in range(max_length)]  # rows by how many tokens still fit
    rooms = 0  # the same as bits: the n-th is set where some row has room for n
    for document, length in zip(longest_first.tolist(), lengths[longest_first].tolist(), strict=True):
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
    order = np.fromiter((document for row in rows for document in row), np.int64, len(longest_first))
    return order, np.fromiter(map(len, rows), np.int32, len(rows))


def pack_documents(documents: Dataset, max_length: int, fingerprint: str) -> Dataset:
    """Pack documents into rows of `input_ids`, `labels` and `seq_lengths` (tokens of each document in it).

    Args:
        documents: columns `input_ids` and `labels`, one document a row, none longer than `max_length`.
        max_length: tokens of a row at most, be it a row of several in a micro-batch or a micro-batch by itself.
        fingerprint: of the documents.
    """
    key = hashlib.sha256(f"{fingerprint} packed {_PACKED_AT_ONCE} {max_length}".encode()).hexdigest()[:16]

    def pack(table: pa.Table) -> pa.Table:
        columns = [table[name].combine_chunks() for name in _COLUMNS]
        lengths = pc.list_value_length(columns[0]).to_numpy()
        order, num_documents = choose_rows(lengths, max_length)
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
