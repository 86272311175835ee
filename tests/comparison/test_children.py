"""A run that dies without a word is told with what killed it."""

import multiprocessing
import os
import select
import signal
from pathlib import Path

import pytest

from finetune.comparison.children import GPU_MARKS, Child, Failure, has_gpu, share_cores
from tests.comparison.made_up import build_all, read_small


@pytest.fixture
def child(tmp_path: Path) -> Child:
    """A run that has begun to import the libraries; its base does not exist."""
    cell = build_all(read_small(tmp_path, "methods: {lora: {adapter.method: lora}}"))[0]
    return Child(multiprocessing.get_context("forkserver"), cell.recipe, cell.text, tmp_path / "log.txt")


def test_a_run_that_is_killed_says_by_what_and_the_likeliest_reason(child: Child) -> None:
    child.kill()
    assert select.select([child.descriptor], [], [], 10)[0]
    assert child.close() == Failure("killed by SIGKILL: the machine's memory ran out, or somebody killed it")


def test_a_run_that_is_asked_to_stop_before_it_began_ends_at_once(child: Child) -> None:
    child.stop()
    assert select.select([child.descriptor], [], [], 10)[0]
    failure = child.close()
    assert failure is not None
    assert failure.reason == "killed by SIGTERM"


def test_a_run_that_is_dead_before_it_can_be_watched_is_told_like_any_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cell = build_all(read_small(tmp_path, "methods: {lora: {adapter.method: lora}}"))[0]

    def open_too_late(number: int, flags: int = 0) -> int:
        os.kill(number, signal.SIGKILL)
        raise ProcessLookupError(3, "No such process")

    monkeypatch.setattr(os, "pidfd_open", open_too_late)
    child = Child(multiprocessing.get_context("forkserver"), cell.recipe, cell.text, tmp_path / "log.txt")
    child.stop()
    child.kill()
    assert select.select([child.descriptor], [], [], 10)[0]
    failure = child.close()
    assert failure is not None
    assert failure.reason.startswith("killed by SIGKILL")


@pytest.mark.parametrize("mark", ["nvidia/version", "nvidiactl", "dxg", "kfd", ""])
def test_a_gpu_is_told_by_any_of_its_drivers_marks(tmp_path: Path, mark: str) -> None:
    marks = [tmp_path / name for name in ("nvidia/version", "nvidiactl", "dxg", "kfd")]
    if mark:
        (tmp_path / mark).parent.mkdir(exist_ok=True)
        (tmp_path / mark).touch()
    assert has_gpu(marks) is bool(mark)


def test_the_marks_of_a_machine_hold_those_of_windows_and_of_amd() -> None:
    assert {Path("/dev/dxg"), Path("/dev/kfd")} <= set(GPU_MARKS)


def test_the_cores_are_shared_for_as_long_as_runs_are_begun(monkeypatch: pytest.MonkeyPatch) -> None:
    num_cores = len(os.sched_getaffinity(0))
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    with share_cores(1):
        assert os.environ["OMP_NUM_THREADS"] == str(num_cores)
    with share_cores(1000):
        assert os.environ["OMP_NUM_THREADS"] == "1"
    assert "OMP_NUM_THREADS" not in os.environ
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    with share_cores(1):
        assert os.environ["OMP_NUM_THREADS"] == "3"
    assert os.environ["OMP_NUM_THREADS"] == "3"
