"""Preferences that people made, as they are published, train a real pretrained model; the faulty ones are counted."""

import math
from pathlib import Path

import pytest
import yaml

from finetune.recipe.reading import build_recipe
from finetune.train import train
from tests.end_to_end.small_runs import read_json, read_lines


def run_real(shared_data: Path, output_dir: Path, objective: str, file: str, **data: object) -> Path:
    values = {
        "name": "real",
        "objective": objective,
        "model": {
            "model_name_or_path": f"{shared_data}/models/stories260K", "device": "cpu", "compute_dtype": "float32"
        },
        "adapter": {"method": "lora", "r": 8},
        "data": {
            "train": {"path": f"{shared_data}/preference/{file}"},
            "template": "alpaca",
            "max_length": 512,
            "on_bad_rows": "skip",
            **data,
        },
        "evaluation": {"num_samples": 0},
        "training": {
            "max_steps": 4,
            "per_device_train_batch_size": 2,
            "gradient_accumulation_steps": 1,
            "gradient_checkpointing": False,
            "learning_rate": 1e-3,
            "warmup_steps": 0,
        },
        "output_dir": str(output_dir),
    }  # fmt: skip
    return train(build_recipe(values), recipe_text=yaml.safe_dump(values))


@pytest.mark.slow
def test_the_dialogues_of_anthropic_train_and_their_faulty_pairs_are_counted(shared_data, tmp_path):
    run = run_real(shared_data, tmp_path, "dpo", "hh_harmless_base_test.jsonl.gz", too_long="truncate")
    report = read_json(run / "data_report.json")["train"]
    [source] = report["sources"]
    reasons = {reason: found["rows"] for reason, found in source["bad_reasons"].items()}
    assert sorted(reasons.values()) == [4, 5]
    assert source["rows"] + source["bad_rows"] == 2312
    assert report["census"]["rows"] + sum(report["census"]["dropped"].values()) == report["rows_read"] == 2303
    losses = [line["loss"] for line in read_lines(run)[1:]]
    assert losses[0] == pytest.approx(math.log(2), abs=1e-5)
    assert all(math.isfinite(loss) for loss in losses)


@pytest.mark.slow
@pytest.mark.parametrize("objective", ["dpo", "kto", "orpo"])
def test_pairs_in_openais_form_train(shared_data, tmp_path, objective):
    run = run_real(shared_data, tmp_path, objective, "orca_dpo_pairs_validation.jsonl", too_long="truncate")
    report = read_json(run / "data_report.json")["train"]
    [source] = report["sources"]
    assert (source["rows"], source["bad_rows"]) == (284, 0)
    assert all(math.isfinite(line["loss"]) for line in read_lines(run)[1:])


@pytest.mark.slow
def test_answers_that_people_judged_train(shared_data, tmp_path):
    run = run_real(shared_data, tmp_path, "kto", "kto_en_demo.json", too_long="truncate")
    report = read_json(run / "data_report.json")["train"]
    assert report["sources"][0]["rows"] == 300
    assert report["desirable_rows"] + report["undesirable_rows"] == report["census"]["rows"]
    assert read_lines(run)[1]["loss"] == pytest.approx(0.5, abs=1e-5)
