"""A disk that fills up, or is lost, while a run writes to it: nothing that was saved is lost, and the message says so.

In goes whatever a library raises when a write is refused, from any file of the run; out comes one PlaceError. What is
half written goes from a full disk, so that the room it took is free for status.json and for going on. A disk that has
gone read-only, or is gone, is left as it is.
"""

import errno
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from finetune.errors import FinetuneError, PlaceError
from finetune.run.disk import to_size
from finetune.run.folder import RunFolder
from finetune.run.layout import find_checkpoints, find_step
from finetune.run.writing import refuse_to_write

__all__ = ["find_full", "telling_full_disk"]

_RECORD = "COMPLETE.json"
_REASONS = {
    errno.ENOSPC: "the disk is full",
    errno.EDQUOT: "your quota of the disk is used up",
    errno.EFBIG: "a file has grown to the largest size this process may write (ulimit -f)",
}
# Rust's libraries (safetensors, tokenizers) give the number in words, with classes of their own.
_IN_WORDS = {f"os error {number}": number for number in _REASONS} | {os.strerror(number): number for number in _REASONS}
# A disk that cannot be worked on any more: read-only after a fault, a network's that is gone, a folder that somebody
# took away. Of a file outside the run's folder these say nothing about the place that the run writes to.
_BAD_DISK = {errno.EROFS, errno.EIO, errno.ESTALE}
_LOST = _BAD_DISK | {errno.EACCES, errno.EPERM, errno.ENOENT, errno.ENOTDIR}
# In words they come without a path. That a disk is read-only is said of writes alone, and from its start on a run's
# libraries write no files but its own.
_READ_ONLY_WORDS = f"os error {errno.EROFS})"


@contextmanager
def telling_full_disk(folder: RunFolder, estimate_bytes: Callable[[], int]) -> Iterator[None]:
    """Translate a write that was refused: for want of room, taking away what it leaves half done, or by a lost disk.

    Args:
        folder: the run's.
        estimate_bytes: of one checkpoint; asked when it has happened.

    Raises:
        PlaceError: there is no more room, with the bytes needed and free, and the checkpoint to go on from; or a file
            of the run cannot be written, named.
    """
    try:
        yield
    except Exception as error:
        number = find_full(error)
        lost = _find_lost(error, folder) if number is None else None
        if lost is not None and lost is not error:
            raise lost from error
        if number is None or (isinstance(error, FinetuneError) and not isinstance(error, PlaceError)):
            raise
        if not folder.started:
            if isinstance(error, PlaceError):
                raise PlaceError(f"{error}{_render_need(folder, error, estimate_bytes)}") from error
            raise PlaceError(_to_cache_message(error, number)) from error
        if folder.writes:
            _remove_unfinished(folder)
        raise PlaceError(_to_message(folder, number, estimate_bytes())) from error


def find_full(error: BaseException) -> int | None:
    """Find whether an error, or one behind it, says that there is no room: the system's number of it, or None."""
    link: BaseException | None = error
    while link is not None:
        if isinstance(link, OSError) and link.errno in _REASONS:
            return link.errno
        found = [number for words, number in _IN_WORDS.items() if words in str(link)]
        if found:
            return found[0]
        link = link.__cause__ or (None if link.__suppress_context__ else link.__context__)
    return None


def _find_lost(error: Exception, folder: RunFolder) -> PlaceError | None:
    """Find whether an error says that the disk below the run's folder is lost: the message for it, else None."""
    told: PlaceError | None = None
    if isinstance(error, PlaceError):
        cause = error.__cause__
        told = error if isinstance(cause, OSError) and cause.errno in _LOST else None
    elif not isinstance(error, FinetuneError):
        told = _find_refused_write(error, folder)
    if told is None or not folder.started or "--resume" in str(told):
        return told
    at = f"Stopped at step {folder.step}. " if folder.step else ""
    return PlaceError(f"{told}\n  {at}Nothing that was saved is lost. When the disk can be worked on again: --resume")


def _find_refused_write(error: Exception, folder: RunFolder) -> PlaceError | None:
    link: BaseException | None = error
    while link is not None:
        if isinstance(link, OSError) and link.errno in _LOST and isinstance(link.filename, str | bytes | Path):
            file = Path(os.fsdecode(link.filename))
            if file.is_relative_to(folder.path) or file.is_relative_to(folder.path.absolute()):
                return refuse_to_write(file, link) if link.errno in _BAD_DISK else _say_out_of_reach(file, link)
        elif folder.started and _READ_ONLY_WORDS in str(link):
            return refuse_to_write(folder.path, OSError(errno.EROFS, os.strerror(errno.EROFS)))
        link = link.__cause__
    return None


def _say_out_of_reach(file: Path, error: OSError) -> PlaceError:
    """Build the message for what was there before, or could be opened, where an error tells neither read nor write."""
    return PlaceError(
        f"{file} cannot be reached: {(error.strerror or str(error)).lower()}.\n"
        "  See whether the run's folder is where it was, and who may use it. Where in the program: --debug"
    )


def _remove_unfinished(folder: RunFolder) -> None:
    """Remove what was being written: checkpoints newer than the last whole one, and parts of files and folders."""
    checkpoints = find_checkpoints(folder.checkpoints_dir)
    while checkpoints and not (checkpoints[-1] / _RECORD).is_file():
        shutil.rmtree(checkpoints.pop(), ignore_errors=True)
    for part in [*folder.path.glob(".*.part"), *folder.checkpoints_dir.glob(".*.part")]:  # of `writing` and `write_dir`
        if part.is_dir():
            shutil.rmtree(part, ignore_errors=True)
        else:
            part.unlink(missing_ok=True)


def _to_message(folder: RunFolder, number: int, needed_bytes: int) -> str:
    whole = [one for one in find_checkpoints(folder.checkpoints_dir) if (one / _RECORD).is_file()]
    kept = f"{whole[-1].name} is whole" if whole else "no checkpoint was saved yet"
    at = f" at step {folder.step}" if folder.step else ""
    going_on = f"goes on after step {find_step(whole[-1])}" if whole else "begins anew"
    return (
        f"{folder.path}: {_REASONS[number]}{at}: a checkpoint needs about {to_size(needed_bytes)}, and "
        f"{_render_free(folder.path)} are free.\n"
        f"  Nothing that was saved is lost: {kept}. What was half written is removed.\n"
        f"  Make room, then the same command with --resume: the run {going_on}."
    )


def _render_need(folder: RunFolder, error: PlaceError, estimate_bytes: Callable[[], int]) -> str:
    """A line on the room of a checkpoint, where the refused write was one of the run's own."""
    if not isinstance(error.__cause__, Exception):
        return ""
    return f"\n  A checkpoint needs about {to_size(estimate_bytes())}, and {_render_free(folder.path)} are free there."


def _to_cache_message(error: Exception, number: int) -> str:
    where = error.filename if isinstance(error, OSError) and error.filename else "the libraries' caches"
    return (
        f"{where}: {_REASONS[number]} before the run began; nothing of it was written.\n"
        "  Make room there, or name other folders: HF_HOME (the Hub's files), HF_DATASETS_CACHE (rows), TMPDIR."
    )


def _render_free(path: Path) -> str:
    return to_size(shutil.disk_usage(path).free)
