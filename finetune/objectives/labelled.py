"""The rows of a classifier: read as the task or the recipe says, their labels settled, turned into tokens.

In go the sections `data` and `classification` and the tokenizer; out come `LabelledRows`. A task of GLUE brings its
own columns, labels and parts; rows of one's own bring labels that are found among those to train on.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from datasets import Dataset
from numpy.typing import NDArray
from transformers import PreTrainedTokenizerBase

from finetune.data.examples import Origin
from finetune.data.glue import find_asked_task, load_glue_examples
from finetune.data.label_rows import (
    build_label_rows,
    count_labels,
    find_labels,
    find_majority_label,
    has_pairs,
    take_shots,
)
from finetune.data.quality.screening import screen_examples
from finetune.data.sources import LoadedExamples, load_examples, split_examples
from finetune.data.submission import write_predictions, write_submission
from finetune.data.tokens import TokenRows
from finetune.errors import DataError
from finetune.model.heads import LabelSpace
from finetune.objectives.label_scores import Metric, choose_metric, score_majority
from finetune.recipe.glue import GLUE_TASKS, GlueRole
from finetune.recipe.row_kinds import Kind
from finetune.recipe.rows_schema import (
    ClassificationSettings,
    DataSettings,
    EvalFraction,
    GlueName,
    SourceSettings,
)

__all__ = ["LabelledRows", "load_labelled_rows"]

Parts = Mapping[str, LoadedExamples]


@dataclass(frozen=True, slots=True)
class AskedRows:
    """Rows to be labelled.

    Attributes:
        task: of GLUE whose test rows they are; None: rows of one's own.
        parts: by their part: one of an empty name, or `matched` and `mismatched`.
    """

    task: GlueName | None
    parts: Mapping[str, TokenRows]


@dataclass(frozen=True, slots=True)
class LabelledRows:
    """What a classifier is trained, measured and asked on.

    Attributes:
        labels: what it tells apart.
        metric: what it is scored by.
        train: rows to train on.
        held_out: rows to be scored on by their part: one of an empty name, or `matched` and `mismatched`.
        asked: rows to be labelled, a set for each source.
        majority_label: the commonest one of the rows to train on; None: they have numbers.
        report: what `data_report.json` says.
    """

    labels: LabelSpace
    metric: Metric
    train: TokenRows
    held_out: Mapping[str, TokenRows]
    asked: Sequence[AskedRows]
    majority_label: str | None
    report: dict[str, Any]

    @property
    def scored(self) -> TokenRows | None:
        """The held-out rows that the best step is found by; None where there are none."""
        return next(iter(self.held_out.values()), None)

    def to_summary(self) -> dict[str, Any]:
        """Name what summary.json says of the score beside its values."""
        if not self.held_out:
            return {}
        majority, labels = None, [np.asarray(rows.dataset["label"][:]) for rows in self.held_out.values()]
        if self.labels.names is not None and self.majority_label is not None:
            place, num_labels = self.labels.names.index(self.majority_label), self.labels.num_outputs
            scores = [score_majority(self.metric, place, labels_N, num_labels=num_labels) for labels_N in labels]
            majority = sum(scores) / len(scores)
        return {"metric": self.metric.name, "majority_score": majority, "eval_rows": sum(map(len, labels))}

    def write_predictions(
        self, folder: Path, predict_logits: Callable[[Dataset], NDArray[np.float32]], *, writes: bool
    ) -> None:
        """Label the rows asked about, and write them: as GLUE's server takes them, or `predictions.jsonl`.

        Args:
            folder: that the files go in.
            predict_logits: the model's outputs for rows.
            writes: whether this process writes; all compute.
        """
        for number, asked in enumerate(self.asked, start=1):
            logits = {part: predict_logits(rows.dataset) for part, rows in asked.parts.items()}
            if not writes:
                continue
            if asked.task is not None:
                write_submission(folder, asked.task, logits, labels=self.labels.names)
                continue
            for part, rows in asked.parts.items():
                name = "_".join(["predictions", *([str(number)] if number > 1 else []), *([part] if part else [])])
                places = [Origin(row["source"], row["row"]) for row in rows.dataset.select_columns(["source", "row"])]
                write_predictions(folder / f"{name}.jsonl", places, logits[part], labels=self.labels.names)


def load_labelled_rows(
    data: DataSettings, settings: ClassificationSettings, tokenizer: PreTrainedTokenizerBase, seed: int
) -> LabelledRows:
    """Load the rows of a classifier.

    Args:
        data: the recipe's section: where rows come from, and how long they may be.
        settings: the recipe's section: task, labels, score.
        tokenizer: of the base.
        seed: of the split, of a mix and of the rows drawn for few-shot runs.

    Raises:
        DataError: a row, a file or a label, named with its line.
        PlaceError: a dataset of the Hub that cannot be had.
        RecipeError: a score that does not go with the labels, or rows that the task has not got.
    """
    train, held_out = _load_train_and_held_out(data, settings, seed)
    labels = _settle_labels(settings, train)
    majority = None if labels.names is None else find_majority_label(train)  # before few of each are drawn
    if settings.shots is not None:
        train = take_shots(train, settings.shots, seed)
    build = partial(
        build_label_rows,
        tokenizer=tokenizer,
        labels=labels.names,
        max_length=data.max_length,
        too_long="truncate" if data.too_long is None or data.too_long == "split" else data.too_long,
        special_tokens_in_data=data.special_tokens_in_data,
    )
    _check_same_texts(train, held_out)
    evaluated: list[tuple[LoadedExamples, Kind]] = [(examples, "labelled") for examples in held_out.values()]
    train = screen_examples(train, evaluated, data.findings, kind="labelled")
    rows = build(train)
    held_out_rows = {part: build(examples) for part, examples in held_out.items()}
    asked = []
    for task, parts in _load_asked(data, settings, seed):
        _check_same_texts(train, parts)
        # Every row asked about is answered, a long one by its beginning.
        ready = {part: build(examples, needs_labels=False, too_long="truncate") for part, examples in parts.items()}
        asked.append(AskedRows(task, ready))
    metric = choose_metric(
        settings.metric, task=settings.task, problem_type=labels.problem_type, num_labels=labels.num_outputs
    )
    return LabelledRows(
        labels=labels,
        metric=metric,
        train=rows,
        held_out=held_out_rows,
        asked=asked,
        majority_label=majority,
        report={
            "train": rows.report | ({} if labels.names is None else {"labels": count_labels(train)}),
            "eval": {part or "all": one.report for part, one in held_out_rows.items()} or None,
            "predict": [{part or "all": one.report for part, one in rows.parts.items()} for rows in asked] or None,
        },
    )


def _load_train_and_held_out(
    data: DataSettings, settings: ClassificationSettings, seed: int
) -> tuple[LoadedExamples, Parts]:
    """Load the rows to train on and those held out, which are a task's own where the recipe names none."""
    load = partial(_load_role, task=settings.task, on_bad_rows=data.on_bad_rows, seed=seed)
    train = _only(load(data.train, role="train", setting="data.train"))
    if isinstance(data.eval, EvalFraction):
        train, held_out = split_examples(train, data.eval.fraction, seed)
        return train, {"": held_out}
    if data.eval is None:
        return train, {}
    return train, load(data.eval, role="eval", setting="data.eval")


def _load_asked(
    data: DataSettings, settings: ClassificationSettings, seed: int
) -> Iterator[tuple[GlueName | None, Parts]]:
    """Load the rows to be labelled, source by source, with the task whose test rows they are."""
    predict = settings.predict
    sources = predict if isinstance(predict, list) else [] if predict is None else [predict]
    for number, source in enumerate(sources):
        setting = f"classification.predict[{number}]" if isinstance(predict, list) else "classification.predict"
        asked_task = None if settings.task is None else find_asked_task(source, settings.task)
        yield asked_task, _load_role(source, asked_task or settings.task, "test", data.on_bad_rows, setting, seed)


def _load_role(
    source: SourceSettings | list[SourceSettings],
    task: GlueName | None,
    role: GlueRole,
    on_bad_rows: str,
    setting: str,
    seed: int,
) -> Parts:
    if task is not None and isinstance(source, SourceSettings):
        return load_glue_examples(source, task, role, on_bad_rows=on_bad_rows, setting=setting)
    return {"": load_examples(source, kind="labelled", seed=seed, on_bad_rows=on_bad_rows, setting=setting)}


def _only(parts: Parts) -> LoadedExamples:
    (examples,) = parts.values()
    return examples


def _check_same_texts(train: LoadedExamples, parts: Parts) -> None:
    """Check that a model of pairs is asked about pairs, and one of single texts about those."""
    is_pair = has_pairs(train)
    for examples in parts.values():
        if has_pairs(examples) != is_pair:
            path = examples.report["sources"][0]["path"]
            found, trained = ("have no", "have one") if is_pair else ("have a", "have none")
            raise DataError(
                f"{path}: the rows {found} `text_pair`, and those to train on {trained}.\n"
                "  A column of another name is mapped beside the path: columns: {text_pair: YOUR_COLUMN}"
            )


def _settle_labels(settings: ClassificationSettings, train: LoadedExamples) -> LabelSpace:
    """Settle what is told apart: the recipe's labels, the task's, or those of the rows to train on."""
    task = None if settings.task is None else GLUE_TASKS[settings.task]
    problem_type = settings.problem_type or (None if task is None else task.problem_type)
    if problem_type == "regression":
        return LabelSpace(None)
    names = settings.labels or (task.labels if task is not None else None) or find_labels(train)
    return LabelSpace(tuple(names))
