"""The trainers that Unsloth writes anew on a GPU train and evaluate as TRL's do; the rewriting itself needs none."""

import pytest

from tests.end_to_end.small_runs import ROOT, read_json, read_lines
from tests.unsloth.pairs_of_runs import (
    Both,
    assert_same_batches,
    assert_same_losses,
    build_tiny,
    train_beside_rewritten,
)

pytestmark = pytest.mark.unsloth

PAIRS = {
    "data__train": {"path": str(ROOT / "data/tiny_world/preferences.jsonl"), "limit": 40},
    "data__eval": {"path": str(ROOT / "data/tiny_world/preferences_test.jsonl"), "limit": 9},
    "adapter__lora_dropout": 0.0,
    "training__learning_rate": 2e-3,
}
SIX_STEPS = {"training__max_steps": 6, "training__eval_steps": 3, "evaluation__num_samples": 0}
OBJECTIVES = ("sft", "dpo", "kto", "orpo")


@pytest.fixture(scope="module")
def beside(tiny_base, tmp_path_factory) -> Both:
    sft = {"data__eval": {"fraction": 0.1}, "training__loss_type": "nll", "training__learning_rate": 2e-3}
    recipes = {"sft": build_tiny(**SIX_STEPS, **sft)}
    recipes |= {name: build_tiny(**SIX_STEPS, **PAIRS, objective=name) for name in OBJECTIVES[1:]}
    return train_beside_rewritten(tmp_path_factory.mktemp("rewritten"), recipes)


def test_the_trainers_are_rewritten_in_one_process_and_trls_own_in_the_other(beside):
    assert beside.unsloth.process["trainer"] == "UnslothSFTTrainer"
    assert beside.transformers.process["trainer"].startswith("trl.")


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_a_rewritten_trainer_gets_the_batches_of_trls(beside, objective):
    labels = "labels" if objective == "sft" else "completion_mask"
    assert_same_batches(beside, objective, named={"input_ids", "attention_mask", labels})


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_a_rewritten_trainer_has_the_losses_of_trls_in_training_and_evaluation(beside, objective):
    assert_same_losses(beside, objective, figures=("loss", "eval_loss", "grad_norm", "learning_rate"))
    assert [line["step"] for line in read_lines(beside.unsloth[objective]) if "eval_loss" in line] == [0, 3, 6]


@pytest.mark.parametrize("objective", ["dpo", "orpo"])
def test_a_rewritten_trainer_tells_the_held_out_pairs_apart_alike(beside, objective):
    ours, theirs = (read_json(run / "summary.json") for run in beside[objective])
    assert theirs["preference_margin"] == pytest.approx(ours["preference_margin"], abs=1e-3)
