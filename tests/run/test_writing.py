"""A file is the old one or the new one, whole, and what the system refuses is said."""

import errno
import os
import stat
from pathlib import Path

import pytest

from finetune.errors import PlaceError
from finetune.run.writing import sync_dir, sync_tree, write_bytes, write_text
from tests.run.folders import start_folder


def test_a_text_is_written_with_the_line_ends_and_in_the_letters_it_has(tmp_path: Path) -> None:
    write_text(tmp_path / "a.txt", "é\r\n\n")
    assert (tmp_path / "a.txt").read_bytes() == b"\xc3\xa9\r\n\n"


def test_a_file_is_replaced_whole_and_nothing_is_left_beside_it(tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    write_bytes(path, b"longer than the next")
    write_bytes(path, b"\x00\xff")
    assert path.read_bytes() == b"\x00\xff"
    assert list(tmp_path.iterdir()) == [path]


@pytest.fixture
def synced(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names of what is synced, in order."""
    names: list[str] = []
    fsync = os.fsync

    def noting(descriptor: int) -> None:
        names.append(Path(f"/proc/self/fd/{descriptor}").readlink().name)
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", noting)
    return names


def test_a_folder_is_synced_from_its_files_up(tmp_path: Path, synced: list[str]) -> None:
    (tmp_path / "outer" / "inner").mkdir(parents=True)
    (tmp_path / "outer" / "inner" / "a").touch()
    (tmp_path / "outer" / "b").touch()
    sync_tree(tmp_path / "outer")
    assert synced == ["a", "inner", "b", "outer"]


def test_a_result_is_on_the_disk_with_its_entries_before_it_takes_its_place(tmp_path: Path, synced: list[str]) -> None:
    folder = start_folder(tmp_path)
    with folder.write_dir(folder.adapter_dir) as part:
        (part / "weights").touch()
    assert synced == ["weights", ".adapter.part", tmp_path.name]


@pytest.mark.parametrize("number", [errno.EINVAL, errno.EBADF])
def test_a_file_system_that_syncs_files_alone_takes_a_file_and_a_result(tmp_path, monkeypatch, number) -> None:
    fsync = os.fsync

    def refuse_folders(descriptor: int) -> None:
        if stat.S_ISDIR(os.fstat(descriptor).st_mode):
            raise OSError(number, os.strerror(number))
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", refuse_folders)
    write_text(tmp_path / "a.txt", "a")
    assert (tmp_path / "a.txt").read_text() == "a"
    folder = start_folder(tmp_path)
    with folder.write_dir(folder.adapter_dir) as part:
        (part / "weights").touch()
    assert (folder.adapter_dir / "weights").exists()


def test_a_folder_or_a_file_that_the_disk_does_not_take_is_told(tmp_path, monkeypatch) -> None:
    def refuse(descriptor: int) -> None:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setattr(os, "fsync", refuse)
    with pytest.raises(OSError, match="Input/output error"):
        sync_dir(tmp_path)
    monkeypatch.setattr(Path, "unlink", lambda path, missing_ok: refuse(0))  # nor does it give anything back
    with pytest.raises(PlaceError, match=r"a\.txt cannot be written: input/output error"):
        write_text(tmp_path / "a.txt", "a")


def test_what_cannot_be_written_is_told_and_leaves_nothing_beside_it(tmp_path: Path) -> None:
    (tmp_path / "a.png").mkdir()
    with pytest.raises(PlaceError, match=r"a\.png cannot be written: is a directory\.\n  Runs need"):
        write_bytes(tmp_path / "a.png", b"1")
    assert [path.name for path in tmp_path.iterdir()] == ["a.png"]
    with pytest.raises(PlaceError, match="cannot be written: no such file or directory"):
        write_bytes(tmp_path / "gone" / "a.png", b"1")
