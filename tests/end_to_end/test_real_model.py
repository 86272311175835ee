"""A real pretrained model on real rows, by the recipe that fine-tunes Mistral-7B."""

from pathlib import Path

import pytest

from finetune.model.loading import load_for_inference
from finetune.recipe.reading import read_recipe
from finetune.train import train
from tests.end_to_end.small_runs import ROOT, read_json

STEPS = 20


@pytest.fixture(scope="module")
def run(shared_data, tmp_path_factory) -> Path:
    path = ROOT / "recipes" / "mistral_alpaca.yaml"
    overrides = [
        f"model.model_name_or_path={shared_data}/models/stories260K",
        f"data.train.path={shared_data}/instructions/alpaca_cleaned_first5000.json",
        "data.train.limit=300",
        "data.max_length=512",
        "training.learning_rate=1e-3",
        f"training.max_steps={STEPS}",
        "training.eval_steps=null",
        "training.gradient_accumulation_steps=1",
        "evaluation.num_samples=0",
        "model.device=cpu",
        f"output_dir={tmp_path_factory.mktemp('outputs')}",
    ]
    return train(read_recipe(path, overrides), recipe_text=path.read_text())


@pytest.mark.slow
def test_the_mistral_recipe_teaches_a_real_model_in_4_bit(run):
    summary = read_json(run / "summary.json")
    assert summary["steps"] == STEPS
    assert summary["eval_loss"] < summary["eval_loss_before"]
    speaker = load_for_inference(str(run), device="cpu")
    assert speaker.base.quantization == "nf4"
    assert speaker.target.adapter_dir == run / "adapter"


@pytest.mark.slow
def test_rows_longer_than_512_tokens_are_counted_and_said(run):
    report = read_json(run / "data_report.json")
    train_rows, held_out = report["train"], report["eval"]
    assert train_rows["rows_read"] + held_out["rows_read"] == 300
    census = train_rows["census"]
    dropped = census["dropped"]["too_long"]
    assert dropped > 0
    assert census["rows"] + sum(census["dropped"].values()) == train_rows["rows_read"]
    assert f"{dropped} too long" in (run / "log.txt").read_text()
