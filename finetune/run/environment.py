"""The place a run stands in: a record of machine and software.

Goes in: the running process. Comes out: a plain dict for `environment.json`. Of the process's own
environment variables only names are kept, and arguments that look like a secret are masked, so that
a run folder can be handed to anyone. Imports torch only when the record is asked for.
"""

import os
import platform
import re
import subprocess
import sys
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from finetune import __version__
from finetune.run.launch import count_processes
from finetune.run.secrets import mask_arguments

__all__ = ["name_device", "read_environment"]

_PACKAGES = (
    "torch",
    "transformers",
    "trl",
    "peft",
    "bitsandbytes",
    "accelerate",
    "datasets",
    "tokenizers",
    "safetensors",
    "huggingface_hub",
    "unsloth",
    "unsloth_zoo",
    "xformers",
    "flash_attn",
    "triton",
    "numpy",
)
_CPU_FLAGS = ("avx2", "avx512f", "avx512_bf16", "amx_bf16", "amx_tile")
# Variables that can change what a run computes, how fast, or where it looks.
_TELLING = re.compile(
    r"(HF_|HUGGINGFACE_|TRANSFORMERS_|TOKENIZERS_|DATASETS_|ACCELERATE_|FSDP_|BNB_|BITSANDBYTES_|CUDA_|CUBLAS_|NCCL_|NVIDIA_"
    r"|TORCH|PYTORCH|UNSLOTH_|TRITON_|OMP_|MKL_|ONEDNN_|ATEN_|SLURM_JOB|WANDB_|MLFLOW_|TRACKIO_|NO_COLOR$|PYTHONHASHSEED$)"
)
_GIT_SECONDS = 5.0


def read_environment() -> dict[str, Any]:
    """Read what the run's numbers depend on: versions, processor, memory, GPUs, commit, command line."""
    return {
        "python": platform.python_version(),
        "packages": {"finetune": __version__, **_find_versions()},
        "platform": platform.platform(),
        "cpu": _read_cpu(),
        "memory_bytes": os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
        "gpus": _read_gpus(),
        "nvidia_driver": _read_driver(Path("/proc/driver/nvidia/version")),
        "num_processes": count_processes(),
        "git_commit": _find_commit(Path(__file__).parent),
        "command": mask_arguments(sys.argv),
        "variables_set": sorted(name for name in os.environ if _TELLING.match(name)),
    }


def name_device(kind: str) -> str:
    """Name of the device a run is on, `cpu` or `cuda`, as its maker calls it."""
    return str(_read_gpus()[0]["name"] if kind == "cuda" else _read_cpu()["model"])


def _find_versions() -> dict[str, str]:
    found = {}
    for name in _PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


def _read_cpu() -> dict[str, Any]:
    cpu_info = Path("/proc/cpuinfo")
    text = cpu_info.read_text(encoding="utf-8", errors="replace") if cpu_info.exists() else ""
    model = re.search(r"^model name\s*:\s*(.+)$", text, re.MULTILINE)
    flags = re.search(r"^flags\s*:\s*(.+)$", text, re.MULTILINE)
    present = set(flags[1].split()) if flags else set()
    return {
        "model": model[1] if model else platform.processor() or platform.machine(),
        "cores": os.cpu_count(),
        "cores_usable": len(os.sched_getaffinity(0)) if sys.platform == "linux" else os.cpu_count(),
        "flags": [flag for flag in _CPU_FLAGS if flag in present],
    }


def _read_gpus() -> list[dict[str, Any]]:
    import torch

    if not torch.cuda.is_available():
        return []
    gpus = []
    for index in range(torch.cuda.device_count()):
        properties = torch.cuda.get_device_properties(index)
        gpus.append(
            {
                "name": properties.name,
                "compute_capability": f"{properties.major}.{properties.minor}",
                "memory_bytes": properties.total_memory,
            }
        )
    return gpus


def _read_driver(path: Path) -> str | None:
    """Version of NVIDIA's kernel driver, or None where there is none."""
    if not path.exists():
        return None
    found = re.search(r"\b\d{3,}\.\d+(\.\d+)?\b", path.read_text(encoding="utf-8", errors="replace"))
    return found[0] if found else None


def _find_commit(folder: Path) -> str | None:
    """Commit of the checkout the package is in; None where it is installed or there is no git."""
    try:
        result = subprocess.run(
            ["git", "rev-parse", "HEAD"], cwd=folder, capture_output=True, text=True, timeout=_GIT_SECONDS
        )
    except (FileNotFoundError, subprocess.TimeoutExpired):
        return None
    return result.stdout.strip() if result.returncode == 0 else None
