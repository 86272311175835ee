"""Runs of micro-batches with a fixed number of tokens: taken up as if never stopped, reported, answered by."""

from pathlib import Path
from typing import Any

import pytest

from finetune.model.loading import load_for_inference
from tests.end_to_end.small_runs import (
    read_figures,
    read_json,
    read_lines,
    read_weights,
    run_small,
    stopped_at_evaluation,
)

pytestmark = pytest.mark.usefixtures("tiny_base")

# Three micro-batches a step, of documents of up to 96 tokens; the line of the log is not written where it stops.
BUDGET: dict[str, Any] = {
    "model__attention": "documents",
    "data__train": {"path": "data/tiny_world/train.json", "limit": 40},
    "data__packing": True,
    "data__tokens_per_batch": 256,
    "data__eval": {"fraction": 0.1},
    "evaluation__num_samples": 1,
    "training__per_device_train_batch_size": 1,
    "training__gradient_checkpointing": True,
    "training__gradient_accumulation_steps": 3,
    "training__max_steps": 6,
    "training__eval_steps": 4,
    "training__logging_steps": 3,
}


@pytest.fixture(autouse=True)
def in_the_repository(monkeypatch) -> None:
    monkeypatch.chdir(Path(__file__).parents[2])


def test_a_run_by_token_budget_resumes_as_if_never_stopped_and_reports_how_full_its_batches_were(tmp_path):
    whole = run_small(tmp_path / "whole", **BUDGET)
    with stopped_at_evaluation(4):
        run_small(tmp_path / "stopped", **BUDGET)
    stopped = run_small(tmp_path / "stopped", **BUDGET, resume=True)
    assert read_figures(stopped) == read_figures(whole)
    assert read_weights(stopped) == read_weights(whole)

    census = read_json(whole / "data_report.json")["train"]["census"]
    assert census["packing_fill"] == pytest.approx(census["tokens"] / (census["packed_rows"] * 256), abs=1e-4)
    lines = [line for line in read_lines(whole) if "loss" in line]
    assert 9 * 128 < lines[0]["tokens"] <= 9 * 256
    assert all({"entropy", "mean_token_accuracy"} <= line.keys() for line in lines)
    assert load_for_inference(str(whole), device="cpu").base.attention == "documents"


@pytest.mark.slow
def test_the_budget_changes_how_many_tokens_a_step_has(tmp_path):
    settings = BUDGET | {"training__max_steps": 1, "training__logging_steps": 1}
    few, many = (
        read_lines(run_small(tmp_path / str(budget), **settings | {"data__tokens_per_batch": budget}))[-1]["tokens"]
        for budget in (96, 400)
    )
    assert few <= 3 * 96 < many
