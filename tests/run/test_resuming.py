"""Which settings a resumed run may change."""

import json
from pathlib import Path

import pytest

from finetune.errors import CheckpointError, RecipeError
from finetune.run.checkpoints import write_record
from finetune.run.folder import RunFolder
from finetune.run.resuming import (
    FIXED_KEYS,
    FREE_KEYS,
    Mismatch,
    check_allowed_keys,
    has_other_recipe,
    hash_recipe,
    read_accepted,
    refuse_other_identity,
    refuse_other_origin,
    refuse_other_recipe,
    write_identity,
)
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
        "  Or go on with them from the last checkpoint: --resume --allow-mismatch KEY, for each",
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
        f"{folder.path} was started on another base, other rows, other processes or in another precision, so its "
        "checkpoints do not continue this one.",
        "  setting        of this run                   asked for now",
        "  base_commit    null                          27d67f1b5f57",
        "  data           3f3f3f3f3f3f3f3f3f3f3f3f3f3…  a0a0a0a0a0a0a0a0a0a0a0a0a0a…",
        "  num_processes  1                             4",
        "  Put these back and --resume, or train on these under a name of its own: name=…",
        "  Or go on with them from the last checkpoint: --resume --allow-mismatch KEY, for each",
    ]


def test_what_cannot_be_compared_is_not_continued(folder):
    folder.identity_path.unlink()
    with pytest.raises(CheckpointError, match=r"num_processes +\(not set\) +1"):
        refuse_other_identity(folder, dict(IDENTITY))


# ---- what `auto` came to


AUTO = RECIPE | {"model": {"device": "auto", "compute_dtype": "auto", "attention": "auto"}}
CAME_TO = IDENTITY | {"device": "cpu", "compute_dtype": "bfloat16", "attention": "sdpa"}


@pytest.fixture
def auto(folder) -> RunFolder:
    folder.write_json(folder.resolved_path, AUTO)
    write_identity(folder, CAME_TO)
    return folder


def ask(resolved: dict, key: str, value: str) -> dict:
    return resolved | {"model": resolved["model"] | {key: value}}


def test_a_machine_on_which_auto_comes_to_something_else_is_refused_with_what_puts_it_back(auto):
    assert refuse_other_recipe(auto, AUTO) == []
    assert refuse_other_identity(auto, CAME_TO) == []
    with pytest.raises(CheckpointError) as refused:
        refuse_other_identity(auto, CAME_TO | {"compute_dtype": "float32", "attention": "eager"})
    assert str(refused.value).splitlines()[1:] == [
        "  setting        of this run  asked for now",
        "  compute_dtype  bfloat16     float32",
        "  attention      sdpa         eager",
        "  Put these back (model.compute_dtype=bfloat16 model.attention=sdpa) and --resume, or train on these under a "
        "name of its own: name=…",
        "  Or go on with them from the last checkpoint: --resume --allow-mismatch compute_dtype "
        "--allow-mismatch attention",
    ]


def test_what_auto_came_to_is_accepted_by_its_name(auto):
    check_allowed_keys(auto, AUTO, ["compute_dtype"])
    accepted = refuse_other_identity(auto, CAME_TO | {"compute_dtype": "float32"}, ["compute_dtype"])
    assert accepted == [Mismatch("compute_dtype", "bfloat16", "float32")]


def test_auto_and_what_it_came_to_are_no_difference(auto, caplog):
    written_out = ask(AUTO, "compute_dtype", "bfloat16")
    accepted = refuse_other_recipe(auto, written_out)
    assert refuse_other_identity(auto, CAME_TO, accepted=accepted) == []
    auto.write_json(auto.resolved_path, written_out)
    accepted = refuse_other_recipe(auto, AUTO)
    assert accepted == [Mismatch("model.compute_dtype", "bfloat16", "auto")]
    assert refuse_other_identity(auto, CAME_TO, accepted=accepted) == []
    with pytest.raises(CheckpointError, match=r"compute_dtype +bfloat16 +float32"):  # there it comes to something else
        refuse_other_identity(auto, CAME_TO | {"compute_dtype": "float32"}, accepted=accepted)
    assert caplog.messages == []
    with pytest.raises(CheckpointError, match=r"model\.compute_dtype +bfloat16 +float32"):
        refuse_other_recipe(auto, ask(AUTO, "compute_dtype", "float32"))


def test_who_accepts_another_kernel_accepts_what_it_comes_to_and_nothing_else(auto):
    eager = ask(AUTO, "attention", "eager")
    with pytest.raises(CheckpointError, match=r"--allow-mismatch model\.attention"):
        refuse_other_recipe(auto, eager)
    accepted = refuse_other_recipe(auto, eager, ["model.attention"])
    now = CAME_TO | {"attention": "eager"}
    assert refuse_other_identity(auto, now, accepted=accepted) == [Mismatch("attention", "sdpa", "eager")]
    with pytest.raises(CheckpointError, match=r"compute_dtype +bfloat16 +float32"):
        refuse_other_identity(auto, now | {"compute_dtype": "float32"}, accepted=accepted)


def test_a_run_of_an_earlier_version_that_wrote_none_of_this_down_goes_on_with_a_word(folder, caplog):
    assert refuse_other_identity(folder, CAME_TO) == []
    [said] = caplog.messages
    assert "device cpu, compute_dtype bfloat16, attention sdpa now" in said
    with pytest.raises(CheckpointError, match=r"data +3f"):
        refuse_other_identity(folder, CAME_TO | {"data": "a0" * 32})


# ---- differences that are accepted


FASTER = RECIPE | {"training": RECIPE["training"] | {"learning_rate": 1e-3}}


def test_a_refusal_says_how_to_accept_it(folder):
    with pytest.raises(CheckpointError) as refused:
        refuse_other_recipe(folder, FASTER)
    assert str(refused.value).splitlines()[-1] == (
        "  Or go on with them from the last checkpoint: --resume --allow-mismatch training.learning_rate"
    )


def test_the_differences_named_are_accepted_and_no_other(folder, caplog):
    assert refuse_other_recipe(folder, FASTER, ["training.learning_rate"]) == [
        Mismatch("training.learning_rate", "0.0002", "0.001")
    ]
    assert caplog.messages == [
        "Goes on although training.learning_rate differs, as accepted: 0.0002 of this run, 0.001 now."
    ]
    with pytest.raises(CheckpointError) as refused:
        refuse_other_recipe(folder, FASTER | {"seed": 7}, ["training.learning_rate"])
    table = str(refused.value)
    assert "  seed     42" in table
    assert "training.learning_rate" not in table


def test_what_the_recipe_does_not_show_is_accepted_by_its_name(folder):
    accepted = refuse_other_identity(folder, IDENTITY | {"num_processes": 4}, ["num_processes"])
    assert accepted == [Mismatch("num_processes", "1", "4")]
    with pytest.raises(CheckpointError, match="data"):
        refuse_other_identity(folder, IDENTITY | {"data": "a0" * 32}, ["num_processes"])


def test_accepting_what_does_not_differ_is_answered_in_the_log(folder, caplog):
    assert refuse_other_recipe(folder, RECIPE, ["seed", "training.save_steps"]) == []
    assert caplog.messages == [
        "--allow-mismatch seed: it does not differ, or may differ anyway.",
        "--allow-mismatch training.save_steps: it does not differ, or may differ anyway.",
    ]


@pytest.mark.parametrize(
    ("typed", "meant"),
    [("learning_rate", "training.learning_rate"), ("training.learning_rat", "training.learning_rate"),
     ("num_proceses", "num_processes"), ("Seed", "seed")],
)  # fmt: skip
def test_a_key_that_is_none_is_answered_with_the_nearest(folder, typed, meant):
    with pytest.raises(RecipeError) as refused:
        check_allowed_keys(folder, RECIPE, [typed])
    assert f"`{typed}` is no key" in str(refused.value)
    assert f"Did you mean `{meant}`?" in str(refused.value)


@pytest.mark.parametrize("key", ["adapter.r", "objective", "training.optim"])
def test_what_a_checkpoint_cannot_go_on_without_is_never_accepted(folder, key):
    resolved = RECIPE | {"adapter": {"r": 8, "lora_dropout": 0.1}, "objective": "sft"}
    resolved["training"] |= {"optim": "adamw_torch"}
    folder.write_json(folder.resolved_path, resolved)
    section, _, name = key.rpartition(".")
    now = json.loads(json.dumps(resolved))
    (now[section] if section else now)[name] = "other"
    check_allowed_keys(folder, resolved, [key])  # it does not differ
    with pytest.raises(CheckpointError, match=f"--allow-mismatch {key}: that one cannot be accepted, because"):
        check_allowed_keys(folder, now, [key])
    with pytest.raises(CheckpointError) as refused:
        refuse_other_recipe(folder, now)
    assert "--allow-mismatch" not in str(refused.value)
    now = json.loads(json.dumps(resolved))
    now["adapter"]["lora_dropout"] = 0.2
    check_allowed_keys(folder, now, ["adapter.lora_dropout"])


@pytest.mark.parametrize("schedule", ["reduce_lr_on_plateau", "greedy"])
def test_the_learning_rate_of_a_schedule_that_follows_the_figures_is_not_changed_on_the_way(folder, schedule):
    then = RECIPE | {"training": RECIPE["training"] | {"lr_scheduler_type": schedule}}
    folder.write_json(folder.resolved_path, then)
    now = then | {"training": then["training"] | {"learning_rate": 1e-3}}
    with pytest.raises(CheckpointError, match="the schedule follows the figures"):
        check_allowed_keys(folder, now, ["training.learning_rate"])


def test_every_difference_accepted_stays_on_record_with_its_step(folder):
    write_identity(folder, IDENTITY, [Mismatch("seed", "42", "7")], step=10)
    write_identity(folder, IDENTITY, [Mismatch("data", "a", "b")], step=30)
    assert read_accepted(folder) == [
        {"key": "seed", "then": "42", "now": "7", "step": 10},
        {"key": "data", "then": "a", "now": "b", "step": 30},
    ]
    assert refuse_other_identity(folder, IDENTITY) == []
    write_identity(folder, IDENTITY)  # a run that begins at step 0 has accepted nothing
    assert read_accepted(folder) == []


# ---- what a checkpoint's own record says


MADE_FROM = {"recipe": hash_recipe(RECIPE), "data": "3f", "template": None, "base": "b1"}


@pytest.fixture
def checkpoint(folder) -> Path:
    checkpoint = folder.checkpoints_dir / "checkpoint-200"
    write_record(checkpoint, step=200, made_from=MADE_FROM)
    return checkpoint


def test_a_recipes_hash_is_of_what_counts():
    free = RECIPE | {"name": "b", "training": RECIPE["training"] | {"logging_steps": 9}}
    assert hash_recipe(free) == hash_recipe(RECIPE)
    assert hash_recipe(FASTER) != hash_recipe(RECIPE)
    assert hash_recipe(RECIPE | {"seed": None}) != hash_recipe(RECIPE)


@pytest.mark.parametrize("name", ["recipe", "data", "template", "base"])
def test_a_checkpoint_of_another_run_is_refused(folder, checkpoint, name):
    refuse_other_origin(folder, checkpoint, MADE_FROM, [])
    with pytest.raises(CheckpointError, match=f"checkpoint-200 was not made from this run's {name}, as its COMPLETE"):
        refuse_other_origin(folder, checkpoint, MADE_FROM | {name: "other"}, [])


def test_a_checkpoint_from_before_a_difference_was_accepted_goes_on(folder, checkpoint):
    now = MADE_FROM | {"recipe": hash_recipe(FASTER)}
    assert has_other_recipe(checkpoint, now)
    assert not has_other_recipe(checkpoint, MADE_FROM)
    assert not has_other_recipe(checkpoint, MADE_FROM | {"compute_dtype": "float32"}), "an earlier version wrote none"
    accepted = [Mismatch("training.learning_rate", "0.0002", "0.001")]
    refuse_other_origin(folder, checkpoint, now, accepted)
    write_identity(folder, IDENTITY, accepted, step=200)  # then killed before the next checkpoint, and resumed
    refuse_other_origin(folder, checkpoint, now, [])
    with pytest.raises(CheckpointError, match="data"):
        refuse_other_origin(folder, checkpoint, now | {"data": "other"}, [])


def test_a_checkpoint_of_another_precision_was_written_under_other_settings(folder, checkpoint):
    was = {"device": "cuda", "compute_dtype": "float16", "attention": "sdpa", "device_name": "Tesla T4"}
    write_record(checkpoint, step=200, made_from=MADE_FROM | was)
    assert not has_other_recipe(checkpoint, MADE_FROM | was | {"device_name": "NVIDIA L4"})
    assert has_other_recipe(checkpoint, MADE_FROM | was | {"compute_dtype": "bfloat16"})
    refuse_other_origin(folder, checkpoint, MADE_FROM | was | {"device_name": "NVIDIA L4"}, [])


def test_the_length_of_the_run_is_part_of_its_mathematics():
    assert not FREE_KEYS & {"training.num_train_epochs", "training.max_steps", "training", "data", "model", "seed"}


def test_the_page_about_runs_names_every_setting_that_may_differ():
    page = (Path(__file__).parents[2] / "docs" / "runs.md").read_text(encoding="utf-8")
    allowed = page[page.index("These may differ:") : page.index("may not: they shape")]
    assert [key for key in sorted(FREE_KEYS) if f"`{key.removeprefix('training.')}`" not in allowed] == []


def test_the_page_about_runs_names_every_setting_that_cannot_be_accepted():
    page = (Path(__file__).parents[2] / "docs" / "runs.md").read_text(encoding="utf-8")
    listed = page[page.index("These are never accepted:") :].split("\n\n")[0]
    assert [key for key in FIXED_KEYS if f"`{key}`" not in listed] == []
