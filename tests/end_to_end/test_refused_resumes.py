"""What the command answers on a run that is there: under another recipe, on other content, finished, or at work."""

import json
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file, save_file

from finetune.data.templates import SHIPPED
from finetune.objectives.supervised import SupervisedTrainer
from finetune.run.folder import RunFolder
from tests.end_to_end.small_runs import ROOT, hash_files, read_json, run_small
from tests.end_to_end.test_exit_codes import Verb
from tests.model.saved_runs import write_base

pytestmark = pytest.mark.usefixtures("tiny_base")

RUN = Path("outputs/small")
SETTINGS: dict[str, Any] = {
    "model": {"model_name_or_path": "base", "quantization": "none", "device": "cpu", "compute_dtype": "float32"},
    "adapter": {"method": "lora", "r": 2, "target_modules": ["q_proj"]},
    "data__train": {"path": "rows.jsonl"},
    "data__template": "look.jinja",
    "training__save_steps": 2,
}


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a base, rows, a template and a run on them that was stopped in its third step of four."""
    place = tmp_path_factory.mktemp("place")
    write_base(place / "base")
    rows = [{"instruction": f"What follows {number}?", "output": f"{number + 1}"} for number in range(8)]
    (place / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    alpaca = (ROOT / "finetune/data/prompt_templates/alpaca.jinja").read_text("utf-8")
    (place / "look.jinja").write_text(f"{{%- set end_of_turn = eos_token -%}}\n{{%- set word_start = '' -%}}\n{alpaca}")
    training_step = SupervisedTrainer.training_step

    def die_in_step_3(self: Any, *args: Any, **kwargs: Any) -> Any:
        if self.state.global_step == 2:
            raise KeyboardInterrupt
        return training_step(self, *args, **kwargs)

    with pytest.MonkeyPatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.chdir(place)
        patch.setattr(SupervisedTrainer, "training_step", die_in_step_3)
        run_small(Path("outputs"), **SETTINGS)
    assert (place / RUN / "checkpoints/checkpoint-2/COMPLETE.json").is_file()
    return place


@pytest.fixture
def answer(
    place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Iterator[Callable[..., tuple[int, str]]]:
    """The command in a copy of that place: exit code and standard error."""
    monkeypatch.chdir(shutil.copytree(place, tmp_path / "place"))
    verb = Verb(Path(), monkeypatch, capsys)
    return lambda *arguments: verb(*arguments, **SETTINGS)


@pytest.mark.parametrize(
    ("setting", "key"),
    [
        ("training.learning_rate=5e-3", "training.learning_rate"),
        ("seed=4", "seed"),
        ("training.per_device_train_batch_size=1", "training.per_device_train_batch_size"),
        ("training.gradient_accumulation_steps=2", "training.gradient_accumulation_steps"),
        ("data.train.path=others.jsonl", "data.train.path"),
        (f"data.template={SHIPPED[0]}", "data.template"),
        ("model.model_name_or_path=other", "model.model_name_or_path"),
        ("adapter.r=4", "adapter.r"),
    ],
)
def test_a_resume_under_another_recipe_is_6_with_the_key_and_changes_nothing(answer, setting, key):
    before = hash_files(RUN)
    code, message = answer("--resume", setting)
    assert code == 6
    told = message[message.index("outputs/small was started with another recipe") :].strip().splitlines()
    assert len(told) <= 15
    assert any(line.split()[:1] == [key] for line in told), message
    assert hash_files(RUN) == before


def change_rows() -> None:
    Path("rows.jsonl").write_text(Path("rows.jsonl").read_text().replace("What follows 3?", "What follows 4?"))


def change_template() -> None:
    Path("look.jinja").write_text(Path("look.jinja").read_text("utf-8").replace("### Response", "### Answer"))


def change_base() -> None:
    weights = Path("base/model.safetensors")
    tensors = {name: tensor * 1.01 for name, tensor in load_file(weights).items()}
    save_file(tensors, weights, metadata={"format": "pt"})


@pytest.mark.parametrize(
    ("change", "keys"),
    [(change_rows, {"data"}), (change_template, {"template", "data"}), (change_base, {"base"})],
    ids=["rows", "template", "base"],
)
def test_a_resume_on_other_content_under_the_same_path_is_6_with_the_key_and_changes_nothing(answer, change, keys):
    change()
    before = hash_files(RUN)
    code, message = answer("--resume")
    assert code == 6
    told = message[message.index("outputs/small was started on another base, other rows") :].strip().splitlines()
    assert len(told) <= 15
    assert {"base", "template", "data"} & {line.split()[0] for line in told} == keys, message
    assert hash_files(RUN) == before


def test_a_resume_that_finishes_is_0_and_so_is_the_next_which_changes_nothing(answer):
    code, _ = answer("--resume")
    assert code == 0
    assert read_json(RUN / "summary.json")["resumed_from"] == [2]
    before = hash_files(RUN)
    code, message = answer("--resume")
    assert code == 0
    assert "outputs/small is already complete (step 4 of 4, finished just now): nothing to do." in message
    assert hash_files(RUN) == before
    code, message = answer("--resume", "seed=4")
    assert code == 6, "another recipe's result is not this one's"
    assert hash_files(RUN) == before


@pytest.mark.parametrize("flags", [[], ["--resume"], ["--overwrite"]], ids=" ".join)
def test_a_second_command_on_a_run_at_work_is_6_with_who_works_there(answer, flags):
    with RunFolder.claim(Path("outputs"), "small", resume=True, overwrite=False):
        before = hash_files(RUN)
        code, message = answer(*flags)
        assert code == 6
        assert f"outputs/small is being worked on by process {os.getpid()} on " in message
        assert hash_files(RUN) == before
