"""One process for one run folder.

An operating-system lock on the file `.lock` inside it, which ends with its holder however that
dies, so that a stale one is simply taken over. The file's content (pid, host, since when) is there
to be read by people and by the message the second process gets; where the file system knows no locks
it is also all there is to go by.
"""

import contextlib
import errno
import fcntl
import json
import logging
import os
import socket
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from finetune.errors import CheckpointError
from finetune.run.own_files import open_unlinked
from finetune.run.writing import refuse_to_write

__all__ = ["FolderLock"]

log = logging.getLogger("finetune.run.lock")

# Some network and FUSE file systems (a mounted cloud drive) know no locks.
_NO_LOCKS_HERE = {errno.ENOSYS, errno.EOPNOTSUPP, errno.ENOLCK, errno.EINVAL}


class FolderLock:
    """The lock of one folder, held from `take` until `release` or the end of the process."""

    def __init__(self, path: Path, descriptor: int) -> None:
        self._path = path
        self._descriptor: int | None = descriptor
        # A forked data worker that outlives a killed run must not keep its lock.
        os.register_at_fork(after_in_child=self._close)

    @classmethod
    def take(cls, folder: Path) -> "FolderLock":
        """Take the lock of a folder that exists.

        Raises:
            CheckpointError: another process holds it; says which, and since when.
            PlaceError: the folder cannot be written, or the lock is a link.
        """
        path = folder / ".lock"
        while True:
            is_locked = True
            descriptor = open_unlinked(path, os.O_RDWR, 0o644)
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                holder = _read_holder(os.pread(descriptor, 1000, 0))
                os.close(descriptor)
                raise CheckpointError(_to_message(folder, holder)) from None
            except OSError as error:
                if error.errno not in _NO_LOCKS_HERE:
                    os.close(descriptor)
                    raise refuse_to_write(path, error) from error
                holder = _read_holder(os.pread(descriptor, 1000, 0))
                if _is_at_work(holder):
                    os.close(descriptor)
                    raise CheckpointError(_to_message(folder, holder)) from None
                _warn_of_no_locks(folder, holder)
                is_locked = False
            # Between open and lock the holder may have ended and removed the file: lock the new one.
            if path.exists() and os.fstat(descriptor).st_ino == path.stat().st_ino:
                break
            os.close(descriptor)
        holder_now = {
            "pid": os.getpid(),
            "host": socket.gethostname(),
            "since": datetime.now(UTC).isoformat(timespec="seconds"),
        }
        try:
            os.ftruncate(descriptor, 0)
            os.pwrite(descriptor, json.dumps(holder_now).encode() + b"\n", 0)
        except OSError as error:  # a full disk
            if not is_locked:
                os.close(descriptor)
                raise refuse_to_write(path, error) from error
            # The lock holds without a word in it. Whether there is room for the run is asked where it writes.
        return cls(path, descriptor)

    def release(self) -> None:
        """Give the lock back and remove its file; a second call does nothing."""
        if self._descriptor is not None:
            with contextlib.suppress(OSError):  # a disk that is lost; the lock ends with its descriptor
                self._path.unlink(missing_ok=True)
            self._close()

    def _close(self) -> None:
        if self._descriptor is not None:
            with contextlib.suppress(OSError):  # of a network's disk; it is closed all the same
                os.close(self._descriptor)
            self._descriptor = None


def _read_holder(content: bytes) -> dict[str, Any]:
    """Read who wrote the file; empty for the instant between the holder's lock and its first write."""
    try:
        holder = json.loads(content)
    except ValueError:
        return {}
    return holder if isinstance(holder, dict) and {"pid", "host", "since"} <= holder.keys() else {}


def _is_at_work(holder: dict[str, Any]) -> bool:
    """Whether the process that wrote the file still runs, as far as this machine can tell."""
    if not holder or holder["host"] != socket.gethostname() or holder["pid"] == os.getpid():
        return False
    try:
        os.kill(int(holder["pid"]), 0)
    except ProcessLookupError:
        return False
    except PermissionError:  # of another user
        return True
    return True


def _warn_of_no_locks(folder: Path, holder: dict[str, Any]) -> None:
    if holder and holder["host"] != socket.gethostname():
        log.warning(
            "%s: %s wrote its name here, and this file system has no locks to tell whether it still works.\n"
            "  Make sure that it has ended: two processes would write over each other.",
            folder,
            _describe(holder),
        )
    else:
        log.warning("%s: this file system has no locks; start no second process on this run.", folder)


def _describe(holder: dict[str, Any]) -> str:
    return f"process {holder['pid']} on {holder['host']} since {holder['since']}" if holder else "another process"


def _to_message(folder: Path, holder: dict[str, Any]) -> str:
    return (
        f"{folder} is being worked on by {_describe(holder)}.\n"
        f"  Two processes would write over each other. Wait for it, stop it, or give this run another name: name=…"
    )
