"""Where a run cannot be written, and clocks that are set back: told in a few lines, and nothing is overwritten."""

import errno
import fcntl
import json
import os
import socket
import subprocess
import time
from pathlib import Path

import pytest

from finetune.errors import CheckpointError, FinetuneError, PlaceError
from finetune.run.folder import RunFolder
from tests.end_to_end.small_runs import read_json, read_lines, run_small


def claim(output_dir: Path, name: str = "mistral", **flags: bool) -> RunFolder:
    return RunFolder.claim(output_dir, name, **({"resume": False, "overwrite": False} | flags))


def lay_out(kind: str, folder: Path) -> tuple[Path, str]:
    """Put something in a run's way: its output folder, and what the message says of it."""
    match kind:
        case "file":
            (folder / "outputs").write_text("mine")
            return folder / "outputs", "outputs is a file where a folder is needed"
        case "name is a file":
            (folder / "mistral").write_text("mine")
            return folder, "mistral is a file where a folder is needed"
        case "file above":
            (folder / "outputs").write_text("mine")
            return folder / "outputs" / "deep" / "deeper", "outputs is a file where a folder is needed"
        case "something else":
            (folder / "mistral").mkdir()
            (folder / "mistral" / "thesis.txt").write_text("mine")
            return folder, "holds files that are not a run's"
        case "dangling link":
            (folder / "mistral").symlink_to(folder / "gone")
            return folder, "mistral is a link to"
        case "dangling link above":
            (folder / "outputs").symlink_to(folder / "gone")
            return folder / "outputs", "outputs is a link to"
        case "circle of links":
            (folder / "outputs").symlink_to(folder / "outputs")
            return folder / "outputs", "too many levels of symbolic links"
        case "too long":
            return folder / ("x" * 300), "file name too long"
        case "too long in all":
            return folder.joinpath(*["x" * 200] * 30), "file name too long"
        case "kernel's":
            return Path("/proc/self"), "cannot be written"
    raise AssertionError(kind)


@pytest.mark.parametrize("flags", [{}, {"resume": True}, {"overwrite": True}], ids=str)
@pytest.mark.parametrize(
    "kind",
    [
        "file", "name is a file", "file above", "something else", "dangling link", "dangling link above",
        "circle of links", "too long", "too long in all", "kernel's",
    ],
)  # fmt: skip
def test_a_place_that_takes_no_run_is_named_and_nothing_there_changes(tmp_path, kind, flags):
    output_dir, words = lay_out(kind, tmp_path)
    before = sorted((str(path), path.is_symlink() or path.is_dir() or path.read_text()) for path in tmp_path.rglob("*"))
    with pytest.raises(FinetuneError, match=words) as refused:
        claim(output_dir, **flags)
    assert refused.value.exit_code in (2, 4)
    assert len(str(refused.value).splitlines()) <= 3
    after = sorted((str(path), path.is_symlink() or path.is_dir() or path.read_text()) for path in tmp_path.rglob("*"))
    assert after == before


def test_a_folder_on_a_read_only_disk_is_named_and_a_finished_run_there_is_complete(tmp_path):
    with claim(tmp_path) as folder:
        folder.start()
        folder.adapter_dir.mkdir()
        folder.write_status("done")
    if subprocess.run(["mount", "--bind", "-o", "ro", tmp_path, tmp_path], capture_output=True).returncode:
        pytest.skip("only root mounts")
    try:
        if os.access(tmp_path, os.W_OK):
            pytest.skip("this kernel binds read-only in a second step")
        with pytest.raises(PlaceError, match=r"other cannot be written: read-only file system\.\n.*output_dir="):
            claim(tmp_path, "other")
        with pytest.raises(PlaceError, match="read-only file system"):
            claim(tmp_path, overwrite=True)
        assert claim(tmp_path, resume=True).finished
    finally:
        subprocess.run(["umount", tmp_path], check=True)


@pytest.fixture
def no_locks(monkeypatch):
    """A file system that knows none, as some mounted drives are."""

    def refuse(descriptor: int, operation: int) -> None:
        raise OSError(errno.EOPNOTSUPP, "Operation not supported")

    monkeypatch.setattr(fcntl, "flock", refuse)


def leave_lock(folder: Path, **holder: object) -> None:
    folder.mkdir(exist_ok=True)
    told = {"pid": os.getppid(), "host": socket.gethostname(), "since": "2026-11-01T10:00:00+00:00"} | holder
    (folder / ".lock").write_text(json.dumps(told))


def test_without_locks_a_process_of_this_machine_that_lives_is_refused_and_a_dead_one_is_not(
    tmp_path, no_locks, caplog
):
    leave_lock(tmp_path / "mistral")
    with pytest.raises(CheckpointError, match=rf"by process {os.getppid()} on \S+ since 2026-11-01"):
        claim(tmp_path, resume=True)
    dead = subprocess.Popen(["true"])
    dead.wait()
    leave_lock(tmp_path / "mistral", pid=dead.pid)
    with claim(tmp_path, resume=True):
        assert "start no second process on this run" in caplog.text


def test_without_locks_a_process_of_another_machine_is_named_in_a_warning(tmp_path, no_locks, caplog):
    leave_lock(tmp_path / "mistral", host="node17", pid=5)
    with claim(tmp_path, resume=True):
        assert "process 5 on node17 since 2026-11-01T10:00:00+00:00 wrote its name here" in caplog.text


@pytest.mark.parametrize("content", [b"", b'{"pid": 1', b"\0\0\0", b"[]"])
def test_a_lock_that_a_power_cut_left_damaged_is_taken_over(tmp_path, content):
    (tmp_path / "mistral").mkdir()
    (tmp_path / "mistral" / ".lock").write_bytes(content)
    (tmp_path / "mistral" / "status.json").write_bytes(content)
    with claim(tmp_path, resume=True) as folder:
        assert not folder.finished


@pytest.fixture
def full_disk(monkeypatch):
    """A disk on which names can be made and nothing be written, as a full tmpfs is."""

    def refuse(descriptor: int, content: bytes, offset: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "pwrite", refuse)


def test_a_disk_that_is_still_full_takes_the_lock_without_a_word_in_it(tmp_path, full_disk):
    (tmp_path / "mistral").mkdir()
    (tmp_path / "mistral" / "status.json").write_text('{"status": "failed"}')
    with claim(tmp_path, resume=True), pytest.raises(CheckpointError, match="worked on by another process"):
        claim(tmp_path, resume=True)
    assert not (tmp_path / "mistral" / ".lock").exists()


def test_on_a_full_disk_without_locks_nothing_would_keep_a_second_process_out(tmp_path, full_disk, no_locks):
    num_open = len(list(Path("/proc/self/fd").iterdir()))
    with pytest.raises(PlaceError, match=r"\.lock cannot be written: no space left on device"):
        claim(tmp_path, resume=True)
    assert len(list(Path("/proc/self/fd").iterdir())) == num_open


def test_a_clock_that_is_set_back_again_and_again_gives_no_negative_figure(tiny_base, tmp_path, monkeypatch):
    real, calls = time.time, iter(range(10**9))
    monkeypatch.setattr(time, "time", lambda: real() - 60.0 * next(calls))
    run = run_small(tmp_path, data__eval={"fraction": 0.1}, training__eval_steps=2, training__max_steps=3)
    lines = read_lines(run)
    assert [line["step"] for line in lines if "eval_seconds" in line] == [2, 3]  # the start's is not timed
    for figures in (*lines, read_json(run / "summary.json")):
        assert all(value >= 0 for key, value in figures.items() if "seconds" in key or key == "step_time"), figures
    assert [line["eval_seconds"] for line in lines if line.get("eval_seconds", 0) >= 60] == []
    assert [line["seconds"] for line in lines] == sorted(line["seconds"] for line in lines)
