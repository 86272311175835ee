"""Which settings a resumed run may change."""

import json
from pathlib import Path

import pytest

from finetune.errors import CheckpointError
from finetune.run.folder import RunFolder
from finetune.run.resuming import FREE_KEYS, refuse_other_identity, refuse_other_recipe, write_identity
from tests.run.folders import start_folder

RECIPE = {
    "name": "a",
    "seed": 42,
    "data": {"train": [{"path": "x.jsonl", "columns": {}}], "packing": True},
    "evaluation": {"questions": None, "num_samples": 3},
    "training": {"learning_rate": 2e-4, "logging_steps": 1, "save_steps": 200},
}

IDENTITY = {"base_commit": None, "data": "3f" * 32, "num_processes": 1}


@pytest.fixture
def folder(tmp_path) -> RunFolder:
    folder = start_folder(tmp_path)
    folder.write_json(folder.resolved_path, RECIPE)
    write_identity(folder, IDENTITY)
    (folder.checkpoints_dir / "checkpoint-200").mkdir(parents=True)
    return folder


def test_the_same_recipe_goes_on(folder):
    refuse_other_recipe(folder, json.loads(json.dumps(RECIPE)))


def test_what_leaves_the_weights_alone_may_differ(folder):
    changed = RECIPE | {
        "name": "b",
        "evaluation": {"questions": {"path": "q.jsonl"}, "num_samples": 0},
        "training": RECIPE["training"] | {"logging_steps": 5, "save_steps": 10, "report_to": ["tensorboard"]},
    }
    refuse_other_recipe(folder, changed)


def test_what_changes_the_weights_is_refused_in_a_table(folder):
    changed = RECIPE | {
        "seed": 7,
        "data": {"train": [{"path": "y.jsonl", "columns": {}}], "packing": False},
        "training": {"learning_rate": 1e-3, "logging_steps": 1, "save_steps": 200, "neftune_noise_alpha": 5.0},
    }
    with pytest.raises(CheckpointError) as refused:
        refuse_other_recipe(folder, changed)
    assert str(refused.value).splitlines() == [
        f"{folder.path} was started with another recipe, so its checkpoints do not continue this one.",
        "  setting                       of this run                   asked for now",
        "  seed                          42                            7",
        '  data.train                    [{"path": "x.jsonl", "colum…  [{"path": "y.jsonl", "colum…',
        "  data.packing                  true                          false",
        "  training.learning_rate        0.0002                        0.001",
        "  training.neftune_noise_alpha  (not set)                     5.0",
        "  Put these back and --resume, or train the new recipe under a name of its own: name=…",
    ]


@pytest.mark.parametrize(("then", "now"), [("transformers", "unsloth"), ("unsloth", "transformers")])
def test_a_run_does_not_change_its_backend_on_the_way(folder, then, now):
    folder.write_json(folder.resolved_path, RECIPE | {"model": {"backend": then}})
    with pytest.raises(CheckpointError) as error:
        refuse_other_recipe(folder, RECIPE | {"model": {"backend": now}})
    assert error.value.exit_code == 6
    [row] = [line for line in str(error.value).splitlines() if "model.backend" in line]
    assert row.split()[-2:] == [then, now]


def test_many_differences_stay_within_fifteen_lines(folder):
    changed = RECIPE | {"model": {f"key_{number}": number for number in range(40)}}
    with pytest.raises(CheckpointError) as refused:
        refuse_other_recipe(folder, changed)
    assert len(str(refused.value).splitlines()) <= 15
    assert "and 30 more" in str(refused.value)


def test_without_a_checkpoint_there_is_nothing_that_another_recipe_would_continue(folder):
    (folder.checkpoints_dir / "checkpoint-200").rename(folder.checkpoints_dir / "checkpoint-200.broken")
    refuse_other_recipe(folder, RECIPE | {"seed": 7})
    refuse_other_identity(folder, IDENTITY | {"data": "00" * 32})


def test_a_finished_run_is_another_recipes_even_without_a_checkpoint(folder):
    (folder.checkpoints_dir / "checkpoint-200").rmdir()
    folder.finished = True
    with pytest.raises(CheckpointError, match="with another recipe"):
        refuse_other_recipe(folder, RECIPE | {"seed": 7})


def test_the_same_base_rows_and_processes_go_on(folder):
    refuse_other_identity(folder, dict(IDENTITY))


def test_what_the_recipe_does_not_show_is_refused_in_the_same_table(folder):
    with pytest.raises(CheckpointError) as refused:
        refuse_other_identity(folder, {"base_commit": "27d67f1b5f57", "data": "a0" * 32, "num_processes": 4})
    assert str(refused.value).splitlines() == [
        f"{folder.path} was started on another base, other rows or other processes, so its checkpoints do not "
        "continue this one.",
        "  setting        of this run                   asked for now",
        "  base_commit    null                          27d67f1b5f57",
        "  data           3f3f3f3f3f3f3f3f3f3f3f3f3f3…  a0a0a0a0a0a0a0a0a0a0a0a0a0a…",
        "  num_processes  1                             4",
        "  Put these back and --resume, or train on these under a name of its own: name=…",
    ]


def test_what_cannot_be_compared_is_not_continued(folder):
    folder.identity_path.unlink()
    with pytest.raises(CheckpointError, match=r"num_processes +\(not set\) +1"):
        refuse_other_identity(folder, dict(IDENTITY))


def test_the_length_of_the_run_is_part_of_its_mathematics():
    assert not FREE_KEYS & {"training.num_train_epochs", "training.max_steps", "training", "data", "model", "seed"}


def test_the_page_about_runs_names_every_setting_that_may_differ():
    page = (Path(__file__).parents[2] / "docs" / "runs.md").read_text(encoding="utf-8")
    allowed = page[page.index("These may differ:") : page.index("may not: they shape")]
    assert [key for key in sorted(FREE_KEYS) if f"`{key.removeprefix('training.')}`" not in allowed] == []
