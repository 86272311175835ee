"""Memory that is free, on the host and on a GPU: what Linux says, cut to what a container or the process may take.

In goes a device; out come bytes. Whoever spends memory or wants to know whether something fits asks here.
"""

import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from finetune.objectives.trainer import StepMixin

__all__ = ["FreeMemory", "find_free_memory", "find_least", "find_share", "name_memory", "read_available_bytes"]

_MEMORY_TABLE = Path("/proc/meminfo")
_OWN_GROUPS = Path("/proc/self/cgroup")
_GROUPS = Path("/sys/fs/cgroup")
# By version of Linux's control groups: folder of its memory controller, the limit, and what is used.
_FILES = {1: ("memory", "memory.limit_in_bytes", "memory.usage_in_bytes"), 2: ("", "memory.max", "memory.current")}
# Pages of files that are given back when memory is asked for count as used; `memory.stat` names them.
_CACHE_ENTRIES = ("inactive_file", "total_inactive_file")


@dataclass(frozen=True, slots=True)
class FreeMemory:
    """Memory of a device.

    Attributes:
        free_bytes: that this process could still take.
        total_bytes: of the device, or of the part of it that the container or the process may take.
    """

    free_bytes: int
    total_bytes: int


def find_least(trainer: "StepMixin", num_bytes: int) -> int:
    """Find the least of a number over all processes of a trainer's launch; all have to ask."""
    if trainer.args.world_size == 1:
        return num_bytes
    mine = torch.tensor([num_bytes], dtype=torch.int64, device=trainer.args.device)
    return int(trainer.accelerator.gather(mine).min())


def find_free_memory(device: torch.device) -> FreeMemory | None:
    """Find how much memory a device has left; None where it does not say so."""
    if device.type == "cuda":
        free_bytes, total_bytes = torch.cuda.mem_get_info(device)
        reserved_bytes = torch.cuda.memory_reserved(device)
        # What torch may hold where its process was given a share of the device (`set_per_process_memory_fraction`).
        # It takes a number or none (2.13): a device without a number is refused.
        allowed_bytes = int(total_bytes * torch.cuda.get_per_process_memory_fraction(device.index))
        new_bytes = min(free_bytes, max(0, allowed_bytes - reserved_bytes))
        cached_bytes = reserved_bytes - torch.cuda.memory_allocated(device)
        return FreeMemory(new_bytes + cached_bytes, min(total_bytes, allowed_bytes))
    if device.type == "cpu" and _MEMORY_TABLE.exists():
        found = [_read_host(), *_read_groups()]
        return FreeMemory(min(one.free_bytes for one in found), min(one.total_bytes for one in found))
    return None


def find_share(trainer: "StepMixin") -> FreeMemory | None:
    """Find how much memory a trainer's process has left: of a GPU all, of the host what each of its processes has."""
    device = trainer.args.device
    free = find_free_memory(device)
    if free is None or device.type != "cpu":
        return free
    # torchrun alone says how many machines it starts, with as many processes on each. Without it all are taken to be
    # on this one: LOCAL_WORLD_SIZE is no help, since accelerate (1.15) sets it to 1 where no launcher has.
    num_machines = int(os.environ.get("GROUP_WORLD_SIZE", "1"))
    num_processes = max(1, trainer.args.world_size // num_machines)
    return FreeMemory(free.free_bytes // num_processes, free.total_bytes // num_processes)


def read_available_bytes() -> int | None:
    """Bytes of the host's memory that could be taken without swapping; None where Linux does not say so."""
    free = find_free_memory(torch.device("cpu"))
    return None if free is None else free.free_bytes


def name_memory(device: torch.device) -> str:
    """Name a device by what decisions on memory hang on: a GPU by its kind and memory, the host by its memory."""
    if device.type == "cuda":
        properties = torch.cuda.get_device_properties(device)
        return f"{properties.name}, {properties.total_memory / 2**30:.0f} GiB"
    free = find_free_memory(device)
    return device.type if free is None else f"{device.type}, {free.total_bytes / 2**30:.0f} GiB"


def _read_host() -> FreeMemory:
    entries = dict(line.split(":", 1) for line in _MEMORY_TABLE.read_text(encoding="ascii").splitlines())
    return FreeMemory(*(int(entries[name].split()[0]) * 1024 for name in ("MemAvailable", "MemTotal")))


def _read_groups() -> list[FreeMemory]:
    """What the process's control groups leave to it: its own and those that this one lies in."""
    found: list[FreeMemory] = []
    if not _OWN_GROUPS.exists():
        return found
    for line in _OWN_GROUPS.read_text(encoding="utf-8").splitlines():
        _, controllers, path = line.split(":", 2)
        if controllers and "memory" not in controllers.split(","):
            continue
        folder_name, limit_name, used_name = _FILES[1 if controllers else 2]
        top = _GROUPS / folder_name
        folder = top / path.lstrip("/")
        # Inside a container the path may be the host's, and the folder that is mounted the container's own.
        folders = [one for one in (folder, *folder.parents) if one.is_relative_to(top)] if folder.is_dir() else [top]
        found += [free for one in folders if (free := _read_group(one, limit_name, used_name)) is not None]
    return found


def _read_group(folder: Path, limit_name: str, used_name: str) -> FreeMemory | None:
    """Read the limit of one group; None where it has none."""
    limit_path, used_path, stat_path = folder / limit_name, folder / used_name, folder / "memory.stat"
    if not limit_path.is_file() or not used_path.is_file():
        return None
    limit = limit_path.read_text(encoding="ascii").strip()
    if not limit.isdecimal():  # "max"
        return None
    used_bytes = int(used_path.read_text(encoding="ascii"))
    if stat_path.is_file():
        entries = dict(line.split(maxsplit=1) for line in stat_path.read_text(encoding="ascii").splitlines())
        used_bytes -= max((int(entries[name]) for name in _CACHE_ENTRIES if name in entries), default=0)
    return FreeMemory(max(0, int(limit) - max(0, used_bytes)), int(limit))
