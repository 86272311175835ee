"""non_finite.jsonl: the rows of each step whose loss or gradient was not finite, one object a row.

Goes in: a step's rows as objects. What stands behind the step that a run is taken up from is cut: those steps are
trained again.
"""

import json
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from finetune.run.folder import RunFolder
from finetune.run.writing import write_text

__all__ = ["cut_non_finite_rows", "write_non_finite_rows"]

log = logging.getLogger("finetune.run.non_finite")


def write_non_finite_rows(folder: RunFolder, step: int, rows: Sequence[dict[str, Any]]) -> Path:
    """Put the rows of a step behind those of earlier ones; gives the file."""
    path = folder.non_finite_path
    if folder.writes:
        kept = _read_lines(path, step - 1)
        lines = [json.dumps(row, ensure_ascii=False, allow_nan=False) + "\n" for row in rows]
        folder.write_text(path, "".join([*kept, *lines]))
    return path


def cut_non_finite_rows(path: Path, resumed_step: int | None) -> None:
    """Drop the rows of steps behind the one a run is taken up from; the file too where none is left."""
    if not path.exists():
        return
    kept = [] if resumed_step is None else _read_lines(path, resumed_step)
    if kept:
        write_text(path, "".join(kept))
    else:
        path.unlink()


def _read_lines(path: Path, last_step: int) -> list[str]:
    """The lines up to a step, each with its end; the first that is none, as a lost disk leaves it, ends them."""
    if not path.exists():
        return []
    # Not splitlines, which also ends a line at separators that JSON leaves as they are.
    *written, _torn = path.read_text(encoding="utf-8", errors="replace").split("\n")
    lines = []
    for number, line in enumerate(written, start=1):
        try:
            step = int(json.loads(line)["step"])
        except (ValueError, TypeError, KeyError, RecursionError):
            log.warning("%s: line %d cannot be read; it and what follows is left out.", path, number)
            break
        if step <= last_step:
            lines.append(f"{line}\n")
    return lines
