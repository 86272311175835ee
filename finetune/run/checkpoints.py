"""Checkpoints that prove themselves: a record written last, and the choice of one to resume from.

`CommitRecord` closes each `checkpoint-N` with COMPLETE.json, which holds the size and sha256 of every
file and what the weights were made from, and only then lets older checkpoints go. `find_newest_checkpoint`
believes records alone, never a folder's name: a torn or altered one is set aside as `.broken` and the one
before is used. A disk that cannot be read sets nothing aside: it says nothing about what lies there.
"""

import hashlib
import json
import logging
import math
import os
import re
import shutil
import stat
from collections.abc import Mapping
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path, PurePosixPath
from typing import Any

from accelerate import PartialState
from transformers import TrainerCallback, TrainerControl, TrainerState
from transformers.training_args import TrainingArguments

from finetune.errors import PlaceError
from finetune.run.layout import find_checkpoints, find_step
from finetune.run.own_files import refused_writes
from finetune.run.writing import refuse_to_write, sync_dir, sync_tree, to_json_text, write_json

__all__ = [
    "CommitRecord",
    "find_checkpoint_named",
    "find_fault",
    "find_newest_checkpoint",
    "find_set_aside",
    "read_libraries",
    "read_record",
    "warn_of_other_machine",
    "write_record",
]

log = logging.getLogger("finetune.run.checkpoints")

RECORD_NAME = "COMPLETE.json"
_OWN_HASH = "record_sha256"  # of the record without this entry, its last
_MAX_RECORD_BYTES = 4 * 2**20  # some hundred bytes for each of a few dozen files are usual
# What computes a step: another version of one may round otherwise.
_LIBRARIES = (
    "torch", "transformers", "trl", "peft", "bitsandbytes", "accelerate", "tokenizers", "unsloth", "unsloth_zoo"
)  # fmt: skip
# What a run is taken up from. Of other kinds a pickle is refused by name when it is taken up, and no other is read.
_TAKEN_UP = frozenset({".json", ".safetensors"})
_BROKEN = ".broken"
_DELETING = ".deleting-"
_FEWEST = 2  # one alone would leave nothing to fall back on


class CommitRecord(TrainerCallback):
    """Completes every checkpoint with its record, sees that the best step gets one, and removes old ones.

    The trainer's own rotation must be off (`save_total_limit=None`): it deletes the checkpoint before
    while the new one has no record yet, so that a kill in between leaves none.

    Args:
        checkpoints_dir: the trainer's `output_dir`.
        writes: whether this process writes the record and removes old checkpoints.
        keep: newest checkpoints kept, at least two; the best one is kept beside them.
        made_from: names of what the weights are made from -> hash or name, for the record; see `origin.Origin`.
    """

    def __init__(
        self, checkpoints_dir: Path, *, writes: bool, keep: int, made_from: Mapping[str, Any] | None = None
    ) -> None:
        self._dir = checkpoints_dir
        self._writes = writes
        self._keep = max(keep, _FEWEST)
        self._made_from = dict(made_from or {})
        self._is_training = False

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """From here on evaluations decide about the best step."""
        self._is_training = True

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Evaluations after the run save nothing."""
        self._is_training = False

    def on_evaluate(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        metrics: dict[str, float] | None = None,
        **kwargs: Any,
    ) -> None:
        """Save a step that is the best so far, also where saving has another rhythm than evaluating."""
        if not self._is_training or args.metric_for_best_model is None or metrics is None:
            return
        # Of a reward more is better, of a loss less.
        sign = 1 if args.greater_is_better else -1
        best = -math.inf if state.best_metric is None else sign * state.best_metric
        if sign * metrics[args.metric_for_best_model] > best:
            control.should_save = True

    def on_save(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Write the record when every process has written its files, then remove what is too old."""
        PartialState().wait_for_everyone()
        if not self._writes:
            return
        checkpoint = self._dir / f"checkpoint-{state.global_step}"
        write_record(checkpoint, step=state.global_step, made_from=self._made_from)
        # By its step: the trainer's own path is of the place where the folder was when it was written.
        best = None if state.best_global_step is None else f"checkpoint-{state.best_global_step}"
        remove_old(self._dir, keep=self._keep, best_name=best)


def write_record(checkpoint: Path, *, step: int, made_from: Mapping[str, Any] | None = None) -> None:
    """Sync every file of a checkpoint to the disk, then write its record as the last one.

    Args:
        checkpoint: the folder.
        step: after which it was saved.
        made_from: what the weights are made from, by name; the libraries' versions are put beside it.

    Raises:
        PlaceError: the disk does not take it.
    """
    with refused_writes(checkpoint):
        (checkpoint / RECORD_NAME).unlink(missing_ok=True)
        files = {}
        for path in sorted(path for path in checkpoint.rglob("*") if path.is_file()):
            name = path.relative_to(checkpoint).as_posix()
            files[name] = {"bytes": path.stat().st_size, "sha256": _hash_file(path)}
        sync_tree(checkpoint)
        sync_dir(checkpoint.parent)
    record = {
        "step": step,
        "written_at": datetime.now(UTC).isoformat(timespec="seconds"),
        **(made_from or {}),
        "libraries": read_libraries(),
        "files": files,
    }
    write_json(checkpoint / RECORD_NAME, record | {_OWN_HASH: _hash_record(record)})


def read_record(checkpoint: Path) -> dict[str, Any]:
    """Read what a checkpoint's record says; `find_fault` has found it sound."""
    record: dict[str, Any] = json.loads((checkpoint / RECORD_NAME).read_text(encoding="utf-8"))
    return record


def read_libraries() -> dict[str, str]:
    """Read the versions of what computes a step; one that is not installed is left out."""
    found = {}
    for name in _LIBRARIES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


def warn_of_other_machine(checkpoint: Path, device_name: str) -> None:
    """Say in one line of the log which libraries are of another version than when a checkpoint was written.

    Args:
        checkpoint: found whole.
        device_name: of the GPU or processor that the run goes on on; another than before is named in the same line.
    """
    record = read_record(checkpoint)
    then, now = record.get("libraries"), read_libraries()
    absent, others = "not installed", []
    if isinstance(then, dict):
        others = [
            f"{name} {then.get(name, absent)} -> {now.get(name, absent)}"
            for name in _LIBRARIES
            if then.get(name) != now.get(name)
        ]
    if record.get("device_name", device_name) != device_name:
        others.append(f"{record['device_name']} -> {device_name}")
    if others:
        log.warning(
            "Other versions or another device than when %s was written: %s. The run goes on; its last digits may "
            "differ from here.",
            checkpoint.name,
            ", ".join(others),
        )


class _Faulty(Exception):
    """A checkpoint that is not as it was written; its text says which file, and how."""


def find_fault(checkpoint: Path) -> str | None:
    """What keeps a checkpoint from being trusted, naming the file; None where it is as it was written.

    Raises:
        PlaceError: the disk does not let it be read, which says nothing about the checkpoint.
    """
    try:
        found = _find_own_files(checkpoint)
        _check_files(checkpoint, found, _read_files(checkpoint, found))
    except _Faulty as fault:
        return str(fault)
    except (FileNotFoundError, NotADirectoryError):
        return "it is gone"
    except OSError as error:
        raise PlaceError(
            f"{error.filename or checkpoint} cannot be read: {(error.strerror or str(error)).lower()}.\n"
            f"  Nothing is set aside for it: the disk is at fault, the mount or the rights, and not the checkpoint.\n"
            f"  See to these, then --resume. Or move {checkpoint.name} away and go on from the one before: --resume"
        ) from error
    return None


def _find_own_files(checkpoint: Path) -> set[str]:
    """Find the files that lie in a checkpoint itself, below its folder: no links, and nothing behind one."""

    def refuse(error: OSError) -> None:
        raise error

    found = set()
    for folder, _, names in os.walk(checkpoint, onerror=refuse):
        for path in (Path(folder, name) for name in names):
            if stat.S_ISREG(path.lstat().st_mode):
                found.add(path.relative_to(checkpoint).as_posix())
    return found


def _read_files(checkpoint: Path, found: set[str]) -> dict[str, tuple[int, str]]:
    """Read from the record, once that is found sound, which files were written: name -> size and sha256."""
    if RECORD_NAME not in found:
        if os.path.lexists(checkpoint / RECORD_NAME):
            raise _Faulty(f"{RECORD_NAME} is a link or a folder")
        raise _Faulty(f"it has no {RECORD_NAME}: the save did not end")
    try:
        if (checkpoint / RECORD_NAME).stat().st_size > _MAX_RECORD_BYTES:
            raise _Faulty(f"{RECORD_NAME} cannot be read")
        record = read_record(checkpoint)
        own_hash = record.pop(_OWN_HASH)
        # The text as well: of bytes that JSON does not read, none may be another either.
        if own_hash != _hash_record(record) or not _is_as_written(checkpoint, record | {_OWN_HASH: own_hash}):
            raise _Faulty(f"{RECORD_NAME} is not what was written: its own sha256 differs")
        files = {str(name): (int(file["bytes"]), str(file["sha256"])) for name, file in record["files"].items()}
        if int(record["step"]) != find_step(checkpoint):
            raise _Faulty(f"{RECORD_NAME} is of step {record['step']}")
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        raise _Faulty(f"{RECORD_NAME} cannot be read") from None
    if not files or not all(_is_inside(name) for name in files):
        raise _Faulty(f"{RECORD_NAME} cannot be read")
    return files


def _check_files(checkpoint: Path, found: set[str], written: Mapping[str, tuple[int, str]]) -> None:
    """Check that a checkpoint's files are those that were written, and that none stands beside them."""
    for name, (num_bytes, sha256) in written.items():
        path = checkpoint / name
        if name not in found:
            raise _Faulty(f"{name[:100]} is {'a link or a folder' if os.path.lexists(path) else 'missing'}")
        if path.stat().st_size != num_bytes:
            raise _Faulty(f"{name} has {path.stat().st_size} bytes where {num_bytes} were written")
        if _hash_file(path) != sha256:
            raise _Faulty(f"{name} is not what was written: its sha256 differs")
    for name in sorted(found - written.keys() - {RECORD_NAME}):
        # Hidden ones are of file managers and network drives; nothing takes them up.
        if PurePosixPath(name).suffix in _TAKEN_UP and not PurePosixPath(name).name.startswith("."):
            raise _Faulty(f"{name} is not on its record: it was put there later")


def _hash_record(record: dict[str, Any]) -> str:
    return hashlib.sha256(to_json_text(record).encode()).hexdigest()


def _is_as_written(checkpoint: Path, record: dict[str, Any]) -> bool:
    return (checkpoint / RECORD_NAME).read_bytes() == to_json_text(record).encode()


def find_newest_checkpoint(checkpoints_dir: Path, *, writes: bool = True) -> Path | None:
    """Find the newest checkpoint that is whole, setting newer ones that are not aside as `.broken`.

    Args:
        checkpoints_dir: the run's `checkpoints/`; may not exist.
        writes: whether this process renames; the others come to the same answer without.

    Raises:
        PlaceError: one cannot be read, or not be set aside.
    """
    for checkpoint in reversed(find_checkpoints(checkpoints_dir)):
        fault = find_fault(checkpoint)
        if fault is None:
            return checkpoint
        if writes:
            broken = checkpoint.with_name(checkpoint.name + _BROKEN)
            log.warning("%s is not used: %s. It is set aside as %s.", checkpoint, fault, broken.name)
            try:
                _discard(broken)
                checkpoint.rename(broken)
            except OSError as error:
                raise refuse_to_write(broken, error) from error
    return None


def find_set_aside(checkpoints_dir: Path) -> list[Path]:
    """Find the checkpoints that were set aside as not whole, oldest step first."""
    named = checkpoints_dir.glob(f"checkpoint-*{_BROKEN}")
    return sorted((path for path in named if re.fullmatch(r"checkpoint-\d+", path.stem)), key=_find_step_set_aside)


def find_checkpoint_named(checkpoints_dir: Path, name: str) -> Path | None:
    """Find one checkpoint by its folder's name; None, and a word in the log, where it is gone or not whole.

    The trainer remembers the best checkpoint by a whole path, which a folder that was moved has not kept.
    """
    checkpoint = checkpoints_dir / name
    fault = find_fault(checkpoint)
    if fault is None:
        return checkpoint
    log.warning("%s is not used: %s. It was the best one; the last step's weights are the result.", checkpoint, fault)
    return None


def remove_old(checkpoints_dir: Path, *, keep: int, best_name: str | None) -> None:
    """Remove all but the `keep` newest recorded checkpoints and the best one, and what was set aside and is passed.

    Of those set aside the newest is kept to be looked at, and so is each that is further than the run has come again;
    each is as large as a checkpoint. A folder is renamed before it is deleted, so that a kill half-way leaves nothing
    that looks like a checkpoint. What cannot be removed costs the run nothing but room, and is tried again at the
    next save.
    """
    for leftover in sorted(checkpoints_dir.glob(f"{_DELETING}*")):  # of a kill, or of files that were still open
        _remove(leftover)
    recorded = [path for path in find_checkpoints(checkpoints_dir) if os.path.lexists(path / RECORD_NAME)]
    newest_step = max(map(find_step, recorded), default=-1)
    removed = [path for path in recorded[:-keep] if path.name != best_name]
    removed += [path for path in find_set_aside(checkpoints_dir)[:-1] if _find_step_set_aside(path) <= newest_step]
    for path in removed:
        _remove(path)


def _remove(path: Path) -> None:
    """Remove a folder, or a link and not what it leads to; where that is refused, say so and leave it."""
    try:
        if not path.name.startswith(_DELETING):
            path = path.rename(path.with_name(_DELETING + path.name))
        _discard(path)
    except OSError as error:
        log.warning("%s cannot be removed (%s); the next save tries again.", path, error.strerror or error)


def _discard(path: Path) -> None:
    """Delete whatever lies at a path, a link itself and not what it leads to; nothing there is as good."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def _find_step_set_aside(broken: Path) -> int:
    return find_step(broken.with_suffix(""))


def _is_inside(name: str) -> bool:
    """Whether a record names a file below its own folder: `../x` and `/x` are nobody's checkpoint."""
    path = PurePosixPath(name)
    return bool(path.parts) and not path.is_absolute() and ".." not in path.parts and not set("\\\0") & set(name)


def _hash_file(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
