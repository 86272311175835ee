"""Where the model lives and in which precision it computes.

In go the recipe's words (`auto`, `cuda`, `bfloat16`); out come a torch device and dtype, or the
reason why this machine has not got what was asked. Nothing here takes memory on a device.
"""

import os
import sys
from collections.abc import Mapping
from importlib.util import find_spec
from typing import Any

import torch
from transformers import TrainingArguments

from finetune.errors import PlaceError

__all__ = ["check_trainer_fields", "choose_compute_dtype", "choose_device", "has_fast_bfloat16", "keep_one_gpu"]

# Ampere. Below it torch emulates bfloat16 and reports it as supported all the same, and there is no TF32.
_AMPERE_CAPABILITY = (8, 0)
# Set by `accelerate launch` (1.15) where it is configured to do more than one whole model a process.
_SHARDING = {
    "ACCELERATE_USE_FSDP": "FSDP",
    "ACCELERATE_USE_DEEPSPEED": "DeepSpeed",
    "ACCELERATE_USE_MEGATRON_LM": "Megatron-LM",
    "ACCELERATE_USE_PARALLELISM_CONFIG": "tensor or context parallelism",
}


def choose_device(name: str) -> torch.device:
    """Choose the device of this process.

    Args:
        name: `auto`, `cuda` or `cpu`.

    Returns:
        The launcher's GPU for this rank where one started several processes, else the first one.

    Raises:
        PlaceError: a GPU is asked for and there is none, or not one for this rank; the launcher would shard the model.
    """
    _check_launcher()
    if name == "cpu" or (name == "auto" and not torch.cuda.is_available()):
        return torch.device("cpu")
    if not torch.cuda.is_available():
        reason = (
            "this torch is built for the CPU"
            if torch.version.cuda is None
            else "torch finds no GPU or no driver for it"
        )
        raise PlaceError(
            f"`model.device: cuda` asks for a GPU; {reason}.\n"
            "  Run on the CPU: model.device=cpu     Or see what torch sees: nvidia-smi"
        )
    # Set by torchrun and accelerate launch alone.
    rank = int(os.environ.get("LOCAL_RANK", "0"))
    num_gpus = torch.cuda.device_count()
    if rank >= num_gpus:
        raise PlaceError(
            f"Process {rank + 1} of this machine has no GPU of its own: it has {num_gpus}.\n"
            f"  Start at most {num_gpus}: accelerate launch --num_processes {num_gpus} …"
        )
    return torch.device("cuda", rank)


def _check_launcher() -> None:
    """Check that several processes were started to hold a whole model each: state and checkpoints are of whole ones."""
    for variable, name in _SHARDING.items():
        if os.environ.get(variable, "").lower() in ("true", "1", "yes", "on", "t", "y"):
            raise PlaceError(
                f"{variable} asks for {name}, which is not used here: each process holds the whole model.\n"
                "  A configuration of `accelerate` sets it. Start without that, e.g. for two GPUs:\n"
                "  torchrun --nproc_per_node 2 -m finetune.VERB …"
            )


def choose_compute_dtype(name: str, device: torch.device) -> torch.dtype:
    """Choose the precision of the products.

    Args:
        name: `auto`, `bfloat16`, `float16` or `float32`.
        device: what `choose_device` gave.

    Raises:
        PlaceError: the device lacks the precision that is asked for.
    """
    if name == "auto":
        if device.type == "cpu":
            return torch.bfloat16 if has_fast_bfloat16(device) else torch.float32
        return torch.bfloat16 if has_fast_bfloat16(device) else torch.float16
    if name == "bfloat16" and device.type == "cuda" and not has_fast_bfloat16(device):
        major, minor = torch.cuda.get_device_capability(device)
        raise PlaceError(
            f"`model.compute_dtype: bfloat16` needs compute capability 8.0; {torch.cuda.get_device_name(device)} "
            f"has {major}.{minor}.\n  Let the device decide: model.compute_dtype=auto (float16 there)"
        )
    if name == "float16" and device.type == "cpu":
        raise PlaceError(
            "`model.compute_dtype: float16` needs a GPU: on a CPU it is neither fast nor safe from overflow.\n"
            "  Let the device decide: model.compute_dtype=auto"
        )
    return {"bfloat16": torch.bfloat16, "float16": torch.float16, "float32": torch.float32}[name]


def has_fast_bfloat16(device: torch.device) -> bool:
    """Whether the device multiplies bfloat16 in hardware.

    On a CPU without it bfloat16 is the slow choice: a step of a small Mistral takes eleven times
    as long as in float32, and with AVX512-BF16 two thirds as long (docs/model.md has the figures).
    The instruction set is the one torch may use: ATEN_CPU_CAPABILITY and ONEDNN_MAX_CPU_ISA lower it.
    """
    if device.type == "cuda":
        return torch.cuda.get_device_capability(device) >= _AMPERE_CAPABILITY
    in_silicon = torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
    torch_may = torch.backends.cpu.get_cpu_capability() not in ("DEFAULT", "NO AVX", "AVX2")
    return in_silicon and torch_may and torch.ops.mkldnn._is_mkldnn_bf16_supported()


def check_trainer_fields(fields: Mapping[str, Any], device: torch.device) -> None:
    """Check that the device and the installation have what the trainer's own settings ask of them.

    Args:
        fields: what stands under `training` beside our settings, by the trainer config's names.
        device: what `choose_device` gave.

    Raises:
        PlaceError: they have not; the libraries say so once the weights are loaded.
    """
    if fields.get("tf32") and not (
        device.type == "cuda" and torch.cuda.get_device_capability(device) >= _AMPERE_CAPABILITY
    ):
        raise PlaceError(
            f"`training.tf32` needs a GPU of compute capability 8.0 or more; this run is on {_name(device)}.\n"
            "  Take the line out: float32 products are exact without it."
        )
    if fields.get("activation_offloading") and device.type != "cuda":
        raise PlaceError(
            "`training.activation_offloading` moves activations from a GPU to the CPU's memory; this run is on the "
            f"{device.type}.\n  Take the line out: training.activation_offloading=false"
        )
    if fields.get("use_liger_kernel") and find_spec("liger_kernel") is None:
        raise PlaceError(
            "`training.use_liger_kernel` needs the package liger-kernel, which is not installed.\n"
            f"  Install it: {sys.executable} -m pip install liger-kernel\n"
            "  Or go without: training.use_liger_kernel=false"
        )


def _name(device: torch.device) -> str:
    if device.type != "cuda":
        return f"the {device.type}"
    major, minor = torch.cuda.get_device_capability(device)
    return f"{torch.cuda.get_device_name(device)}, which has {major}.{minor}"


def keep_one_gpu(arguments: TrainingArguments) -> str | None:
    """Keep a single process on one GPU, where the Trainer would wrap the model in DataParallel.

    DataParallel copies the model to every GPU at every step and cannot hold 4-bit weights. The count
    is what the Trainer reads to decide; it sets the same field itself for a model spread over GPUs.

    Returns:
        A line to show the user, or None where there is nothing to say.
    """
    num_gpus = arguments.n_gpu
    if num_gpus <= 1:
        return None
    arguments._n_gpu = 1
    return (
        f"This machine has {num_gpus} GPUs and this process uses one, {arguments.device}. "
        f"For all of them: accelerate launch --num_processes {num_gpus} -m finetune.VERB …"
    )
