"""The baseline's own notes: what a kill costs them would be laid to TRL's charge."""

import json
from pathlib import Path
from types import SimpleNamespace

import pytest

from tests.faults.plain_trl import Noted


def test_a_kill_while_the_notes_are_cut_costs_none_of_them(tmp_path, monkeypatch):
    path = tmp_path / "metrics.jsonl"
    lines = [json.dumps({"step": step}) + "\n" for step in (1, 2, 3)]
    path.write_text("".join(lines))
    write_text = Path.write_text

    def write_half(place: Path, text: str) -> None:
        write_text(place, text[: len(text) // 2])
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(Path, "write_text", write_half)
        Noted(path).on_train_begin(None, SimpleNamespace(global_step=2), None)
    assert path.read_text() == "".join(lines)

    Noted(path).on_train_begin(None, SimpleNamespace(global_step=2), None)
    assert path.read_text() == "".join(lines[:2])
