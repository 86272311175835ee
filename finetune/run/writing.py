"""Files that are either whole or not there: written beside, synced, then renamed into place.

Goes in: a path and its new content. A reader, and a process killed at any moment, see the old file
or the new one. What the operating system refuses (no space, read-only) comes out as a PlaceError.
"""

import contextlib
import errno
import json
import os
from pathlib import Path
from typing import Any

from finetune.errors import PlaceError

__all__ = ["refuse_to_write", "sync_dir", "sync_tree", "to_json_text", "write_bytes", "write_json", "write_text"]

_SYNCS_NO_FOLDERS = {errno.EINVAL, errno.EBADF}


def write_text(path: Path, text: str) -> None:
    """Write a text file whole, in UTF-8 and with the line ends it has, on the disk when this returns.

    Raises:
        PlaceError: no space, no permission, or the folder is gone.
    """
    write_bytes(path, text.encode())


def write_bytes(path: Path, content: bytes) -> None:
    """Write a file whole, on the disk when this returns.

    Raises:
        PlaceError: no space, no permission, or the folder is gone.
    """
    beside = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        with beside.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        beside.replace(path)
        sync_dir(path.parent)
    except OSError as error:
        with contextlib.suppress(OSError):  # of a disk that is lost; what it said first is told
            beside.unlink(missing_ok=True)
        raise refuse_to_write(path, error) from error
    except KeyboardInterrupt:
        beside.unlink(missing_ok=True)
        raise


def write_json(path: Path, value: dict[str, Any]) -> None:
    """Write an object as indented JSON, whole. A number that is not finite is our bug: ValueError."""
    write_text(path, to_json_text(value))


def to_json_text(value: dict[str, Any]) -> str:
    """Lay an object out as `write_json` writes it."""
    return json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False) + "\n"


def sync_dir(path: Path) -> None:
    """Bring a folder's entries (names made, renamed, removed) to the disk, where its file system can do that.

    Some network and FUSE file systems sync files alone. What they answer to a folder is no fault of the disk;
    PostgreSQL (`fsync_fname`) passes over the same two numbers.
    """
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in _SYNCS_NO_FOLDERS:
            raise
    finally:
        os.close(descriptor)


def sync_tree(path: Path) -> None:
    """Bring a folder to the disk with all that is in it: each file's content first, then the folders, inner ones first.

    The folder's own name is its parent's entry, for which `sync_dir` is. Links are not followed.
    """
    for folder, _, names in os.walk(path, topdown=False):
        for one in (Path(folder, name) for name in names):
            if not one.is_symlink():
                with one.open("rb") as file:
                    os.fsync(file.fileno())
        sync_dir(Path(folder))


def refuse_to_write(path: Path, error: OSError) -> PlaceError:
    """Build the message for a path that the operating system does not let us write."""
    reason = (error.strerror or str(error)).lower()
    return PlaceError(
        f"{path} cannot be written: {reason}.\n"
        f"  Runs need a folder on a disk with space that this user may write to; choose one: output_dir=/path/to/runs"
    )
