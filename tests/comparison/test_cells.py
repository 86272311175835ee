"""A grid becomes runs: every task, method, choice and seed once, each a recipe of its own under a name that stays."""

from dataclasses import replace
from pathlib import Path

import pytest

from finetune.comparison.cells import build_cells, build_points, render_recipe
from finetune.comparison.comparing import sort_fairly
from finetune.comparison.figures import find_score
from finetune.errors import RecipeError
from finetune.recipe.comparison import Comparison, read_comparison
from finetune.recipe.reading import read_recipe

BASE = """\
name: base
model: {model_name_or_path: org/base, quantization: nf4}
adapter: {method: lora, r: 8, lora_alpha: 32}
data:
  train: {path: org/rows, format: alpaca}
  eval: {fraction: 0.1}
training: {max_steps: 10, learning_rate: 2e-4}
"""
GRID = """\
name: small
recipe: base.yaml
settings: {training.max_steps: 60}
methods:
  lora: {adapter.method: lora, grid: {adapter.r: [4, 16], training.learning_rate: [1e-3, 3e-3]}}
  ia3: {adapter.method: ia3, training.learning_rate: 5e-2}
  base: {}
seeds: [42, 1]
"""


def read(folder: Path, text: str = GRID, *overrides: str) -> Comparison:
    (folder / "base.yaml").write_text(BASE)
    (folder / "c.yaml").write_text(text)
    return read_comparison(folder / "c.yaml", overrides)


def build_all(comparison: Comparison):
    return build_cells(comparison, build_points(comparison), comparison.seeds)


def test_a_grid_is_every_choice_with_every_seed(tmp_path: Path) -> None:
    cells = build_all(read(tmp_path))
    assert [cell.name for cell in cells] == [
        "lora-r4-learning_rate0.001-seed42", "lora-r4-learning_rate0.001-seed1",
        "lora-r4-learning_rate0.003-seed42", "lora-r4-learning_rate0.003-seed1",
        "lora-r16-learning_rate0.001-seed42", "lora-r16-learning_rate0.001-seed1",
        "lora-r16-learning_rate0.003-seed42", "lora-r16-learning_rate0.003-seed1",
        "ia3-seed42", "ia3-seed1", "base-seed42", "base-seed1",
    ]  # fmt: skip
    recipe = cells[5].recipe
    assert (recipe.adapter.fields, recipe.training.learning_rate, recipe.seed) == ({"r": 16}, 1e-3, 1)
    assert {cell.recipe.training.max_steps for cell in cells} == {60}
    assert recipe.output_dir == "outputs/small/runs"


def test_a_method_that_names_its_kind_starts_from_an_empty_adapter_and_one_that_does_not_keeps_the_recipes(
    tmp_path: Path,
) -> None:
    fields = {cell.point.name: cell.recipe.adapter.fields for cell in build_all(read(tmp_path))}
    assert fields["ia3"] == {}
    assert fields["base"] == {"r": 8, "lora_alpha": 32}


def test_names_stay_when_seeds_methods_values_and_tasks_are_added(tmp_path: Path) -> None:
    before = {cell.name: cell.text for cell in build_all(read(tmp_path))}
    more = GRID.replace("[42, 1]", "[1, 42, 5]").replace("[4, 16]", "[2, 4, 16]") + "grid: {}\n"
    after = {cell.name: cell.text for cell in build_all(read(tmp_path, more))}
    assert len(after) == 3 * (3 * 2 + 2)
    assert after.items() >= before.items()


def test_tasks_multiply_the_runs_and_stand_in_their_names(tmp_path: Path) -> None:
    text = GRID + "tasks:\n  short: {data.max_length: 64}\n  long: {data.max_length: 128}\n"
    cells = build_all(read(tmp_path, text))
    assert len(cells) == 24
    assert {cell.name.partition("-")[0]: cell.recipe.data.max_length for cell in cells} == {"short": 64, "long": 128}


def test_long_names_and_values_that_no_folder_can_hold_stay_apart(tmp_path: Path) -> None:
    targets = "[[q_proj], [k_proj], all-linear]"
    cells = build_all(read(tmp_path, GRID, f"methods.ia3.grid.adapter.target_modules={targets}"))
    names = [cell.name for cell in cells if cell.point.method == "ia3"]
    assert len(set(names)) == 6
    assert "ia3-target_modulesall-linear-seed42" in names
    long = {f"adapter.{key}": "[1, 2]" for key in ("r", "lora_alpha")} | {
        f"training.{key}": "[1, 2]" for key in ("gradient_accumulation_steps", "eval_steps", "logging_steps")
    }  # fmt: skip
    overrides = [f"methods.lora.grid.{key}={values}" for key, values in long.items()]
    names = [cell.name for cell in build_all(read(tmp_path, GRID, *overrides))]
    assert len(set(names)) == len(names) == 2 * (2**6 + 2)
    assert max(map(len, names)) <= 100
    # What stands before the seed is the same for both: the runs of a choice are found by it.
    assert len({name.rpartition("-seed")[0] for name in names}) == 2**6 + 2


def test_a_short_run_has_its_steps_and_a_name_of_its_own(tmp_path: Path) -> None:
    comparison = read(tmp_path)
    (cell, *_) = build_cells(comparison, build_points(comparison)[:1], [42], probe_steps=5)
    assert (cell.name, cell.recipe.training.max_steps) == ("lora-r4-learning_rate0.001-seed42-probe5", 5)


def test_the_text_of_a_cell_is_read_back_as_its_recipe(tmp_path: Path) -> None:
    for cell in build_all(read(tmp_path)):
        (tmp_path / "cell.yaml").write_text(cell.text)
        assert read_recipe(tmp_path / "cell.yaml") == cell.recipe


@pytest.mark.parametrize("text", ["1e-3", "no", "null", "0o7", "2026-11-21", "a: b", "# x", "", "é", "true", ".5", "~"])
def test_a_text_that_looks_like_something_else_stays_a_text(tmp_path: Path, text: str) -> None:
    values = {"name": "x", "model": {"model_name_or_path": text or "x"}, "data": {"train": {"path": "a"}}}
    (tmp_path / "r.yaml").write_text(render_recipe(values, ["a comment"]), encoding="utf-8")
    assert read_recipe(tmp_path / "r.yaml").model.model_name_or_path == (text or "x")


def test_the_score_goes_by_the_objective(tmp_path: Path) -> None:
    comparison = read(tmp_path)
    recipe = build_all(comparison)[0].recipe
    assert find_score(comparison, recipe) == "eval_loss"
    assert find_score(comparison, recipe.model_copy(update={"objective": "dpo"})) == "preference_accuracy"
    assert find_score(comparison, recipe.model_copy(update={"objective": "classify"})) == "score"
    assert find_score(replace(comparison, score="train_loss"), recipe) == "train_loss"
    asked = build_all(read(tmp_path, GRID, "settings.evaluation.questions={path: org/questions}"))[0].recipe
    assert find_score(comparison, asked) == "exact_match"


def test_a_task_that_does_not_fit_the_recipe_is_told_with_its_line(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match=r"c.yaml:10: `data` has no setting `max_len`"):
        build_all(read(tmp_path, GRID + "tasks:\n  short: {data.max_len: 64}\n"))


TWINS = [
    # a method named as another one's choice; a task and a method that read as another task and method
    ("methods:\n  lora: {grid: {adapter.r: [4, 8]}}\n  lora-r4: {adapter.r: 4}\n",
     "`lora-r4`: method lora and method lora-r4."),
    ("methods: {c: {}, b-c: {}}\ntasks: {a-b: {data.max_length: 64}, a: {data.max_length: 128}}\n",
     "`a-b-c`: method c on task a-b and method b-c on task a."),
]  # fmt: skip


@pytest.mark.parametrize(("text", "said"), TWINS)
def test_two_runs_that_would_share_a_folder_are_refused(tmp_path: Path, text: str, said: str) -> None:
    with pytest.raises(RecipeError) as error:
        build_all(read(tmp_path, f"name: small\nrecipe: base.yaml\n{text}"))
    assert f"c.yaml: two runs would be named {said}" in str(error.value)
    assert str(error.value).count("two runs") == 1


def test_the_name_of_a_method_that_only_looks_like_a_choice_is_taken(tmp_path: Path) -> None:
    methods = "methods:\n  lora: {grid: {adapter.r: [4, 8]}}\n  lora-r2: {adapter.r: 2}\n"
    assert len(build_all(read(tmp_path, f"name: small\nrecipe: base.yaml\n{methods}"))) == 3


LABELS = """\
name: labels
objective: classify
model: {model_name_or_path: org/base, quantization: none}
classification: {task: TASK}
data: {train: {path: nyu-mll/glue}}
"""
PAIRS = "evaluation.preferences: {path: org/pairs}"
UNMEASURED = [
    # settings, score, what is said (empty: it is measured)
    ("", "exact_match", "no questions are asked"),
    ("evaluation.questions: {path: org/questions}", "exact_match", ""),
    ("", "general_loss", "no general text is read"),
    ("evaluation.general_text: {path: org/text}", "general_loss", ""),
    ("", "preference_accuracy", "no held-out pairs are read"),
    (PAIRS, "preference_accuracy", ""),
    ("objective: dpo, data.train.format: auto", "null", ""),
    ("objective: dpo, data.train.format: auto, data.eval: null", "null", "nothing is held out for it"),
    (f"objective: dpo, data.train.format: auto, data.eval: null, {PAIRS}", "null", ""),
    ("objective: kto, data.train.format: auto", "null", ""),
    ("", "eval_reward", "`objective: sft` has no such figure"),
    ("data.eval: null", "train_loss", ""),
    ("data.eval: null", "eval_loss", "nothing is held out for it"),
    ("", "score", "`objective: sft` has no such figure"),
    ("CLASSIFY sst2", "scores.accuracy", ""),
    ("CLASSIFY sst2", "scores.nonsense", "the recipe measures no such score"),
    ("CLASSIFY mrpc", "scores.combined", ""),
    ("CLASSIFY mnli", "scores.mismatched/accuracy", ""),
    ("CLASSIFY mnli", "scores.accuracy", "the recipe measures no such score"),
    ("CLASSIFY mnli, data.eval: {fraction: 0.1}", "scores.accuracy", ""),
]


@pytest.mark.parametrize(("settings", "score", "said"), UNMEASURED)
def test_a_score_that_no_run_would_measure_is_refused_before_any_begins(
    tmp_path: Path, settings: str, score: str, said: str
) -> None:
    base = BASE
    if settings.startswith("CLASSIFY"):
        task, _, settings = settings.removeprefix("CLASSIFY ").partition(", ")
        base = LABELS.replace("TASK", task)
    (tmp_path / "base.yaml").write_text(base)
    (tmp_path / "c.yaml").write_text(
        f"name: small\nrecipe: base.yaml\nscore: {score}\nsettings: {{{settings}}}\nmethods: {{lora: {{}}, b: {{}}}}\n"
    )
    comparison = read_comparison(tmp_path / "c.yaml")
    if not said:
        assert len(build_all(comparison)) == 2
        return
    with pytest.raises(RecipeError) as error:
        build_all(comparison)
    assert said in str(error.value)
    assert str(error.value).startswith(f"{tmp_path}/c.yaml:3: the runs are compared by `")
    assert str(error.value).count("compared by") == 1


def test_short_runs_go_choice_by_choice_through_all_methods_and_tasks(tmp_path: Path) -> None:
    text = GRID.replace(", training.learning_rate: [1e-3, 3e-3]", "") + (
        "grid: {training.max_grad_norm: [0.5, 1]}\ntasks: {a: {data.max_length: 64}, b: {data.max_length: 128}}\n"
    )
    comparison = read(tmp_path, text.replace("  base: {}\n", ""))
    points = build_points(comparison)
    cells = build_cells(comparison, points, [42], probe_steps=5)
    order = [(cell.point.name, cell.task) for cell in sort_fairly(cells, points)]
    assert order[:8] == [
        ("lora-max_grad_norm0.5-r4", "a"), ("lora-max_grad_norm0.5-r4", "b"),
        ("ia3-max_grad_norm0.5", "a"), ("ia3-max_grad_norm0.5", "b"),
        ("lora-max_grad_norm0.5-r16", "a"), ("lora-max_grad_norm0.5-r16", "b"),
        ("ia3-max_grad_norm1", "a"), ("ia3-max_grad_norm1", "b"),
    ]  # fmt: skip
    assert [name for name, _ in order[8:]] == ["lora-max_grad_norm1-r4"] * 2 + ["lora-max_grad_norm1-r16"] * 2


def test_all_runs_are_compared_by_one_score_which_each_of_them_must_measure(tmp_path: Path) -> None:
    text = (
        "name: small\nrecipe: base.yaml\nsettings: {data.train.format: auto}\n"
        "methods:\n  words: {}\n  pairs: {objective: dpo, data.eval: null, evaluation.preferences: {path: org/pairs}}\n"
    )
    with pytest.raises(RecipeError, match=r"c.yaml: method pairs: the runs are compared by `eval_loss`, and nothing"):
        build_all(read(tmp_path, text))
