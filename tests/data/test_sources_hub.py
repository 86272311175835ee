"""Datasets of the Hub, from a stand-in on this machine: rows at a commit, and each refusal with its own way out."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.data.hub_stand_in import COMMIT, serve

ROOT = Path(__file__).parents[2]
COLUMNS = {"instruction": "question", "output": "answer"}
CASES = {
    "sums": {"path": "some/sums", "columns": COLUMNS},
    "pinned": {"path": "some/sums", "columns": COLUMNS, "revision": COMMIT, "split": "test"},
    "limit": {"path": "some/sums", "columns": COLUMNS, "limit": 2},
    "unmapped": {"path": "some/sums"},
    "split": {"path": "some/sums", "split": "validation"},
    "subset": {"path": "some/sums", "subset": "hard"},
    "revision": {"path": "some/sums", "revision": "v9"},
    "absent": {"path": "some/absent"},
    "private": {"path": "some/private"},
    "gated": {"path": "some/gated"},
    "asked": {"path": "some/asked"},
    "refused": {"path": "some/refused"},
    "script": {"path": "some/script"},
    "empty": {"path": "some/empty"},
}
PROGRAM = """
import json, sys
from finetune.data.sources import load_examples
from finetune.errors import FinetuneError
from finetune.recipe.schema import SourceSettings

answers = {}
for name, case in json.loads(sys.argv[1]).items():
    try:
        loaded = load_examples(SourceSettings(**case), kind="conversation", seed=0, on_bad_rows="error")
        answers[name] = {"rows": loaded.dataset.to_list(), "report": loaded.report["sources"][0]}
    except FinetuneError as error:
        answers[name] = {"exit_code": error.exit_code, "message": str(error)}
print(json.dumps(answers))
"""


def ask(cases: dict, cache: Path, **environment: str) -> dict:
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, json.dumps(cases)],
        cwd=ROOT,
        env={**os.environ, "HF_HOME": str(cache), "HF_DATASETS_CACHE": str(cache / "datasets"), **environment},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


@pytest.fixture(scope="module")
def cache(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("hub")


@pytest.fixture(scope="module")
def answers(cache) -> dict:
    # One process asks everything, since starting one costs more than all its questions.
    with serve() as address:
        return ask(CASES, cache, HF_HUB_OFFLINE="0", HF_ENDPOINT=address)


def test_a_split_is_read_with_its_rows_places_and_commit(answers):
    assert [row["row"] for row in answers["sums"]["rows"]] == [1, 2, 3]
    assert {row["source"] for row in answers["sums"]["rows"]} == {"some/sums"}
    assert answers["sums"]["report"]["commit"] == COMMIT
    assert "1+1" in answers["pinned"]["rows"][0]["example"]
    assert len(answers["limit"]["rows"]) == 2


@pytest.mark.parametrize(
    ("case", "exit_code", "words"),
    [
        ("unmapped", 3, "data.train.columns: {instruction: question, output: answer}"),
        ("split", 2, "no split `validation`; its splits: train, test"),
        ("subset", 2, "data.train.subset"),
        ("revision", 4, "no revision `v9`"),
        ("absent", 4, "no dataset of this name"),
        ("private", 4, "hf auth login"),
        ("gated", 4, "not logged in"),
        ("asked", 4, "no access yet"),
        ("refused", 4, "cannot be reached or answers with an error"),
        ("script", 3, "loading script"),
        ("empty", 3, "no data files"),
    ],
)
def test_what_cannot_be_had_names_its_own_reason(answers, case, exit_code, words):
    assert (answers[case]["exit_code"], words in answers[case]["message"]) == (exit_code, True), answers[case]
    assert len(answers[case]["message"].splitlines()) <= 4


def test_offline_the_cache_answers_but_never_with_another_commit(answers, cache):
    cases = {"sums": CASES["sums"], "other": {**CASES["sums"], "revision": "0" * 40}, "absent": CASES["absent"]}
    offline = ask(cases, cache, HF_HUB_OFFLINE="1")
    assert offline["sums"]["rows"] == answers["sums"]["rows"]
    assert offline["other"]["exit_code"] == offline["absent"]["exit_code"] == 4
    assert "the cache holds commit c0ffeec0ffee" in offline["other"]["message"]
