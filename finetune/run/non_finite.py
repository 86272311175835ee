"""non_finite.jsonl: the rows of each step whose loss or gradient was not finite, one object a row.

Goes in: a step's rows as objects. A step that is trained again after a resume takes the place of what stood there.
"""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from finetune.run.folder import RunFolder

__all__ = ["write_non_finite_rows"]


def write_non_finite_rows(folder: RunFolder, step: int, rows: Sequence[dict[str, Any]]) -> Path:
    """Put the rows of a step behind those of earlier ones; gives the file."""
    path = folder.non_finite_path
    if folder.writes:
        written = path.read_text(encoding="utf-8").splitlines(keepends=True) if path.exists() else []
        kept = [line for line in written if json.loads(line)["step"] < step]
        lines = [json.dumps(row, ensure_ascii=False, allow_nan=False) + "\n" for row in rows]
        folder.write_text(path, "".join([*kept, *lines]))
    return path
