"""A file is the old one or the new one, whole, and what the system refuses is said."""

from pathlib import Path

import pytest

from finetune.errors import PlaceError
from finetune.run.writing import write_bytes, write_text


def test_a_text_is_written_with_the_line_ends_and_in_the_letters_it_has(tmp_path: Path) -> None:
    write_text(tmp_path / "a.txt", "é\r\n\n")
    assert (tmp_path / "a.txt").read_bytes() == b"\xc3\xa9\r\n\n"


def test_a_file_is_replaced_whole_and_nothing_is_left_beside_it(tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    write_bytes(path, b"longer than the next")
    write_bytes(path, b"\x00\xff")
    assert path.read_bytes() == b"\x00\xff"
    assert list(tmp_path.iterdir()) == [path]


def test_what_cannot_be_written_is_told_and_leaves_nothing_beside_it(tmp_path: Path) -> None:
    (tmp_path / "a.png").mkdir()
    with pytest.raises(PlaceError, match=r"a\.png cannot be written: is a directory\.\n  Runs need"):
        write_bytes(tmp_path / "a.png", b"1")
    assert [path.name for path in tmp_path.iterdir()] == ["a.png"]
    with pytest.raises(PlaceError, match="cannot be written: no such file or directory"):
        write_bytes(tmp_path / "gone" / "a.png", b"1")
