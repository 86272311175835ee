"""The ten tasks of GLUE as they are published: files, columns, labels, scores and the form of a submission.

Facts alone, no row is read here. `data.glue` reads the rows by them, `objectives.label_scores` scores, and
`data.submission` writes what the server takes.

Sources: Wang et al. 2019 (arXiv:1804.07461), table 1; the FAQ of gluebenchmark.com; the files of
`download_glue_data.py`; the Hub's `nyu-mll/glue`, whose order of the labels is kept.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from finetune.recipe.rows_schema import GlueName

__all__ = [
    "GLUE_HUB_NAME",
    "GLUE_TASKS",
    "HIGHEST_SCORE",
    "LOWEST_SCORE",
    "METRICS_OF_NUMBERS",
    "GluePart",
    "GlueRole",
    "GlueTask",
    "MetricName",
    "ProblemType",
]

GLUE_HUB_NAME = "nyu-mll/glue"

GlueRole = Literal["train", "eval", "test"]
MetricName = Literal["accuracy", "f1", "macro_f1", "matthews_correlation", "pearson", "spearmanr", "combined"]
ProblemType = Literal["single_label_classification", "regression"]

# They correlate with numbers; the others count labels.
METRICS_OF_NUMBERS: tuple[MetricName, ...] = ("pearson", "spearmanr")


@dataclass(frozen=True, slots=True)
class GluePart:
    """A set of rows of a task; most roles have one.

    Attributes:
        name: empty where the role has one part, else `matched` or `mismatched`.
        split: on the Hub; empty where the Hub has no such rows.
        file: in the task's folder.
        submission: the file that the server takes for these rows; empty for rows that are not its.
        test_rows: how many of them it expects; 0 for rows that are not its.
        columns: of this file, where they differ from those of the task's other files.
    """

    name: str
    split: str
    file: str
    submission: str = ""
    test_rows: int = 0
    columns: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class GlueTask:
    """A task: single sentences, or pairs of them, with a label or a number.

    Attributes:
        name: as recipes write it; also the Hub's configuration.
        folders: of the published files, the usual name first.
        columns: ours (`text`, `text_pair`, `label`) -> the Hub's.
        file_columns: ours -> those of the published files.
        headings: the columns of files without a header line (CoLA's train.tsv and dev.tsv); a file with one says
            itself.
        labels: in the order of the model's outputs, as the Hub has them; empty for a number.
        spellings: a label as it is written, on the Hub or in a file -> its name in `labels`.
        answers: what a submission writes for each label; empty for a number.
        metrics: those that GLUE's table shows; its score is their mean.
        parts: the rows by their role. AX has none to train on: a model of MNLI answers it.
    """

    name: GlueName
    folders: tuple[str, ...]
    columns: Mapping[str, str]
    file_columns: Mapping[str, str]
    labels: tuple[str, ...]
    spellings: Mapping[str, str]
    answers: tuple[str, ...]
    metrics: tuple[MetricName, ...]
    parts: Mapping[GlueRole, tuple[GluePart, ...]]
    headings: tuple[str, ...] = ()

    @property
    def problem_type(self) -> ProblemType:
        """One label of several, or a number."""
        return "single_label_classification" if self.labels else "regression"

    @property
    def is_pair(self) -> bool:
        """Whether a row holds two texts."""
        return "text_pair" in self.columns


# The numbers that STS-B's people gave: 0, nothing in common, to 5, the same meaning.
LOWEST_SCORE, HIGHEST_SCORE = 0.0, 5.0


def _columns(*names: str, label: str = "label") -> dict[str, str]:
    return {**dict(zip(("text", "text_pair"), names, strict=False)), "label": label}


def _spell(labels: tuple[str, ...]) -> dict[str, str]:
    """A label is written as its place (the Hub, and the files of five tasks) or as its name (those of four)."""
    return {**{str(place): name for place, name in enumerate(labels)}, **{name: name for name in labels}}


def _single_parts(submission: str, test_rows: int) -> dict[GlueRole, tuple[GluePart, ...]]:
    return {
        "train": (GluePart("", "train", "train.tsv"),),
        "eval": (GluePart("", "validation", "dev.tsv"),),
        "test": (GluePart("", "test", "test.tsv", submission, test_rows),),
    }


def _build_task(
    name: GlueName,
    folders: tuple[str, ...],
    columns: Mapping[str, str],
    metrics: tuple[MetricName, ...],
    *,
    labels: tuple[str, ...] = (),
    answers: Literal["places", "names"] = "places",
    file_columns: Mapping[str, str] | None = None,
    headings: tuple[str, ...] = (),
    test_rows: int = 0,
    parts: Mapping[GlueRole, tuple[GluePart, ...]] | None = None,
) -> GlueTask:
    return GlueTask(
        name=name,
        folders=(*folders, name),
        columns=columns,
        file_columns=file_columns or columns,
        labels=labels,
        spellings=_spell(labels),
        answers=labels if answers == "names" else tuple(str(place) for place in range(len(labels))),
        metrics=metrics,
        parts=parts or _single_parts(f"{folders[0]}.tsv", test_rows),
        headings=headings,
    )


_ENTAILED_OR_NOT = ("entailment", "not_entailment")
_ENTAILED_NEUTRAL_OR_NOT = ("entailment", "neutral", "contradiction")
_F1_AND_ACCURACY: tuple[MetricName, ...] = ("f1", "accuracy")

_MNLI_PARTS: Mapping[GlueRole, tuple[GluePart, ...]] = {
    "train": (GluePart("", "train", "train.tsv"),),
    "eval": (
        GluePart("matched", "validation_matched", "dev_matched.tsv"),
        GluePart("mismatched", "validation_mismatched", "dev_mismatched.tsv"),
    ),
    "test": (
        GluePart("matched", "test_matched", "test_matched.tsv", "MNLI-m.tsv", 9796),
        GluePart("mismatched", "test_mismatched", "test_mismatched.tsv", "MNLI-mm.tsv", 9847),
    ),
}
# The diagnostic rows are published twice: with their labels for study, and without for the server.
_AX_PARTS: Mapping[GlueRole, tuple[GluePart, ...]] = {
    "train": (),
    "eval": (GluePart("", "", "diagnostic-full.tsv", columns=_columns("Premise", "Hypothesis", label="Label")),),
    "test": (GluePart("", "test", "diagnostic.tsv", "AX.tsv", 1104),),
}

_TASKS = (
    _build_task(
        "cola",
        ("CoLA",),
        _columns("sentence"),
        ("matthews_correlation",),
        labels=("unacceptable", "acceptable"),
        headings=("source", "label", "mark", "sentence"),
        test_rows=1063,
    ),
    _build_task(
        "sst2",
        ("SST-2",),
        _columns("sentence"),
        ("accuracy",),
        labels=("negative", "positive"),
        test_rows=1821,
    ),
    _build_task(
        "mrpc",
        ("MRPC",),
        _columns("sentence1", "sentence2"),
        _F1_AND_ACCURACY,
        labels=("not_equivalent", "equivalent"),
        file_columns=_columns("#1 String", "#2 String", label="Quality"),
        test_rows=1725,
    ),
    _build_task(
        "stsb",
        ("STS-B",),
        _columns("sentence1", "sentence2"),
        ("pearson", "spearmanr"),
        file_columns=_columns("sentence1", "sentence2", label="score"),
        test_rows=1379,
    ),
    _build_task(
        "qqp",
        ("QQP",),
        _columns("question1", "question2"),
        _F1_AND_ACCURACY,
        labels=("not_duplicate", "duplicate"),
        file_columns=_columns("question1", "question2", label="is_duplicate"),
        test_rows=390_965,
    ),
    _build_task(
        "mnli",
        ("MNLI",),
        _columns("premise", "hypothesis"),
        ("accuracy",),
        labels=_ENTAILED_NEUTRAL_OR_NOT,
        answers="names",
        file_columns=_columns("sentence1", "sentence2", label="gold_label"),
        parts=_MNLI_PARTS,
    ),
    _build_task(
        "qnli",
        ("QNLI",),
        _columns("question", "sentence"),
        ("accuracy",),
        labels=_ENTAILED_OR_NOT,
        answers="names",
        test_rows=5463,
    ),
    _build_task(
        "rte",
        ("RTE",),
        _columns("sentence1", "sentence2"),
        ("accuracy",),
        labels=_ENTAILED_OR_NOT,
        answers="names",
        test_rows=3000,
    ),
    _build_task(
        "wnli",
        ("WNLI",),
        _columns("sentence1", "sentence2"),
        ("accuracy",),
        labels=("not_entailment", "entailment"),
        test_rows=146,
    ),
    _build_task(
        "ax",
        ("diagnostic", "AX"),
        _columns("premise", "hypothesis"),
        ("matthews_correlation",),
        labels=_ENTAILED_NEUTRAL_OR_NOT,
        answers="names",
        file_columns=_columns("sentence1", "sentence2"),
        parts=_AX_PARTS,
    ),
)

GLUE_TASKS: Mapping[GlueName, GlueTask] = {task.name: task for task in _TASKS}
