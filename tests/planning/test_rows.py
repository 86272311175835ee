"""Rows and tokens: as assumed, as counted before, and counted anew where what decides them has changed."""

import json
from typing import Any

import pytest

from finetune.errors import RecipeError
from finetune.planning.rows import build_rows, find_rows, write_census
from finetune.planning.schedule import build_schedule
from finetune.recipe.reading import build_recipe

CENSUS = {
    "rows": 90,
    "tokens": 9000,
    "trained_share": 0.25,
    "lengths": {"max": 300},
    "histogram": [{"from": 0, "to": 99, "rows": 80}, {"from": 100, "to": 299, "rows": 10}],
}


def build(tmp_path, **data: Any):
    path = tmp_path / "rows.jsonl"
    if not path.exists():
        path.write_text("{}\n")
    return build_recipe(
        {
            "name": "planned",
            "model": {"model_name_or_path": "mistralai/Mistral-7B-v0.1"},
            "data": {"train": {"path": str(path)}, "max_length": 256, **data},
            "training": {"per_device_train_batch_size": 2, "gradient_accumulation_steps": 4},
        }
    )


def test_assumed_rows_are_planned_with_until_they_are_counted(tmp_path):
    recipe = build(tmp_path, assumed={"rows": 100, "tokens_per_row": 80}, eval={"fraction": 0.1}, packing=False)
    rows = find_rows(recipe)
    assert (rows.num_rows, rows.num_tokens) == (90, 7200)
    assert rows.origin == "`data.assumed` of the recipe"
    limited = recipe.model_copy(
        update={"data": recipe.data.model_copy(update={"train": recipe.data.train.model_copy(update={"limit": 40})})}
    )
    assert find_rows(limited).num_rows == 36  # 4 of the 40 are held out
    write_census(recipe, CENSUS)
    rows = find_rows(recipe)
    assert (rows.num_rows, rows.num_tokens, rows.trained_fraction) == (90, 9000, 0.25)
    assert rows.longest_tokens == 256
    assert rows.origin.startswith("the census of this recipe's rows, counted 20")


def test_a_changed_assumption_changes_the_plan(tmp_path):
    fewer, more = (
        find_rows(build(tmp_path, assumed={"rows": rows, "tokens_per_row": 50}, max_length=128)) for rows in (10, 20)
    )
    assert (fewer.num_tokens, more.num_tokens) == (500, 1000)


def test_rows_that_have_changed_are_not_those_that_were_counted(tmp_path):
    recipe = build(tmp_path)
    write_census(recipe, CENSUS)
    assert find_rows(recipe).num_rows == 90
    (tmp_path / "rows.jsonl").write_text("{}\n{}\n")
    with pytest.raises(RecipeError, match=r"have not been counted(?s:.*)python -m finetune\.preview RECIPE --rows 0"):
        find_rows(recipe)


def test_what_decides_the_rows_decides_which_census_is_found(tmp_path):
    write_census(build(tmp_path), CENSUS)
    assert find_rows(build(tmp_path)).num_rows == 90
    with pytest.raises(RecipeError, match=r"data.assumed.rows=1000 data.assumed.tokens_per_row=200"):
        find_rows(build(tmp_path, max_length=128))


def test_a_torn_census_is_none(tmp_path, monkeypatch):
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "cache"))
    recipe = build(tmp_path)
    write_census(recipe, CENSUS)
    (path,) = (tmp_path / "cache" / "finetune_census").glob("*.json")
    assert json.loads(path.read_text())["census"] == CENSUS
    path.write_text(path.read_text()[:20])
    with pytest.raises(RecipeError, match="have not been counted"):
        find_rows(recipe)


def test_attention_looks_as_far_as_the_document_that_a_token_stands_in(tmp_path):
    rows = build_rows(CENSUS, build(tmp_path), "here")
    # 80 rows of about 50 tokens, 10 of about 200: more than half of the square sum is the long ones'.
    assert rows.attended_tokens == pytest.approx((80 * 50**2 + 10 * 200**2) / (80 * 50 + 10 * 200))


@pytest.mark.parametrize(
    ("settings", "steps", "micro_batches"),
    [
        ({"packing": False}, 12, 45),  # 90 rows, two at once, four times a step: 11.25
        ({"packing": True}, 5, 18),  # 9,000 tokens in rows of 256 that are 99 % full: 36
    ],
)
def test_steps_are_counted_as_the_trainer_counts_them(tmp_path, settings, steps, micro_batches):
    recipe = build(tmp_path, **settings)
    schedule = build_schedule(recipe, build_rows(CENSUS, recipe, "here"), attention="sdpa")
    assert (schedule.steps, schedule.micro_batches) == (steps, micro_batches)
    halved = build_schedule(recipe, build_rows(CENSUS, recipe, "here"), attention="sdpa", num_processes=2)
    assert halved.steps == -(-steps // 2)
