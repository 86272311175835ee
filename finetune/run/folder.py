"""The run folder: who may use it, where each file of a run lies, and what state the run is in.

Goes in: `output_dir`, the run's name and what the command line allows. Comes out: a claimed folder,
locked for this process, or a message with the ways out. Of several processes of one launch only rank
0 writes; in the others every writing method does nothing. Imports no torch, so that a name that is
taken is answered at once.
"""

import contextlib
import json
import os
import shutil
import socket
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, Self

from finetune.errors import Interrupted, PlaceError, RecipeError
from finetune.run import writing
from finetune.run.environment import is_main_process
from finetune.run.lock import FolderLock

__all__ = ["RunFolder", "Status"]

Status = Literal["running", "done", "interrupted", "failed"]


class RunFolder:
    """One run's folder. Used as a context manager it unlocks itself, and a run left by an error says so in status.json.

    Attributes:
        path: the folder.
        writes: whether this process is the one that writes.
        finished: the run was already complete when it was claimed with `resume`; nothing may be touched.
        resumed_from: the steps at which this run was taken up again, oldest first.
        step: last optimizer step known, as `note_step` was told.
        total_steps: optimizer steps of the whole run; 0 while unknown.
    """

    def __init__(self, path: Path, *, writes: bool = True, lock: FolderLock | None = None) -> None:
        self.path = path
        self.writes = writes
        self.finished = False
        self.resumed_from: list[int] = []
        self.step = 0
        self.total_steps = 0
        self._lock = lock

    @classmethod
    def claim(cls, output_dir: Path, name: str, *, resume: bool, overwrite: bool) -> Self:
        """Take the folder `output_dir/name` for this run and lock it.

        Raises:
            RecipeError: it holds a run already, or something that is no run.
            PlaceError: it cannot be made or written.
            CheckpointError: another process is working on it.
        """
        if resume and overwrite:
            raise RecipeError(
                "--resume and --overwrite exclude each other.\n  --resume continues a run, --overwrite deletes it."
            )
        path = output_dir / name
        if not is_main_process():
            folder = cls(path, writes=False)
            folder.finished = resume and folder.read_status().get("status") == "done"
            return folder
        _make_folder(path)
        if not _looks_like_a_run(path) and not _is_unused(path):
            raise RecipeError(
                f"{path} holds files that are not a run's, so nothing is written there and nothing is deleted.\n"
                f"  Give the run another name: name={_find_free_name(path)}     Or move those files away."
            )
        folder = cls(path, lock=FolderLock.take(path))
        try:
            folder._settle(resume=resume, overwrite=overwrite)
        except BaseException:
            folder.release()
            raise
        return folder

    def _settle(self, *, resume: bool, overwrite: bool) -> None:
        """Decide what becomes of what lies in the locked folder."""
        if overwrite:
            _empty_folder(self.path)
            return
        if _is_unused(self.path):
            return
        if not resume:
            raise RecipeError(
                f"{self.path} already holds a run ({self.to_state()}).\n"
                f"  Continue it: --resume     Start over: --overwrite (deletes this folder only)     "
                f"Or: name={_find_free_name(self.path)}"
            )
        status = self.read_status()
        self.finished = status.get("status") == "done"
        self.resumed_from = list(status.get("resumed_from", []))
        self.step, self.total_steps = status.get("step") or 0, status.get("total_steps") or 0

    def to_state(self) -> str:
        """Say how far the run is by its status.json: `step 400 of 975, stopped 2 hours ago`."""
        status = self.read_status()
        verb = {"done": "finished", "failed": "failed"}.get(status.get("status", ""), "stopped")
        age = _to_age(status["updated_at"]) if "updated_at" in status else "at an unknown time"
        if not status.get("total_steps"):
            return f"{verb} before its first step, {age}"
        return f"step {status['step']} of {status['total_steps']}, {verb} {age}"

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is not None and not self.finished:
            stopped = isinstance(error, Interrupted | KeyboardInterrupt)
            reason = str(error).strip().split("\n")[0] or type(error).__name__
            # On a full disk even this cannot be written; the error that is passing tells more.
            with contextlib.suppress(PlaceError):
                self.write_status("interrupted" if stopped else "failed", reason=reason)
        self.release()

    def release(self) -> None:
        """Unlock the folder; the end of the process does the same."""
        if self._lock is not None:
            self._lock.release()
            self._lock = None

    # ---- what the run knows of itself

    def note_step(self, step: int, total_steps: int) -> None:
        """Remember how far the run is, without writing: the next status, whatever it says, carries it."""
        self.step, self.total_steps = step, total_steps

    def note_resumed(self, step: int) -> None:
        """Remember that the run was taken up again after this step."""
        self.resumed_from.append(step)
        self.step = step

    def read_status(self) -> dict[str, Any]:
        """Read status.json; empty where the run never wrote one."""
        if not self.status_path.exists():
            return {}
        status: dict[str, Any] = json.loads(self.status_path.read_text(encoding="utf-8"))
        return status

    def write_status(
        self,
        status: Status,
        *,
        step: int | None = None,
        total_steps: int | None = None,
        reason: str | None = None,
    ) -> None:
        """Write status.json; without step and total those of `note_step`."""
        self.note_step(self.step if step is None else step, self.total_steps if total_steps is None else total_steps)
        self.write_json(
            self.status_path,
            {
                "status": status,
                "step": self.step,
                "total_steps": self.total_steps,
                "reason": reason,
                "pid": os.getpid(),
                "host": socket.gethostname(),
                "updated_at": datetime.now(UTC).isoformat(timespec="seconds"),
                "resumed_from": self.resumed_from,
            },
        )

    # ---- writing

    def write_text(self, path: Path, text: str) -> None:
        """Write a file of this run whole or not at all."""
        if self.writes:
            writing.write_text(path, text)

    def write_json(self, path: Path, value: dict[str, Any]) -> None:
        """Write an object as JSON, whole or not at all."""
        if self.writes:
            writing.write_json(path, value)

    @contextlib.contextmanager
    def write_dir(self, target: Path) -> Iterator[Path]:
        """Yield an empty folder beside `target` that takes its place when the block ends without an error."""
        beside = target.with_name(f".{target.name}.part")
        if not self.writes:
            yield beside
            return
        shutil.rmtree(beside, ignore_errors=True)
        beside.mkdir()
        yield beside
        for path in beside.rglob("*"):
            if path.is_file():
                with path.open("rb") as file:
                    os.fsync(file.fileno())
        if target.exists():
            shutil.rmtree(target)
        beside.rename(target)
        writing.sync_dir(target.parent)

    # ---- where things lie

    @property
    def recipe_path(self) -> Path:
        """The recipe as typed."""
        return self.path / "recipe.yaml"

    @property
    def resolved_path(self) -> Path:
        """The recipe with every default filled in."""
        return self.path / "resolved.json"

    @property
    def environment_path(self) -> Path:
        """Versions and device."""
        return self.path / "environment.json"

    @property
    def status_path(self) -> Path:
        """Running, done, interrupted or failed."""
        return self.path / "status.json"

    @property
    def data_report_path(self) -> Path:
        """Rows read, dropped and cut."""
        return self.path / "data_report.json"

    @property
    def metrics_path(self) -> Path:
        """One object a logged step."""
        return self.path / "metrics.jsonl"

    @property
    def summary_path(self) -> Path:
        """The figures of the finished run."""
        return self.path / "summary.json"

    @property
    def log_path(self) -> Path:
        """What was said."""
        return self.path / "log.txt"

    @property
    def samples_path(self) -> Path:
        """Answers written during the run."""
        return self.path / "samples.md"

    @property
    def loss_plot_path(self) -> Path:
        """The loss curve."""
        return self.path / "loss.png"

    @property
    def checkpoints_dir(self) -> Path:
        """What `--resume` continues from."""
        return self.path / "checkpoints"

    @property
    def adapter_dir(self) -> Path:
        """The result, there only when the run finished."""
        return self.path / "adapter"

    @property
    def model_dir(self) -> Path:
        """The result where base weights were changed."""
        return self.path / "model"


def _make_folder(path: Path) -> None:
    if path.is_symlink() and not path.exists():
        raise PlaceError(f"{path} is a link to {path.readlink()}, which is not there.\n  Remove the link, or: name=…")
    for place in (path, *path.parents):
        if place.exists() and not place.is_dir():
            raise PlaceError(f"{place} is a file where a folder is needed.\n  Choose another place: output_dir=…")
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise writing.refuse_to_write(path, error) from error


def _looks_like_a_run(path: Path) -> bool:
    return (path / "recipe.yaml").is_file() or (path / "status.json").is_file()


def _is_unused(path: Path) -> bool:
    """Whether nothing lies there but what an attempt leaves that ended before its first file was whole."""
    names = {entry.name for entry in path.iterdir()} - {".lock", "log.txt"}
    return all(name.startswith(".") and name.endswith(".part") for name in names)


def _empty_folder(path: Path) -> None:
    """Delete what is in a run folder, all but its lock. Links are removed, never followed."""
    if path.is_symlink():
        raise PlaceError(
            f"{path} is a link to {path.resolve()}: --overwrite deletes no folder through a link.\n"
            f"  Delete that folder or the link by hand, or: name={_find_free_name(path)}"
        )
    for entry in path.iterdir():
        if entry.name == ".lock":
            continue
        if entry.is_dir() and not entry.is_symlink():
            shutil.rmtree(entry)
        else:
            entry.unlink()


def _find_free_name(path: Path) -> str:
    number = 2
    while (path.parent / f"{path.name}_{number}").exists():
        number += 1
    return f"{path.name}_{number}"


def _to_age(updated_at: str) -> str:
    """`2 hours ago`; a clock that was set back gives `just now`, never a negative time."""
    seconds = (datetime.now(UTC) - datetime.fromisoformat(updated_at)).total_seconds()
    for unit, length in (("day", 86400), ("hour", 3600), ("minute", 60)):
        count = int(seconds // length)
        if count >= 1:
            return f"{count} {unit}{'s' if count > 1 else ''} ago"
    return "just now"
