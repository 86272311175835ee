"""Output that nobody reads, that is no terminal, or that a C locale cannot write: no traceback, no escape codes."""

import contextlib
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from finetune.cli import to_text
from tests.end_to_end.small_runs import run_small, stopped_at_evaluation

ROOT = Path(__file__).parents[2]

# Each verb writes into a pipe whose reader has left, or into a file; its exit code and what it said are the answer.
SCRIPT = """
import io, json, os, sys
from finetune.__main__ import main
cases, shown_path, answers_path = json.loads(sys.argv[1]), sys.argv[2], sys.argv[3]
answers = []
for arguments, is_read in cases:
    reading, writing = os.pipe()
    os.close(reading)
    shown = open(shown_path, "w+b")
    os.dup2(shown.fileno() if is_read else writing, 1)
    sys.stdout = io.TextIOWrapper(open(1, "wb", closefd=False), encoding="ascii")
    sys.stderr = io.TextIOWrapper(io.BytesIO(), encoding="ascii")
    code = 0
    try:
        main(arguments)
        sys.stdout.flush()
    except SystemExit as left:
        code = left.code
    except BaseException as error:
        code = repr(error)
    sys.stderr.flush()
    shown.seek(0)
    answers.append([code, shown.read().decode("ascii"), sys.stderr.buffer.getvalue().decode("ascii")])
    os.close(writing)
with open(answers_path, "w") as file:
    json.dump(answers, file)
os._exit(0)
"""
ENVIRONMENT = {
    "LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0", "PYTHONIOENCODING": "ascii",
    "TERM": "dumb", "NO_COLOR": "1", "COLUMNS": "40",
}  # fmt: skip


@pytest.fixture(scope="module")
def rows_recipe(tiny_base, tmp_path_factory) -> Path:
    """A recipe with rows in many scripts, whose preview is long."""
    folder = tmp_path_factory.mktemp("rows")
    rows = [{"instruction": f"Größe {number}? 何 … → —", "output": "naïve \U0001f600 " * 20} for number in range(20)]
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    recipe = {
        "name": "scripts",
        "model": {"model_name_or_path": str(ROOT / "data" / "tiny_base"), "device": "cpu", "quantization": "none"},
        "data": {"train": {"path": str(folder / "rows.jsonl")}, "template": "alpaca", "max_length": 512},
    }
    (folder / "recipe.yaml").write_text(json.dumps(recipe), encoding="utf-8")
    return folder / "recipe.yaml"


def test_every_verb_that_prints_is_clean_in_a_c_locale_on_40_columns_and_where_the_reader_has_left(
    rows_recipe, tmp_path
):
    preview = ["preview", str(rows_recipe), "--rows", "20"]
    asked = [[], ["chat", "--help"], preview, ["sft", str(rows_recipe), "data.train.paht=…→—"]]
    cases = [[arguments, is_read] for is_read in (True, False) for arguments in asked]
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, json.dumps(cases), tmp_path / "out", tmp_path / "answers"],
        cwd=ROOT, env=os.environ | ENVIRONMENT, capture_output=True, text=True,
    )  # fmt: skip
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    answers = json.loads((tmp_path / "answers").read_text())
    for (arguments, is_read), (code, out, err) in zip(cases, answers, strict=True):
        expected = 2 if arguments[0:1] == ["sft"] else 0 if is_read else 4
        if "--help" in arguments and not is_read:
            expected = 1  # click's own answer
        assert code == expected, (arguments, is_read, code, err)
        assert "\x1b" not in out + err and "Traceback" not in out + err
        if arguments == preview and is_read:
            assert "Gr\\xf6\\xdfe" in out


def test_a_run_outlives_its_console(tiny_base, tmp_path, monkeypatch):
    reading, writing = os.pipe()
    os.close(reading)  # as `tee` does, which a Ctrl-C ends too
    with os.fdopen(writing, "w", buffering=1) as gone:
        monkeypatch.setattr(sys, "stderr", gone)
        with stopped_at_evaluation(2, signal.SIGINT):
            run_small(tmp_path, data__eval={"fraction": 0.1}, training__eval_steps=2, training__max_steps=3)
        monkeypatch.undo()
        with contextlib.suppress(BrokenPipeError):
            gone.close()
    checkpoint = tmp_path / "small" / "checkpoints" / "checkpoint-2"
    assert (checkpoint / "COMPLETE.json").is_file()
    assert "Stopping: the run is saved" in (tmp_path / "small" / "log.txt").read_text()


@pytest.mark.parametrize(
    ("typed", "text"),
    [("Größe 何", "Größe 何"), ("Gr\udcc3\udcb6\udcc3\udc9fe", "Größe"), ("\udcff!", "\ufffd!")],
    ids=["text", "bytes of a C locale", "no UTF-8"],
)
def test_what_is_typed_in_a_c_locale_is_text(typed, text):
    assert to_text(typed) == text
