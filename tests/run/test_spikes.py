"""Loss spikes: what is marked, what is not, and the same after a resume."""

import json
import math
import random
from pathlib import Path
from typing import Any

import pytest
from transformers import TrainerControl, TrainerState
from transformers.training_args import TrainingArguments

from finetune.run.metrics import MetricsWriter, read_metrics, read_totals
from finetune.run.spikes import SpikeWatch, is_spike
from tests.run.folders import start_folder


def fall(count: int, seed: int = 0) -> list[float]:
    """A loss that falls from 4.5 towards 1 as fine-tuning does, with the noise of small batches."""
    draw = random.Random(seed)
    return [(1 + 3.5 * math.exp(-step / 15)) * draw.lognormvariate(0, 0.15) for step in range(count)]


def find_marks(losses: list[float]) -> list[int]:
    return [place for place, loss in enumerate(losses) if is_spike(loss, losses[max(0, place - 50) : place])]


@pytest.mark.parametrize("seed", range(20))
def test_a_loss_that_falls_with_noise_is_never_marked(seed):
    assert find_marks(fall(300, seed)) == []


@pytest.mark.parametrize("place", [30, 80, 200])
def test_a_loss_three_times_as_high_as_those_before_is_marked_and_no_other(place):
    losses = fall(300, seed=1)
    losses[place] = 3 * max(losses[place - 20 : place])
    assert find_marks(losses) == [place]


def test_a_loss_that_jumps_and_stays_up_is_marked_once():
    assert find_marks([1.0, 1.1] * 20 + [6.0, 6.1] * 20) == [40]


@pytest.mark.parametrize(
    ("loss", "before", "why"),
    [
        (9.0, [1.0] * 9, "fewer than ten losses say nothing"),
        (1.4, [1.0] * 50, "not half as much again, though any rise is many deviations of equal losses"),
        (0.09, [0.0] * 50, "a rise of less than a tenth"),
        (0.0, [1.0] * 50, "a fall"),
        (3.0, [0.5, 1.5] * 25, "within seven deviations"),
    ],
)
def test_what_is_no_spike(loss, before, why):
    assert not is_spike(loss, before), why


def test_what_is_one():
    assert is_spike(1.6, [1.0] * 50)
    assert is_spike(0.2, [0.0] * 10)


# ---- the callback


def log_losses(
    watch: SpikeWatch, writer: MetricsWriter, arguments: TrainingArguments, losses: dict[int, float]
) -> None:
    state = TrainerState(max_steps=100)
    for callback in (watch, writer):
        callback.on_train_begin(arguments, state, TrainerControl())
    for step, loss in losses.items():
        state.global_step = step
        logs: dict[str, Any] = {"loss": loss}
        for callback in (watch, writer):
            callback.on_log(arguments, state, TrainerControl(), logs=logs)


def read_marked(path: Path) -> list[int]:
    return [line["step"] for line in read_metrics(path) if line.get("spike")]


LOSSES = {step: 1.0 + step % 3 / 10 for step in range(1, 31)} | {15: math.nan, 20: 5.0, 25: 30.0}


def test_lines_are_marked_and_counted_alike_in_an_unbroken_and_in_a_resumed_run(tmp_path, caplog):
    arguments = TrainingArguments(str(tmp_path / "checkpoints"), use_cpu=True)
    folder = start_folder(_make(tmp_path / "whole"))
    log_losses(SpikeWatch(folder, resumed_step=None), MetricsWriter(folder, resumed_step=None), arguments, LOSSES)
    assert read_marked(folder.metrics_path) == [20, 25]
    assert read_totals(folder.metrics_path).loss_spikes == 2
    assert "step 20: the loss is 5, far above the mean of 1.106 over the 18 lines before" in caplog.text
    folder = start_folder(_make(tmp_path / "resumed"))
    first = {step: loss for step, loss in LOSSES.items() if step <= 22}
    log_losses(SpikeWatch(folder, resumed_step=None), MetricsWriter(folder, resumed_step=None), arguments, first)
    rest = {step: loss for step, loss in LOSSES.items() if step > 18}
    log_losses(SpikeWatch(folder, resumed_step=18), MetricsWriter(folder, resumed_step=18), arguments, rest)
    assert read_marked(folder.metrics_path) == [20, 25]
    assert [json.loads(line)["step"] for line in folder.metrics_path.read_text().splitlines()] == list(LOSSES)


def _make(path: Path) -> Path:
    path.mkdir()
    return path
