"""The whole pass: every kind at once, the same in every process, cached; and what each policy does."""

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import datasets
import pytest

from finetune.data.glue import load_glue_examples
from finetune.data.quality import inspecting
from finetune.data.quality.finding import FACTS, FINDING_NAMES, quote
from finetune.data.quality.inspecting import find_faults
from finetune.data.quality.policies import apply_policies
from finetune.data.sources import load_examples
from finetune.errors import DataError, PlaceError
from finetune.recipe.schema import SourceSettings
from tests.data.quality.made_up import chat, load

ROWS = [
    chat("What is rain?", "Water that falls from clouds."),
    chat("What is rain?", "Water that falls from clouds."),
    chat("What is rain?", "I'm sorry, but I can't help with that."),
    chat("What is snow?", "\u200b"),
    chat("What is hail?", "N/A"),
    chat("What is your favourite colour?", "As an AI language model, I have none. I like blue."),
    chat("What is fog?", "A cloud on the ground.<|im_end|>"),
    chat("What is mist?", "It isnâ€™t rain."),
    chat("Was ist der Regen und woher kommt er?", "Regen ist Wasser, das aus den Wolken auf die Erde fällt."),
    *(chat(f"What does the word number {n} in this long list mean?", f"It means {n}.") for n in range(40)),
]
WANTED = {
    "duplicates": [1],
    "conflicting_answers": [2],
    "empty_answers": [3],
    "short_answers": [4],
    "refusals": [2],
    "boilerplate": [5],
    "template_leftovers": [6],
    "other_language": [8],
    "encoding_damage": [7],
}
REPORT = dict.fromkeys(FINDING_NAMES, "report")


def load_file(path: Path, kind: str):
    return load_examples(SourceSettings(path=str(path)), kind=kind, seed=0, on_bad_rows="skip")


def test_every_planted_fault_is_found_once_and_nothing_else() -> None:
    findings = find_faults(load(ROWS), [], kind="conversation")
    assert {finding.name: finding.rows.tolist() for finding in findings} == WANTED
    for finding in findings:
        assert finding.count == len(finding.rows)
        assert finding.examples[0].places[0] == f"rows.jsonl:{finding.rows[0] + 1}"
        assert all(0 < len(example.text) <= 160 for example in finding.examples)
        assert finding.advice == FACTS[finding.name].advice


def test_the_findings_are_the_same_from_the_cache(monkeypatch) -> None:
    rows = load(ROWS, name="cached.jsonl")
    first = find_faults(rows, [], kind="conversation")
    monkeypatch.setattr(inspecting, "read_rows", None)
    again = find_faults(rows, [], kind="conversation")
    assert [finding.to_json() for finding in again] == [finding.to_json() for finding in first]
    assert [finding.rows.tolist() for finding in again] == [finding.rows.tolist() for finding in first]
    with pytest.raises(TypeError):
        find_faults(replace(rows, fingerprint="another"), [], kind="conversation")


def test_findings_of_another_version_of_a_library_or_of_other_kinds_are_not_used_again(monkeypatch) -> None:
    rows = load(ROWS, name="versions.jsonl")
    find_faults(rows, [], kind="conversation")
    monkeypatch.setattr(inspecting, "read_rows", None)
    for name, value in (("version", lambda name: "0"), ("KINDS_OF_FINDING", {"refusals": frozenset({"document"})})):
        with monkeypatch.context() as changed:
            changed.setattr(inspecting, name, value)
            with pytest.raises(TypeError):
                find_faults(rows, [], kind="conversation")
    assert find_faults(rows, [], kind="conversation")


def test_a_cache_that_cannot_be_written_is_named(tmp_path, monkeypatch) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "file")
    with pytest.raises(PlaceError, match="HF_DATASETS_CACHE"):
        find_faults(load(ROWS[:2]), [], kind="conversation")


def test_hashes_do_not_depend_on_the_process() -> None:
    code = (
        "from finetune.data.quality.shingles import Signer, find_shingles\n"
        "from finetune.data.quality.texts import hash_texts\n"
        "print(hash_texts('a', 'b'), Signer().sign(find_shingles(['one', 'two', 'three', 'four']))[:4].tolist())"
    )
    seen = {
        subprocess.run(
            [sys.executable, "-c", code],
            env={**os.environ, "PYTHONHASHSEED": seed},
            capture_output=True,
            text=True,
            check=True,
            cwd=Path(__file__).parents[3],
        ).stdout
        for seed in ("1", "2")
    }
    assert len(seen) == 1


def test_most_rows_in_no_one_language_make_the_others_a_note() -> None:
    german = [chat(f"Was bedeutet das {n}. Wort?", f"Das {n}. Wort bedeutet gar nichts Besonderes.") for n in range(20)]
    (finding,) = find_faults(load([*ROWS[9:40], *german]), [], kind="conversation")
    assert (finding.name, finding.severity, finding.count) == ("other_language", "note", 20)
    assert finding.details["main"] == "en"
    assert finding.details["rows_of"] == {"de": 20}


def test_report_keeps_every_row_and_says_what_was_found() -> None:
    train = load(ROWS)
    left, report = apply_policies(find_faults(train, [], kind="conversation"), REPORT, train)
    assert left is train
    assert report["rows_dropped"] == 0
    assert [one["name"] for one in report["findings"]] == [name for name in FINDING_NAMES if name in WANTED]
    assert {one["policy"] for one in report["findings"]} == {"report"}
    json.dumps(report)


def test_drop_takes_its_rows_out_and_changes_the_fingerprint() -> None:
    train = load(ROWS)
    policies = {**REPORT, "refusals": "drop", "conflicting_answers": "drop", "duplicates": "drop"}
    left, report = apply_policies(find_faults(train, [], kind="conversation"), policies, train)
    assert left.dataset["row"][:4] == [1, 4, 5, 6]
    assert report["rows_dropped"] == 2, "row 3 is both a refusal and a conflict"
    dropped = {one["name"]: one["rows_dropped"] for one in report["findings"]}
    assert (dropped["refusals"], dropped["conflicting_answers"]) == (1, 0)
    assert left.fingerprint != train.fingerprint


def drop(examples: list, *names: str, kind: str = "conversation") -> list[int]:
    """The rows that stay, from 0."""
    train = load(examples)
    policies = {**REPORT, **dict.fromkeys(names, "drop")}
    left, _ = apply_policies(find_faults(train, [], kind=kind), policies, train)
    return [row - 1 for row in left.dataset["row"]]


def test_a_good_answer_behind_a_bad_one_stays_when_both_kinds_are_dropped() -> None:
    rows = [chat("What is rain?", "N/A"), chat("What is rain?", "Water."), chat("What is rain?", "Bread.")]
    assert drop(rows, "short_answers", "conflicting_answers") == [1]
    assert drop(rows, "conflicting_answers") == [0]


def test_what_is_near_a_row_that_goes_stays() -> None:
    text = "Rain falls when water in the clouds gathers to drops that are too heavy for the wind to carry, so they"
    rows = [chat("Explain rain.", f"{text} donâ€™t stay up."), chat("Explain rain.", f"{text} do not stay up there.")]
    assert drop(rows, "near_duplicates") == [0]
    assert drop(rows, "near_duplicates", "encoding_damage") == [1]


def test_error_stops_with_the_kind_the_count_the_places_and_what_to_type() -> None:
    train = load(ROWS)
    with pytest.raises(DataError) as caught:
        apply_policies(find_faults(train, [], kind="conversation"), {**REPORT, "refusals": "error"}, train)
    message = str(caught.value)
    assert message.startswith("rows.jsonl:3: refusals: 1 in all, first rows.jsonl:3.")
    assert "data.findings: {refusals: drop}" in message
    assert len(message.splitlines()) <= 4


def test_dropping_every_row_is_an_error_that_names_what_was_found() -> None:
    train = load([chat("What is hail?", "N/A")])
    with pytest.raises(DataError, match=r"nothing is left.*\n.*short_answers 1"):
        apply_policies(find_faults(train, [], kind="conversation"), {**REPORT, "short_answers": "drop"}, train)


def test_a_quote_is_one_line_of_at_most_160_characters_about_the_fault() -> None:
    text = "start " * 100 + "THE\nFAULT" + " end" * 100
    shown = quote(text, text.index("THE"))
    assert "THE FAULT" in shown
    assert len(shown) <= 160
    assert shown.startswith("…")
    assert shown.endswith("…")
    assert quote("some\x85 words") == r"some\x85 words", "the damage that is quoted shows"
    assert quote("a\n b\x96\u200b\x1b[2J") == r"a b\x96\u200b\x1b[2J"


def test_the_tool_calls_of_glaive_hold_35_duplicates(shared_data) -> None:
    train = load_file(shared_data / "chat" / "glaive_toolcall_en_demo.json", "conversation")
    found = {finding.name: finding.count for finding in find_faults(train, [], kind="conversation")}
    assert found["duplicates"] == 35


@pytest.mark.slow
def test_imdb_repeats_a_review_and_shares_one_with_its_test_rows(shared_data) -> None:
    folder = shared_data / "imdb"
    train, test = (load_file(folder / f"imdb_{one}.csv", "labelled") for one in ("train_2000", "test_1000"))
    found = {finding.name: finding.count for finding in find_faults(train, [(test, "labelled")], kind="labelled")}
    assert (found["duplicates"], found["eval_overlap"]) == (1, 1)


def test_cola_shares_16_sentences_with_its_development_rows(shared_data) -> None:
    source = SourceSettings(path=str(shared_data / "glue"))
    train, dev = (
        load_glue_examples(source, "cola", role, on_bad_rows="skip", setting="data.train")[""]
        for role in ("train", "eval")
    )
    found = {finding.name: finding.count for finding in find_faults(train, [(dev, "labelled")], kind="labelled")}
    assert (found["duplicates"], found["conflicting_answers"], found["eval_overlap"]) == (8, 11, 16)
