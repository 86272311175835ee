"""Data workers that die or run out of shared memory end a run with a word on what to do, and nothing hangs."""

import logging
import multiprocessing
import os
import signal
from multiprocessing import resource_sharer
from pathlib import Path

import pytest

from finetune.errors import PlaceError
from finetune.objectives import workers
from finetune.objectives.workers import telling_dead_workers
from tests.end_to_end.small_runs import read_json, run_small


class Killer(logging.Handler):
    """Kills the data workers of this process when a step is told."""

    killed = 0

    def emit(self, record: logging.LogRecord) -> None:
        if "step 1 of" in record.getMessage():
            for worker in multiprocessing.active_children():
                os.kill(worker.pid or 0, signal.SIGKILL)
                self.killed += 1


@pytest.mark.timeout(60)
@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of a fork beside threads
def test_a_killed_worker_ends_the_run_with_the_way_on(tiny_base: Path, tmp_path: Path) -> None:
    killer = Killer()
    logging.getLogger("finetune").addHandler(killer)
    try:
        with pytest.raises(PlaceError) as refusal:
            run_small(tmp_path, training__max_steps=20, training__dataloader_num_workers=1)
    finally:
        logging.getLogger("finetune").removeHandler(killer)
    assert killer.killed == 1
    text = str(refusal.value)
    assert text.startswith("A data worker was killed")
    assert "shared memory (shm)" in text
    assert "training.dataloader_num_workers=0" in text
    assert "--resume" in text
    status = read_json(tmp_path / "small" / "status.json")
    assert (status["status"], status["reason"]) == ("failed", text.splitlines()[0])


@pytest.mark.parametrize(
    ("words", "first"),
    [
        ("DataLoader worker (pid 7) is killed by signal: Bus error. It is possible that dataloader's workers are out "
         "of shared memory. Please try to raise your shared memory limit.", "no shared memory left"),
        ("Caught RuntimeError in DataLoader worker process 0.\nRuntimeError: unable to write to file </torch_7_1_0>: "
         "No space left on device (28)", "no shared memory left"),
        ("DataLoader worker (pid(s) 7) exited unexpectedly", "A data worker was killed"),
        ("Caught OSError in DataLoader worker process 0.\nOSError: [Errno 24] Too many open files", "ulimit -n"),
        ("received 0 items of ancdata", "ulimit -n"),
        ("Too many open files. Communication with the workers is no longer possible. Please increase the limit using "
         "`ulimit -n` in the shell or change the sharing strategy by calling "
         "`torch.multiprocessing.set_sharing_strategy('file_system')` at the beginning of your code", "ulimit -n"),
    ],
)  # fmt: skip
def test_what_torch_says_of_workers_is_said_with_its_ways_out(words, first):
    with pytest.raises(PlaceError) as refusal, telling_dead_workers(2):
        raise RuntimeError(words)
    assert first in str(refusal.value).splitlines()[0]
    assert refusal.value.__cause__ is None
    assert len(str(refusal.value).splitlines()) <= 6


def test_a_worker_that_dies_while_its_batch_is_fetched_is_a_dead_worker(tmp_path, monkeypatch):
    monkeypatch.setattr(workers, "_SECONDS_TO_DIE", 0.2)

    def fetch() -> None:
        resource_sharer._resource_sharer.get_connection((str(tmp_path / "gone"), b"its key"))

    with pytest.raises(PlaceError, match="A data worker was killed"), telling_dead_workers(2):
        fetch()

    # torch's word of it may come later, from its handler of a signal, and is the same worker's.
    def tell(signum: int, frame: object) -> None:
        raise RuntimeError("DataLoader worker (pid 7) is killed by signal: Killed.")

    before = signal.signal(signal.SIGALRM, tell)
    try:
        signal.setitimer(signal.ITIMER_REAL, 0.05)
        with pytest.raises(PlaceError, match="A data worker was killed"), telling_dead_workers(2):
            fetch()
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def test_other_errors_pass_and_without_workers_so_do_these():
    with pytest.raises(RuntimeError, match="shape mismatch"), telling_dead_workers(2):
        raise RuntimeError("shape mismatch")
    with pytest.raises(OSError, match="Too many open files"), telling_dead_workers(2):
        raise OSError(24, "Too many open files")  # of no worker
    with pytest.raises(RuntimeError, match="exited unexpectedly"), telling_dead_workers(0):
        raise RuntimeError("DataLoader worker (pid(s) 7) exited unexpectedly")
