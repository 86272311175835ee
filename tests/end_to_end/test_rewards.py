"""A reward model scores the same wherever it is opened, and answers learn from it and from functions in the recipe."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from finetune.errors import PlaceError, RecipeError
from finetune.model.scoring import load_scorer
from finetune.recipe.reading import build_recipe
from finetune.train import train
from tests.end_to_end.small_runs import (
    ROOT,
    build_values,
    read_figures,
    read_json,
    read_lines,
    read_weights,
    run_small,
    stopped_at_evaluation,
)

pytestmark = pytest.mark.usefixtures("tiny_base")

REWARD = {
    "objective": "reward",
    "adapter__lora_dropout": 0.0,
    "data__train": {"path": "data/tiny_world/preferences.jsonl", "limit": 40},
    "data__eval": {"path": "data/tiny_world/preferences_test.jsonl", "limit": 12},
    "training__per_device_train_batch_size": 4,
}
ROWS = [[1, 40, 50, 60, 2], [1, 70, 80, 2], [1, 9, 2]]
# Scores of rows from a process that knows nothing but the folder.
SCORE = """
import json, sys
from finetune.model.scoring import load_scorer
print(json.dumps(load_scorer(sys.argv[1], device="cpu").score(json.loads(sys.argv[2]))))
"""


@pytest.fixture(autouse=True)
def in_the_repository(monkeypatch) -> None:
    monkeypatch.chdir(ROOT)


@pytest.fixture(scope="module")
def judge(tmp_path_factory, tiny_base) -> Path:
    """A reward model, trained for a few steps."""
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(ROOT)
        return run_small(tmp_path_factory.mktemp("judge"), name="judge", **REWARD)


def rewarded(objective: str, judge: Path) -> dict[str, object]:
    return {
        "objective": objective,
        "adapter__lora_dropout": 0.0,
        "data__train": {"path": "data/tiny_world/train.json", "limit": 24},
        "data__eval": {"path": "data/tiny_world/test.json", "limit": 6},
        "rewards": [
            {"function": "length", "min_tokens": 2, "max_tokens": 5},
            {"function": "reward_model", "path": str(judge), "weight": 0.5},
        ],
        "training__num_generations": 4,
        "training__max_completion_length": 8,
        "training__per_device_train_batch_size": 4,
        "training__beta": 0.05,
        "evaluation__num_samples": 1,
    }


def test_a_reward_model_tells_held_out_pairs_apart_in_its_summary(judge):
    summary = read_json(judge / "summary.json")
    assert summary["pairs"] == 12
    assert 0 <= summary["preference_accuracy_before"] <= 1
    assert "exact_match" not in summary
    assert not (judge / "adapter" / "generation_config.json").exists()
    watched = {"accuracy", "margin", "mean_reward"}
    assert all(watched <= line.keys() for line in read_lines(judge)[1:])


@pytest.mark.slow
def test_a_fresh_process_scores_as_this_one_does(judge):
    here = load_scorer(str(judge), device="cpu").score(ROWS)
    command = [sys.executable, "-c", SCORE, str(judge / "adapter"), json.dumps(ROWS)]
    there = subprocess.run(command, check=True, cwd=ROOT, capture_output=True, text=True).stdout.splitlines()[-1]
    assert json.loads(there) == pytest.approx(here, abs=1e-5)
    assert len({round(score, 6) for score in here}) == 3


@pytest.mark.parametrize("objective", ["grpo", "rloo"])
def test_answers_are_rewarded_by_functions_and_by_a_reward_model(tmp_path, judge, objective):
    run = run_small(tmp_path, **rewarded(objective, judge))
    summary = read_json(run / "summary.json")
    start, *lines = read_lines(run)
    assert summary["eval_reward_before"] == start["eval_reward"]
    parts = [start["eval_rewards/length"], start["eval_rewards/reward_model"]]
    assert start["eval_reward"] == pytest.approx(parts[0] + 0.5 * parts[1], abs=1e-5)
    assert all({"reward", "kl", "completions/mean_length"} <= line.keys() for line in lines)


@pytest.mark.parametrize(
    "objective", ["reward", *(pytest.param(one, marks=pytest.mark.slow) for one in ("grpo", "rloo"))]
)
def test_a_run_that_was_stopped_goes_on_with_the_same_answers_and_scores(tmp_path, judge, objective):
    settings = REWARD if objective == "reward" else rewarded(objective, judge)
    settings = settings | {"training__max_steps": 6, "training__eval_steps": 3}
    whole = run_small(tmp_path / "whole", **settings)
    with stopped_at_evaluation(3):
        run_small(tmp_path / "stopped", **settings)
    stopped = run_small(tmp_path / "stopped", **settings, resume=True)
    assert read_figures(stopped) == read_figures(whole)
    assert read_weights(stopped) == read_weights(whole)


def test_an_adapter_that_scores_is_nothing_to_go_on_from(tmp_path, judge):
    settings = {name: value for name, value in REWARD.items() if not name.startswith("adapter__")}
    with pytest.raises(RecipeError, match="is a reward model"):
        run_small(tmp_path, **settings | {"objective": "dpo"}, adapter={"init_from": str(judge)})


@pytest.mark.parametrize("dry_run", [True, False], ids=["dry run", "run"])
def test_what_is_no_reward_model_is_told_before_anything_is_loaded(tmp_path, judge, dry_run):
    settings = rewarded("grpo", judge) | {"rewards": [{"function": "reward_model", "path": str(judge / "gone")}]}
    recipe = build_recipe(build_values(tmp_path, **settings))
    with pytest.raises(PlaceError, match="gone"):
        train(recipe, recipe_text="", dry_run=dry_run)


def test_a_reward_model_of_another_template_is_refused(tmp_path, judge):
    with pytest.raises(RecipeError, match="another prompt template"):
        run_small(tmp_path, **rewarded("grpo", judge), data__template="mistral")
