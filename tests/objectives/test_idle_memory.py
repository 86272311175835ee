"""Processes of a launch decide alike on idle memory: by the dearest price, the scarcest room, and in step."""

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from finetune.budget.spending import Keeps, Option
from finetune.objectives import free_memory
from finetune.objectives.free_memory import FreeMemory, find_share
from finetune.objectives.idle_memory import IdleMemory

WAITS_SECONDS = 10.0


class Launch:
    """Two processes as two threads: a number is told to both once both have named theirs."""

    def __init__(self) -> None:
        self._named = threading.Barrier(2)
        self._read = threading.Barrier(2)
        self._numbers = [torch.zeros(1), torch.zeros(1)]

    def build_memory(self, rank: int) -> IdleMemory:
        def gather(number: torch.Tensor) -> torch.Tensor:
            self._numbers[rank] = number
            self._named.wait(WAITS_SECONDS)
            told = torch.cat(self._numbers)
            self._read.wait(WAITS_SECONDS)
            return told

        args = SimpleNamespace(world_size=2, device=torch.device("cpu"))
        return IdleMemory(SimpleNamespace(args=args, accelerator=SimpleNamespace(gather=gather)))


def ask_both(ask: Callable[[IdleMemory, int], Any]) -> list[Any]:
    """What each of two processes comes to; an error where one of them asks oftener than the other."""
    launch = Launch()
    with ThreadPoolExecutor(2) as pool:
        waiting = [pool.submit(lambda rank=rank: ask(launch.build_memory(rank), rank)) for rank in (0, 1)]
        return [one.result() for one in waiting]


def test_the_processes_of_a_launch_share_the_host_evenly(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    table = tmp_path / "meminfo"
    table.write_text("MemTotal: 1000 kB\nMemAvailable: 600 kB\n")
    monkeypatch.setattr(free_memory, "_MEMORY_TABLE", table)
    monkeypatch.setattr(free_memory, "_OWN_GROUPS", tmp_path / "none")
    trainer: Any = SimpleNamespace(args=SimpleNamespace(world_size=2, device=torch.device("cpu")))
    assert find_share(trainer) == FreeMemory(free_bytes=300 * 1024, total_bytes=500 * 1024)


def test_the_dearest_price_is_that_of_all_and_what_one_has_not_got_is_offered_in_none() -> None:
    cheap, dear = Option(num_bytes=100, seconds=1.0), Option(num_bytes=130, seconds=2.0)
    offers: list[dict[Keeps, Option]] = [{"all": cheap, "mlp": dear}, {"all": dear, "attention": cheap}]
    agreed = ask_both(lambda memory, rank: memory._agree_on_options(offers[rank]))
    assert agreed == [{"all": replace(cheap, num_bytes=130)}, {"all": dear}]


def test_what_one_process_has_had_to_take_back_no_other_keeps() -> None:
    taken_back = [None, 3]

    def ask(memory: IdleMemory, rank: int) -> int:
        memory._max_layers = taken_back[rank]
        return memory._agree_on_layers(8)

    assert ask_both(ask) == [3, 3]
    taken_back[1] = None
    assert ask_both(ask) == [8, 8]
