"""The run folder: who may use it, what becomes of what lies there, and what state the run is in.

Goes in: `output_dir`, the run's name and what the command line allows. Comes out: a claimed folder,
locked for this process, or a message with the ways out. Claiming decides and deletes nothing; `start`
makes room when everything that could refuse the run has been asked. Of several processes of one launch
only rank 0 writes; in the others every writing method does nothing. Imports no torch, so that a name
that is taken is answered at once.
"""

import contextlib
import os
import shutil
import socket
from collections.abc import Callable, Iterable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, Self

from finetune.errors import Interrupted, PlaceError, RecipeError
from finetune.run import writing
from finetune.run.launch import is_main_process
from finetune.run.layout import RunLayout, is_unused, looks_like_a_run
from finetune.run.lock import FolderLock
from finetune.run.own_files import read_object, refused_writes
from finetune.run.secrets import mask_text

__all__ = ["RunFolder", "Status", "refuse_both"]

Status = Literal["running", "done", "interrupted", "failed"]

_HALF_DELETED = "half_deleted"  # entry of status.json: a new run has begun to delete this one
_NAMED_BY = {True: "name=…", False: "output_dir=…"}  # what a place is the last part of


class RunFolder(RunLayout):
    """One run's folder, to write in.

    Used as a context manager it unlocks itself. A run that has started and is left by an error says so
    in status.json; one that has not leaves everything as it was found.

    Attributes:
        path: the folder.
        writes: whether this process is the one that writes.
        finished: the run was already complete when it was claimed with `resume`; nothing may be touched.
        resumed_from: the steps at which this run was taken up again, oldest first.
        step: last optimizer step known, as `note_step` was told.
        total_steps: optimizer steps of the whole run; 0 while unknown.
        started: `start` was called: files may be written.
        closing: the result takes its place: what the run still owes is a word in status.json.
        done: the run is complete and its status.json says so; nothing takes that back.
        when_left: called once the folder is left and its status written.
    """

    def __init__(self, path: Path, *, writes: bool = True, lock: FolderLock | None = None) -> None:
        super().__init__(path)
        self.writes = writes
        self.finished = False
        self.resumed_from: list[int] = []
        self.step = 0
        self.total_steps = 0
        self.started = False
        self.closing = False
        self.done = False
        self.when_left: Callable[[], None] | None = None
        self._lock = lock
        self._is_new = False  # made by this claim
        self._replaces = False  # what lies there goes when the run starts

    @classmethod
    def claim(cls, output_dir: Path, name: str, *, resume: bool, overwrite: bool) -> Self:
        """Take the folder `output_dir/name` for this run and lock it; nothing else is written or deleted yet.

        Raises:
            RecipeError: it holds a run already, or something that is no run.
            PlaceError: it cannot be made or written, or is a link that `overwrite` would go through.
            CheckpointError: another process is working on it.
        """
        refuse_both(resume=resume, overwrite=overwrite)
        path = output_dir / name
        if not is_main_process():
            folder = cls(path, writes=False)
            folder.finished = resume and _is_done(path)
            return folder
        _check_place(path)
        if resume and not overwrite and _is_done(path):  # nothing is written there, not even a lock
            folder = cls(path)
            folder.finished = True
            return folder
        is_new = not path.exists()
        _make_folder(path)
        if not looks_like_a_run(path) and not is_unused(path):
            raise RecipeError(
                f"{path} holds files that are not a run's, so nothing is written there and nothing is deleted.\n"
                f"  Give the run another name: name={_find_free_name(path)}     Or move those files away."
            )
        folder = cls(path, lock=FolderLock.take(path))
        folder._is_new = is_new
        try:
            folder._settle(resume=resume, overwrite=overwrite)
        except BaseException:
            folder.release()
            raise
        return folder

    def _settle(self, *, resume: bool, overwrite: bool) -> None:
        """Decide what becomes of what lies in the locked folder."""
        if overwrite and self.path.is_symlink():
            raise PlaceError(
                f"{self.path} is a link to {self.path.resolve()}: --overwrite deletes no folder through a link.\n"
                f"  Delete that folder or the link by hand, or: name={_find_free_name(self.path)}"
            )
        self._replaces = overwrite or self._holds_nothing_to_keep()
        if self._replaces or is_unused(self.path):
            return
        status = self.read_status()
        if status.get(_HALF_DELETED):
            raise RecipeError(
                f"{self.path} holds what is left of a run that was being replaced when that was stopped.\n"
                "  Nothing of it can be continued.\n"
                f"  Delete the rest and start over: --overwrite     Or: name={_find_free_name(self.path)}"
            )
        if not resume:
            raise RecipeError(
                f"{self.path} already holds a run ({self.to_state()}).\n"
                f"  Continue it: --resume     Start over: --overwrite (deletes this folder only)     "
                f"Or: name={_find_free_name(self.path)}"
            )
        self.resumed_from = list(status.get("resumed_from", []))
        self.step, self.total_steps = status.get("step", 0), status.get("total_steps", 0)

    def _holds_nothing_to_keep(self) -> bool:
        """Whether the run ended by its own word before anything came of it: no line measured, nothing saved.

        One that still says `running` may be at work on another machine where the file system has no locks.
        """
        ended = self.read_status().get("status") in ("failed", "interrupted") and not self.path.is_symlink()
        measured = self.metrics_path.exists() and self.metrics_path.stat().st_size > 0
        saved = self.checkpoints_dir.is_dir() and any(self.checkpoints_dir.iterdir())
        return ended and not (measured or saved or self.adapter_dir.exists() or self.model_dir.exists())

    def start(self) -> None:
        """Begin the run: delete what it replaces. From here on its files may be written.

        Called when rows, base and settings have been found good, so that a run that could not begin costs
        nobody the one it would have replaced.
        """
        assert not self.finished, "a finished run is not touched"
        if self._replaces and self.writes:
            self._empty()
        self.started = True

    def _empty(self) -> None:
        """Delete what is in the folder, all but its lock. Links are removed, never followed.

        A kill at any moment leaves a folder that says of itself that it is being deleted, or one that is unused: what
        is half deleted never passes for a run, and can always be replaced.
        """
        known = {key: value for key, value in self.read_status().items() if key in _IS_SOUND}
        told = {"status": "interrupted", "reason": "a new run began to replace this one", _HALF_DELETED: True}
        try:
            writing.write_json(self.status_path, known | told)
        except PlaceError:  # a full disk, of which this deletion makes room
            self.status_path.unlink(missing_ok=True)
        kept = (".lock", self.status_path.name)
        _delete([entry for entry in self.path.iterdir() if entry.name.endswith(".part")])
        # What makes the folder a run's goes last: without it the rest would be files that are not a run's.
        entries = [entry for entry in self.path.iterdir() if entry.name not in kept]
        for number, entry in enumerate(sorted(entries, key=lambda one: one == self.recipe_path)):
            entry.rename(entry.with_name(f".{number}.old.part"))
        writing.sync_dir(self.path)
        _delete([entry for entry in self.path.iterdir() if entry.name not in kept])
        self.status_path.unlink(missing_ok=True)

    def to_state(self) -> str:
        """Say how far the run is by its status.json: `step 400 of 975, stopped 2 hours ago`."""
        status = self.read_status()
        verb = {"done": "finished", "failed": "failed"}.get(status.get("status", ""), "stopped")
        age = _to_age(status["updated_at"]) if "updated_at" in status else "at an unknown time"
        if not status.get("total_steps"):
            return f"{verb} before its first step, {age}"
        return f"step {status.get('step', 'unknown')} of {status['total_steps']}, {verb} {age}"

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            if error is not None and self.started and not self.done:
                stopped = isinstance(error, Interrupted | KeyboardInterrupt)
                reason = mask_text(str(error).strip().split("\n")[0]) or type(error).__name__
                # On a full or lost disk even this cannot be written; the error that is passing tells more.
                with contextlib.suppress(PlaceError, OSError):
                    self.write_status("interrupted" if stopped else "failed", reason=reason)
            self.release()
        finally:
            if self.when_left is not None:
                self.when_left()
                self.when_left = None

    def release(self) -> None:
        """Unlock the folder, as the end of the process does; one that this claim made and never used goes."""
        if self._lock is None:
            return
        self._lock.release()
        self._lock = None
        if self._is_new and not self.started:
            # The trainer makes `checkpoints/` when it is built. What is not empty stays: another process may be in.
            for unused in (self.checkpoints_dir, self.path):
                with contextlib.suppress(OSError):
                    unused.rmdir()

    # ---- what the run knows of itself

    def note_step(self, step: int, total_steps: int) -> None:
        """Remember how far the run is, without writing: the next status, whatever it says, carries it."""
        self.step, self.total_steps = step, total_steps

    def note_resumed(self, step: int) -> None:
        """Remember that the run was taken up again after this step."""
        self.resumed_from.append(step)
        self.step = step

    def read_status(self) -> dict[str, Any]:
        """Read status.json; empty where the run never wrote one, or a disk has lost what it wrote.

        An entry that this program would not have written so is left out.

        Raises:
            PlaceError: it is there and cannot be read.
        """
        status = read_object(self.status_path)
        return {key: value for key, value in status.items() if key not in _IS_SOUND or _IS_SOUND[key](value)}

    def write_status(self, status: Status, *, reason: str | None = None) -> None:
        """Write status.json with the step that `note_step` was told."""
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
        self.done = status == "done"

    # ---- writing

    def write_text(self, path: Path, text: str) -> None:
        """Write a file of this run whole or not at all."""
        assert self.started, f"{path.name} is written before start()"
        if self.writes:
            writing.write_text(path, text)

    def write_json(self, path: Path, value: dict[str, Any]) -> None:
        """Write an object as JSON, whole or not at all."""
        assert self.started, f"{path.name} is written before start()"
        if self.writes:
            writing.write_json(path, value)

    @contextlib.contextmanager
    def write_dir(self, target: Path, *, closes: bool = False) -> Iterator[Path]:
        """Yield an empty folder beside `target` that takes its place when the block ends without an error.

        Args:
            target: the folder.
            closes: it is the run's result: once it begins to take its place, no signal stops the run any more.

        Raises:
            PlaceError: the disk does not take it.
        """
        assert self.started, f"{target.name} is written before start()"
        beside = target.with_name(f".{target.name}.part")
        if not self.writes:
            yield beside
            self.closing = closes
            return
        with refused_writes(target):
            shutil.rmtree(beside, ignore_errors=True)
            beside.mkdir()
        yield beside
        with refused_writes(target):
            writing.sync_tree(beside)
            self.closing = closes
            if target.exists():
                shutil.rmtree(target)
            beside.rename(target)
            writing.sync_dir(target.parent)


def refuse_both(*, resume: bool, overwrite: bool) -> None:
    """Refuse to continue a run and to delete it at once.

    Raises:
        RecipeError: both are asked for.
    """
    if resume and overwrite:
        raise RecipeError(
            "command line: --resume and --overwrite exclude each other.\n"
            "  --resume continues the run in the folder; --overwrite deletes it."
        )


def _check_place(path: Path) -> None:
    """Check that a folder can be there: no file or broken link in the way, no name that the disk does not take."""
    for place in (path, *path.parents):
        try:
            place.stat()
        except FileNotFoundError:
            if place.is_symlink():
                raise PlaceError(
                    f"{place} is a link to {place.readlink()}, which is not there.\n"
                    f"  Remove the link, or choose another place: {_NAMED_BY[place == path]}"
                ) from None
            continue
        except NotADirectoryError:  # told of the parent that is none
            continue
        except OSError as error:  # a name too long, links in a circle, a folder that may not be entered
            raise writing.refuse_to_write(place, error) from error
        if not place.is_dir():
            raise PlaceError(f"{place} is a file where a folder is needed.\n  Choose another place: output_dir=…")
        return


def _make_folder(path: Path) -> None:
    with refused_writes(path):
        missing = [place for place in (path, *path.parents) if not place.exists()]
        path.mkdir(parents=True, exist_ok=True)
    for place in missing:  # a run whose folder's name the power took is gone with all its checkpoints
        with contextlib.suppress(OSError):  # a folder above it need not be readable
            writing.sync_dir(place.parent)


def _is_done(path: Path) -> bool:
    """Whether the run ended, and what it was for is still there."""
    folder = RunFolder(path)
    has_result = folder.adapter_dir.is_dir() or folder.model_dir.is_dir()
    return has_result and folder.read_status().get("status") == "done"


def _delete(entries: Iterable[Path]) -> None:
    for entry in entries:
        if entry.is_dir() and not entry.is_symlink():
            shutil.rmtree(entry)
        else:
            entry.unlink()


def _is_text(value: Any) -> bool:
    return isinstance(value, str)


def _is_count(value: Any) -> bool:
    return type(value) is int and value >= 0


def _is_time(value: Any) -> bool:
    """Whether it is a moment as `write_status` writes it, with its time zone."""
    try:
        return datetime.fromisoformat(value).tzinfo is not None
    except (TypeError, ValueError):
        return False


# Entry of status.json -> whether a value can be its.
_IS_SOUND: dict[str, Callable[[Any], bool]] = {
    "status": _is_text,
    "step": _is_count,
    "total_steps": _is_count,
    "updated_at": _is_time,
    "resumed_from": lambda value: isinstance(value, list) and all(map(_is_count, value)),
}


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
