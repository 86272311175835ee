"""Answers as GLUE's server takes them: ours pass the check, planted faults do not."""

import json
from pathlib import Path

import numpy as np
import pytest

from finetune.data.examples import Origin
from finetune.data.submission import check_submission, write_predictions, write_submission
from finetune.errors import DataError
from finetune.recipe.glue import GLUE_TASKS


def write(folder: Path, *names: str) -> None:
    """Answers of a model that draws lots, for all the rows of the tasks' test sets."""
    draw = np.random.default_rng(0)
    for name in names:
        task = GLUE_TASKS[name]
        shapes = {part.name: (part.test_rows, len(task.labels) or 1) for part in task.parts["test"]}
        logits = {part: draw.normal(size=shape) * 4 for part, shape in shapes.items()}
        write_submission(folder, name, logits, labels=task.labels or None)


def test_the_whole_benchmark_passes_and_a_missing_task_is_named(tmp_path):
    write(tmp_path, *GLUE_TASKS)
    names = {*("CoLA", "SST-2", "MRPC", "STS-B", "QQP", "MNLI-m", "MNLI-mm", "QNLI", "RTE", "WNLI", "AX")}
    assert {path.name for path in tmp_path.iterdir()} == {f"{name}.tsv" for name in names}
    # The server's test sets as others count them: `wc -l` of a whole submission, each with its header.
    counted = {path.name: path.read_bytes().count(b"\n") for path in tmp_path.iterdir()}
    assert counted == {
        "CoLA.tsv": 1064,
        "SST-2.tsv": 1822,
        "MRPC.tsv": 1726,
        "STS-B.tsv": 1380,
        "QQP.tsv": 390_966,
        "MNLI-m.tsv": 9797,
        "MNLI-mm.tsv": 9848,
        "QNLI.tsv": 5464,
        "RTE.tsv": 3001,
        "WNLI.tsv": 147,
        "AX.tsv": 1105,
    }
    assert check_submission(tmp_path) == []
    (tmp_path / "AX.tsv").unlink()
    assert check_submission(tmp_path) == []
    (tmp_path / "MNLI-mm.tsv").unlink()
    assert check_submission(tmp_path) == ["MNLI-mm.tsv: missing"]
    assert check_submission(tmp_path, ["rte", "cola"]) == []
    assert check_submission(tmp_path / "absent") == [f"{tmp_path / 'absent'}: there is no such folder"]


def test_the_files_have_a_header_an_index_from_0_and_the_words_the_server_wants(tmp_path):
    labels = ["not_entailment", "entailment"]
    write_submission(tmp_path, "wnli", {"": np.array([[1.0, 2.0], [3.0, 2.0]])}, labels=labels)
    assert (tmp_path / "WNLI.tsv").read_bytes() == b"index\tprediction\n0\t1\n1\t0\n"
    # The model's own order of the labels is what counts, not the task's.
    write_submission(tmp_path, "rte", {"": np.array([[1.0, 2.0], [3.0, 2.0]])}, labels=labels)
    assert (tmp_path / "RTE.tsv").read_text() == "index\tprediction\n0\tentailment\n1\tnot_entailment\n"
    write_submission(tmp_path, "stsb", {"": np.array([[-0.25], [3.14159], [7.0]])}, labels=None)
    assert (tmp_path / "STS-B.tsv").read_text() == "index\tprediction\n0\t0.000\n1\t3.142\n2\t5.000\n"


def test_a_model_of_other_labels_cannot_answer_a_task(tmp_path):
    with pytest.raises(DataError, match="answers with 0, 1; a submission of `sst2` needs negative, positive"):
        write_submission(tmp_path, "sst2", {"": np.zeros((1, 2))}, labels=["0", "1"])
    with pytest.raises(DataError, match="answers with numbers"):
        write_submission(tmp_path, "sst2", {"": np.zeros((1, 1))}, labels=None)


def replace_line(line: int, by: bytes):
    def change(path: Path) -> None:
        lines = path.read_bytes().split(b"\n")
        lines[line - 1] = by
        path.write_bytes(b"\n".join(lines))

    return change


@pytest.mark.parametrize(
    ("file", "change", "fault"),
    [
        ("RTE.tsv", lambda path: path.rename(path.with_name("rte.tsv")), "RTE.tsv: missing"),
        (
            "RTE.tsv",
            lambda path: path.with_name("notes.txt").write_text(""),
            "notes.txt: not the name of a task's file",
        ),
        ("RTE.tsv", replace_line(1, b"id\tlabel"), "RTE.tsv: line 1: the header is 'id\\tlabel'"),
        ("RTE.tsv", replace_line(1, b"index,prediction"), "RTE.tsv: line 1: the header is 'index,prediction'"),
        ("RTE.tsv", lambda path: path.write_bytes(b""), "RTE.tsv: line 1: the header is ''"),
        ("RTE.tsv", lambda path: path.write_bytes(b"\xff"), "RTE.tsv: not UTF-8"),
        ("RTE.tsv", lambda path: path.write_bytes(path.read_bytes() + b"3000\tentailment\n"), "RTE.tsv: 3001 rows"),
        ("RTE.tsv", replace_line(4, b"3\tentailment"), "RTE.tsv: line 4: the index is '3', not 2"),
        ("RTE.tsv", replace_line(4, b"2\t1"), "RTE.tsv: line 4: '1' is not one of entailment, not_entailment"),
        ("RTE.tsv", replace_line(4, b"2,entailment"), "RTE.tsv: line 4: 1 fields"),
        ("WNLI.tsv", replace_line(2, b"0\tentailment"), "WNLI.tsv: line 2: 'entailment' is not one of 0, 1"),
        ("STS-B.tsv", replace_line(2, b"0\t5.001"), "STS-B.tsv: line 2: 5.001 is not between 0 and 5"),
        ("STS-B.tsv", replace_line(2, b"0\tnan"), "STS-B.tsv: line 2: nan is not between 0 and 5"),
        ("STS-B.tsv", replace_line(2, b"0\thigh"), "STS-B.tsv: line 2: 'high' is not a number"),
    ],
    ids=[
        "name",
        "another file",
        "header",
        "commas",
        "empty",
        "not UTF-8",
        "rows",
        "index",
        "place for a word",
        "no tab",
        "word for a place",
        "above 5",
        "nan",
        "word for a number",
    ],
)
def test_a_planted_fault_is_found(file, change, fault, tmp_path):
    write(tmp_path, "rte", "wnli", "stsb")
    assert check_submission(tmp_path, ["rte", "wnli", "stsb"]) == []
    change(tmp_path / file)
    faults = check_submission(tmp_path, ["rte", "wnli", "stsb"])
    assert any(found.startswith(fault) for found in faults), faults


def test_many_faults_of_a_file_are_three_and_a_count(tmp_path):
    write(tmp_path, "wnli")
    path = tmp_path / "WNLI.tsv"
    path.write_text("index\tprediction\n" + "".join(f"{n}\tx\n" for n in range(146)))
    faults = check_submission(tmp_path, ["wnli"])
    assert len(faults) == 4
    assert faults[-1] == "WNLI.tsv: 143 more lines like these"


def test_predictions_name_their_row_and_give_each_labels_share(tmp_path):
    rows = [Origin("films.jsonl", 1), Origin("films.jsonl", 3)]
    path = tmp_path / "predictions.jsonl"
    write_predictions(path, rows, np.log([[0.25, 0.75], [0.9, 0.1]]), labels=["bad", "good"])
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    assert lines == [
        {"source": "films.jsonl", "row": 1, "label": "good", "scores": {"bad": 0.25, "good": 0.75}},
        {"source": "films.jsonl", "row": 3, "label": "bad", "scores": {"bad": 0.9, "good": 0.1}},
    ]
    write_predictions(path, rows, np.array([[2.5], [0.125]]), labels=None)
    assert [json.loads(line)["label"] for line in path.read_text().splitlines()] == [2.5, 0.125]
