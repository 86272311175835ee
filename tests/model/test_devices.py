import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from transformers import Trainer, TrainingArguments

from finetune.errors import PlaceError
from finetune.model.devices import (
    check_trainer_fields,
    choose_compute_dtype,
    choose_device,
    has_fast_bfloat16,
    keep_one_gpu,
)

ROOT = Path(__file__).parents[2]
GPU = torch.device("cuda", 0)


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch):
    """Let torch report a machine: its number of GPUs, their compute capability, their name."""

    def report(num_gpus: int, capability: tuple[int, int] = (8, 0), name: str = "NVIDIA A100") -> None:
        monkeypatch.setattr(torch.cuda, "is_available", lambda: num_gpus > 0)
        monkeypatch.setattr(torch.cuda, "device_count", lambda: num_gpus)
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
        monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: name)

    return report


def test_auto_takes_the_first_gpu_where_there_is_one_and_the_cpu_elsewhere(machine):
    machine(num_gpus=2)
    assert choose_device("auto") == GPU
    machine(num_gpus=0)
    assert choose_device("auto") == torch.device("cpu")


def test_the_cpu_can_be_asked_for_on_a_machine_with_a_gpu(machine):
    machine(num_gpus=1)
    assert choose_device("cpu") == torch.device("cpu")


def test_a_launched_process_takes_the_gpu_of_its_rank(machine, monkeypatch):
    machine(num_gpus=2)
    monkeypatch.setenv("LOCAL_RANK", "1")
    assert choose_device("auto") == torch.device("cuda", 1)
    monkeypatch.setenv("LOCAL_RANK", "2")
    with pytest.raises(PlaceError, match="Process 3 of this machine has no GPU of its own: it has 2"):
        choose_device("auto")


def test_a_gpu_asked_for_where_there_is_none_says_how_to_run_without(machine):
    machine(num_gpus=0)
    with pytest.raises(PlaceError, match=r"`model.device: cuda` asks for a GPU.*\n.*model.device=cpu"):
        choose_device("cuda")


@pytest.mark.parametrize("variable", ["ACCELERATE_USE_FSDP", "ACCELERATE_USE_DEEPSPEED"])
def test_a_launcher_that_would_shard_the_model_is_refused(machine, monkeypatch, variable):
    machine(num_gpus=2)
    monkeypatch.setenv(variable, "true")
    with pytest.raises(PlaceError, match=rf"{variable} asks for (?s:.*)torchrun --nproc_per_node 2 -m finetune\.VERB"):
        choose_device("auto")
    monkeypatch.setenv(variable, "false")
    assert choose_device("auto") == GPU


def test_a_t4_computes_in_float16_though_torch_emulates_bfloat16_on_it(machine, monkeypatch):
    machine(num_gpus=1, capability=(7, 5), name="Tesla T4")
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda: True)
    assert choose_compute_dtype("auto", GPU) == torch.float16


def test_an_ampere_gpu_computes_in_bfloat16(machine):
    machine(num_gpus=1, capability=(8, 0))
    assert choose_compute_dtype("auto", GPU) == torch.bfloat16


def test_bfloat16_asked_of_a_t4_is_refused_with_both_numbers(machine):
    machine(num_gpus=1, capability=(7, 5), name="Tesla T4")
    with pytest.raises(PlaceError, match=r"needs compute capability 8.0; Tesla T4 has 7.5") as refusal:
        choose_compute_dtype("bfloat16", GPU)
    assert "model.compute_dtype=auto" in str(refusal.value)


def test_float16_asked_of_a_cpu_is_refused():
    with pytest.raises(PlaceError, match="float16` needs a GPU"):
        choose_compute_dtype("float16", torch.device("cpu"))


def test_what_is_asked_for_and_there_is_taken(machine):
    machine(num_gpus=1, capability=(9, 0))
    for name in ("bfloat16", "float16", "float32"):
        assert choose_compute_dtype(name, GPU) == getattr(torch, name)
    assert choose_compute_dtype("float32", torch.device("cpu")) == torch.float32


@pytest.mark.parametrize(
    ("capability", "amx", "avx512_bf16", "expected"),
    [
        ("AVX512", False, True, torch.bfloat16),
        ("AVX512", True, False, torch.bfloat16),
        ("AVX512", False, False, torch.float32),
        ("AVX2", False, True, torch.float32),
        ("DEFAULT", False, False, torch.float32),
    ],
)
def test_a_cpu_computes_in_bfloat16_where_its_instructions_do(monkeypatch, capability, amx, avx512_bf16, expected):
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: capability)
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: amx)
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: avx512_bf16)
    if expected == torch.bfloat16 and not torch.ops.mkldnn._is_mkldnn_bf16_supported():
        pytest.skip("this machine's oneDNN has no bfloat16 to be asked about")
    assert choose_compute_dtype("auto", torch.device("cpu")) == expected


@pytest.mark.slow
@pytest.mark.parametrize("lowered", [{"ATEN_CPU_CAPABILITY": "avx2"}, {"ONEDNN_MAX_CPU_ISA": "AVX2"}])
def test_a_cpu_told_to_be_a_plain_laptop_computes_in_float32(lowered):
    asked = (
        "import torch; from finetune.model.devices import has_fast_bfloat16;"
        "print(has_fast_bfloat16(torch.device('cpu')))"
    )
    told = subprocess.run(
        [sys.executable, "-c", asked], env=os.environ | lowered, cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert told.stdout.strip() == "False"


def test_one_process_on_two_gpus_keeps_one_and_the_trainer_does_not_copy_the_model(tmp_path):
    arguments = TrainingArguments(output_dir=str(tmp_path), use_cpu=True, report_to=[])
    arguments._n_gpu = 2
    said = keep_one_gpu(arguments)
    assert said is not None
    assert said.startswith("This machine has 2 GPUs and this process uses one")
    assert "accelerate launch --num_processes 2 -m finetune.VERB" in said
    model = torch.nn.Linear(2, 2)
    assert Trainer(model, arguments)._wrap_model(model) is model


def test_one_gpu_or_none_needs_no_word(tmp_path):
    assert keep_one_gpu(TrainingArguments(output_dir=str(tmp_path), use_cpu=True, report_to=[])) is None


def test_has_fast_bfloat16_reads_the_gpus_capability(machine):
    machine(num_gpus=1, capability=(7, 5))
    assert not has_fast_bfloat16(GPU)


@pytest.mark.parametrize(
    ("field", "says"),
    [
        ("tf32", "`training.tf32` needs a GPU of compute capability 8.0 or more; this run is on the cpu"),
        ("activation_offloading", "to the CPU's memory; this run is on the cpu"),
        ("use_liger_kernel", "needs the package liger-kernel, which is not installed"),
    ],
)
def test_what_the_trainer_asks_and_this_machine_lacks_is_told(monkeypatch, tmp_path, field, says):
    monkeypatch.setattr(sys, "path", [str(tmp_path)])
    with pytest.raises(PlaceError, match=says):
        check_trainer_fields({field: True}, torch.device("cpu"))
    check_trainer_fields({field: False}, torch.device("cpu"))


def test_tf32_asked_of_a_t4_is_refused_with_its_capability_and_taken_on_an_a100(machine):
    machine(num_gpus=1, capability=(7, 5), name="Tesla T4")
    with pytest.raises(PlaceError, match=r"this run is on Tesla T4, which has 7\.5"):
        check_trainer_fields({"tf32": True}, GPU)
    machine(num_gpus=1, capability=(8, 0))
    check_trainer_fields({"tf32": True, "activation_offloading": True, "optim": "adamw_torch"}, GPU)
