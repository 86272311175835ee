"""Preferences and rewards through either backend: the same batches, sampled answers, losses and files."""

import math

import pytest

from tests.end_to_end.small_runs import ROOT, read_json, read_lines
from tests.unsloth.pairs_of_runs import (
    SAME_LOSS,
    Both,
    assert_same_adapters,
    assert_same_batches,
    assert_same_losses,
    build_tiny,
    place_model,
    train_both,
)

pytestmark = pytest.mark.unsloth

WORLD = ROOT / "data" / "tiny_world"
STEPS = 4
FOUR_STEPS = {
    "adapter__lora_dropout": 0.0,
    "evaluation__num_samples": 1,
    "training__max_steps": STEPS,
    "training__rehearsal": False,  # its batch is no step's
    "training__eval_steps": 2,
    "training__learning_rate": 2e-3,
    "training__per_device_train_batch_size": 4,
    "training__per_device_eval_batch_size": 4,
}
PAIRS = FOUR_STEPS | {
    "data__train": {"path": str(WORLD / "preferences.jsonl"), "limit": 40},
    "data__eval": {"path": str(WORLD / "preferences_test.jsonl"), "limit": 9},
}
PROMPTS = FOUR_STEPS | {
    "objective": "grpo",
    "data__train": {"path": str(WORLD / "train.json"), "limit": 24},
    "data__eval": {"path": str(WORLD / "test.json"), "limit": 6},
    "rewards": [{"function": "length", "min_tokens": 2, "max_tokens": 5}],
    "training__num_generations": 4,
    "training__max_completion_length": 8,
    "training__beta": 0.05,
}
COMPARED = ("dpo", "dpo_continued", "dpo_cached_nf4", "kto", "kto_continued", "orpo", "orpo_continued")
REWARDED = ("grpo", "grpo_continued")


@pytest.fixture(scope="module")
def runs(trained, tiny_base, tmp_path_factory) -> Both:
    """Runs of four steps, on fresh adapters and on those that either backend has trained."""

    def go_on(settings: dict[str, object], start: object) -> dict[str, object]:
        fresh = {name: value for name, value in settings.items() if not name.startswith("adapter__")}
        return build_tiny(**fresh, adapter={"init_from": str(start)})

    ours, theirs = trained["tiny_float32"]
    judged = PAIRS | {"objective": "kto", "evaluation__preferences": dict(PAIRS["data__eval"])}
    recipes = {
        "dpo": build_tiny(**PAIRS, objective="dpo"),
        "dpo_continued": go_on(PAIRS | {"objective": "dpo"}, ours),
        "dpo_cached_nf4": build_tiny(
            **PAIRS,
            objective="dpo",
            model=place_model(tiny_base, quantization="nf4"),
            training__precompute_ref_log_probs=True,
        ),
        "kto": build_tiny(**judged),
        "kto_continued": go_on(judged, theirs),
        "orpo": build_tiny(**PAIRS, objective="orpo"),
        "orpo_continued": go_on(PAIRS | {"objective": "orpo"}, theirs),
        "grpo": build_tiny(**PROMPTS),
        "grpo_continued": go_on(PROMPTS, ours),
    }
    return train_both(tmp_path_factory.mktemp("objectives"), recipes)


@pytest.mark.parametrize("name", COMPARED)
def test_every_step_compares_the_same_answers(runs, name):
    assert_same_batches(runs, name, named={"input_ids", "attention_mask", "completion_mask"})
    assert len(runs.unsloth.batches(name, "training")) == STEPS


@pytest.mark.parametrize("name", REWARDED)
def test_every_step_trains_on_the_same_sampled_answers(runs, name):
    # Held-out prompts are answered, not evaluated in batches.
    assert_same_batches(runs, name, named={"prompt_ids", "completion_ids", "completion_mask"}, evaluates=False)


@pytest.mark.parametrize("name", COMPARED)
def test_preferences_have_the_same_losses_rewards_and_margins(runs, name):
    assert_same_losses(runs, name, figures=("loss", "eval_loss", "rewards/chosen", "logps/chosen"))
    margins = [read_json(run / "summary.json")["preference_margin"] for run in runs[name]]
    assert margins[1] == pytest.approx(margins[0], abs=SAME_LOSS)


@pytest.mark.parametrize("name", REWARDED)
def test_rewards_have_the_same_losses_and_distances_to_the_start(runs, name):
    assert_same_losses(runs, name, figures=("loss", "reward", "kl", "completions/mean_length", "eval_reward"))


@pytest.mark.parametrize(("name", "first_loss"), [("dpo_continued", math.log(2)), ("kto_continued", 0.5)])
def test_a_continued_adapter_begins_as_its_reference_whoever_trained_it(runs, name, first_loss):
    for run in runs[name]:
        assert read_lines(run)[1]["loss"] == pytest.approx(first_loss, abs=1e-5)
        assert read_json(run / "summary.json")["preference_accuracy_base"] is not None


@pytest.mark.parametrize("name", COMPARED + REWARDED)
def test_the_adapters_have_the_same_keys_shapes_config_and_files(runs, name):
    assert_same_adapters(runs, name)
