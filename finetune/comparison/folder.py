"""The folder of a comparison: who may use it, and what its run folders say of each cell.

In go cells, out come `Result`s. The run folders are the only record: what is done, how far, and with which settings
is read from them each time, and nothing else is kept that could say otherwise. Imports neither torch nor transformers.
"""

import json
import re
import shutil
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from finetune.comparison.cells import RUNS, Cell
from finetune.comparison.children import Failure
from finetune.errors import CheckpointError, PlaceError, RecipeError
from finetune.recipe.reading import flatten, to_resolved
from finetune.run.layout import RunLayout
from finetune.run.lock import FolderLock
from finetune.run.writing import refuse_to_write

__all__ = ["Result", "State", "claim_folder", "read_result", "refuse_changed_cells"]

State = Literal["done", "failed", "interrupted", "waiting"]

# What a comparison writes into its folder; with anything else in it the folder is somebody else's.
_WRITTEN = re.compile(
    rf"{RUNS}|logs|best|table\.md|table\.csv|plot\.png|report\.html|recommended(\.[\w-]+)?\.yaml|probes\.journal"
    r"|.*\.part|.*\.lock",
    re.DOTALL,
)
_MOST_NAMED = 6


@dataclass(frozen=True, slots=True)
class Result:
    """What came of a cell so far.

    Attributes:
        cell: the run.
        state: of its folder; `waiting`: not begun.
        summary: figures of the finished run, empty before.
        reason: why it stopped or failed.
        exit_code: of the kind of error that it failed with in this session; 0: it has not.
    """

    cell: Cell
    state: State
    summary: dict[str, Any]
    reason: str = ""
    exit_code: int = 0


def claim_folder(path: Path, *, overwrite: bool) -> FolderLock:
    """Make the folder, lock it for this process, and empty it where asked to.

    Raises:
        RecipeError: it holds something that is no comparison's.
        CheckpointError: another process is working on it.
        PlaceError: it cannot be made, or is a link that `overwrite` would go through.
    """
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise refuse_to_write(path, error) from error
    names = sorted(entry.name for entry in path.iterdir())
    strange = [name for name in names if not _WRITTEN.fullmatch(name)]
    if strange:
        raise RecipeError(
            f"{path} holds files that are not a comparison's ({', '.join(strange[:_MOST_NAMED])}), so nothing there is "
            "touched.\n"
            f"  Give the comparison another name: name={path.name}_2     Or move those files away."
        )
    lock = FolderLock.take(path)
    if overwrite:
        if path.is_symlink():
            lock.release()
            raise PlaceError(f"{path} is a link to {path.resolve()}: --overwrite deletes no folder through a link.")
        for entry in path.iterdir():
            if entry.is_dir() and not entry.is_symlink():
                shutil.rmtree(entry)
            elif entry.name != ".lock":
                entry.unlink()
    return lock


def refuse_changed_cells(path: Path, cells: Iterable[Cell]) -> None:
    """Hold the run folders that are there against the cells of today's comparison; new cells may be added.

    Args:
        path: the comparison's folder.
        cells: all that today's comparison could run, short runs included.

    Raises:
        CheckpointError: a run was made with other settings, or belongs to no cell any more.
    """
    by_name = {cell.name: cell for cell in cells}
    runs = path / RUNS
    there = sorted(entry.name for entry in runs.iterdir() if entry.is_dir()) if runs.is_dir() else []
    lines = []
    for name in there:
        if name not in by_name:
            lines.append(f"  {name} is no cell of the comparison any more")
            continue
        resolved_path = RunLayout(runs / name).resolved_path
        if not resolved_path.exists():
            continue
        then = flatten(json.loads(resolved_path.read_text(encoding="utf-8")))
        now = flatten(json.loads(json.dumps(to_resolved(by_name[name].recipe))))
        different = [key for key in {**now, **then} if now.get(key) != then.get(key) and key != "output_dir"]
        if different:
            key = different[0]
            lines.append(f"  {name}: {key} was {then.get(key)!s:.40}, now {now.get(key)!s:.40}")
    if lines:
        more = [f"  and {len(lines) - _MOST_NAMED} more"] if len(lines) > _MOST_NAMED else []
        raise CheckpointError(
            "\n".join(
                [f"{path} was begun with another comparison: runs may be added to it, not changed.",
                 *lines[:_MOST_NAMED], *more,
                 f"  Put it back, or: name={path.name}_2     Start over: --overwrite (deletes this folder only)"]
            )
        )  # fmt: skip


def read_result(path: Path, cell: Cell, failures: Mapping[str, Failure]) -> Result:
    """Read what came of a cell from its run folder.

    Args:
        path: the comparison's folder.
        cell: the run.
        failures: of this session, by name: a run that failed before its folder was begun left
            no word there.
    """
    run = RunLayout(path / RUNS / cell.name)
    status = json.loads(run.status_path.read_text(encoding="utf-8")) if run.status_path.exists() else {}
    said = status.get("status")
    if said == "done":
        return Result(cell, "done", json.loads(run.summary_path.read_text(encoding="utf-8")))
    reason = status.get("reason") or ""
    if cell.name in failures:
        return Result(cell, "failed", {}, failures[cell.name].reason, failures[cell.name].exit_code)
    if said == "failed":
        return Result(cell, "failed", {}, reason)
    return Result(cell, "interrupted", {}, reason) if said else Result(cell, "waiting", {})
