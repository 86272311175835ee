"""How good a classifier's answers are: the scores of GLUE's tasks, and those of labels of one's own.

In go logits and labels as NumPy arrays, out come plain numbers; higher is better in all of them. A score that is
not defined, as a correlation with answers that are all alike, is 0.0: such answers tell nothing apart.

Shape suffixes: N rows, C outputs (one where the answer is a number).
"""

import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.stats import ConstantInputWarning, NearConstantInputWarning, pearsonr, spearmanr
from sklearn.metrics import accuracy_score, f1_score, matthews_corrcoef

from finetune.errors import RecipeError
from finetune.recipe.glue import GLUE_TASKS, METRICS_OF_NUMBERS, MetricName, ProblemType
from finetune.recipe.rows_schema import GlueName

__all__ = ["SCORES", "Metric", "choose_metric", "score_labels", "score_majority"]

Score = Callable[[NDArray[Any], NDArray[Any]], float]


def _accuracy(logits_NC: NDArray[Any], labels_N: NDArray[Any]) -> float:
    """Share of the rows whose largest output is their label's."""
    return float(accuracy_score(labels_N, logits_NC.argmax(-1)))


def _f1(logits_NC: NDArray[Any], labels_N: NDArray[Any]) -> float:
    """Harmonic mean of precision and recall for label 1; 0 where no row has it and none is given it."""
    return float(f1_score(labels_N, logits_NC.argmax(-1), labels=[1], average="macro", zero_division=0.0))


def _macro_f1(logits_NC: NDArray[Any], labels_N: NDArray[Any]) -> float:
    """Mean over the labels of each one's F1."""
    every = range(logits_NC.shape[-1])
    return float(f1_score(labels_N, logits_NC.argmax(-1), labels=every, average="macro", zero_division=0.0))


def _matthews(logits_NC: NDArray[Any], labels_N: NDArray[Any]) -> float:
    """Correlation of answers and labels, -1 to 1; 0 where either are all alike. Of any number of labels."""
    return float(matthews_corrcoef(labels_N, logits_NC.argmax(-1)))


def _pearson(logits_NC: NDArray[Any], labels_N: NDArray[Any]) -> float:
    return _correlate(pearsonr, logits_NC, labels_N)


def _spearman(logits_NC: NDArray[Any], labels_N: NDArray[Any]) -> float:
    return _correlate(spearmanr, logits_NC, labels_N)


def _correlate(correlation: Any, logits_NC: NDArray[Any], labels_N: NDArray[Any]) -> float:
    answers_N = np.asarray(logits_NC, dtype=np.float64).reshape(len(labels_N))
    numbers_N = np.asarray(labels_N, dtype=np.float64)
    if len(labels_N) < 2:
        return 0.0
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConstantInputWarning)
        warnings.simplefilter("ignore", NearConstantInputWarning)
        found = float(correlation(answers_N, numbers_N).statistic)
    return found if np.isfinite(found) else 0.0


SCORES: Mapping[str, Score] = {
    "accuracy": _accuracy,
    "f1": _f1,
    "macro_f1": _macro_f1,
    "matthews_correlation": _matthews,
    "pearson": _pearson,
    "spearmanr": _spearman,
}
_OF_TWO: tuple[MetricName, ...] = ("f1",)


@dataclass(frozen=True, slots=True)
class Metric:
    """What a classifier is scored by.

    Attributes:
        name: the score that a run is judged by, higher is better.
        names: all that are measured; `combined` stands last and is the mean of the others.
    """

    name: MetricName
    names: tuple[MetricName, ...]

    def score(self, logits_NC: NDArray[Any], labels_N: NDArray[Any]) -> dict[str, float]:
        """Score answers by every name."""
        return score_labels(self.names, logits_NC, labels_N)


def choose_metric(
    typed: MetricName | None, *, task: GlueName | None, problem_type: ProblemType, num_labels: int
) -> Metric:
    """Choose the score that a run is judged by, and those that are measured beside it.

    Args:
        typed: `classification.metric`.
        task: of GLUE; its own score is its metric, or the mean of its two.
        problem_type: one label of several, or a number.
        num_labels: how many labels there are; not read where the answer is a number.

    Returns:
        Without a task accuracy, of numbers pearson; beside it all that go with the labels.

    Raises:
        RecipeError: the score does not go with what is answered.
    """
    is_number = problem_type == "regression"
    usual = _list_usual(task, is_number, num_labels)
    if typed is None:
        main: MetricName = "combined" if task is not None and len(usual) > 1 else usual[0]
        return Metric(main, _join(usual, main))
    if typed != "combined" and is_number != (typed in METRICS_OF_NUMBERS):
        fitting = [name for name in SCORES if (name in METRICS_OF_NUMBERS) == is_number]
        answered = "numbers" if is_number else "labels"
        raise RecipeError(
            f"`classification.metric: {typed}` does not score {answered}.\n  Those that do: {', '.join(fitting)}."
        )
    if typed == "f1" and num_labels != 2:
        raise RecipeError(
            f"`classification.metric: f1` is of two labels, the second one sought, and there are {num_labels}.\n"
            "  Of more: macro_f1, the mean over the labels."
        )
    if typed == "combined" and (len(usual) == 1 or (task is None and not is_number)):
        has = f"`{task}` has one" if task else "there is no task"
        raise RecipeError(
            f"`classification.metric: combined` is the mean of a task's two scores, and {has}.\n"
            f"  Leave `classification.metric` out for {usual[0]}."
        )
    return Metric(typed, _join(usual, typed))


def _list_usual(task: GlueName | None, is_number: bool, num_labels: int) -> tuple[MetricName, ...]:
    if task is not None:
        return GLUE_TASKS[task].metrics
    if is_number:
        return METRICS_OF_NUMBERS
    return ("accuracy", *(_OF_TWO if num_labels == 2 else ()), "macro_f1", "matthews_correlation")


def _join(usual: tuple[MetricName, ...], main: MetricName) -> tuple[MetricName, ...]:
    return usual if main in usual else (*usual, main)


def score_labels(names: Sequence[str], logits_NC: NDArray[Any], labels_N: NDArray[Any]) -> dict[str, float]:
    """Score answers.

    Args:
        names: of `SCORES`; `combined` is the mean of the others.
        logits_NC: the model's outputs, one column where the answer is a number.
        labels_N: places of the right labels, or the right numbers.

    Returns:
        Each score by its name: shares of 0 to 1, correlations of -1 to 1.
    """
    scores = {name: SCORES[name](logits_NC, labels_N) for name in names if name != "combined"}
    if "combined" in names:
        scores["combined"] = float(np.mean(list(scores.values())))
    return scores


def score_majority(metric: Metric, majority: int, labels_N: NDArray[Any], *, num_labels: int) -> float:
    """Score what always answering one label gets: the least that a run has to beat.

    Args:
        metric: what the run is scored by.
        majority: the place of the training rows' most frequent label.
        labels_N: of the rows that are scored, as places.
        num_labels: outputs of the model.
    """
    answers_NC = np.zeros((len(labels_N), num_labels))
    answers_NC[:, majority] = 1.0
    return metric.score(answers_NC, labels_N)[metric.name]
