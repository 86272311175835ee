"""The rows shown are those that are trained: first ones, one by its number, dropped ones with the reason."""

import pytest

from finetune.data.examples import Origin
from finetune.inspection.rows import explain_verdict, find_rows_at, find_rows_numbered, take_first_rows, to_object
from finetune.prepare import prepare
from tests.inspection.small_previews import LONG, build_small_recipe, write_model_without_weights, write_rows


@pytest.fixture(scope="module")
def model(tmp_path_factory, tiny_base):
    return write_model_without_weights(tmp_path_factory.mktemp("rows") / "model", tiny_base)


@pytest.fixture
def prepared(model, tmp_path):
    """Prepare rows under an objective; gives what `prepare` gives."""

    def of(rows, objective="sft", **data):
        return prepare(build_small_recipe(model, write_rows(tmp_path / "rows.jsonl", rows), objective, **data))

    return of


def ask(answer: str) -> dict[str, str]:
    return {"instruction": "Say it", "output": answer}


def test_the_first_rows_are_the_first_that_are_trained_on(prepared):
    train = prepared([ask("one"), ask(LONG), ask("three"), ask("four")], packing=False).train
    rows = take_first_rows(train.account, 2, objective="sft")
    assert [row.place.row for row in rows] == [1, 3]
    assert [part["ids"] for row in rows for part in to_object(row)] == [
        train.dataset[place]["input_ids"] for place in (0, 1)
    ]


def test_what_is_trained_is_what_the_labels_say_and_never_the_first_token(prepared):
    train = prepared([{"text": "all of it is trained"}], "pretrain").train
    (row,) = take_first_rows(train.account, 1, objective="pretrain")
    assert row.parts[0].trained == [False] + [True] * (len(row.parts[0].ids) - 1)
    assert sum(row.parts[0].trained) == train.report["census"]["trained_tokens"]


def test_a_dropped_row_says_why(prepared):
    account = prepared([ask("one"), ask(LONG)]).train.account
    (row,) = find_rows_numbered(account, 2, objective="sft")
    assert (row.is_kept, row.parts[0].ids) == (False, [])
    said = explain_verdict(row, 100)
    assert said == f"dropped: it has {row.full_length} tokens and `data.max_length` is 100"


def test_a_cut_row_says_how_much_is_gone(prepared):
    account = prepared([ask(LONG)], too_long="truncate").train.account
    (row,) = find_rows_numbered(account, 1, objective="sft")
    assert explain_verdict(row, 100) == f"cut: {row.full_length - 100} of its {row.full_length} tokens"
    assert row.facts["unended"] is True


def test_a_split_row_shows_each_of_its_pieces(prepared):
    account = prepared([{"text": LONG}], "pretrain").train.account
    pieces = find_rows_numbered(account, 1, objective="pretrain")
    assert len(pieces) == len(account) > 1
    assert explain_verdict(pieces[0], 100) == f"a piece of a row of {pieces[0].full_length} tokens"


def test_rows_are_counted_as_they_were_read_whatever_pieces_they_were_split_into(prepared):
    account = prepared([{"text": LONG}, {"text": LONG}, {"text": "short"}], "pretrain").train.account
    (row,) = find_rows_numbered(account, 3, objective="pretrain")
    assert (row.number, row.place.row) == (3, 3)
    assert {piece.place.row for piece in find_rows_numbered(account, 2, objective="pretrain")} == {2}


def test_a_row_is_found_by_its_place_in_its_own_file(prepared):
    account = prepared([ask("one"), ask("two")]).train.account
    source = account[0]["source"]
    (row,) = find_rows_at(account, Origin(source, 2), objective="sft")
    assert row.number == 2
    assert find_rows_at(account, Origin("another.jsonl", 2), objective="sft") == []


def test_a_number_that_no_row_has_finds_none(prepared):
    assert find_rows_numbered(prepared([ask("one")]).train.account, 2, objective="sft") == []


def test_a_pair_has_two_parts(prepared):
    train = prepared([{"prompt": "Say it", "chosen": "yes", "rejected": "no"}], "dpo").train
    (row,) = take_first_rows(train.account, 1, objective="dpo")
    chosen, rejected = to_object(row)
    assert (chosen["part"], rejected["part"]) == ("chosen", "rejected")
    assert (chosen["ids"], rejected["ids"]) == (train.dataset[0]["chosen_ids"], train.dataset[0]["rejected_ids"])
    assert sum(chosen["trained"]) + sum(rejected["trained"]) == train.report["census"]["trained_tokens"]


def test_of_a_pair_whose_score_is_trained_no_token_is_marked(prepared):
    train = prepared([{"prompt": "Say it", "chosen": "yes", "rejected": "no"}], "reward").train
    (row,) = take_first_rows(train.account, 1, objective="reward")
    assert [part.name for part in row.parts] == ["chosen", "rejected"]
    assert all(part.ids and not any(part.trained) for part in row.parts)


def test_a_judged_answer_says_how_it_was_judged(prepared):
    rows = [{"prompt": "Say it", "completion": word, "label": word == "yes"} for word in ("yes", "no")]
    account = prepared(rows, "kto").train.account
    assert [row.facts["desirable"] for row in take_first_rows(account, 2, objective="kto")] == [True, False]


def test_nothing_of_a_prompt_is_trained_and_its_reference_is_told(prepared):
    account = prepared([ask("one")], "grpo").train.account
    (row,) = take_first_rows(account, 1, objective="grpo")
    assert not any(row.parts[0].trained)
    assert row.facts["reference"] == "one"
