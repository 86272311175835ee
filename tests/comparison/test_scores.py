"""Means, deviations and errors as anyone finds them with pencil and paper."""

import math
from pathlib import Path

import pytest

from finetune.comparison.folder import Result
from finetune.comparison.scores import Spread, build_rows, find_best, find_recommended, read_score
from tests.comparison.made_up import build_all, make_result, read_small

TWO = "methods: {lora: {adapter.method: lora}, ia3: {adapter.method: ia3}}\nseeds: [1, 2, 3]\n"


def make_results(folder: Path, scores: dict[str, list[float | None]], text: str = TWO, **figures):
    """Results of the methods in order of seed; None: failed."""
    results = []
    left = {name: list(values) for name, values in scores.items()}
    for cell in build_all(read_small(folder, text)):
        value = left[cell.point.name].pop(0)
        own = figures.get(cell.point.name, {})
        failed = Result(cell, "failed", {}, "why", 3)
        results.append(failed if value is None else make_result(cell, exact_match=value, **own))
    return results


def test_a_spread_is_the_mean_and_the_deviation_of_a_sample() -> None:
    spread = Spread.of([1.0, 2.0, 6.0])
    assert (spread.mean, spread.num) == (3.0, 3)
    assert spread.deviation == pytest.approx(math.sqrt((4 + 1 + 9) / 2))
    assert spread.standard_error == pytest.approx(math.sqrt(7) / math.sqrt(3))
    assert Spread.of([5.0]) == Spread(5.0, None, 1)
    assert Spread.of([5.0]).standard_error is None
    assert Spread.of([]) == Spread(None, None, 0)


def test_a_difference_is_paired_by_seed(tmp_path: Path) -> None:
    results = make_results(tmp_path, {"lora": [0.5, 0.6, 0.7], "ia3": [0.45, 0.5, 0.6]})
    lora, ia3 = build_rows(results, "exact_match", "lora")
    assert lora.difference is None
    assert ia3.difference is not None
    # -0.05, -0.10, -0.10: the mean is -0.25 / 3, the squares off it sum to 2/3 * 0.05^2
    assert ia3.difference.mean == pytest.approx(-0.25 / 3)
    assert ia3.difference.deviation == pytest.approx(math.sqrt((2 / 3) * 0.05**2 / 2))
    assert ia3.difference.standard_error == pytest.approx(0.05 / 3)
    assert ia3.average.deviation == pytest.approx(math.sqrt((0.0667**2 + 0.0167**2 + 0.0833**2) / 2), abs=1e-4)


def test_a_failed_seed_is_counted_as_missing_and_left_out_of_the_pairs(tmp_path: Path) -> None:
    results = make_results(tmp_path, {"lora": [0.5, 0.6, 0.7], "ia3": [0.45, None, 0.6]})
    _, ia3 = build_rows(results, "exact_match", "lora")
    assert (ia3.num_missing, ia3.average.num, ia3.average.mean) == (1, 2, pytest.approx(0.525))
    assert ia3.difference is not None
    assert (ia3.difference.num, ia3.difference.mean) == (2, pytest.approx(-0.075))


def test_the_average_over_tasks_is_taken_seed_by_seed_and_a_seed_without_a_task_does_not_count(tmp_path: Path) -> None:
    text = TWO + "tasks: {a: {data.max_length: 64}, b: {data.max_length: 128}}\n"
    results = make_results(tmp_path, {"lora": [0.2, 0.4, 0.9, 0.6, 0.8, None], "ia3": [0.0] * 6}, text)
    lora, _ = build_rows(results, "exact_match", None)
    assert lora.by_task["a"].mean == pytest.approx(0.5)
    assert lora.by_task["b"] == Spread.of([0.6, 0.8])
    assert lora.average == Spread.of([(0.2 + 0.6) / 2, (0.4 + 0.8) / 2])


def test_a_difference_on_a_task_is_paired_by_the_seeds_of_that_task(tmp_path: Path) -> None:
    text = TWO + "tasks: {a: {data.max_length: 64}, b: {data.max_length: 128}}\n"
    scores = {"lora": [0.2, 0.4, 0.9, 0.6, 0.8, None], "ia3": [0.3, 0.6, 0.9, 0.5, 0.7, 0.1]}
    lora, ia3 = build_rows(make_results(tmp_path, scores, text), "exact_match", "lora")
    assert lora.differences == {}
    # a: 0.1, 0.2, 0.0; b: twice -0.1, and lora has no third seed
    assert (ia3.differences["a"].num, ia3.differences["a"].mean) == (3, pytest.approx(0.1))
    assert ia3.differences["a"].standard_error == pytest.approx(0.1 / math.sqrt(3))
    assert (ia3.differences["b"].num, ia3.differences["b"].mean) == (2, pytest.approx(-0.1))
    assert ia3.difference is not None
    assert (ia3.difference.num, ia3.difference.mean) == (2, pytest.approx((0.0 + 0.05) / 2))


def test_costs_are_the_most_of_memory_and_the_mean_of_seconds(tmp_path: Path) -> None:
    results = make_results(tmp_path, {"lora": [0.5, 0.6, 0.7], "ia3": [0.1, 0.1, 0.1]})
    results[1].summary.update(peak_memory_bytes=7 * 2**20, seconds=8.0, general_loss_before=2.0, general_loss=2.5)
    lora, ia3 = build_rows(results, "exact_match", None)
    assert (lora.peak_memory_bytes, lora.seconds, lora.trainable_fraction) == (7 * 2**20, 4.0, 0.01)
    assert (lora.forgetting, ia3.forgetting) == (0.5, None)


def test_the_best_is_the_highest_mean_or_the_lowest_loss_and_never_one_with_a_run_missing_beside_a_whole_one(
    tmp_path: Path,
) -> None:
    results = make_results(tmp_path, {"lora": [0.5, 0.6, 0.7], "ia3": [0.9, None, 0.9]})
    by_match = build_rows(results, "exact_match", None)
    assert find_best(by_match, "exact_match") == by_match[0]
    assert find_best(by_match[1:], "exact_match") == by_match[1]
    whole = make_results(tmp_path, {"lora": [0.5, 0.6, 0.7], "ia3": [0.9, 0.9, 0.9]})
    for result in whole:
        result.summary["eval_loss"] = result.summary["exact_match"]
    assert [find_best(build_rows(whole, score, None), score).point.name for score in ("exact_match", "eval_loss")] == [
        "ia3", "lora"
    ]  # fmt: skip
    assert find_best([], "exact_match") is None


@pytest.mark.parametrize(("second", "recommended"), [(0.59, "ia3"), (0.5, "lora")])
def test_the_recommended_row_is_the_smallest_within_one_standard_error_of_the_best(
    tmp_path: Path, second: float, recommended: str
) -> None:
    # lora: mean 0.6, deviation 0.1, standard error 0.058
    scores = {"lora": [0.5, 0.6, 0.7], "ia3": [second] * 3}
    results = make_results(tmp_path, scores, lora={"trainable_parameters": 100}, ia3={"trainable_parameters": 5})
    row = find_recommended(build_rows(results, "exact_match", None), "exact_match")
    assert row is not None
    assert row.point.name == recommended


def test_a_score_is_a_finite_number_of_the_summary() -> None:
    summary = {"score": 0.5, "scores": {"f1": 0.25}, "eval_loss": None, "train_loss": math.nan}
    assert [read_score(summary, name) for name in ("score", "scores.f1", "eval_loss", "train_loss", "scores.x")] == [
        0.5, 0.25, None, None, None
    ]  # fmt: skip
