"""Runs carried out in turn, a few at once: how many, in which order, and that none is left behind, whatever happens.

The runs are begun and killed while they import the libraries, so that none of them trains.
"""

import multiprocessing
import os
import signal
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from finetune.comparison.cells import Cell
from finetune.comparison.children import Failure
from finetune.comparison.runner import Interruption, Noted, run_cells
from finetune.errors import Interrupted, PlaceError
from tests.comparison.made_up import build_all, read_small


def run(
    folder: Path, *, workers: int, noted: Noted, may_start: Callable[[], bool] = lambda: True
) -> tuple[list[Cell], Interruption]:
    """Run three cells, which end only when somebody ends them."""
    cells = build_all(read_small(folder, "methods: {lora: {adapter.method: lora}}\nseeds: [1, 2, 3]"))
    with Interruption() as interruption:
        run_cells(
            cells,
            context=multiprocessing.get_context("forkserver"),
            logs_dir=folder / "logs",
            workers=workers,
            interruption=interruption,
            noted=noted,
            may_start=may_start,
        )
    return cells, interruption


def signal_all(number: signal.Signals) -> None:
    for child in multiprocessing.active_children():
        assert child.pid is not None
        os.kill(child.pid, number)


@pytest.mark.parametrize("workers", [1, 2])
def test_no_more_go_at_once_than_there_are_workers_and_all_get_their_turn(tmp_path: Path, workers: int) -> None:
    under_way: list[int] = []
    noted: list[tuple[str, Failure | None]] = []

    def may_start() -> bool:
        under_way.append(len(multiprocessing.active_children()))
        return True

    def watch() -> None:
        while not ended.wait(0.05):
            if len(multiprocessing.active_children()) == min(workers, 3 - len(noted)):
                signal_all(signal.SIGKILL)

    ended = threading.Event()
    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        cells, _ = run(tmp_path, workers=workers, noted=lambda *said: noted.append(said[:2]), may_start=may_start)
    finally:
        ended.set()
        watcher.join()
    assert sorted(cell.name for cell in cells) == sorted(cell.name for cell, _ in noted)
    assert max(under_way) == workers - 1, "asked before each start: with that one they are `workers`"
    assert {failure.reason.partition(":")[0] for _, failure in noted if failure} == {"killed by SIGKILL"}


def test_an_error_of_the_comparison_ends_the_runs_under_way(tmp_path: Path) -> None:
    num_asked = 0

    def kill_the_first() -> bool:
        nonlocal num_asked
        num_asked += 1
        if num_asked == 2:
            signal_all(signal.SIGKILL)
        return True

    def write_on_a_full_disk(cell: Cell, failure: Failure | None, seconds: float) -> None:
        assert len(multiprocessing.active_children()) == 1, "the other one is under way"
        raise PlaceError("table.md cannot be written: no space left on device.")

    with pytest.raises(PlaceError, match="no space left"):
        run(tmp_path, workers=2, noted=write_on_a_full_disk, may_start=kill_the_first)
    assert multiprocessing.active_children() == []
    assert len(list((tmp_path / "logs").iterdir())) <= 2


def test_a_second_ctrl_c_waits_for_no_run(tmp_path: Path) -> None:
    begun = threading.Event()
    survivors: list[object] = []

    def press_twice() -> None:
        # A stopped process does not hear that it is to save itself.
        begun.wait(10)
        signal_all(signal.SIGSTOP)
        (child,) = multiprocessing.active_children()
        while Path(f"/proc/{child.pid}/stat").read_text().rpartition(")")[2].split()[0] != "T":
            time.sleep(0.01)
        for _ in range(2):
            os.kill(os.getpid(), signal.SIGINT)
            time.sleep(0.7)  # longer than one key press is
        survivors.extend(multiprocessing.active_children())
        signal_all(signal.SIGCONT)

    def may_start() -> bool:
        if multiprocessing.active_children():
            begun.set()
            return False
        return True

    noted: list[Cell] = []
    presser = threading.Thread(target=press_twice)
    presser.start()
    _, interruption = run(tmp_path, workers=2, noted=lambda cell, *_: noted.append(cell), may_start=may_start)
    presser.join()
    assert survivors == []
    assert noted == []
    with pytest.raises(Interrupted, match="stopped by Ctrl-C; the runs under way were ended"):
        interruption.raise_if_received(tmp_path)
