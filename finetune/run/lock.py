"""One process for one run folder.

An operating-system lock on the file `.lock` inside it, which ends with its holder however that
dies, so that a stale one is simply taken over. The file's content (pid, host, since when) is there
to be read by people and by the message the second process gets.
"""

import errno
import fcntl
import json
import logging
import os
import socket
from datetime import UTC, datetime
from pathlib import Path

from finetune.errors import CheckpointError
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
            PlaceError: the folder cannot be written.
        """
        path = folder / ".lock"
        while True:
            try:
                descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
            except OSError as error:
                raise refuse_to_write(path, error) from error
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                holder = os.pread(descriptor, 1000, 0)
                os.close(descriptor)
                raise CheckpointError(_to_message(folder, holder)) from None
            except OSError as error:
                if error.errno not in _NO_LOCKS_HERE:
                    os.close(descriptor)
                    raise
                log.warning("%s: this file system has no locks; start no second process on this run.", folder)
            # Between open and lock the holder may have ended and removed the file: lock the new one.
            if path.exists() and os.fstat(descriptor).st_ino == path.stat().st_ino:
                break
            os.close(descriptor)
        holder_now = {
            "pid": os.getpid(),
            "host": socket.gethostname(),
            "since": datetime.now(UTC).isoformat(timespec="seconds"),
        }
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, json.dumps(holder_now).encode() + b"\n", 0)
        return cls(path, descriptor)

    def release(self) -> None:
        """Give the lock back and remove its file; a second call does nothing."""
        if self._descriptor is not None:
            self._path.unlink(missing_ok=True)
            self._close()

    def _close(self) -> None:
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None


def _to_message(folder: Path, holder: bytes) -> str:
    # Empty for the instant between the holder's lock and its first write.
    known = json.loads(holder) if holder.strip() else {}
    who = f"process {known['pid']} on {known['host']} since {known['since']}" if known else "another process"
    return (
        f"{folder} is being worked on by {who}.\n"
        f"  Two processes would write over each other. Wait for it, stop it, or give this run another name: name=…"
    )
