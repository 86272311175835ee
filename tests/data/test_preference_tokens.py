"""Pairs and verdicts to tokens: answers alone are marked, and a row that teaches nothing is counted."""

import json
from pathlib import Path

import numpy as np
import pytest

from finetune.data.batches import IGNORE_INDEX
from finetune.data.preference_tokens import build_judged_rows, build_pair_rows
from finetune.data.rendering import Renderer
from finetune.data.sources import load_examples
from finetune.data.templates import load_template
from finetune.data.tokens import TokenRows
from finetune.errors import DataError
from finetune.model.tokenizer import load_tokenizer
from finetune.recipe.schema import ModelSettings, SourceSettings

STARTS = {"alpaca": "### Response:\n", "mistral": "[/INST]"}


@pytest.fixture(scope="module")
def tokenizer(tiny_base):
    return load_tokenizer(ModelSettings(model_name_or_path=str(tiny_base)))


@pytest.fixture(scope="module", params=["alpaca", "mistral"])
def renderer(request, tokenizer) -> Renderer:
    return Renderer(load_template(request.param, tokenizer), tokenizer)


def pair(chosen: str, rejected: str, prompt: str = "Is it?") -> dict[str, str]:
    return {"prompt": prompt, "chosen": chosen, "rejected": rejected}


def build(kind: str, rows: list[dict], renderer: Renderer, folder: Path, **settings) -> TokenRows:
    path = folder / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    loaded = load_examples(SourceSettings(path=str(path)), kind=kind, seed=1, on_bad_rows="error")
    builder = build_pair_rows if kind == "preference" else build_judged_rows
    return builder(loaded, renderer, **({"max_length": 1000, "too_long": "drop"} | settings))


def trained_text(labels: list[int], renderer: Renderer) -> str:
    return renderer.tokenizer.decode([label for label in labels if label != IGNORE_INDEX]).strip()


def places(rows: TokenRows, reason: str) -> list[str]:
    return [place.rpartition(":")[2] for place in rows.report["census"]["first_places"][reason]]


def test_answers_and_their_end_are_marked_behind_one_prompt(renderer, tmp_path):
    conversation = [
        {"role": "user", "content": "Hi."},
        {"role": "assistant", "content": "Hello."},
        {"role": "user", "content": "Is it?"},
    ]
    answers = [{"role": "assistant", "content": text} for text in ("Yes, it is.", "No.")]
    row = {"prompt": conversation, "chosen": answers[:1], "rejected": answers[1:]}
    (tokens,) = build("preference", [row], renderer, tmp_path).dataset
    assert trained_text(tokens["chosen_labels"], renderer) == "Yes, it is.</s>"
    assert trained_text(tokens["rejected_labels"], renderer) == "No.</s>"
    start = next(place for place, label in enumerate(tokens["chosen_labels"]) if label != IGNORE_INDEX)
    assert tokens["chosen_ids"][:start] == tokens["rejected_ids"][:start]
    prompt = renderer.tokenizer.decode(tokens["chosen_ids"][:start])
    assert prompt.rstrip(" ").endswith(STARTS[renderer.template.name])
    assert "Hello.</s>" in prompt
    assert tokens["length"] == len(tokens["chosen_ids"]) > len(tokens["rejected_ids"])


def test_the_prompt_of_a_pair_is_the_one_that_is_served(renderer, tmp_path):
    row = build("preference", [pair("Yes.", "No.")], renderer, tmp_path).dataset[0]
    start = row["chosen_labels"].count(IGNORE_INDEX)
    loaded = load_examples(
        SourceSettings(path=str(tmp_path / "rows.jsonl")), kind="prompt", seed=1, on_bad_rows="error"
    )
    asked = json.loads(loaded.dataset[0]["example"])["messages"]
    assert row["chosen_ids"][:start] == renderer.tokenizer.apply_chat_template(
        asked, chat_template=renderer.template.serving_source, add_generation_prompt=True, return_dict=False
    )


def test_the_report_counts_both_answers_and_every_row_read(renderer, tmp_path):
    rows = build("preference", [pair("Yes.", "No."), pair("a b c", "d")], renderer, tmp_path)
    ids = [row[name] for row in rows.dataset for name in ("chosen_ids", "rejected_ids")]
    labels = [row[name] for row in rows.dataset for name in ("chosen_labels", "rejected_labels")]
    assert (rows.report["rows_read"], rows.report["census"]["rows"], rows.report["census"]["cut"]) == (2, 2, 0)
    assert rows.report["census"]["tokens"] == sum(map(len, ids))
    assert rows.report["census"]["trained_tokens"] == sum(label != IGNORE_INDEX for row in labels for label in row)
    assert set(rows.report["census"]["dropped"].values()) == {0}


def test_a_pair_is_dropped_when_either_answer_is_too_long(renderer, tmp_path):
    limit = build("preference", [pair("Yes.", "No.")], renderer, tmp_path).dataset[0]["length"]
    rows = [pair("Yes.", "No."), pair("Yes. " * 40, "No."), pair("Yes.", "No. " * 40)]
    built = build("preference", rows, renderer, tmp_path, max_length=limit)
    assert built.report["census"]["dropped"]["too_long"] == 2
    assert places(built, "too_long") == ["2", "3"]
    with pytest.raises(DataError, match=rf"rows.jsonl:2: the row has \d+ tokens and `data.max_length` is {limit}"):
        build("preference", rows, renderer, tmp_path, max_length=limit, too_long="error")


def test_truncation_keeps_what_tells_answers_apart_and_counts_the_pairs_that_lose_it(renderer, tmp_path):
    same = "It is the same at first. " * 4
    rows = [
        pair("Yes.", "No."),
        pair(f"Yes. {same}", f"No. {same}"),
        pair(f"{same * 4} Yes.", f"{same * 4} No."),
        pair("Yes.", "No.", prompt="Why? " * 200),
    ]
    limit = build("preference", rows[:1], renderer, tmp_path).dataset[0]["length"] + 10
    built = build("preference", rows, renderer, tmp_path, max_length=limit, too_long="truncate")
    assert built.report["census"]["dropped"] == {
        "too_long": 0,
        "nothing_trained": 1,
        "equal_in_tokens": 0,
        "equal_after_cut": 1,
    }
    assert (places(built, "cut"), places(built, "equal_after_cut"), places(built, "nothing_trained")) == (
        ["2"],
        ["3"],
        ["4"],
    )
    assert built.dataset["length"][1] == limit
    assert all(row["chosen_labels"] != row["rejected_labels"] for row in built.dataset)


def test_answers_that_the_template_makes_equal_are_dropped(tokenizer, tmp_path):
    # Llama 2's template trims texts.
    renderer = Renderer(load_template("llama2", tokenizer), tokenizer)
    rows = build("preference", [pair("Yes.", "No."), pair("Yes.", " Yes. \n")], renderer, tmp_path)
    assert rows.report["census"]["dropped"]["equal_in_tokens"] == 1
    assert places(rows, "equal_in_tokens") == ["2"]


def test_no_pair_left_is_a_data_error_that_says_what_became_of_them(renderer, tmp_path):
    with pytest.raises(DataError, match=r"rows.jsonl:1: no row is left, of 1 read: 1 have more than 9 tokens"):
        build("preference", [pair("Yes.", "No.")], renderer, tmp_path, max_length=9)


def test_an_answer_is_never_split(renderer, tmp_path):
    with pytest.raises(ValueError, match="cannot be split"):
        build("preference", [pair("Yes.", "No.")], renderer, tmp_path, too_long="split")


def judged(prompt: str, completion: str, label: bool) -> dict:
    return {"prompt": prompt, "completion": completion, "label": label}


def test_the_kl_takes_the_prompt_of_a_row_and_the_answer_of_the_next(renderer, tmp_path):
    rows = build(
        "judged",
        [judged("One?", "1", True), judged("Two?", "22", False), judged("Six?", "6", True)],
        renderer,
        tmp_path,
    )
    assert [trained_text(row["labels"], renderer) for row in rows.dataset] == ["1</s>", "22</s>", "6</s>"]
    assert [trained_text(row["kl_labels"], renderer) for row in rows.dataset] == ["22</s>", "6</s>", "1</s>"]
    assert rows.dataset["desirable"][:] == [True, False, True]
    assert (rows.report["desirable_rows"], rows.report["undesirable_rows"]) == (2, 1)
    for row in rows.dataset:
        start = next(place for place, label in enumerate(row["labels"]) if label != IGNORE_INDEX)
        assert row["kl_input_ids"][:start] == row["input_ids"][:start]
        assert row["kl_labels"] == [IGNORE_INDEX] * start + row["kl_input_ids"][start:]


def test_the_kl_passes_over_the_other_answer_to_the_same_prompt_and_over_the_same_answer(renderer, tmp_path):
    rows = build("judged", [pair("1", "9", "One?"), pair("2", "9", "Two?")], renderer, tmp_path)
    assert [trained_text(row["kl_labels"], renderer) for row in rows.dataset] == ["2</s>", "2</s>", "1</s>", "1</s>"]


def test_where_all_prompts_are_the_same_the_kl_takes_another_answer(renderer, tmp_path):
    rows = build("judged", [judged("One?", text, True) for text in ("a", "a", "b")], renderer, tmp_path)
    assert [trained_text(row["kl_labels"], renderer) for row in rows.dataset] == ["b</s>", "b</s>", "a</s>"]
    assert len(build("judged", [judged("One?", "1", True)], renderer, tmp_path).dataset) == 1


def test_judged_rows_and_those_of_the_kl_are_cut_to_the_limit(renderer, tmp_path):
    data = [judged("One?", "1", True), judged("Two? " * 6, "2", True), judged("Six?", "6 " * 90, False)]
    limit = build("judged", data[1:2], renderer, tmp_path).dataset[0]["length"]
    cut = build("judged", data, renderer, tmp_path, max_length=limit, too_long="truncate")
    assert (cut.report["census"]["rows"], cut.report["census"]["cut"], places(cut, "cut")) == (3, 1, ["3"])
    assert max(len(row["kl_input_ids"]) for row in cut.dataset) == limit
    assert all(any(label != IGNORE_INDEX for label in row["kl_labels"]) for row in cut.dataset)
    dropped = build("judged", data, renderer, tmp_path, max_length=limit)
    assert dropped.report["census"]["dropped"] == {"too_long": 1, "nothing_trained": 0}


@pytest.mark.parametrize("kind", ["preference", "judged"])
@pytest.mark.parametrize("change", ["max_length", "too_long", "content", "template"])
def test_the_fingerprint_changes_with_whatever_changes_the_tokens(kind, change, tokenizer, tmp_path):
    renderer = Renderer(load_template("alpaca", tokenizer), tokenizer)
    rows = [pair("Yes.", "No."), pair("a", "b")]
    before = build(kind, rows, renderer, tmp_path).fingerprint
    assert build(kind, rows, renderer, tmp_path).fingerprint == before
    if change == "template":
        after = build(kind, rows, Renderer(load_template("mistral", tokenizer), tokenizer), tmp_path)
    elif change == "content":
        after = build(kind, rows[::-1], renderer, tmp_path)
    else:
        changed = {"max_length": 999, "too_long": "truncate"}
        after = build(kind, rows, renderer, tmp_path, **{change: changed[change]})
    assert after.fingerprint != before


@pytest.mark.parametrize("too_long", ["drop", "truncate"])
def test_every_real_pair_that_stays_can_be_told_apart(too_long, renderer, shared_data):
    source = SourceSettings(path=str(shared_data / "preference/hh_harmless_base_test.jsonl.gz"), limit=600)
    loaded = load_examples(source, kind="preference", seed=1, on_bad_rows="skip")
    rows = build_pair_rows(loaded, renderer, max_length=256, too_long=too_long)
    assert (
        rows.report["census"]["rows"] + sum(rows.report["census"]["dropped"].values())
        == rows.report["rows_read"]
        == 600
    )
    assert rows.report["census"]["rows"] > 200
    for row in rows.dataset:
        chosen, rejected = (np.array(row[name]) for name in ("chosen_labels", "rejected_labels"))
        assert (chosen[1:] != IGNORE_INDEX).any() and (rejected[1:] != IGNORE_INDEX).any()
        assert not np.array_equal(chosen[chosen != IGNORE_INDEX], rejected[rejected != IGNORE_INDEX])
        assert row["length"] == max(len(chosen), len(rejected)) <= 256
