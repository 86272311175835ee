"""Room on the disk, asked for before anything is downloaded or trained.

In goes what a run is going to write, each part with its place; out comes nothing, or a PlaceError with what is needed
and what is free. Parts on one file system are counted together. A quota that the file system does not tell is not
seen; a disk that fills up all the same loses nothing that was saved.
"""

import contextlib
import math
import os
import shutil
import stat
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from finetune.errors import PlaceError

__all__ = [
    "RECORDS_BYTES",
    "Need",
    "check_space",
    "count_checkpoints",
    "estimate_checkpoint_bytes",
    "estimate_result_bytes",
    "find_size",
    "to_size",
]

# Log, figures, samples and the loss curve, beside what grows with the weights.
RECORDS_BYTES = 200_000
_FLOAT32_BYTES = 4
# Bytes that an optimizer keeps for each trained number, by a word in its name; Adam's two in float32 are the most.
_STATE_BYTES = (
    ("ademamix_8bit", 3), ("8bit", 2), ("4bit", 1), ("ademamix", 12), ("adafactor", 4), ("sgd", 4), ("lion", 4),
    ("adagrad", 4), ("rmsprop", 4),
)  # fmt: skip
_MOST_STATE_BYTES = 8
# Random states, the trainer's state, configs and the record.
_SMALL_FILES_BYTES = 64 * 1024


@dataclass(frozen=True, slots=True)
class Need:
    """One part of what a run writes.

    Attributes:
        what: in words.
        num_bytes: at most.
        place: a folder it goes into; it need not be there yet.
    """

    what: str
    num_bytes: int
    place: Path


def estimate_checkpoint_bytes(num_trained: int, num_frozen: int, optimizer: str, beside_bytes: int) -> int:
    """Estimate a checkpoint: trained numbers in float32, what the optimizer keeps for each of them, what lies beside.

    Args:
        num_trained: numbers trained.
        num_frozen: numbers saved with them, in 16 bits: none beside an adapter.
        optimizer: its name as transformers knows it.
        beside_bytes: of the tokenizer's files.
    """
    state_bytes = next((size for word, size in _STATE_BYTES if word in optimizer), _MOST_STATE_BYTES)
    return num_trained * (_FLOAT32_BYTES + state_bytes) + num_frozen * 2 + beside_bytes + _SMALL_FILES_BYTES


def estimate_result_bytes(num_trained: int, num_frozen: int, beside_bytes: int) -> int:
    """Estimate a result: what was trained in float32, the rest of a whole model in 16 bits, what lies beside."""
    return num_trained * _FLOAT32_BYTES + num_frozen * 2 + beside_bytes


def count_checkpoints(*, keep: int, finds_best: bool, max_steps: int, save_steps: float) -> int:
    """Count the checkpoints that lie on the disk at once: those kept, the best one, and the one being written.

    Args:
        keep: newest ones kept.
        finds_best: whether a best one is kept beside them; it is saved when it is found, in no rhythm.
        max_steps: of the run; not above 0: not known yet.
        save_steps: between two, below 1 a share of all steps.
    """
    most = keep + 1 + finds_best
    if finds_best:
        return min(most, max_steps) if max_steps > 0 else most
    saves = math.ceil(1 / save_steps) if save_steps < 1 else math.ceil(max_steps / save_steps)
    return min(most, saves) if max_steps > 0 or save_steps < 1 else most


def check_space(needs: Sequence[Need], *, given_back: Need | None = None) -> None:
    """Check that every file system has room for what is going to be written to it.

    Args:
        needs: what is written.
        given_back: what lies there already and is replaced, or is part of the needs.

    Raises:
        PlaceError: one has not; with needed and free bytes by part.
    """
    by_disk: dict[int, list[Need]] = {}
    for need in needs:
        by_disk.setdefault(_find_existing(need.place).stat().st_dev, []).append(need)
    for disk, parts in by_disk.items():
        place = _find_existing(parts[0].place)
        free_bytes = shutil.disk_usage(place).free
        if given_back is not None and _find_existing(given_back.place).stat().st_dev == disk:
            free_bytes += given_back.num_bytes
        needed_bytes = sum(part.num_bytes for part in parts)
        if needed_bytes > free_bytes:
            raise PlaceError(_to_message(place, parts, needed_bytes, free_bytes))


def find_size(folder: Path) -> int:
    """Find the bytes of the files that a run will replace; 0 where there is no folder.

    Links in it are not followed, though the folder itself may be one. Checkpoints set aside as `.broken` stay, and are
    not counted; nor is what somebody else deletes meanwhile.
    """
    num_bytes = 0
    for place, folders, files in os.walk(folder):
        folders[:] = [name for name in folders if not name.endswith(".broken")]
        for name in files:
            with contextlib.suppress(FileNotFoundError):
                found = Path(place, name).lstat()
                num_bytes += found.st_size if stat.S_ISREG(found.st_mode) else 0
    return num_bytes


def to_size(num_bytes: int) -> str:
    """`1.8 MB`, `14.2 GB`: decimal units, as disks and the Hub count."""
    for unit, length in (("TB", 1e12), ("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if num_bytes >= length:
            return f"{num_bytes / length:.1f} {unit}"
    return f"{num_bytes} bytes"


def _to_message(place: Path, parts: Sequence[Need], needed_bytes: int, free_bytes: int) -> str:
    width = max(len(part.what) for part in parts)
    lines = "\n".join(f"  {part.what:<{width}}  {to_size(part.num_bytes):>9}  in {part.place}" for part in parts)
    return (
        f"{place}: this run needs about {to_size(needed_bytes)} of disk, and {to_size(free_bytes)} are free.\n{lines}\n"
        "  Make room, or write elsewhere: output_dir=/path/to/runs     The Hub's cache: HF_HOME=/path\n"
        "  Fewer checkpoints: training.save_total_limit=2     Smaller ones: training.optim=adamw_8bit"
    )


def _find_existing(place: Path) -> Path:
    return next(one for one in (place.absolute(), *place.absolute().parents) if one.exists())
