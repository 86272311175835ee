"""Stopped, diverging and short of memory on a real GPU: rows 1 to 3, 16 and 20 of what a run has to survive."""

import gc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from finetune.errors import DivergedError
from finetune.objectives.free_memory import find_free_memory
from finetune.objectives.supervised import SupervisedTrainer
from tests.end_to_end.small_runs import (
    read_figures,
    read_json,
    read_lines,
    read_weights,
    run_small,
    stopped_at_evaluation,
)

DEVICE = "cuda"

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device"),
    pytest.mark.timeout(300),
]

EVALUATED = {
    "model__device": DEVICE,
    "data__eval": {"fraction": 0.1},
    "training__eval_steps": 3,
    "training__max_steps": 7,
    "training__gradient_accumulation_steps": 2,
    "evaluation__num_samples": 0,
}
# A scaler, products in 16 bits, 4-bit and 8-bit weights, and an optimizer whose states are 8-bit blocks or paged.
WAYS: dict[str, dict[str, Any]] = {
    "float16": {"model__compute_dtype": "float16"},
    "auto": {"model__compute_dtype": "auto"},
    "int8": {"model__quantization": "int8", "model__compute_dtype": "auto"},
    # Documents by FlexAttention in float32, and by variable-length attention in 16 bits.
    "packed": {"data__packing": True, "training__gradient_checkpointing": True},
    "packed_auto": {
        "data__packing": True,
        "model__compute_dtype": "auto",
        "training__gradient_checkpointing": True,
    },
    # A matrix of fewer than 4,096 numbers keeps states of 32 bits, one of fewer than 100,000 keeps them out of pages
    # (bitsandbytes 0.50, optim/optimizer.py).
    "adamw_8bit": {"training__optim": "adamw_8bit", "adapter__r": 64},
    "paged_adamw_8bit": {"training__optim": "paged_adamw_8bit", "adapter__r": 1024},
}
# Of 28 matrices, those whose states are 8-bit blocks: at rank 64 all but B of keys and values, 32 x 64.
NUM_8BIT = {"adamw_8bit": 24, "paged_adamw_8bit": 28}


def count_8bit(checkpoint: Path) -> int:
    states = load_file(checkpoint / "optimizer.safetensors")
    return sum(name.endswith(".state1") and value.dtype == torch.uint8 for name, value in states.items())


@pytest.mark.parametrize("way", WAYS)
def test_a_run_that_was_stopped_goes_on_to_the_same_bytes(way, tmp_path):
    settings = EVALUATED | WAYS[way]
    whole = run_small(tmp_path / "whole", **settings)
    with stopped_at_evaluation(3):
        run_small(tmp_path / "stopped", **settings)
    assert count_8bit(tmp_path / "stopped" / "small" / "checkpoints" / "checkpoint-3") == NUM_8BIT.get(way, 0)
    stopped = run_small(tmp_path / "stopped", resume=True, **settings)
    assert read_figures(stopped) == read_figures(whole)
    assert read_weights(stopped) == read_weights(whole)


@pytest.fixture
def spoil_step(monkeypatch: pytest.MonkeyPatch) -> Callable[[int], None]:
    """Make the loss of a step not a number, and its gradient with it."""

    def install(step: int) -> None:
        compute_loss = SupervisedTrainer.compute_loss

        def spoiled(self: Any, *args: Any, **kwargs: Any) -> Any:
            loss = compute_loss(self, *args, **kwargs)
            return loss * float("nan") if self.model.training and self.state.global_step == step - 1 else loss

        monkeypatch.setattr(SupervisedTrainer, "compute_loss", spoiled)

    return install


@pytest.mark.parametrize("dtype", ["float16", "auto"])
def test_a_loss_that_is_no_number_stops_before_the_update_off_a_logging_step(dtype, spoil_step, tmp_path):
    spoil_step(3)
    settings = {"model__device": DEVICE, "model__compute_dtype": dtype, "training__logging_steps": 5}
    with pytest.raises(DivergedError, match=r"^step 3: the loss is not finite"):
        run_small(tmp_path, training__save_steps=2, training__rehearsal=False, **settings)
    assert not (tmp_path / "small" / "adapter").exists()
    assert (tmp_path / "small" / "checkpoints" / "checkpoint-2" / "COMPLETE.json").exists()


def test_a_step_that_is_left_out_moves_nothing(spoil_step, tmp_path):
    spoil_step(3)
    run = run_small(tmp_path, model__device=DEVICE, training__non_finite="skip", training__rehearsal=False)
    assert read_json(run / "summary.json")["skipped_steps"] == 1
    assert [line["step"] for line in read_lines(run) if line.get("skipped")] == [3]


@pytest.fixture
def little_memory() -> Any:
    """Leave this process some memory beyond what it holds, and give it all back at the end."""

    def leave(num_bytes: int) -> None:
        gc.collect()  # a run's model and trainer hold each other
        torch.cuda.empty_cache()
        total = torch.cuda.get_device_properties(0).total_memory
        torch.cuda.set_per_process_memory_fraction((torch.cuda.memory_reserved() + num_bytes) / total)

    yield leave
    torch.cuda.set_per_process_memory_fraction(1.0)


def test_what_is_free_is_what_the_process_may_still_take(little_memory):
    device = torch.device(DEVICE)
    little_memory(200 * 2**20)
    gaps = torch.cuda.memory_reserved() - torch.cuda.memory_allocated()
    free = find_free_memory(device)
    assert free is not None and 190 * 2**20 <= free.free_bytes - gaps <= 200 * 2**20
    torch.empty(150 * 2**20, dtype=torch.uint8, device=device)
    with pytest.raises(torch.OutOfMemoryError):
        torch.empty(free.free_bytes + 2**22, dtype=torch.uint8, device=device)


@pytest.mark.parametrize("rehearsal", [True, False])
def test_memory_that_runs_out_halves_the_rows_and_the_losses_stay(rehearsal, little_memory, tmp_path):
    # Logits of 64 rows of some 60 tokens in float32, three times over, are about 200 MB; of 8 rows, 25 MB.
    settings = {
        "model__device": DEVICE,
        "model__compute_dtype": "float32",
        "adapter__lora_dropout": 0.0,
        "training__per_device_train_batch_size": 60,
        "training__loss_type": "nll",  # the default one never makes all logits
        "training__rehearsal": rehearsal,
    }
    whole = run_small(tmp_path / "whole", **settings)
    little_memory(100 * 2**20)
    halved = run_small(tmp_path / "halved", **settings)
    assert read_json(whole / "summary.json")["micro_batch_rows"] is None
    assert read_json(halved / "summary.json")["micro_batch_rows"] < 60
    told, expected = ([line["loss"] for line in read_lines(run) if "loss" in line] for run in (halved, whole))
    assert told == pytest.approx(expected, rel=1e-3)
