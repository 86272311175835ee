"""SIGTERM and Ctrl-C save first, whatever phase the run is in, and give the handlers back."""

import contextlib
import multiprocessing
import os
import signal
import time

import pytest
from transformers import TrainerCallback

from finetune.cli import run_verb
from finetune.errors import DivergedError, Interrupted
from finetune.run.checkpoints import CommitRecord, find_newest_checkpoint
from finetune.run.folder import RunFolder
from finetune.run.interrupts import Interrupts
from finetune.run.metrics import MetricsWriter
from tests.run.folders import start_folder


class SignalAt(TrainerCallback):
    """Sends this process a signal at one event of one step."""

    def __init__(self, event: str, step: int, *signals: int, pause_seconds: float = 0.0) -> None:
        def send(args, state, control, **kwargs):
            if state.global_step == step:
                for number in signals:
                    os.kill(os.getpid(), number)
                    time.sleep(pause_seconds)

        setattr(self, event, send)


@pytest.fixture(autouse=True)
def handlers_are_given_back():
    def hear_nothing(number, frame):  # a signal that comes late would end pytest
        pass

    signals = (signal.SIGTERM, signal.SIGINT)
    before = {number: signal.signal(number, hear_nothing) for number in signals}
    yield
    found = [signal.getsignal(number) for number in signals]
    for number, handler in before.items():
        signal.signal(number, handler)
    assert found == [hear_nothing] * 2


def run(build_trainer, folder: RunFolder, *sent: TrainerCallback, **arguments) -> None:
    with folder, Interrupts(folder) as interrupts:
        trainer = build_trainer(
            folder.checkpoints_dir,
            [
                MetricsWriter(folder, resumed_step=None),
                CommitRecord(folder.checkpoints_dir, writes=True, keep=2),
                *sent,
                interrupts,
            ],
            **({"save_steps": 100} | arguments),
        )
        trainer.train()
        interrupts.raise_if_received()


@pytest.mark.parametrize(
    ("event", "at", "saved"),
    [
        ("on_step_begin", 2, 3),  # during step 3
        ("on_pre_optimizer_step", 2, 3),
        ("on_prediction_step", 4, 4),  # during the evaluation after step 4: no further step
        ("on_evaluate", 4, 4),
        ("on_save", 5, 5),
        ("on_epoch_end", 6, 7),  # between epochs: the end of the next step
    ],
)
def test_a_signal_is_answered_with_a_whole_checkpoint(build_trainer, tmp_path, event, at, saved):
    folder = start_folder(tmp_path)
    with pytest.raises(Interrupted, match=f"stopped by SIGTERM at step {saved} of 10, saved") as stopped:
        run(
            build_trainer,
            folder,
            SignalAt(event, at, signal.SIGTERM),
            eval_strategy="steps",
            eval_steps=4,
            save_steps=5,
        )
    assert stopped.value.exit_code == 143
    assert "--resume" in str(stopped.value)
    assert find_newest_checkpoint(folder.checkpoints_dir) == folder.checkpoints_dir / f"checkpoint-{saved}"
    status = folder.read_status()
    assert (status["status"], status["step"], status["total_steps"]) == ("interrupted", saved, 10)


def test_ctrl_c_once_saves_and_twice_leaves_at_once(build_trainer, tmp_path):
    once, twice = start_folder(tmp_path / "once"), start_folder(tmp_path / "twice")
    once.path.mkdir()
    twice.path.mkdir()
    with pytest.raises(Interrupted, match=r"by Ctrl-C at step 3 of 10, saved") as stopped:
        run(build_trainer, once, SignalAt("on_step_begin", 2, signal.SIGINT))
    assert stopped.value.exit_code == 130
    assert find_newest_checkpoint(once.checkpoints_dir) is not None

    with pytest.raises(Interrupted, match=r"by Ctrl-C at step 2 of 10, left at once"):
        run(
            build_trainer,
            twice,
            SignalAt("on_step_begin", 2, signal.SIGINT, signal.SIGINT, pause_seconds=0.6),
            save_steps=2,
        )
    assert find_newest_checkpoint(twice.checkpoints_dir) == twice.checkpoints_dir / "checkpoint-2"


def test_one_key_press_that_a_launcher_delivers_twice_still_saves(build_trainer, tmp_path):
    with pytest.raises(Interrupted, match="at step 3 of 10, saved"):
        run(build_trainer, start_folder(tmp_path), SignalAt("on_step_begin", 2, signal.SIGINT, signal.SIGINT))


def test_a_second_sigterm_does_not_cut_the_save_short(build_trainer, tmp_path):
    with pytest.raises(Interrupted, match="at step 3 of 10, saved"):
        run(
            build_trainer,
            start_folder(tmp_path),
            SignalAt("on_step_begin", 2, signal.SIGTERM, signal.SIGTERM, pause_seconds=0.6),
        )


def test_before_the_first_step_a_signal_ends_at_once_past_any_except_exception(tmp_path):
    folder = start_folder(tmp_path)
    before = pytest.raises(Interrupted, match="stopped by SIGTERM before the first step")
    with before as stopped, folder, Interrupts(folder):
        try:
            os.kill(os.getpid(), signal.SIGTERM)
            pytest.fail("reading went on")
        except Exception:
            pytest.fail("a library that swallows exceptions swallowed the signal")
    assert stopped.value.exit_code == 143
    assert folder.read_status()["status"] == "interrupted"


def test_before_the_run_starts_a_signal_leaves_nothing_and_the_command_is_given_again(tmp_path):
    before = pytest.raises(Interrupted, match="Go on: the same command, nothing was written")
    with before, RunFolder.claim(tmp_path, "mistral", resume=False, overwrite=False) as folder, Interrupts(folder):
        os.kill(os.getpid(), signal.SIGTERM)
    assert list(tmp_path.iterdir()) == []


def test_a_run_without_a_signal_ends_by_itself(build_trainer, tmp_path):
    run(build_trainer, start_folder(tmp_path))


def test_a_signal_to_every_process_of_a_job_step_leaves_the_data_workers_at_work(build_trainer, tmp_path):
    class SignalToAll(TrainerCallback):
        def on_step_begin(self, args, state, control, **kwargs):
            if state.global_step == 2:
                workers = multiprocessing.active_children()
                assert workers
                for pid in (*(worker.pid for worker in workers), os.getpid()):
                    os.kill(pid, signal.SIGTERM)
                time.sleep(0.1)  # a worker that heard it is gone by now

    folder = start_folder(tmp_path)
    with pytest.raises(Interrupted, match="stopped by SIGTERM at step 3 of 10, saved"):
        run(build_trainer, folder, SignalToAll(), dataloader_num_workers=1, dataloader_prefetch_factor=1)
    assert find_newest_checkpoint(folder.checkpoints_dir) == folder.checkpoints_dir / "checkpoint-3"


def test_a_signal_that_a_library_swallowed_is_heard_the_second_time(tmp_path):
    folder = start_folder(tmp_path)
    with pytest.raises(Interrupted, match="stopped by SIGTERM"), folder, Interrupts(folder):
        with contextlib.suppress(BaseException):
            os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(0.6)
        os.kill(os.getpid(), signal.SIGTERM)
        pytest.fail("reading went on")


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_second_signal_while_the_status_is_written_waits_for_it(tmp_path, monkeypatch, number):
    folder = start_folder(tmp_path)
    write = folder.write_status

    def write_hit(*args, **kwargs):
        os.kill(os.getpid(), number)
        write(*args, **kwargs)

    def ends(number, frame):  # as the command line's handler does
        raise AssertionError("the signal ended the program")

    monkeypatch.setattr(folder, "write_status", write_hit)
    before = signal.signal(number, ends)
    try:
        with pytest.raises(Interrupted, match="stopped by SIGTERM"), folder, Interrupts(folder):
            os.kill(os.getpid(), signal.SIGTERM)
        assert signal.getsignal(number) is ends
    finally:
        signal.signal(number, before)
    assert folder.read_status()["status"] == "interrupted"


def test_a_sigterm_that_a_finalizer_swallowed_before_the_run_ends_it_as_it_begins(tmp_path):
    class Swallows:
        def __del__(self):
            with contextlib.suppress(BaseException):
                os.kill(os.getpid(), signal.SIGTERM)

    def main() -> None:
        del_me = Swallows()
        del del_me
        with RunFolder.claim(tmp_path, "mistral", resume=False, overwrite=False) as folder, Interrupts(folder):
            pytest.fail("the run began")

    with pytest.raises(SystemExit) as ended:
        run_verb(main, [])
    assert ended.value.code == 143
    assert list(tmp_path.iterdir()) == []
    folder = start_folder(tmp_path)
    with folder, Interrupts(folder):  # of the next command, which hears its own signals alone
        pass


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_while_the_handlers_are_put_in_place_is_told_as_any_other(tmp_path, monkeypatch, number):
    put = signal.signal

    def put_and_hit(which, handler):
        before = put(which, handler)
        if which == number and getattr(handler, "__name__", "") == "_handle":
            os.kill(os.getpid(), number)
        return before

    monkeypatch.setattr(signal, "signal", put_and_hit)
    folder = RunFolder.claim(tmp_path, "mistral", resume=False, overwrite=False)
    before = pytest.raises(Interrupted, match="before the first step, left at once")
    with before as stopped, folder, Interrupts(folder):
        pytest.fail("the run began")
    assert stopped.value.exit_code == 128 + number
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_on_the_way_out_does_not_take_the_place_of_what_ended_the_run(tmp_path, monkeypatch, number):
    put = signal.signal

    def hit_and_put(which, handler):
        # Not where handlers are given back: this process may have been started with Ctrl-C ignored, as behind `&`.
        if handler is signal.SIG_IGN and signal.getsignal(which) != before[which]:
            os.kill(os.getpid(), number)
        return put(which, handler)

    before = {which: signal.getsignal(which) for which in (signal.SIGTERM, signal.SIGINT)}
    folder = start_folder(tmp_path)
    with pytest.raises(DivergedError), folder, Interrupts(folder):
        monkeypatch.setattr(signal, "signal", hit_and_put)
        raise DivergedError("step 7: the loss is not finite.")
    status = folder.read_status()
    assert (status["status"], status["reason"]) == ("failed", "step 7: the loss is not finite.")


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_run_that_is_done_stays_done_whatever_signal_or_error_comes(tmp_path, number):
    folder = start_folder(tmp_path)
    with pytest.raises(ZeroDivisionError), folder, Interrupts(folder):
        folder.write_status("done")
        os.kill(os.getpid(), number)
        raise ZeroDivisionError
    assert folder.read_status()["status"] == "done"
