"""A signal in whatever phase a run is in: nothing looks finished, and the same command with --resume finishes it."""

import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from finetune.errors import Interrupted
from finetune.run import writing
from finetune.run.folder import RunFolder
from tests.end_to_end.small_runs import hash_files, read_figures, read_json, read_weights, run_small

pytestmark = pytest.mark.usefixtures("tiny_base")

SETTINGS: dict[str, Any] = {
    "data__eval": {"fraction": 0.1},
    "evaluation__num_samples": 1,
    "training__eval_steps": 2,
    "training__max_steps": 3,
}


@pytest.fixture(scope="module")
def whole(tiny_base, tmp_path_factory) -> Path:
    return run_small(tmp_path_factory.mktemp("whole"), **SETTINGS)


def stop_in(function: str, output_dir: Path, number: signal.Signals = signal.SIGTERM, **settings: Any) -> Path:
    """Run, with a signal to this process as a function begins; it has to be told as such. The run's folder."""
    with pytest.MonkeyPatch.context() as patch:
        module, _, name = function.rpartition(".")
        patch.setattr(function, _signalled(getattr(__import__(module, fromlist=[name]), name), number))
        with pytest.raises(Interrupted, match="stopped by") as stopped:
            run_small(output_dir, **(SETTINGS | settings))
    assert stopped.value.exit_code == 128 + number
    return output_dir / "small"


def _signalled(function: Callable[..., Any], number: signal.Signals) -> Callable[..., Any]:
    def signalled(*args: Any, **kwargs: Any) -> Any:
        os.kill(os.getpid(), number)
        return function(*args, **kwargs)

    return signalled


@pytest.mark.parametrize(
    "function", ["finetune.train.prepare", "finetune.train.load_frozen_base", "finetune.train.rehearse"]
)
def test_before_the_run_starts_it_leaves_nothing(tmp_path, function):
    run = stop_in(function, tmp_path, training__report_to=["tensorboard"])
    assert not run.exists()


def test_while_the_start_is_measured_it_leaves_a_run_that_is_begun_anew_unasked(tmp_path):
    run = stop_in("finetune.train.measure_start", tmp_path, signal.SIGINT)
    assert read_json(run / "status.json")["status"] == "interrupted"
    with RunFolder.claim(tmp_path, "small", resume=False, overwrite=False) as folder:
        folder.start()
        assert [path.name for path in run.iterdir()] == [".lock"]


def test_after_the_last_step_it_leaves_no_result_that_looks_finished_and_resume_finishes_it(tmp_path, whole):
    for function in (
        "finetune.result.write_loss_plot",
        "finetune.result.build_card",  # adapter/ is half written
        "finetune.result.build_summary",
        "finetune.run.writing.sync_tree",  # it is whole, and has not taken its place
    ):
        run = stop_in(function, tmp_path, resume=(tmp_path / "small").exists())
        status = read_json(run / "status.json")
        assert (status["status"], status["step"]) == ("interrupted", 3)
        assert not (run / "adapter").exists()
    assert not run_small(tmp_path, **SETTINGS, resume=True).joinpath(".adapter.part").exists()
    assert read_json(run / "status.json")["status"] == "done"
    assert read_figures(run) == read_figures(whole)
    assert read_weights(run) == read_weights(whole)


def test_once_the_result_takes_its_place_no_signal_ends_the_run_any_more(tmp_path, monkeypatch):
    run, sync, write, told = tmp_path / "small", writing.sync_dir, RunFolder.write_status, []

    def hit(moment: str) -> None:
        if (run / "adapter").exists():
            told.append(moment)
            for number in (signal.SIGTERM, signal.SIGINT):
                os.kill(os.getpid(), number)

    def sync_hit(path: Path) -> None:
        hit(f"sync {path.name}")
        sync(path)

    def write_hit(folder: RunFolder, *args: Any, **kwargs: Any) -> None:
        hit("write")
        write(folder, *args, **kwargs)
        hit("written")

    monkeypatch.setattr(writing, "sync_dir", sync_hit)
    monkeypatch.setattr(RunFolder, "write_status", write_hit)
    run_small(tmp_path, **SETTINGS)
    assert told == ["sync small", "write", "sync small", "written"]
    assert read_json(run / "status.json")["status"] == "done"


def test_a_picture_that_cannot_be_drawn_is_a_word_in_the_log_and_no_end_of_the_run(tmp_path, monkeypatch):
    def draws_half(metrics_path: Path, png_path: Path) -> None:
        png_path.write_bytes(b"half")
        raise RuntimeError("no font")

    monkeypatch.setattr("finetune.result.write_loss_plot", draws_half)
    run = run_small(tmp_path, **SETTINGS)
    assert read_json(run / "status.json")["status"] == "done"
    assert (run / "adapter").is_dir()
    assert not (run / "loss.png").exists()
    assert "loss.png could not be drawn: RuntimeError: no font" in (run / "log.txt").read_text()


def test_a_finished_run_that_is_resumed_keeps_every_file_and_folder_as_it_was(whole, capsys):
    before, folder_time = hash_files(whole), whole.stat().st_mtime_ns
    run_small(whole.parent, **SETTINGS, resume=True)
    assert "already complete" in capsys.readouterr().err
    assert (hash_files(whole), whole.stat().st_mtime_ns) == (before, folder_time)
