"""The label hash: one number for the very tokens a run trains, and which of them carry loss.

In go rows as the trainer gets them, before they are packed; out come SHA-256 sums. Equal sums mean equal ids and
masks in the same order, whatever library or template made them; blocks of rows say where two runs part.
"""

import hashlib
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
from datasets import Dataset

__all__ = ["BLOCK_ROWS", "LabelHash", "hash_labels"]

BLOCK_ROWS = 1000


@dataclass(frozen=True, slots=True)
class LabelHash:
    """Sums over rows, in hexadecimal.

    Attributes:
        all: over ids and masks of all rows.
        ids: over the ids alone.
        blocks: over ids and masks of each `BLOCK_ROWS` rows, shortened to 16 digits.
    """

    all: str
    ids: str
    blocks: tuple[str, ...]

    def to_report(self) -> dict[str, Any]:
        """Name what `data_report.json` says."""
        return {"label_hash": self.all, "ids_hash": self.ids, "label_hash_blocks": list(self.blocks)}


def hash_labels(rows: Dataset) -> LabelHash:
    """Hash rows.

    Args:
        rows: columns of token ids and of labels (lists of int32, `…labels` holding the id or -100); single numbers
            and texts beside them (a class's place, a reference answer) are hashed as labels are.
    """
    ids, blocks = hashlib.sha256(), []
    for start in range(0, len(rows), BLOCK_ROWS):
        block = hashlib.sha256()
        table = rows.with_format("arrow")[start : start + BLOCK_ROWS]
        for name in sorted(table.column_names):
            content = _to_bytes(table[name].combine_chunks())
            block.update(name.encode() + content)
            if pa.types.is_list(table.schema.field(name).type) and not name.endswith("labels"):
                ids.update(name.encode() + content)
        blocks.append(block.hexdigest())
    every = hashlib.sha256("".join(blocks).encode()).hexdigest()
    return LabelHash(every, ids.hexdigest(), tuple(block[:16] for block in blocks))


def _to_bytes(column: pa.Array) -> bytes:
    """Write a column as bytes: lengths and values of lists, the text of anything else."""
    if not pa.types.is_list(column.type):
        return repr(column.to_pylist()).encode()
    lengths = np.asarray(column.value_lengths(), dtype="<i8")
    return lengths.tobytes() + np.asarray(column.flatten(), dtype="<i4").tobytes()
