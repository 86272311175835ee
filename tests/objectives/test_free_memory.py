"""What may be taken is what the device has left, or what a container or a process's share leaves of it: the less."""

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from finetune.objectives import free_memory
from finetune.objectives.free_memory import FreeMemory, find_free_memory, find_share, read_available_bytes

CPU = torch.device("cpu")
HOST = FreeMemory(free_bytes=600 * 1024, total_bytes=1000 * 1024)


@pytest.fixture
def host(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A host of 1000 kB, 600 of them free, and a folder for its control groups."""
    table = tmp_path / "meminfo"
    table.write_text("MemTotal:       1000 kB\nMemFree:         100 kB\nMemAvailable:    600 kB\n")
    monkeypatch.setattr(free_memory, "_MEMORY_TABLE", table)
    monkeypatch.setattr(free_memory, "_OWN_GROUPS", tmp_path / "own")
    monkeypatch.setattr(free_memory, "_GROUPS", tmp_path / "groups")
    return tmp_path


def write_group(folder: Path, names: tuple[str, str], limit: str, used: int, cache: str = "") -> None:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / names[0]).write_text(f"{limit}\n")
    (folder / names[1]).write_text(f"{used}\n")
    if cache:
        (folder / "memory.stat").write_text(cache)


FIRST, SECOND = ("memory.limit_in_bytes", "memory.usage_in_bytes"), ("memory.max", "memory.current")


def test_without_control_groups_it_is_what_the_host_has(host: Path) -> None:
    assert find_free_memory(CPU) == HOST
    assert read_available_bytes() == HOST.free_bytes


def test_a_container_of_the_second_version_may_take_what_its_limit_leaves(host: Path) -> None:
    (host / "own").write_text("0::/\n")
    write_group(host / "groups", SECOND, "500000", 200000, "anon 100000\ninactive_file 50000\n")
    assert find_free_memory(CPU) == FreeMemory(free_bytes=500000 - 200000 + 50000, total_bytes=500000)


def test_of_groups_that_lie_in_each_other_the_tightest_counts(host: Path) -> None:
    (host / "own").write_text("0::/job/step\n")
    write_group(host / "groups" / "job" / "step", SECOND, "max", 100)
    write_group(host / "groups" / "job", SECOND, "400000", 390000)
    assert find_free_memory(CPU) == FreeMemory(free_bytes=10000, total_bytes=400000)


def test_a_container_of_the_first_version_whose_path_is_the_hosts_is_read_where_it_is_mounted(host: Path) -> None:
    (host / "own").write_text("5:cpu,cpuacct:/docker/abc\n4:memory:/docker/abc\n0::/\n")
    write_group(host / "groups" / "memory", FIRST, "300000", 120000, "total_inactive_file 20000\n")
    assert find_free_memory(CPU) == FreeMemory(free_bytes=200000, total_bytes=300000)


def test_no_limit_is_no_limit(host: Path) -> None:
    (host / "own").write_text("4:memory:/\n")
    write_group(host / "groups" / "memory", FIRST, str(2**63 - 4096), 120000)
    assert find_free_memory(CPU) == HOST


@pytest.mark.parametrize(
    ("launch", "parts"),
    [
        ({"LOCAL_WORLD_SIZE": "2", "GROUP_WORLD_SIZE": "2"}, 2),  # torchrun on two machines
        ({"LOCAL_WORLD_SIZE": "4", "GROUP_WORLD_SIZE": "1"}, 4),
        ({"LOCAL_WORLD_SIZE": "1", "GROUP_WORLD_SIZE": "4"}, 1),
        ({"LOCAL_WORLD_SIZE": "1"}, 4),  # by hand: accelerate's own, whatever is true
        ({}, 4),
    ],
    ids=str,
)
def test_a_host_is_shared_by_its_own_processes_and_not_by_those_of_other_machines(
    host: Path, monkeypatch: pytest.MonkeyPatch, launch: dict[str, str], parts: int
) -> None:
    for name in ("LOCAL_WORLD_SIZE", "GROUP_WORLD_SIZE"):
        monkeypatch.delenv(name, raising=False)
    for name, value in launch.items():
        monkeypatch.setenv(name, value)
    trainer: Any = SimpleNamespace(args=SimpleNamespace(world_size=4, device=CPU))
    assert find_share(trainer) == FreeMemory(HOST.free_bytes // parts, HOST.total_bytes // parts)


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> Callable[[float], None]:
    """A GPU of 1000 bytes: 400 are free, this process has reserved 300 and filled 250 of them."""

    def install(fraction: float) -> None:
        def read_fraction(device: int | torch.device | None = None) -> float:
            if device is not None:
                torch.cuda._utils._get_device_index(device)  # torch's own refusal
            return fraction

        monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (400, 1000))
        monkeypatch.setattr(torch.cuda, "memory_reserved", lambda device: 300)
        monkeypatch.setattr(torch.cuda, "memory_allocated", lambda device: 250)
        monkeypatch.setattr(torch.cuda, "get_per_process_memory_fraction", read_fraction)

    return install


@pytest.mark.parametrize("device", ["cuda", "cuda:0"])
@pytest.mark.parametrize(
    ("fraction", "expected"),
    [
        (1.0, FreeMemory(400 + 50, 1000)),
        (0.8, FreeMemory(400 + 50, 800)),  # 500 more may be reserved, and 400 are there
        (0.5, FreeMemory(200 + 50, 500)),
        (0.25, FreeMemory(0 + 50, 250)),  # the share was lowered below what is held
    ],
)
def test_of_a_gpu_what_is_free_or_what_the_process_may_still_take_counts(gpu, device, fraction, expected) -> None:
    gpu(fraction)
    assert find_free_memory(torch.device(device)) == expected


def test_a_device_that_does_not_say_has_no_room(host: Path) -> None:
    assert find_free_memory(torch.device("meta")) is None
    (host / "meminfo").unlink()
    assert find_free_memory(CPU) is None
