"""Datasets of the Hub, from a stand-in on this machine: rows at a commit, and each refusal with its own way out."""

import json
import os
import subprocess
import sys
from pathlib import Path

import datasets
import httpx
import pytest
from huggingface_hub.errors import HfHubHTTPError

from finetune.data import hub
from finetune.data.hub import load_hub_rows
from finetune.errors import PlaceError
from finetune.recipe.schema import SourceSettings
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
    "forbidden": {"path": "some/forbidden"},
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
        ("forbidden", 4, "refuses it to your token (403)"),
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


def answer(status: int) -> HfHubHTTPError:
    request = httpx.Request("HEAD", "https://hub/datasets/some/sums")
    return HfHubHTTPError(f"{status}", response=httpx.Response(status, request=request))


@pytest.mark.parametrize(
    ("cause", "words", "action"),
    [
        (answer(503), "out of order, it answers 503 time after time", "status.huggingface.co"),
        (answer(403), "refuses it to your token (403)", "hf auth login"),
        (httpx.ReadTimeout("timed out"), "did not answer in time", "hf download --repo-type dataset some/sums"),
        (httpx.ConnectError("refused"), "cannot be reached", "hf download --repo-type dataset some/sums"),
    ],
    ids=["5xx", "403", "timeout", "refused connection"],
)
def test_a_hub_that_cannot_be_asked_is_asked_twice_and_each_reason_has_its_words(monkeypatch, cause, words, action):
    asked = []

    def ask(url: str) -> None:
        asked.append(url)
        raise cause

    monkeypatch.setattr(hub, "get_hf_file_metadata", ask)
    monkeypatch.setattr(hub, "_PAUSE_SECONDS", 0)
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", False)
    with pytest.raises(PlaceError) as refusal:
        load_hub_rows(SourceSettings(path="some/sums"), "data.train")
    first, _, rest = str(refusal.value).partition("\n")
    assert words in first
    assert action in rest
    assert len(asked) == (1 if "403" in words else 2)


def test_what_the_library_meets_behind_that_is_told_by_its_cause_too(monkeypatch):
    def load(*args: object, **kwargs: object) -> None:
        raise ConnectionError("Couldn't reach 'some/sums' on the Hub") from answer(502)

    monkeypatch.setattr(hub, "_check_reachable", lambda source: None)
    monkeypatch.setattr(datasets, "load_dataset_builder", load)
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", False)
    with pytest.raises(PlaceError, match="out of order, it answers 502"):
        load_hub_rows(SourceSettings(path="some/sums"), "data.train")
