"""Checkpoints that prove themselves: a record written last, and the choice of one to resume from.

`CommitRecord` closes each `checkpoint-N` with COMPLETE.json, which holds the size and sha256 of every
file and what the weights were made from, and only then lets older checkpoints go. `find_newest_checkpoint`
believes records alone, never a folder's name: a torn or altered one is set aside as `.broken` and the one
before is used.
"""

import hashlib
import json
import logging
import math
import os
import shutil
from collections.abc import Mapping
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path, PurePosixPath
from typing import Any

from accelerate import PartialState
from transformers import TrainerCallback, TrainerControl, TrainerState
from transformers.training_args import TrainingArguments

from finetune.run.layout import find_checkpoints, find_step
from finetune.run.writing import sync_dir, to_json_text, write_json

__all__ = [
    "CommitRecord",
    "find_checkpoint_named",
    "find_fault",
    "find_newest_checkpoint",
    "read_libraries",
    "read_record",
    "warn_of_other_libraries",
    "write_record",
]

log = logging.getLogger("finetune.run.checkpoints")

RECORD_NAME = "COMPLETE.json"
_OWN_HASH = "record_sha256"  # of the record without this entry, its last
_MAX_RECORD_BYTES = 4 * 2**20  # some hundred bytes for each of a few dozen files are usual
# What computes a step: another version of one may round otherwise.
_LIBRARIES = ("torch", "transformers", "trl", "peft", "bitsandbytes", "accelerate", "tokenizers")
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
        made_from: names of what the weights are made from (recipe, data, template, base) -> hash, for the record.
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
    """
    (checkpoint / RECORD_NAME).unlink(missing_ok=True)
    files = {}
    for path in sorted(path for path in checkpoint.rglob("*") if path.is_file()):
        with path.open("rb") as file:
            os.fsync(file.fileno())
        name = path.relative_to(checkpoint).as_posix()
        files[name] = {"bytes": path.stat().st_size, "sha256": _hash_file(path)}
    sync_dir(checkpoint)
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


def warn_of_other_libraries(checkpoint: Path) -> None:
    """Say in one line of the log which libraries are of another version than when a checkpoint was written."""
    then, now = read_record(checkpoint).get("libraries", {}), read_libraries()
    if not isinstance(then, dict):
        return
    absent = "not installed"
    others = [
        f"{name} {then.get(name, absent)} -> {now.get(name, absent)}"
        for name in _LIBRARIES
        if then.get(name) != now.get(name)
    ]
    if others:
        log.warning(
            "Other versions than when %s was written: %s. The run goes on; its last digits may differ from here.",
            checkpoint.name,
            ", ".join(others),
        )


def find_fault(checkpoint: Path) -> str | None:
    """What keeps a checkpoint from being trusted, naming the file; None where it is as it was written."""
    try:
        if (checkpoint / RECORD_NAME).stat().st_size > _MAX_RECORD_BYTES:
            return f"{RECORD_NAME} cannot be read"
        record = read_record(checkpoint)
        own_hash = record.pop(_OWN_HASH)
        # The text as well: of bytes that JSON does not read, none may be another either.
        if own_hash != _hash_record(record) or not _is_as_written(checkpoint, record | {_OWN_HASH: own_hash}):
            return f"{RECORD_NAME} is not what was written: its own sha256 differs"
        files = {str(name): (int(file["bytes"]), str(file["sha256"])) for name, file in record["files"].items()}
        if int(record["step"]) != find_step(checkpoint):
            return f"{RECORD_NAME} is of step {record['step']}"
        if not files or not all(_is_inside(name) for name in files):
            return f"{RECORD_NAME} cannot be read"
    except FileNotFoundError:
        return f"it has no {RECORD_NAME}: the save did not end"
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return f"{RECORD_NAME} cannot be read"
    for name, (num_bytes, sha256) in files.items():
        path = checkpoint / name
        if not path.is_file():
            return f"{name} is missing"
        if path.stat().st_size != num_bytes:
            return f"{name} has {path.stat().st_size} bytes where {num_bytes} were written"
        if _hash_file(path) != sha256:
            return f"{name} is not what was written: its sha256 differs"
    return None


def _hash_record(record: dict[str, Any]) -> str:
    return hashlib.sha256(to_json_text(record).encode()).hexdigest()


def _is_as_written(checkpoint: Path, record: dict[str, Any]) -> bool:
    return (checkpoint / RECORD_NAME).read_bytes() == to_json_text(record).encode()


def find_newest_checkpoint(checkpoints_dir: Path, *, writes: bool = True) -> Path | None:
    """Find the newest checkpoint that is whole, setting newer ones that are not aside as `.broken`.

    Args:
        checkpoints_dir: the run's `checkpoints/`; may not exist.
        writes: whether this process renames; the others come to the same answer without.
    """
    for checkpoint in reversed(find_checkpoints(checkpoints_dir)):
        fault = find_fault(checkpoint)
        if fault is None:
            return checkpoint
        if writes:
            log.warning("%s is not used: %s. It is set aside as %s.broken.", checkpoint, fault, checkpoint.name)
            broken = checkpoint.with_name(f"{checkpoint.name}.broken")
            shutil.rmtree(broken, ignore_errors=True)
            checkpoint.rename(broken)
    return None


def find_checkpoint_named(checkpoints_dir: Path, name: str) -> Path | None:
    """Find one checkpoint by its folder's name; None, and a word in the log, where it is gone or not whole.

    The trainer remembers the best checkpoint by a whole path, which a folder that was moved has not kept.
    """
    checkpoint = checkpoints_dir / name
    fault = find_fault(checkpoint) if checkpoint.is_dir() else "it is gone"
    if fault is None:
        return checkpoint
    log.warning("%s is not used: %s. It was the best one; the last step's weights are the result.", checkpoint, fault)
    return None


def remove_old(checkpoints_dir: Path, *, keep: int, best_name: str | None) -> None:
    """Remove all but the `keep` newest recorded checkpoints and the best one, and all set aside but the newest.

    A folder is renamed before it is deleted, so that a kill half-way leaves nothing that looks like a
    checkpoint; what such a kill left is removed the next time.
    """
    recorded = [path for path in find_checkpoints(checkpoints_dir) if (path / RECORD_NAME).exists()]
    for checkpoint in recorded[:-keep]:
        if checkpoint.name != best_name:
            checkpoint.rename(checkpoint.with_name(_DELETING + checkpoint.name))
    # The last one set aside is kept to be looked at; each is as large as a checkpoint.
    for broken in sorted(checkpoints_dir.glob("checkpoint-*.broken"), key=_find_step_set_aside)[:-1]:
        broken.rename(broken.with_name(_DELETING + broken.name))
    for leftover in checkpoints_dir.glob(f"{_DELETING}*"):
        shutil.rmtree(leftover)


def _find_step_set_aside(broken: Path) -> int:
    return find_step(broken.with_suffix(""))


def _is_inside(name: str) -> bool:
    """Whether a record names a file below its own folder: `../x` and `/x` are nobody's checkpoint."""
    path = PurePosixPath(name)
    return bool(path.parts) and not path.is_absolute() and ".." not in path.parts and "\\" not in name


def _hash_file(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
