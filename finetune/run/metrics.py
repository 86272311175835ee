"""metrics.jsonl: what each logged step measured, one object a step, every step once; and its totals.

`MetricsWriter` is a trainer callback: in go the trainer's logs, out come lines on the disk and the
progress shown. Read back, the lines give the run's figures across interruptions.
"""

import contextlib
import json
import logging
import math
import os
import resource
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import TrainerCallback, TrainerControl, TrainerState
from transformers.training_args import TrainingArguments

from finetune.run.folder import RunFolder
from finetune.run.own_files import refuse_to_read, refused_writes
from finetune.run.progress import Progress, is_evaluation
from finetune.run.writing import refuse_to_write, write_text

__all__ = ["MetricsWriter", "Totals", "read_metrics", "read_totals"]

log = logging.getLogger("finetune.run.metrics")

_RENAMED = {"num_real_tokens": "tokens", "eval_runtime": "eval_seconds"}
# Counts that include padding, speeds in rows, and what changes from evaluation to evaluation only by the clock.
_LEFT_OUT = {"num_tokens", "eval_num_tokens", "num_input_tokens_seen", "total_flos", "eval_num_real_tokens",
             "eval_samples_per_second", "eval_steps_per_second", "eval_model_preparation_time"}  # fmt: skip
_BETWEEN_STATUS_SECONDS = 10.0


class MetricsWriter(TrainerCallback):
    """Writes metrics.jsonl, keeps status.json's step fresh and drives the progress shown.

    A line has left the process before the next step begins, so that a kill loses none. What is
    measured later at the same step (an evaluation) joins its line. Seconds are of a clock that cannot
    be set back, and go on over resumes.

    Args:
        folder: the run's.
        resumed_step: step the run is taken up from; lines behind it are cut. None: a fresh start.
    """

    def __init__(self, folder: RunFolder, *, resumed_step: int | None) -> None:
        self._folder = folder
        self._resumed_step = resumed_step
        self._progress = Progress(writes=folder.writes)
        self._clock = _TrainingClock()
        # None until the first event: a writer is built before the run may write.
        self._last: dict[str, Any] | None = None
        self._last_offset = 0
        self._seconds_before = 0.0
        self._tokens_at_last_line = 0
        self._status_seconds = -math.inf

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Begin to measure the speed of training."""
        self._take_up()
        self._tokens_at_last_line = state.num_input_tokens_seen
        self._clock.begin_training()
        self._folder.note_step(state.global_step, state.max_steps)
        self._write_status()
        self._progress.start(state.global_step, state.max_steps)

    def on_step_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Take an evaluation or a save since the last step out of the time trained."""
        self._clock.begin_step()

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Move the progress on."""
        self._clock.end_step()
        self._folder.note_step(state.global_step, state.max_steps)
        self._progress.advance(state.global_step)

    def on_evaluate(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Remember that training stood still."""
        self._clock.stand_still()

    def on_save(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Remember that training stood still, and put the step saved into status.json."""
        self._clock.stand_still()
        self._sync()
        self._write_status()

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, Any] | None = None,
        **kwargs: Any,
    ) -> None:
        """Write what a step measured."""
        # The trainer's own closing words measure no step; its train_loss is wrong after a resume.
        if logs is None or "train_runtime" in logs or not self._folder.writes:
            return
        self._take_up()
        record: dict[str, Any] = {"step": state.global_step}
        for key, value in logs.items():
            if key not in _LEFT_OUT:
                record[_RENAMED.get(key, key)] = _to_plain(value)
        if "loss" in logs and "num_real_tokens" in logs:
            record["tokens_per_second"] = self._measure_rate(int(logs["num_real_tokens"]))
        record["seconds"] = round(self._seconds_before + self._clock.read_seconds(), 3)
        record["peak_memory_bytes"] = _read_peak_memory(args.device)
        self._write(record)
        if time.monotonic() - self._status_seconds >= _BETWEEN_STATUS_SECONDS:
            self._write_status()

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Leave the bar."""
        self._progress.close()

    def note(self, values: Mapping[str, str]) -> None:
        """Let words join the last line: they are no figures, and a tracker does not get them."""
        if self._folder.writes:
            assert self._last, "a line comes first"
            self._write({"step": self._last["step"], **values})

    def _take_up(self) -> None:
        """Cut what stands behind the step the run is taken up from, once, and go on from the last line kept."""
        if self._last is not None:
            return
        kept = _cut_lines(self._folder.metrics_path, self._resumed_step) if self._folder.writes else []
        self._last = kept[-1] if kept else {}
        if kept:
            self._last_offset = self._folder.metrics_path.stat().st_size - len(_to_line(kept[-1]))
            self._seconds_before = float(kept[-1]["seconds"])

    def _measure_rate(self, tokens: int) -> float:
        rate = (tokens - self._tokens_at_last_line) / max(self._clock.end_lap(), 1e-9)
        self._tokens_at_last_line = tokens
        return round(rate, 3)

    def _write(self, record: dict[str, Any]) -> None:
        assert self._last is not None, "_take_up comes first"
        path = self._folder.metrics_path
        last_step = self._last.get("step", -1)
        if record["step"] < last_step:
            return  # measured before a resumed run has taken its weights up: that step stands already
        if record["step"] == last_step:
            # What was measured first stands: a later evaluation may be of other weights (the best step's).
            shows = is_evaluation(record)
            record = self._last | {key: value for key, value in record.items() if key not in self._last}
        else:
            shows = "loss" in record or is_evaluation(record)
            self._last_offset = path.stat().st_size if path.exists() else 0
        try:
            _write_line(path, self._last_offset, record)
        except OSError as error:
            if record["step"] == last_step:  # its place on the disk is still there
                with contextlib.suppress(OSError):
                    _write_line(path, self._last_offset, self._last)
            raise refuse_to_write(path, error) from error
        self._last = record
        if shows:
            self._progress.show(record)

    def _sync(self) -> None:
        """Bring the lines to the disk: what a checkpoint stands on must be there when the power fails, as it is."""
        path = self._folder.metrics_path
        with refused_writes(path):
            if self._folder.writes and path.exists():
                with path.open("rb") as file:
                    os.fsync(file.fileno())

    def _write_status(self) -> None:
        self._folder.write_status("running")
        self._status_seconds = time.monotonic()


class _TrainingClock:
    """Seconds since it was built, and of them those trained, by a clock that cannot be set back."""

    def __init__(self) -> None:
        self._built_seconds = time.monotonic()
        self.begin_training()

    def begin_training(self) -> None:
        """Begin the first lap."""
        self._lap_began_seconds = self._step_ended_seconds = time.monotonic()
        self._paused_seconds = 0.0
        self._stood_still = False

    def begin_step(self) -> None:
        """Count what passed since the last step as a pause where training stood still."""
        if self._stood_still:
            self._paused_seconds += time.monotonic() - self._step_ended_seconds
            self._stood_still = False

    def end_step(self) -> None:
        """Note when the step ended: a pause begins here if one comes."""
        self._step_ended_seconds = time.monotonic()

    def stand_still(self) -> None:
        """Note that an evaluation or a save came behind the last step."""
        self._stood_still = True

    def end_lap(self) -> float:
        """Seconds trained since the last lap, pauses taken out; the next lap begins."""
        now = time.monotonic()
        trained_seconds = now - self._lap_began_seconds - self._paused_seconds
        self._lap_began_seconds, self._paused_seconds = now, 0.0
        return trained_seconds

    def read_seconds(self) -> float:
        """Seconds since the clock was built, pauses included."""
        return time.monotonic() - self._built_seconds


@dataclass(frozen=True, slots=True)
class Totals:
    """A run's figures over all its steps, before and after interruptions.

    Attributes:
        steps: optimizer steps logged.
        train_loss: mean loss over the lines that have one, each for the steps trained; None where none was logged.
        loss_spikes: lines marked as a spike.
        tokens: real tokens trained on, padding not counted.
        tokens_per_second: of the time trained, evaluations and saves taken out; None where not measured.
        seconds: wall time up to the last line, the evaluation of the base included, the stops between not counted.
        peak_memory_bytes: most memory held, on the GPU or, on a CPU, by the process.
    """

    steps: int
    train_loss: float | None
    loss_spikes: int
    tokens: int
    tokens_per_second: float | None
    seconds: float
    peak_memory_bytes: int


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """Read the lines of a metrics.jsonl, up to the first that is none; a missing file is empty.

    A kill tears the last line, and lines behind the last save can be lost with the power.

    Raises:
        PlaceError: it is there and cannot be read.
    """
    try:
        *whole, _torn = path.read_text(encoding="utf-8", errors="replace").split("\n")
    except FileNotFoundError:
        return []
    except OSError as error:
        raise refuse_to_read(path, error) from error
    lines: list[dict[str, Any]] = []
    for line in whole:
        try:
            lines.append(_read_line(line))
        except (ValueError, RecursionError):
            log.warning("%s: line %d cannot be read; it and what follows is left out.", path, len(lines) + 1)
            break
    return lines


def _read_line(text: str) -> dict[str, Any]:
    """Read one line; ValueError where it is not an object with its step."""
    line = json.loads(text, parse_constant=_refuse_constant)
    if not isinstance(line, dict) or type(line.get("step")) is not int:
        raise ValueError("no object with a step")
    return line


def _refuse_constant(name: str) -> None:
    raise ValueError(f"{name} is no JSON")


def read_totals(path: Path) -> Totals:
    """Read a run's totals from its metrics.jsonl."""
    lines = read_metrics(path)
    loss_sum, loss_weight, loss_step, tokens, trained_seconds = 0.0, 0, 0, 0, 0.0
    for line in lines:
        if "loss" in line:
            # A line's loss is the mean since the last one over the steps that were trained.
            num_steps = line["step"] - loss_step - line.get("skipped", 0)
            loss_step = line["step"]
            if line["loss"] is not None:  # all its steps were left out
                loss_sum += line["loss"] * num_steps
                loss_weight += num_steps
        if line.get("tokens_per_second"):
            trained_seconds += (line["tokens"] - tokens) / line["tokens_per_second"]
            tokens = line["tokens"]
    return Totals(
        steps=lines[-1]["step"] if lines else 0,
        train_loss=loss_sum / loss_weight if loss_weight else None,
        loss_spikes=sum(bool(line.get("spike")) for line in lines),
        tokens=tokens,
        tokens_per_second=round(tokens / trained_seconds, 3) if trained_seconds else None,
        seconds=lines[-1]["seconds"] if lines else 0.0,
        peak_memory_bytes=max((line["peak_memory_bytes"] for line in lines), default=0),
    )


def _cut_lines(path: Path, resumed_step: int | None) -> list[dict[str, Any]]:
    """Drop the lines behind the step a run is taken up from; a torn last one too."""
    if not os.path.lexists(path):  # a link that leads nowhere yet is replaced too
        return []
    kept = [] if resumed_step is None else [line for line in read_metrics(path) if line["step"] <= resumed_step]
    write_text(path, b"".join(map(_to_line, kept)).decode())
    return kept


def _write_line(path: Path, offset: int, record: dict[str, Any]) -> None:
    """Write a line from an offset on; what stood behind it goes."""
    # Unbuffered: of a buffer that a full disk did not take, closing the file would try again.
    with path.open("r+b" if path.exists() else "wb", buffering=0) as file:
        file.seek(offset)
        line = _to_line(record)
        while line:
            line = line[file.write(line) :]
        file.truncate()


def _to_line(record: dict[str, Any]) -> bytes:
    return json.dumps(record, allow_nan=False).encode() + b"\n"


def _to_plain(value: Any) -> Any:
    """A number JSON knows: one that is not finite becomes null, a tensor or NumPy scalar its number."""
    if isinstance(value, str | bool | int):
        return value
    number = float(value)
    return number if math.isfinite(number) else None


def _read_peak_memory(device: torch.device) -> int:
    """Most bytes held so far: tensors on the GPU, or on a CPU the whole process."""
    if device.type == "cuda":
        return int(torch.cuda.max_memory_allocated(device))
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024
