"""Who may use a run folder, what a used one answers, and that nothing else is ever deleted."""

import contextlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from itertools import count
from pathlib import Path

import pytest

from finetune.errors import CheckpointError, DataError, Interrupted, PlaceError, RecipeError
from finetune.run.folder import RunFolder
from finetune.run.layout import RunLayout

ROOT = Path(__file__).parents[2]


def claim(output_dir: Path, name: str = "mistral", **flags: bool) -> RunFolder:
    return RunFolder.claim(output_dir, name, **({"resume": False, "overwrite": False} | flags))


def leave_run(output_dir: Path, status: str = "running", step: int = 400, ago: timedelta = timedelta(hours=2)) -> Path:
    with claim(output_dir) as folder:
        folder.start()
        folder.write_text(folder.recipe_path, "name: mistral\n")
        folder.note_step(step, 975)
        folder.write_status(status)
        written = json.loads(folder.status_path.read_text())
        then = (datetime.now(UTC) - ago).isoformat(timespec="seconds")
        folder.status_path.write_text(json.dumps(written | {"updated_at": then}))
        (folder.checkpoints_dir / "checkpoint-400").mkdir(parents=True)
        (folder.checkpoints_dir / "checkpoint-400" / "weights").write_text("w")
    return folder.path


def contents(path: Path) -> dict[str, tuple[bytes, int]]:
    return {str(file): (file.read_bytes(), file.stat().st_mtime_ns) for file in path.rglob("*") if file.is_file()}


def test_a_fresh_name_gets_an_empty_locked_folder(tmp_path):
    with claim(tmp_path / "a" / "b") as folder:
        assert [path.name for path in folder.path.iterdir()] == [".lock"]
        assert not folder.finished
        folder.start()
    assert list(folder.path.iterdir()) == []


def test_an_attempt_that_fails_before_it_starts_leaves_the_name_free(tmp_path):
    with pytest.raises(DataError), claim(tmp_path) as folder:
        folder.checkpoints_dir.mkdir()  # the trainer makes it when it is built
        raise DataError("row 3 has no answer")
    assert list(tmp_path.iterdir()) == []
    with claim(tmp_path) as folder:  # the same command, mended
        folder.start()
        folder.write_status("running")


def test_an_attempt_that_was_killed_before_it_started_leaves_the_name_free(tmp_path):
    (tmp_path / "mistral" / "checkpoints").mkdir(parents=True)
    (tmp_path / "mistral" / ".lock").write_text('{"pid": 1}')
    with claim(tmp_path) as folder:
        folder.start()


def test_a_folder_that_was_there_empty_stays(tmp_path):
    (tmp_path / "mistral").mkdir()
    with pytest.raises(DataError), claim(tmp_path):
        raise DataError("row 3 has no answer")
    assert [path.name for path in tmp_path.iterdir()] == ["mistral"]


def test_nothing_is_written_before_the_run_starts(tmp_path):
    with claim(tmp_path) as folder:
        with pytest.raises(AssertionError, match=r"recipe.yaml is written before start"):
            folder.write_text(folder.recipe_path, "name: mistral")
        with pytest.raises(AssertionError, match=r"status.json is written before start"):
            folder.write_status("running")
        with pytest.raises(AssertionError, match="adapter is written"), folder.write_dir(folder.adapter_dir):
            pytest.fail("a folder was given out")


@pytest.mark.parametrize("flags", [{"overwrite": True}, {"resume": True}], ids=str)
def test_an_attempt_that_fails_before_it_starts_leaves_the_run_that_is_there_as_it_was(tmp_path, flags):
    path = leave_run(tmp_path, "done" if "overwrite" in flags else "interrupted", 975)
    before = contents(path)
    with pytest.raises(DataError), claim(tmp_path, **flags):
        raise DataError("row 3 has no answer")
    assert contents(path) == before


@pytest.mark.parametrize("status", ["failed", "interrupted"])
@pytest.mark.parametrize("flags", [{}, {"resume": True}, {"overwrite": True}], ids=str)
def test_a_run_that_ended_before_anything_came_of_it_is_replaced(tmp_path, status, flags):
    path = leave_run(tmp_path, status, 0)
    shutil.rmtree(path / "checkpoints" / "checkpoint-400")
    (path / "metrics.jsonl").write_text("")
    with claim(tmp_path, **flags) as folder:
        assert folder.recipe_path.exists()
        folder.start()
        assert [entry.name for entry in path.iterdir()] == [".lock"]


@pytest.mark.parametrize(
    ("status", "left"),
    [
        ("failed", "metrics.jsonl"),
        ("failed", "checkpoints/checkpoint-400.broken/weights"),
        ("failed", "adapter/adapter.safetensors"),
        ("failed", "model/model.safetensors"),
        ("running", "data_report.json"),  # perhaps at work on another machine
        ("done", "data_report.json"),
    ],
)
def test_a_run_that_something_came_of_is_refused(tmp_path, status, left):
    path = leave_run(tmp_path, status, 12)
    shutil.rmtree(path / "checkpoints" / "checkpoint-400")
    (path / left).parent.mkdir(parents=True, exist_ok=True)
    (path / left).write_text("{}")
    with pytest.raises(RecipeError, match="already holds a run"):
        claim(tmp_path)
    assert (path / left).read_text() == "{}"


def test_a_folder_behind_a_link_is_not_replaced_unasked(tmp_path):
    real = leave_run(tmp_path / "real", "failed", 0)
    shutil.rmtree(real / "checkpoints")
    (tmp_path / "mistral").symlink_to(real)
    with pytest.raises(RecipeError, match="already holds a run"):
        claim(tmp_path)


def test_a_checkpoint_is_known_by_its_name_alone(tmp_path):
    layout = RunLayout(tmp_path)
    assert not layout.has_checkpoint
    for name in ("checkpoint-3.broken", ".deleting-checkpoint-3", "checkpoint-x"):
        (layout.checkpoints_dir / name).mkdir(parents=True)
    assert not layout.has_checkpoint
    (layout.checkpoints_dir / "checkpoint-3").mkdir()
    assert layout.has_checkpoint


def test_a_used_name_is_refused_with_its_state_and_every_way_out(tmp_path):
    path = leave_run(tmp_path)
    with pytest.raises(RecipeError) as refused:
        claim(tmp_path)
    assert str(refused.value) == (
        f"{path} already holds a run (step 400 of 975, stopped 2 hours ago).\n"
        "  Continue it: --resume     Start over: --overwrite (deletes this folder only)     Or: name=mistral_2"
    )
    assert not (path / ".lock").exists()


def test_the_name_that_is_offered_is_free(tmp_path):
    leave_run(tmp_path)
    (tmp_path / "mistral_2").mkdir()
    with pytest.raises(RecipeError, match="name=mistral_3"):
        claim(tmp_path)


@pytest.mark.parametrize(
    ("status", "step", "ago", "words"),
    [
        ("done", 975, timedelta(days=3), "step 975 of 975, finished 3 days ago"),
        ("failed", 12, timedelta(seconds=20), "step 12 of 975, failed just now"),
        ("interrupted", 12, timedelta(minutes=1, seconds=5), "step 12 of 975, stopped 1 minute ago"),
        ("running", 12, timedelta(hours=-5), "step 12 of 975, stopped just now"),
    ],
    ids=["done", "failed", "interrupted", "clock set back"],
)
def test_the_state_of_a_run_is_said_in_words(tmp_path, status, step, ago, words):
    leave_run(tmp_path, status, step, ago)
    with pytest.raises(RecipeError, match=re.escape(f"({words})")):
        claim(tmp_path)


def test_resume_keeps_what_is_there_and_knows_its_history(tmp_path):
    leave_run(tmp_path)
    with claim(tmp_path, resume=True) as folder:
        assert not folder.finished
        assert (folder.step, folder.total_steps) == (400, 975)
        assert (folder.checkpoints_dir / "checkpoint-400" / "weights").exists()
        folder.start()
        folder.note_resumed(300)
        folder.write_status("running")
    with claim(tmp_path, resume=True) as folder:
        folder.note_resumed(350)
        assert folder.resumed_from == [300, 350]


def test_resume_where_nothing_is_starts_fresh(tmp_path):
    with claim(tmp_path, resume=True) as folder:
        assert not folder.finished
        assert folder.read_status() == {}


def test_a_finished_run_that_is_resumed_is_left_as_it_is(tmp_path):
    path = leave_run(tmp_path, "done", 975)
    (path / "adapter").mkdir()
    before = contents(path)
    with claim(tmp_path, resume=True) as folder:
        assert folder.finished
        assert folder.to_state() == "step 975 of 975, finished 2 hours ago"
    assert contents(path) == before


def test_a_run_whose_result_is_gone_is_not_complete(tmp_path):
    leave_run(tmp_path, "done", 975)
    with claim(tmp_path, resume=True) as folder:
        assert not folder.finished


@pytest.mark.parametrize(
    ("written", "words"),
    [
        ({"updated_at": 5}, "step 400 of 975, stopped at an unknown time"),
        ({"updated_at": "yesterday"}, "step 400 of 975, stopped at an unknown time"),
        ({"updated_at": "2026-11-01T10:00:00"}, "step 400 of 975, stopped at an unknown time"),
        ({"step": None}, "step unknown of 975, stopped 2 hours ago"),
        ({"total_steps": "975"}, "stopped before its first step, 2 hours ago"),
        ({"total_steps": True}, "stopped before its first step, 2 hours ago"),
        ({"resumed_from": 3}, "step 400 of 975, stopped 2 hours ago"),
        ({"resumed_from": None}, "step 400 of 975, stopped 2 hours ago"),
        ({"resumed_from": [3, "x"]}, "step 400 of 975, stopped 2 hours ago"),
        ({"status": ["done"]}, "step 400 of 975, stopped 2 hours ago"),
        ({"status": {}}, "step 400 of 975, stopped 2 hours ago"),
        ({"note": float("nan"), "other": "\ud800"}, "step 400 of 975, stopped 2 hours ago"),
    ],
    ids=str,
)
def test_a_status_that_somebody_garbled_is_read_as_far_as_it_is_sound(tmp_path, written, words):
    path = leave_run(tmp_path)
    (path / "status.json").write_text(json.dumps(json.loads((path / "status.json").read_text()) | written))
    with pytest.raises(RecipeError, match=re.escape(f"({words})")):
        claim(tmp_path)
    garbled = (path / "status.json").read_bytes()
    with claim(tmp_path, resume=True) as folder:
        assert (folder.resumed_from, folder.finished) == ([], False)
        folder.note_resumed(400)
        folder.start()
        folder.write_status("running")
        assert folder.read_status()["resumed_from"] == [400]
    (path / "status.json").write_bytes(garbled)
    with claim(tmp_path, overwrite=True) as folder:
        folder.start()
        assert [entry.name for entry in path.iterdir()] == [".lock"]


class Killed(BaseException):
    """The end of a process."""


@contextlib.contextmanager
def killed_before(operation: int) -> Iterator[list[str]]:
    """End whatever runs inside before its n-th change of the disk, the deletion of a folder in its middle."""
    done: list[str] = []

    def strike(name: str, change: Callable[..., object]) -> Callable[..., object]:
        def changed(place: Path, *arguments: object, **options: object) -> object:
            if len(done) == operation:
                if name == "rmtree":
                    next(path for path in Path(place).rglob("*") if path.is_file()).unlink()
                patches.undo()
                raise Killed
            done.append(name)
            return change(place, *arguments, **options)

        return changed

    patches = pytest.MonkeyPatch()
    for owner, name in ((Path, "rename"), (Path, "replace"), (shutil, "rmtree"), (os, "unlink")):
        patches.setattr(owner, name, strike(name, getattr(owner, name)))
    try:
        yield done
    finally:
        patches.undo()


def test_a_kill_at_any_moment_of_a_replacement_leaves_what_the_same_command_replaces(tmp_path):
    left = {".lock", "recipe.yaml", "status.json", "checkpoints", "adapter", "log.txt", "metrics.jsonl", "old.part"}
    refused = 0
    for operation in count():
        output_dir = tmp_path / str(operation)
        path = leave_run(output_dir, "done", 975)
        for name in ("adapter/weights", "log.txt", "metrics.jsonl", "old.part"):
            (path / name).parent.mkdir(exist_ok=True)
            (path / name).write_text("w")
        with claim(output_dir, overwrite=True) as folder:
            assert {entry.name for entry in path.iterdir()} == left
            try:
                with killed_before(operation) as done:
                    folder.start()
                break
            except Killed:
                pass
        for flags in ({}, {"resume": True}):
            try:
                with claim(output_dir, **flags) as again:
                    # As it was, or nothing left to continue from.
                    kept = (path / "adapter" / "weights").exists() and (path / "checkpoints/checkpoint-400").exists()
                    assert kept if again.finished else not (again.has_checkpoint or again.adapter_dir.exists())
            except RecipeError as error:
                assert "--overwrite" in str(error)
                refused += "was being replaced" in str(error)
        with claim(output_dir, overwrite=True) as again:
            again.start()
            assert [entry.name for entry in path.iterdir()] == [".lock"]
    assert len(done) == operation >= 12
    assert refused >= 6


def test_a_replaced_run_makes_room_on_a_disk_that_takes_not_even_a_status(tmp_path, monkeypatch):
    leave_run(tmp_path, "done", 975)

    def refuse(path: Path, value: object) -> None:
        raise PlaceError("no space")

    with claim(tmp_path, overwrite=True) as folder:
        monkeypatch.setattr("finetune.run.writing.write_json", refuse)
        folder.start()
        assert [entry.name for entry in folder.path.iterdir()] == [".lock"]


def test_overwrite_deletes_this_folder_only_and_follows_no_link(tmp_path):
    path = leave_run(tmp_path / "runs")
    precious = tmp_path / "precious"
    precious.mkdir()
    (precious / "thesis.txt").write_text("years of work")
    (path / "adapter").symlink_to(precious)
    (path / "notes.txt").symlink_to(precious / "thesis.txt")
    (tmp_path / "runs" / "other").mkdir()
    with claim(tmp_path / "runs", overwrite=True) as folder:
        assert (folder.checkpoints_dir / "checkpoint-400" / "weights").exists()
        folder.start()
        assert [entry.name for entry in folder.path.iterdir()] == [".lock"]
    assert (precious / "thesis.txt").read_text() == "years of work"
    assert (tmp_path / "runs" / "other").is_dir()


def test_overwrite_goes_through_no_link(tmp_path):
    real = leave_run(tmp_path / "real")
    (tmp_path / "runs").mkdir()
    (tmp_path / "runs" / "mistral").symlink_to(real)
    with pytest.raises(PlaceError, match="deletes no folder through a link"):
        claim(tmp_path / "runs", overwrite=True)
    assert (real / "checkpoints" / "checkpoint-400" / "weights").exists()


@pytest.mark.parametrize("flags", [{}, {"overwrite": True}, {"resume": True}], ids=str)
def test_a_folder_that_is_no_run_is_never_touched(tmp_path, flags):
    (tmp_path / "mistral").mkdir()
    (tmp_path / "mistral" / "holiday.jpg").write_text("beach")
    with pytest.raises(RecipeError, match=r"nothing is deleted\.\n.*name=mistral_2"):
        claim(tmp_path, **flags)
    assert [path.name for path in (tmp_path / "mistral").iterdir()] == ["holiday.jpg"]


def test_what_an_attempt_left_before_its_first_file_is_no_run(tmp_path):
    (tmp_path / "mistral").mkdir()
    (tmp_path / "mistral" / ".recipe.yaml.12.part").write_text("na")
    with claim(tmp_path):
        pass


def test_an_output_dir_that_is_a_file_is_named(tmp_path):
    (tmp_path / "outputs").write_text("")
    with pytest.raises(PlaceError, match=r"outputs is a file where a folder is needed"):
        claim(tmp_path / "outputs")


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_an_output_dir_that_may_not_be_written_is_named(tmp_path):
    tmp_path.chmod(0o500)
    with pytest.raises(PlaceError, match="cannot be written"):
        claim(tmp_path)


def test_resume_and_overwrite_exclude_each_other(tmp_path):
    with pytest.raises(RecipeError, match="exclude each other"):
        claim(tmp_path, resume=True, overwrite=True)


HOLD = """
import os, signal, sys
from pathlib import Path
from finetune.run.folder import RunFolder
folder = RunFolder.claim(Path(sys.argv[1]), "mistral", resume=True, overwrite=False)
folder.start()
folder.write_status("running")
worker = os.fork()
if not worker:  # here what is to happen in a forked process has happened
    print(os.getpid(), flush=True)
signal.pause()
"""


@pytest.fixture
def holder(tmp_path):
    """A process that holds the folder, and has forked a worker as a data loader does."""
    process = subprocess.Popen([sys.executable, "-c", HOLD, tmp_path], cwd=ROOT, stdout=subprocess.PIPE, text=True)
    worker_pid = int(process.stdout.readline())
    yield process
    process.kill()
    os.kill(worker_pid, signal.SIGKILL)
    process.wait()
    process.stdout.close()


@pytest.mark.parametrize("flags", [{}, {"overwrite": True}, {"resume": True}], ids=str)
def test_a_second_process_is_told_which_one_works_here_and_since_when(tmp_path, holder, flags):
    with pytest.raises(CheckpointError, match=rf"by process {holder.pid} on \S+ since 20\d\d-"):
        claim(tmp_path, **flags)
    assert (tmp_path / "mistral" / "status.json").exists()


def test_a_killed_holders_lock_is_taken_over_even_while_its_workers_live(tmp_path, holder):
    holder.kill()
    holder.wait()
    assert (tmp_path / "mistral" / ".lock").exists()
    with claim(tmp_path, resume=True) as folder:
        assert json.loads((folder.path / ".lock").read_text())["pid"] == os.getpid()


@pytest.mark.parametrize(
    ("error", "status", "reason"),
    [
        (Interrupted("stopped by SIGTERM\n  more", 143), "interrupted", "stopped by SIGTERM"),
        (KeyboardInterrupt(), "interrupted", "KeyboardInterrupt"),
        (PlaceError("no space\n  free some"), "failed", "no space"),
        (ZeroDivisionError("division by zero"), "failed", "division by zero"),
    ],
    ids=["interrupted", "ctrl-c", "ours", "a bug"],
)
def test_a_run_left_by_an_error_says_so_in_its_status(tmp_path, error, status, reason):
    with pytest.raises(type(error)), claim(tmp_path) as folder:
        folder.start()
        folder.note_step(7, 30)
        raise error
    written = json.loads(folder.status_path.read_text())
    assert (written["status"], written["reason"], written["step"], written["total_steps"]) == (status, reason, 7, 30)


def test_processes_of_other_ranks_claim_without_touching_anything(tmp_path, monkeypatch):
    monkeypatch.setenv("RANK", "1")
    with claim(tmp_path) as folder:
        folder.start()
        folder.write_status("running")
        folder.write_text(folder.recipe_path, "name: x")
        assert not folder.writes
    assert list(tmp_path.iterdir()) == []


def test_a_result_appears_only_when_it_is_whole(tmp_path):
    with claim(tmp_path) as folder:
        folder.start()
        with pytest.raises(OSError, match="disk"), folder.write_dir(folder.adapter_dir) as beside:
            (beside / "half.safetensors").write_text("ha")
            raise OSError("disk")
        assert not folder.adapter_dir.exists()
        for content in ("one", "two"):
            with folder.write_dir(folder.adapter_dir) as beside:
                (beside / "adapter.safetensors").write_text(content)
            assert [path.read_text() for path in folder.adapter_dir.iterdir()] == [content]


def test_a_number_that_is_not_finite_reaches_no_json(tmp_path):
    with claim(tmp_path) as folder:
        folder.start()
        with pytest.raises(ValueError, match="JSON"):
            folder.write_json(folder.summary_path, {"loss": float("nan")})
    assert not folder.summary_path.exists()


def test_a_taken_name_is_answered_without_torch():
    code = "import sys, finetune.run.folder; print({'torch', 'transformers', 'accelerate'} & set(sys.modules))"
    result = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert result.stdout == "set()\n"
