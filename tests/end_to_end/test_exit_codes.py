"""What the verb answers with when something is wrong: its exit code, and at most fifteen lines that say what to do."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn

import pytest

from finetune.dpo import main as dpo
from finetune.sft import main as sft
from tests.data.planted_faults import FAULTS, Planted
from tests.end_to_end.small_runs import ROOT, build_values, read_json, run_small, stopped_at_evaluation, write_recipe

pytestmark = pytest.mark.usefixtures("tiny_base")

# One of each reader and kind: torn JSON, tables, single rows, conversations.
TEN_FAULTS = FAULTS[:: len(FAULTS) // 10][:10]


class Verb:
    """`python -m finetune.sft` inside this process."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
        self._folder = folder
        self._monkeypatch = monkeypatch
        self._capsys = capsys

    def __call__(self, *arguments: str, run: Callable[[], NoReturn] = sft, **settings: Any) -> tuple[int, str]:
        """Exit code and standard error."""
        recipe = write_recipe(self._folder / "typed.yaml", build_values(self._folder / "outputs", **settings))
        self._monkeypatch.setattr(sys, "argv", ["finetune sft", str(recipe), *arguments])
        self._capsys.readouterr()
        with pytest.raises(SystemExit) as left:
            run()
        code = left.value.code
        assert isinstance(code, int)
        return code, self._capsys.readouterr().err


@pytest.fixture
def verb(tmp_path, monkeypatch, capsys) -> Verb:
    return Verb(tmp_path, monkeypatch, capsys)


def assert_short(message: str, first: str) -> None:
    """The message, from its first words on, has at most fifteen lines and no traceback."""
    assert first in message, message
    told = message[message.index(first) :].strip().splitlines()
    assert len(told) <= 15
    assert "Traceback" not in message


def test_a_finished_run_is_0_and_the_same_name_again_2_with_the_ways_out(verb, tmp_path):
    code, _ = verb("training.max_steps=1")
    assert code == 0
    assert read_json(tmp_path / "outputs" / "small" / "status.json")["status"] == "done"
    code, message = verb("training.max_steps=1")
    assert code == 2
    assert_short(message, "already holds a run")
    for way in ("--resume", "--overwrite", "name="):
        assert way in message


def test_a_fault_of_the_recipe_is_2_with_its_line(verb):
    code, message = verb(adapter__lora_alpa=8)
    assert code == 2
    assert_short(message, "typed.yaml:")
    assert "Did you mean `lora_alpha`?" in message


def test_ten_planted_faults_are_ten() -> None:
    assert len({fault.name for fault in TEN_FAULTS}) == 10


@pytest.mark.parametrize("fault", TEN_FAULTS, ids=lambda fault: fault.name)
def test_a_fault_of_the_data_is_3_with_file_line_and_reason(fault: Planted, verb, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path(fault.filename).write_bytes(fault.content)
    code, message = verb(data__train={"path": fault.filename})
    assert code == 3
    assert_short(message, f"{fault.filename}:{fault.line}: ")
    assert all(words in message for words in fault.words), message
    assert not (tmp_path / "outputs" / "small" / "adapter").exists()


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        ('{"prompt": "a", "chosen": "b", "rejected": "b"}', "rows.jsonl:2: chosen equals rejected"),
        ('{"prompt": "a", "chosen": "", "rejected": "b"}', "rows.jsonl:2: empty chosen"),
        ('{"prompt": "a", "chosen": "b"}', "rows.jsonl:2: no `rejected`"),
    ],
    ids=["equal", "empty", "missing"],
)
def test_a_faulty_pair_is_3_with_file_line_and_reason(verb, tmp_path, row, reason):
    rows = tmp_path / "rows.jsonl"
    rows.write_text(f'{{"prompt": "a", "chosen": "b", "rejected": "c"}}\n{row}\n')
    code, message = verb(
        objective="dpo", adapter={"r": 4}, data__train={"path": str(rows), "format": "preference"}, run=dpo
    )
    assert code == 3
    assert_short(message, reason)


def test_a_base_that_is_not_there_is_4(verb):
    code, message = verb(model={"model_name_or_path": "./nowhere", "device": "cpu"})
    assert code == 4
    assert_short(message, "nowhere")


def test_a_folder_that_cannot_be_written_is_4(verb, tmp_path):
    (tmp_path / "taken").write_text("a file")
    code, message = verb(f"output_dir={tmp_path / 'taken'}")
    assert code == 4
    assert_short(message, "taken is a file")


def test_a_run_that_diverges_is_5_and_saves_no_adapter(verb, tmp_path):
    code, message = verb("training.learning_rate=1e30", "training.max_steps=20")
    assert code == 5
    assert_short(message, "step ")
    assert "training.learning_rate" in message
    run = tmp_path / "outputs" / "small"
    assert read_json(run / "status.json")["status"] == "failed"
    assert not (run / "adapter").exists()


def test_resume_under_another_recipe_is_6_with_a_table_of_what_differs(verb, tmp_path):
    settings = {"data__eval": {"fraction": 0.1}, "training__eval_steps": 2}
    with stopped_at_evaluation(2):
        run_small(tmp_path / "outputs", **settings)
    before = read_json(tmp_path / "outputs" / "small" / "resolved.json")
    code, message = verb("--resume", "training.learning_rate=5e-3", **settings)
    assert code == 6
    assert_short(message, "was started with another recipe")
    (row,) = [line.split() for line in message.splitlines() if line.strip().startswith("training.")]
    assert row == ["training.learning_rate", "0.01", "0.005"]
    assert read_json(tmp_path / "outputs" / "small" / "resolved.json") == before


@pytest.mark.slow
def test_ctrl_c_is_130_with_everything_saved_and_the_way_on(tmp_path):
    recipe = write_recipe(tmp_path / "typed.yaml", build_values(tmp_path, training__max_steps=2000))
    process = subprocess.Popen(
        [sys.executable, "-m", "finetune.sft", str(recipe)],
        cwd=ROOT, env=os.environ, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    metrics = tmp_path / "small" / "metrics.jsonl"
    deadline = time.monotonic() + 120
    while not (metrics.exists() and '"step": 3' in metrics.read_text()) and time.monotonic() < deadline:
        time.sleep(0.02)
    # Suspended for a moment, as Ctrl-Z and a laptop's lid do, it goes on where it was.
    process.send_signal(signal.SIGSTOP)
    time.sleep(0.3)
    process.send_signal(signal.SIGCONT)
    process.send_signal(signal.SIGINT)
    _, message = process.communicate(timeout=60)
    assert process.returncode == 130, message
    assert_short(message, "was stopped by Ctrl-C")
    assert "--resume" in message
    step = read_json(tmp_path / "small" / "status.json")["step"]
    assert (tmp_path / "small" / "checkpoints" / f"checkpoint-{step}" / "COMPLETE.json").is_file()
