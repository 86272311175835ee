"""A grid becomes runs: every task, method, choice and seed once, each a recipe of its own under a name that stays."""

from dataclasses import replace
from pathlib import Path

import pytest

from finetune.comparison.cells import build_cells, build_points, find_score, render_recipe
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
