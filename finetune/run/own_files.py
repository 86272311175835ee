"""A run's own files where the operating system refuses them: what it says becomes a PlaceError, with the path.

In goes a path of the run's folder; out comes what was read, or a message. A link in a file's place is refused: through
it a folder that came from somebody else would have the run write over any file of its user's.
"""

import contextlib
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from finetune.errors import PlaceError
from finetune.run.writing import refuse_to_write

__all__ = ["open_unlinked", "read_object", "refuse_to_read", "refused_writes"]


def read_object(path: Path) -> dict[str, Any]:
    """Read a JSON object; empty where there is none, or where a disk has lost what it held.

    Raises:
        PlaceError: something lies there, or in the way, that cannot be read; that says nothing about the run.
    """
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, ValueError, RecursionError):
        return {}
    except OSError as error:
        raise refuse_to_read(path, error) from error
    return value if isinstance(value, dict) else {}


def refuse_to_read(path: Path, error: OSError) -> PlaceError:
    """Build the message for a file that the operating system does not let us read."""
    reason = (error.strerror or str(error)).lower()
    return PlaceError(
        f"{path} cannot be read: {reason}.\n"
        "  Nothing was changed for it: the disk is at fault, the mount or the rights. See to these, then the same "
        "command."
    )


@contextlib.contextmanager
def refused_writes(path: Path) -> Iterator[None]:
    """Translate what the operating system refuses inside the block, which writes a file or folder.

    Raises:
        PlaceError: naming the path; an error of a write or a sync has none of its own.
    """
    try:
        yield
    except OSError as error:
        raise refuse_to_write(path, error) from error


def open_unlinked(path: Path, flags: int, mode: int) -> int:
    """Open the file of that name itself, made where it is missing, and never what a link there leads to.

    Returns:
        The descriptor.

    Raises:
        PlaceError: it is a link, or cannot be written.
    """
    try:
        return os.open(path, flags | os.O_CREAT | os.O_NOFOLLOW, mode)
    except OSError as error:
        if not path.is_symlink():
            raise refuse_to_write(path, error) from error
        raise PlaceError(
            f"{path} is a link to {path.readlink()}: a run writes over no file through a link.\n"
            "  Runs make no such links, so look where this folder comes from. Remove the link, then the same command."
        ) from error
