"""Scores of labels and numbers, each held to a value worked out by hand."""

import math

import numpy as np
import pytest

from finetune.errors import RecipeError
from finetune.objectives.label_scores import SCORES, Metric, choose_metric, score_labels, score_majority
from finetune.recipe.glue import GLUE_TASKS


def answer(*places: int, num_labels: int = 2) -> np.ndarray:
    """Logits whose largest stands at each of the places."""
    return np.eye(num_labels)[list(places)] * 3.0 - 1.0


LABELS = np.array([1, 1, 1, 0, 0, 0, 0, 1])
ANSWERS = answer(1, 1, 0, 0, 0, 1, 0, 1)  # of label 1: 3 found, 1 missed, 1 wrong; of label 0: 3 found


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("accuracy", 6 / 8),
        ("f1", 2 * 3 / (2 * 3 + 1 + 1)),
        ("macro_f1", (6 / 8 + 6 / 8) / 2),
        # (TP TN - FP FN) / sqrt((TP+FP)(TP+FN)(TN+FP)(TN+FN))
        ("matthews_correlation", (3 * 3 - 1 * 1) / math.sqrt(4 * 4 * 4 * 4)),
    ],
)
def test_a_score_of_two_labels_is_the_one_worked_out_by_hand(name, value):
    assert SCORES[name](ANSWERS, LABELS) == pytest.approx(value)


def test_f1_seeks_the_second_label_and_macro_f1_all():
    labels, answers = np.array([0, 0, 0, 1]), answer(0, 0, 1, 1)
    assert SCORES["f1"](answers, labels) == pytest.approx(2 / 3)
    assert SCORES["macro_f1"](answers, labels) == pytest.approx((4 / 5 + 2 / 3) / 2)
    # The third label is in no row and no answer, and its F1 is 0.
    assert SCORES["macro_f1"](np.pad(answers, ((0, 0), (0, 1)), constant_values=-9), labels) == pytest.approx(
        (4 / 5 + 2 / 3) / 3
    )


def test_matthews_of_three_labels():
    # Right 3 of 4, rows of each label (2, 1, 1), answers (1, 2, 1): (3·4 − 5) / sqrt((16 − 6)(16 − 6)).
    labels, answers = np.array([0, 0, 1, 2]), answer(0, 1, 1, 2, num_labels=3)
    assert SCORES["matthews_correlation"](answers, labels) == pytest.approx((12 - 5) / 10)


def test_correlations_of_numbers():
    numbers = np.array([0.0, 1.0, 2.0, 3.0])
    outputs = np.array([[0.0], [1.0], [4.0], [9.0]])
    # Pearson by hand: deviations -1.5 -0.5 0.5 1.5 and -3.5 -2.5 0.5 5.5: 15 / sqrt(5 · 49).
    assert SCORES["pearson"](outputs, numbers) == pytest.approx(15 / math.sqrt(5 * 49))
    assert SCORES["spearmanr"](outputs, numbers) == pytest.approx(1.0)
    assert SCORES["spearmanr"](-outputs, numbers) == pytest.approx(-1.0)


@pytest.mark.parametrize("name", ["pearson", "spearmanr"])
def test_a_correlation_that_is_not_defined_is_zero_without_a_warning(name):
    numbers = np.array([0.0, 1.0, 2.0])
    assert SCORES[name](np.full((3, 1), 2.5), numbers) == 0.0
    assert SCORES[name](np.arange(3.0)[:, None], np.full(3, 2.5)) == 0.0
    assert SCORES[name](np.ones((1, 1)), np.ones(1)) == 0.0
    assert SCORES["matthews_correlation"](answer(1, 1, 1), np.array([0, 1, 0])) == 0.0
    assert SCORES["f1"](answer(0, 0), np.array([0, 0])) == 0.0


@pytest.mark.parametrize(
    ("task", "main"),
    [
        ("cola", "matthews_correlation"),
        ("sst2", "accuracy"),
        ("mrpc", "combined"),
        ("stsb", "combined"),
        ("qqp", "combined"),
        ("mnli", "accuracy"),
        ("qnli", "accuracy"),
        ("rte", "accuracy"),
        ("wnli", "accuracy"),
        ("ax", "matthews_correlation"),
    ],
)
def test_a_task_is_judged_by_its_own_score_or_the_mean_of_its_two(task, main):
    facts = GLUE_TASKS[task]
    metric = choose_metric(None, task=task, problem_type=facts.problem_type, num_labels=len(facts.labels))
    assert metric.name == main
    assert metric.names == (*facts.metrics, *(("combined",) if main == "combined" else ()))


def test_combined_is_the_mean_of_the_others():
    scores = score_labels(("f1", "accuracy", "combined"), answer(0, 0, 1, 1), np.array([0, 0, 0, 1]))
    assert scores == pytest.approx({"f1": 2 / 3, "accuracy": 3 / 4, "combined": (2 / 3 + 3 / 4) / 2})


def test_without_a_task_labels_are_judged_by_accuracy_and_numbers_by_pearson():
    choose = {"task": None, "problem_type": "single_label_classification"}
    assert choose_metric(None, **choose, num_labels=3).names == ("accuracy", "macro_f1", "matthews_correlation")
    assert choose_metric("macro_f1", **choose, num_labels=3).name == "macro_f1"
    assert "f1" in choose_metric(None, **choose, num_labels=2).names
    assert choose_metric(None, task=None, problem_type="regression", num_labels=1) == Metric(
        "pearson", ("pearson", "spearmanr")
    )
    typed = choose_metric("combined", task=None, problem_type="regression", num_labels=1)
    assert typed == Metric("combined", ("pearson", "spearmanr", "combined"))


@pytest.mark.parametrize(
    ("typed", "problem", "num_labels", "task", "words"),
    [
        ("pearson", "single_label_classification", 2, None, "does not score labels"),
        ("accuracy", "regression", 1, None, "does not score numbers"),
        ("f1", "single_label_classification", 3, None, "there are 3"),
        ("combined", "single_label_classification", 2, "sst2", "`sst2` has one"),
        ("combined", "single_label_classification", 2, None, "there is no task"),
    ],
)
def test_a_score_that_does_not_go_with_the_answers_is_refused(typed, problem, num_labels, task, words):
    with pytest.raises(RecipeError, match=words):
        choose_metric(typed, task=task, problem_type=problem, num_labels=num_labels)


def test_the_majority_is_scored_as_an_answer_to_every_row():
    labels = np.array([1, 1, 0, 2])
    accuracy = Metric("accuracy", ("accuracy",))
    assert score_majority(accuracy, 1, labels, num_labels=3) == 0.5
    assert score_majority(accuracy, 0, labels, num_labels=3) == 0.25
    both = Metric("combined", ("f1", "accuracy", "combined"))
    # Always 1 on two of three: precision 2/3, recall 1, F1 4/5.
    assert score_majority(both, 1, np.array([1, 1, 0]), num_labels=2) == pytest.approx((4 / 5 + 2 / 3) / 2)
    assert score_majority(Metric("matthews_correlation", ("matthews_correlation",)), 1, labels, num_labels=3) == 0.0
