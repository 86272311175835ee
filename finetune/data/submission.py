"""A model's answers to files: those that GLUE's server takes, checked as it checks them, or a line of JSON a row.

In go the model's outputs, in the order of the rows; the folder and its names are the caller's.

Source of the rules: the FAQ of gluebenchmark.com (one file a task by its fixed name, tab-separated, the columns
`index` and `prediction`, the rows in the test file's order) and the sample submission that it links.
"""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from finetune.data.examples import Origin
from finetune.errors import DataError
from finetune.recipe.glue import GLUE_TASKS, HIGHEST_SCORE, LOWEST_SCORE, GluePart, GlueTask
from finetune.recipe.rows_schema import GlueName

__all__ = ["check_submission", "write_predictions", "write_submission"]

_HEADER = "index\tprediction"
_FAULTS_A_FILE = 3  # more of one kind tell nothing new


def write_predictions(
    path: Path, rows: Sequence[Origin], logits_NC: NDArray[Any], *, labels: Sequence[str] | None
) -> None:
    """Write a line of JSON for each row: `source`, `row`, `label`, and of each label its `scores`, which sum to 1.

    Args:
        path: of the file, .jsonl.
        rows: where the rows stand, in the order of the outputs.
        logits_NC: the model's outputs, one column where the answer is a number.
        labels: in the order of the outputs; None where the answer is a number, which is then the `label`.
    """
    with path.open("w", encoding="utf-8", newline="\n") as file:
        for place, answer in zip(rows, _to_answers(logits_NC, labels), strict=True):
            line = {"source": place.source, "row": place.row, **answer}
            file.write(json.dumps(line, ensure_ascii=False) + "\n")


def _to_answers(logits_NC: NDArray[Any], labels: Sequence[str] | None) -> list[dict[str, Any]]:
    outputs = np.asarray(logits_NC, dtype=np.float64)
    if labels is None:
        return [{"label": round(float(number), 6)} for number in outputs.reshape(len(outputs))]
    powers = np.exp(outputs - outputs.max(-1, keepdims=True))
    shares = powers / powers.sum(-1, keepdims=True)
    return [
        {
            "label": labels[int(row.argmax())],
            "scores": {label: round(float(share), 6) for label, share in zip(labels, row, strict=True)},
        }
        for row in shares
    ]


def write_submission(
    folder: Path, name: GlueName, logits_of_parts: Mapping[str, NDArray[Any]], *, labels: Sequence[str] | None
) -> list[Path]:
    """Write a task's test predictions in the form that GLUE's server takes.

    Args:
        folder: that the files go in; zipped whole they are a submission.
        name: of the task; `ax` is answered by a model of MNLI.
        logits_of_parts: by the part's name (`matched`, `mismatched`, else empty), the model's outputs for all its
            rows, in the test file's order.
        labels: in the order of the outputs, the task's in any order; None where the answer is a number.

    Returns:
        The files, one a part.

    Raises:
        DataError: the model's labels are not the task's.
    """
    task = GLUE_TASKS[name]
    if sorted(labels or ()) != sorted(task.labels):
        has = ", ".join(labels) if labels else "numbers"
        wants = ", ".join(task.labels) if task.labels else "numbers"
        raise DataError(f"The model answers with {has}; a submission of `{name}` needs {wants}.")
    answer_of = dict(zip(task.labels, task.answers, strict=True))
    parts = {part.name: part for part in task.parts["test"]}
    written = []
    for part_name, logits_NC in logits_of_parts.items():
        outputs = np.asarray(logits_NC, dtype=np.float64)
        if labels is None:
            # Given to three places, as the published scores are; the scale ends at 0 and 5.
            numbers = outputs.reshape(len(outputs)).clip(LOWEST_SCORE, HIGHEST_SCORE)
            answers = [f"{number:.3f}" for number in numbers]
        else:
            answers = [answer_of[labels[place]] for place in outputs.argmax(-1)]
        path = folder / parts[part_name].submission
        lines = [_HEADER, *(f"{number}\t{answer}" for number, answer in enumerate(answers))]
        path.write_text("\n".join(lines) + "\n", encoding="utf-8", newline="\n")
        written.append(path)
    return written


def check_submission(folder: Path, names: Sequence[GlueName] | None = None) -> list[str]:
    """Check the files of a submission by the published rules.

    Args:
        folder: that holds them, and nothing else.
        names: the tasks that have to be there; None: the nine of the benchmark, AX may be left out.

    Returns:
        What the server would refuse, a line each with the file's name; nothing where it takes them.
    """
    if not folder.is_dir():
        return [f"{folder}: there is no such folder"]
    wanted = [name for name in GLUE_TASKS if name != "ax"] if names is None else names
    files = {part.submission: (task, part) for task in GLUE_TASKS.values() for part in task.parts["test"]}
    there = sorted(entry.name for entry in folder.iterdir() if entry.is_file())
    faults = [
        f"{file}: not the name of a task's file; they are {', '.join(files)}" for file in there if file not in files
    ]
    missing = [part.submission for name in wanted for part in GLUE_TASKS[name].parts["test"]]
    faults += [f"{file}: missing" for file in missing if file not in there]
    for file in there:
        if file in files:
            faults += [f"{file}: {fault}" for fault in _check_file(folder / file, *files[file])]
    return faults


def _check_file(path: Path, task: GlueTask, part: GluePart) -> list[str]:
    try:
        text = path.read_bytes().decode("utf-8")
    except UnicodeDecodeError:
        return ["not UTF-8"]
    lines = text.split("\n")
    if lines[-1] == "":
        lines.pop()
    if not lines or lines[0].removesuffix("\r") != _HEADER:
        return [f"line 1: the header is {lines[0] if lines else ''!r}, not {_HEADER!r}"]
    rows = [line.removesuffix("\r") for line in lines[1:]]
    faults = [] if len(rows) == part.test_rows else [f"{len(rows)} rows, not the {part.test_rows} of the test set"]
    found = ((number, _find_fault(row, number, task)) for number, row in enumerate(rows))
    wrong = [f"line {number + 2}: {fault}" for number, fault in found if fault]
    more = [f"{len(wrong) - _FAULTS_A_FILE} more lines like these"] if len(wrong) > _FAULTS_A_FILE else []
    return [*faults, *wrong[:_FAULTS_A_FILE], *more]


def _find_fault(row: str, number: int, task: GlueTask) -> str:
    fields = row.split("\t")
    if len(fields) != 2:
        return f"{len(fields)} fields, not an index and a prediction"
    index, answer = fields
    if index != str(number):
        return f"the index is {index!r}, not {number}"
    if task.answers:
        return "" if answer in task.answers else f"{answer!r} is not one of {', '.join(task.answers)}"
    try:
        score = float(answer)
    except ValueError:
        return f"{answer!r} is not a number"
    return "" if LOWEST_SCORE <= score <= HIGHEST_SCORE else f"{answer} is not between 0 and 5"
