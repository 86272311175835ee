"""Optimizers, schedules, scalers and random generators leave a checkpoint as they went in, without a pickle."""

import json
import math
import os
import pickle
import random
from pathlib import Path
from typing import Any

import bitsandbytes
import numpy
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import SchedulerType, get_scheduler

from finetune.errors import CheckpointError, PlaceError
from finetune.objectives.training_state import (
    build_random_state,
    check_no_pickle,
    put_random_state_back,
    read_state,
    refused_as_state,
    write_state,
)

MEBIBYTE = 2**20


def there_and_back(folder: Path, state: Any) -> Any:
    write_state(folder, "state", state)
    return read_state(folder, "state", max_bytes=MEBIBYTE)


def assert_same(read: Any, written: Any, path: str = "state") -> None:
    """Equal in value and in type, tensors bit for bit, dicts in their order."""
    assert type(read) is type(written), path
    if isinstance(written, torch.Tensor):
        assert (read.dtype, read.shape) == (written.dtype, written.shape), path
        assert torch.equal(read.contiguous().flatten().view(torch.uint8), to_bytes(written)), path
    elif isinstance(written, dict):
        assert list(read) == list(written), path
        for key in written:
            assert_same(read[key], written[key], f"{path}.{key}")
    elif isinstance(written, list | tuple):
        assert len(read) == len(written), path
        for place, (one, other) in enumerate(zip(read, written, strict=True)):
            assert_same(one, other, f"{path}.{place}")
    elif isinstance(written, float) and math.isnan(written):
        assert math.isnan(read), path
    else:
        assert read == written, path


def to_bytes(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.detach().cpu().contiguous().flatten().view(torch.uint8)


def test_every_kind_of_value_comes_back_as_the_type_it_was(tmp_path):
    state = {
        0: "a", "0": "b", "": None, "flags": [True, False], "pair": (1, 2.0, ("x", [])), "empty": ({}, (), []),
        "numbers": [0.1, -0.0, 1e308, math.inf, -math.inf, math.nan, 2**70, -1, 1.0],
        "words": {"tensor": "no tensor", "tuple": ["no tuple"], "float": "inf"},
    }  # fmt: skip
    assert_same(there_and_back(tmp_path, state), state)
    assert not (tmp_path / "state.safetensors").exists()


@pytest.mark.parametrize(
    "dtype",
    [torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.float8_e4m3fn, torch.int64, torch.int32,
     torch.int16, torch.int8, torch.uint8, torch.bool, torch.complex64],
    ids=str,
)  # fmt: skip
def test_tensors_of_every_dtype_come_back_bit_for_bit(tmp_path, dtype):
    numbers = torch.tensor([[0.0, 1.0, 2.0], [3.0, 4.0, 5.0]]).to(dtype)
    state = {"matrix": numbers, "number": numbers[1, 1].clone(), "none": numbers[:0], "across": numbers.T, 3: [numbers]}
    assert_same(there_and_back(tmp_path, state), state)


def test_a_nan_keeps_its_bits(tmp_path):
    odd = torch.tensor([0x7FC12345, 0x7F800000], dtype=torch.int32).view(torch.float32)
    assert_same(there_and_back(tmp_path, odd), odd)


def test_a_tensor_that_stands_in_two_places_is_written_once_and_is_one_again(tmp_path):
    table = torch.arange(256.0)
    read = there_and_back(tmp_path, {0: {"qmap": table}, 1: {"qmap": table, "part": table[:4]}})
    assert read[0]["qmap"] is read[1]["qmap"]
    assert read[1]["part"].tolist() == [0, 1, 2, 3]
    assert len(load_file(tmp_path / "state.safetensors")) == 2


@pytest.mark.parametrize(
    ("value", "named"),
    [
        ({"a": [1, {2}]}, r"state\.a\.1: a checkpoint holds no builtins\.set"),
        ({"a": {(1, 2): 0}}, r"state\.a: a checkpoint holds no key of type tuple"),
        ({"a": {True: 0}}, r"state\.a: a checkpoint holds no key of type bool"),
        ({"a": print}, r"state\.a: a checkpoint holds no builtins\."),
        ({"a": numpy.float64(1)}, r"state\.a: a checkpoint holds no numpy\.float64"),
        ({"a": torch.eye(2).to_sparse()}, r"state\.a: a checkpoint holds plain tensors"),
        ({"a": torch.zeros(1, dtype=torch.complex128)}, r"state\.a: a checkpoint holds no tensor of torch\.complex128"),
    ],
)
def test_what_is_not_data_is_refused_by_its_place(tmp_path, value, named):
    with pytest.raises(TypeError, match=named):
        write_state(tmp_path, "state", value)


def test_what_contains_itself_is_refused(tmp_path):
    loop: list[Any] = []
    loop.append(loop)
    with pytest.raises(TypeError, match="nested more than 50 deep"):
        write_state(tmp_path, "state", loop)


# ---- real optimizers and schedules


def train(optimizer: torch.optim.Optimizer, weight: torch.nn.Parameter, steps: int) -> None:
    for _ in range(steps):
        optimizer.zero_grad()
        (weight**2).sum().backward()
        optimizer.step()


OPTIMIZERS = {
    "adamw": lambda weights: torch.optim.AdamW(weights, lr=0.1, amsgrad=True),
    "sgd": lambda weights: torch.optim.SGD(weights, lr=0.1, momentum=0.9),
    "adafactor": lambda weights: torch.optim.Adafactor(weights, lr=0.1),
    "adamw_8bit": lambda weights: bitsandbytes.optim.AdamW8bit(weights, lr=0.1, min_8bit_size=16),
    "lion_8bit": lambda weights: bitsandbytes.optim.Lion8bit(weights, lr=0.1, min_8bit_size=16),
}


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_an_optimizer_goes_on_as_if_it_had_not_been_saved(tmp_path, name):
    weight, resumed_weight = (torch.nn.Parameter(torch.linspace(-1, 1, 4096)) for _ in range(2))
    optimizer, resumed = OPTIMIZERS[name]([weight]), OPTIMIZERS[name]([resumed_weight])
    train(optimizer, weight, 3)
    read = there_and_back(tmp_path, optimizer.state_dict())
    assert_same(read, optimizer.state_dict())
    resumed_weight.data.copy_(weight.data)
    resumed.load_state_dict(read)
    for one, of in ((optimizer, weight), (resumed, resumed_weight)):
        train(one, of, 3)
    assert torch.equal(resumed_weight, weight)
    if name.endswith("8bit"):
        assert any(tensor.dtype == torch.uint8 for tensor in load_file(tmp_path / "state.safetensors").values())


@pytest.mark.parametrize("kind", list(SchedulerType))
def test_every_schedule_of_transformers_is_data(tmp_path, kind):
    special = {"cosine_with_min_lr": {"min_lr": 0.01}, "cosine_warmup_with_min_lr": {"min_lr": 0.01},
               "warmup_stable_decay": {"num_decay_steps": 2}}.get(kind.value)  # fmt: skip
    weight = torch.nn.Parameter(torch.ones(2))

    def build() -> Any:
        optimizer = torch.optim.SGD([weight], lr=0.1)
        return get_scheduler(kind, optimizer, 2, 10, scheduler_specific_kwargs=special)

    follows_figures = kind.value in ("reduce_lr_on_plateau", "greedy")
    before, after = build(), build()
    train(before.optimizer, weight, 1)
    for figure in (1.0, 0.5, 0.7):
        before.step(figure) if follows_figures else before.step()
    read = there_and_back(tmp_path, before.state_dict())
    assert_same(read, before.state_dict())
    after.load_state_dict(read)
    assert after.get_last_lr() == before.get_last_lr()
    assert after.last_epoch == before.last_epoch


def test_a_grad_scaler_is_data(tmp_path):
    scaler = torch.amp.GradScaler("cpu", init_scale=512.0)
    assert_same(there_and_back(tmp_path, scaler.state_dict()), scaler.state_dict())


def test_random_generators_go_on_where_they_were(tmp_path):
    def draw() -> list[Any]:
        return [random.random(), random.gauss(0, 1), *numpy.random.normal(size=3), *torch.randn(3).tolist()]

    draw()
    numpy.random.normal()  # NumPy draws two and keeps the other
    write_state(tmp_path, "state", build_random_state(all_gpus=False))
    expected = draw()
    draw()
    assert put_random_state_back(read_state(tmp_path, "state", max_bytes=MEBIBYTE), all_gpus=False)
    assert draw() == expected


@pytest.mark.parametrize(
    ("written", "all_gpus", "num_gpus", "fits"),
    [
        ([16, 16], True, 2, True),
        ([16, 16], True, 1, False),
        ([16, 16], False, 1, False),  # two processes before, and one now
        (16, False, 1, True),
        (16, True, 2, False),  # one before, and two now
        (16, True, 16, False),  # as many GPUs as the state has bytes
        (None, False, 1, False),
    ],
)
def test_the_state_of_other_gpus_is_not_put_back(monkeypatch, written, all_gpus, num_gpus, fits):
    state, put_back = build_random_state(all_gpus=False), []
    sizes = {"cuda": written} if written is not None else {}
    state |= {
        name: [torch.zeros(one, dtype=torch.uint8) for one in size] if isinstance(size, list) else torch.zeros(size)
        for name, size in sizes.items()
    }
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: num_gpus)
    monkeypatch.setattr(torch.cuda, "set_rng_state", put_back.append)
    monkeypatch.setattr(torch.cuda, "set_rng_state_all", put_back.extend)
    assert put_random_state_back(state, all_gpus=all_gpus) is fits
    assert len(put_back) == (num_gpus if fits else 0)


# ---- files that are not what was written


@pytest.fixture
def written(tmp_path) -> Path:
    write_state(tmp_path, "state", {"a": torch.arange(1000.0), "b": [torch.zeros(2)]})
    return tmp_path


@pytest.mark.parametrize(
    "text",
    ["", "{", "[]", "7", "{}", '{"state": {}}', '{"state": {"a": 1, "b": 2}}', '{"state": {"set": []}}',
     '{"state": {"tensor": 5}}', '{"state": {"tuple": 5}}', '{"state": {"dict": [[1]]}}',
     '{"state": {"dict": [[null, 1]]}}',
     '{"state": {"dict": [[true, 1]]}}', '{"state": {"float": "5"}}', '{"state": NaN}', '{"state": 1, "more": 2}',
     '{"state": ' + "[" * 200 + "]" * 200 + "}", "[" * 100_000, '{"state": ' + "9" * 5000 + "}", "\udcff"],
)  # fmt: skip
def test_a_tree_of_another_shape_is_refused_by_name(written, text):
    (written / "state.json").write_bytes(text.encode(errors="surrogateescape"))
    with pytest.raises(CheckpointError, match=r"state\.json cannot be taken up: ") as refused:
        read_state(written, "state", max_bytes=MEBIBYTE)
    assert refused.value.exit_code == 6
    assert len(str(refused.value).splitlines()) == 2


def test_a_file_of_tensors_that_is_torn_at_any_place_is_refused_by_name(written):
    path = written / "state.safetensors"
    whole = path.read_bytes()
    for length in (0, 1, 7, 8, 9, 50, len(whole) // 2, len(whole) - 1):
        path.write_bytes(whole[:length])
        with pytest.raises(CheckpointError, match=r"state\.safetensors cannot be taken up"):
            read_state(written, "state", max_bytes=MEBIBYTE)


def test_files_that_claim_more_than_there_can_be_are_not_read(written):
    path = written / "state.safetensors"
    whole = path.read_bytes()
    for start in (b"\xff" * 8, (2**40).to_bytes(8, "little"), (90 * MEBIBYTE).to_bytes(8, "little")):
        path.write_bytes(start + whole[8:])
        with pytest.raises(CheckpointError, match=r"state\.safetensors cannot be taken up"):
            read_state(written, "state", max_bytes=MEBIBYTE)
    path.write_bytes(whole)
    os.truncate(path, 2**40)  # sparse: it takes no space
    with pytest.raises(CheckpointError, match="has 1099511627776 bytes where at most 1048576 are expected"):
        read_state(written, "state", max_bytes=MEBIBYTE)
    os.truncate(written / "state.json", 2**40)
    with pytest.raises(CheckpointError, match=r"state\.json cannot be taken up: it has 1099511627776 bytes"):
        read_state(written, "state", max_bytes=MEBIBYTE)


@pytest.mark.parametrize("error", [torch.OutOfMemoryError("CUDA out of memory."), MemoryError()], ids=repr)
def test_memory_that_runs_out_is_not_laid_to_the_checkpoint(written, error):
    path = written / "optimizer.json"
    with (
        pytest.raises(PlaceError, match=r"memory ran out while it was taken up(?s:.*)not at fault"),
        refused_as_state(path),
    ):
        raise error


def test_a_missing_file_or_tensor_is_named(written):
    save_file({"other": torch.zeros(1)}, written / "state.safetensors")
    with pytest.raises(CheckpointError, match=r"state\.safetensors cannot be taken up: it has no tensor 'state\.a'"):
        read_state(written, "state", max_bytes=MEBIBYTE)
    (written / "state.safetensors").unlink()
    with pytest.raises(CheckpointError, match=r"state\.safetensors is missing"):
        read_state(written, "state", max_bytes=MEBIBYTE)
    (written / "state.json").unlink()
    with pytest.raises(CheckpointError, match=r"state\.json is missing"):
        read_state(written, "state", max_bytes=MEBIBYTE)


class _Trap:
    def __init__(self, sprung: Path) -> None:
        self.sprung = sprung

    def __reduce__(self) -> Any:
        return Path.touch, (self.sprung,)


@pytest.mark.parametrize("name", ["optimizer.pt", "rng_state.pth", "training_args.bin", "default/adapter_model.bin"])
def test_a_pickle_in_a_checkpoint_is_refused_by_name_and_never_opened(tmp_path, name):
    checkpoint = tmp_path / "checkpoint-5"
    (checkpoint / name).parent.mkdir(parents=True)
    check_no_pickle(checkpoint)
    (checkpoint / name).write_bytes(pickle.dumps(_Trap(tmp_path / "sprung")))
    with pytest.raises(CheckpointError, match=rf"checkpoint-5/{name} is a pickle"):
        check_no_pickle(checkpoint)
    assert not (tmp_path / "sprung").exists()


def test_what_a_checkpoint_holds_can_be_read_by_people(written):
    assert json.loads((written / "state.json").read_text()) == {
        "state": {"dict": [["a", {"tensor": "state.a"}], ["b", [{"tensor": "state.b.0"}]]]}
    }
