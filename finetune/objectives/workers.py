"""Data workers that die, or that have no room to hand their batches over: said in words a person can act on.

Workers (`training.dataloader_num_workers`) are processes that make batches and hand them over in shared memory. In go
the library's errors from anywhere in a run, since torch raises that of a dead worker wherever the run happens to be;
out comes a PlaceError.
"""

import shutil
import time
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from multiprocessing import resource_sharer
from pathlib import Path

from finetune.errors import PlaceError

__all__ = ["telling_dead_workers"]

_SHARED_MEMORY = Path("/dev/shm")
# torch's (2.13) words: of a worker that is gone, and of one whose memory cannot be shared.
_DEAD = ("DataLoader worker (pid", "DataLoader worker exited unexpectedly")
_NO_ROOM = (
    "unable to write to file </torch_",
    "unable to allocate shared memory",
    "unable to open shared memory object",
    "unable to mmap",
    "insufficient shared memory",
    "out of shared memory",
)
_NO_FILES = ("received 0 items of ancdata", "Too many open files. Communication with the workers")
_NO_FILES_IN_WORKER = "Too many open files"  # the system's own words, which say nothing of workers
_KILLED = "A data worker was killed, or ended without a word: memory had run out, or somebody stopped it"
_SECONDS_TO_DIE = 2.0


@contextmanager
def telling_dead_workers(num_workers: int) -> Iterator[None]:
    """Translate what torch says of its workers.

    Args:
        num_workers: of the run; without any nothing is translated.

    Raises:
        PlaceError: one is dead, or cannot hand over what it made.
    """
    try:
        yield
    except (RuntimeError, OSError, EOFError) as error:
        reason = None if num_workers == 0 else _find_reason(error)
        if reason is None:
            raise
        # Without the library's own error behind it: "no space" there is of shared memory, and no disk's.
        raise PlaceError(
            f"{reason} (training.dataloader_num_workers is {num_workers}).\n"
            f"  Workers hand batches over in shared memory (shm): {_render_shared_memory()}.\n"
            "  A container has 64 MB of it unless told: docker run --shm-size=8g\n"
            "  Without workers (rows are tokens already, and cost little to batch): training.dataloader_num_workers=0\n"
            "  Checkpoints saved so far are whole; go on with --resume."
        ) from None


def _find_reason(error: Exception) -> str | None:
    words = str(error)
    if any(one in words for one in _NO_ROOM):
        return "A data worker has no shared memory left to hand a batch over"
    if any(one in words for one in _NO_FILES) or (_NO_FILES_IN_WORKER in words and "DataLoader" in words):
        return "A data worker may open no more files to hand a batch over (ulimit -n)"
    if any(one in words for one in _DEAD):
        return _KILLED
    if isinstance(error, OSError | EOFError) and _came_from_a_worker(error):
        _await_word_of_its_death()
        return _KILLED
    return None


def _came_from_a_worker(error: Exception) -> bool:
    """Tell whether a batch's memory was being fetched from the worker that made it, which answers no more."""
    frames = traceback.walk_tb(error.__traceback__)
    return any(frame.f_code.co_filename == resource_sharer.__file__ for frame, _ in frames)


def _await_word_of_its_death() -> None:
    """Take torch's own error of the dead worker, which its handler of SIGCHLD raises wherever the run is by then."""
    try:
        time.sleep(_SECONDS_TO_DIE)
    except RuntimeError as error:
        if not any(one in str(error) for one in _DEAD):
            raise


def _render_shared_memory() -> str:
    if not _SHARED_MEMORY.is_dir():
        return "there is no /dev/shm here"
    usage = shutil.disk_usage(_SHARED_MEMORY)
    return f"{usage.free / 1e6:,.0f} of {usage.total / 1e6:,.0f} MB in /dev/shm are free"
