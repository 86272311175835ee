"""This machine as far as a plan wants to know it, without torch: its GPU's name, its memory, what its CPU multiplies.

In goes nothing but the system's own tables; out come `Device`s. How fast a CPU is cannot be looked up: it is known
where a run on this machine has measured it before, and `write_rate` kept it.
"""

import json
import os
import platform
from pathlib import Path
from typing import Any

from finetune.budget.devices import Device, build_cpu, find_device_by_model
from finetune.planning.rows import find_datasets_cache

__all__ = ["find_cpu", "find_gpu", "name_cpu", "name_gpu", "read_rate", "with_measured_speed", "write_rate"]

_DRIVER = Path("/proc/driver/nvidia/gpus")
_CPU_TABLE = Path("/proc/cpuinfo")
_LIMITS = (Path("/sys/fs/cgroup/memory.max"), Path("/sys/fs/cgroup/memory/memory.limit_in_bytes"))
_BFLOAT16 = frozenset({"avx512_bf16", "amx_bf16"})


def find_gpu() -> Device | None:
    """Find the first GPU by its driver's table; None where there is none, or none that the plan knows."""
    name = name_gpu()
    return None if name is None else find_device_by_model(name)


def name_gpu() -> str | None:
    """What the driver calls the first GPU; None where there is none."""
    for path in sorted(_DRIVER.glob("*/information")) if _DRIVER.is_dir() else []:
        for line in path.read_text("utf-8", errors="replace").splitlines():
            name, _, value = line.partition(":")
            if name.strip() == "Model":
                return value.strip()
    return None


def find_cpu(*, teraflops: float | None = None) -> Device:
    """Find this machine's CPU as a device.

    Args:
        teraflops: speed that somebody says it has; None: not known, see `with_measured_speed`.
    """
    rate, source = (None, None) if teraflops is None else (teraflops * 1e12, "as given by --tflops")
    return build_cpu(_find_memory(), has_bfloat16=_multiplies_bfloat16(), flops_per_second=rate, source=source)


def with_measured_speed(device: Device, work: str) -> Device:
    """The CPU with the speed that a run of the same kind of work has measured on it; as it is where none has.

    Args:
        device: any; one whose speed is known stays as it is.
        work: kind of base and objective: small matrices reach a hundredth of what large ones do.
    """
    if not device.is_cpu or device.flops_per_second is not None:
        return device
    measured = read_rate(f"{name_cpu()}: {work}")
    if measured is None:
        return device
    return build_cpu(
        device.memory_bytes,
        has_bfloat16=device.has_bfloat16,
        flops_per_second=measured["flops_per_second"],
        source=f"measured by the run {measured['run']} on {measured['at']}",
    )


def name_cpu() -> str:
    """The CPU's name and its number of cores: runs with as many are as fast."""
    for line in _read_cpu_table():
        name, _, value = line.partition(":")
        if name.strip() == "model name":
            return f"{value.strip()} x {os.cpu_count()}"
    return f"{platform.machine()} x {os.cpu_count()}"


def read_rate(name: str) -> dict[str, Any] | None:
    """Read how fast whole steps were on a device before: `flops_per_second`, `run`, `at`; None: not known."""
    rate = _read_rates().get(name)
    return rate if isinstance(rate, dict) and isinstance(rate.get("flops_per_second"), float) else None


def write_rate(work: str, flops_per_second: float, *, run: str, at: str) -> None:
    """Keep how fast whole steps of a run were on this CPU, for later plans of such work; best effort."""
    path = _find_rates_path()
    name = f"{name_cpu()}: {work}"
    rates = _read_rates() | {name: {"flops_per_second": float(flops_per_second), "run": run, "at": at}}
    part = path.with_name(f"{path.name}.{os.getpid()}.part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        part.write_text(json.dumps(rates, indent=2) + "\n", encoding="utf-8")
        part.replace(path)
    except OSError:
        part.unlink(missing_ok=True)


def _find_rates_path() -> Path:
    return find_datasets_cache() / "finetune_census" / "speeds.json"


def _read_rates() -> dict[str, Any]:
    try:
        rates = json.loads(_find_rates_path().read_text("utf-8"))
    except (OSError, ValueError):
        return {}
    return rates if isinstance(rates, dict) else {}


def _read_cpu_table() -> list[str]:
    return _CPU_TABLE.read_text("utf-8", errors="replace").splitlines() if _CPU_TABLE.is_file() else []


def _multiplies_bfloat16() -> bool:
    """Whether `compute_dtype: auto` is bfloat16 here: the instructions that `model.devices` asks torch for."""
    for line in _read_cpu_table():
        name, _, value = line.partition(":")
        if name.strip() == "flags":
            return bool(_BFLOAT16 & set(value.split()))
    return False


def _find_memory() -> int:
    """Bytes of the machine's memory, or of what a container may take of it."""
    total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    for path in _LIMITS:
        limit = path.read_text("ascii").strip() if path.is_file() else ""
        if limit.isdigit():
            total = min(total, int(limit))
    return total
