"""What becomes of every row is counted right, and the label hash changes with every id and every mask."""

import json
from pathlib import Path

import pytest
from datasets import Dataset

from finetune.data.account import build_ends
from finetune.data.census import build_census
from finetune.data.formats import from_json
from finetune.data.label_hash import BLOCK_ROWS, hash_labels
from finetune.data.preference_tokens import build_judged_rows, build_pair_rows
from finetune.data.prompt_tokens import build_prompt_rows
from finetune.data.rendering import Renderer
from finetune.data.sources import load_examples
from finetune.data.templates import load_template
from finetune.data.tokens import TokenRows, build_token_rows
from finetune.errors import DataError
from finetune.model.tokenizer import load_tokenizer
from finetune.recipe.schema import ModelSettings, SourceSettings

TINY_BASE = Path(__file__).parents[2] / "data" / "tiny_base"
STOP, BOS = 2, 1


@pytest.fixture(scope="module")
def tokenizer():
    return load_tokenizer(ModelSettings(model_name_or_path=str(TINY_BASE)))


@pytest.fixture(scope="module")
def renderer(tokenizer) -> Renderer:
    return Renderer(load_template("alpaca", tokenizer), tokenizer)


def load(tmp_path: Path, rows: list[dict], kind: str = "conversation"):
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return load_examples(SourceSettings(path=str(path)), kind=kind, seed=1, on_bad_rows="error")


def build(tmp_path: Path, answers: list[str], renderer: Renderer, *, max_length=1000, too_long="drop") -> TokenRows:
    rows = [{"instruction": "Say it.", "output": answer} for answer in answers]
    return build_token_rows(load(tmp_path, rows), renderer, max_length=max_length, too_long=too_long)


def lines(census: dict, name: str) -> list[int]:
    return [int(place.rpartition(":")[2]) for place in census["first_places"].get(name, [])]


# ---- one row's account

WORDS = [BOS, 10, 11, 20, 21, STOP]  # a prompt of two tokens, an answer of two words and its end
SPAN = [(3, 6)]


@pytest.mark.parametrize(
    ("num_kept", "answer_lost", "end_lost", "unended"),
    [(6, False, False, False), (5, False, True, True), (4, False, False, True), (3, True, False, False)],
)
def test_a_cut_takes_the_end_or_some_words_or_the_whole_answer(num_kept, answer_lost, end_lost, unended):
    ends = build_ends(WORDS, SPAN, num_kept, stop_ids={STOP}, bos_id=BOS)
    assert (ends.answer_lost, ends.end_lost, ends.unended) == (answer_lost, end_lost, unended)


def test_a_second_answer_behind_the_cut_is_lost_though_the_first_stays():
    ends = build_ends([*WORDS, 10, 30, STOP], [(3, 6), (7, 9)], 6, stop_ids={STOP}, bos_id=BOS)
    assert (ends.answer_lost, ends.unended) == (True, False)


def test_an_answer_that_never_had_an_end_token_is_unended():
    assert build_ends(WORDS[:-1], [(3, 5)], 5, stop_ids={STOP}, bos_id=BOS).unended


def test_white_space_trained_behind_the_end_token_does_not_hide_it():
    assert not build_ends([*WORDS, 13], [(3, 7)], 7, stop_ids={STOP}, bos_id=BOS).unended


def test_two_beginning_tokens_are_seen_and_one_is_not():
    assert build_ends([BOS, *WORDS], [(4, 7)], 7, stop_ids={STOP}, bos_id=BOS).begins_twice
    assert not build_ends(WORDS, SPAN, 6, stop_ids={STOP}, bos_id=BOS).begins_twice


# ---- the census of real rows


def test_every_figure_is_that_of_the_rows(renderer, tmp_path):
    rows = build(tmp_path, ["one", "two words", "three words here"], renderer)
    census = rows.report["census"]
    assert census["rows"] == 3
    assert census["tokens"] == sum(map(len, rows.dataset["input_ids"]))
    assert census["trained_tokens"] == sum(label != -100 for row in rows.dataset["labels"] for label in row[1:])
    assert census["trained_share"] == round(census["trained_tokens"] / census["tokens"], 4)
    assert census["sources"] == [
        {
            "path": str(tmp_path / "rows.jsonl"),
            **{name: census[name] for name in ("rows", "tokens", "trained_tokens", "trained_share")},
        }
    ]
    assert census["lengths"]["max"] == max(rows.dataset["length"])
    assert sum(bar["rows"] for bar in census["histogram"]) == 3


def test_rows_are_counted_by_what_the_cut_took_from_them(renderer, tmp_path):
    whole = build(tmp_path, ["one two three four"], renderer).dataset[0]["length"]
    answers = ["one", "one two three four", "one two three four five six"]
    census = build(tmp_path, answers, renderer, max_length=whole - 1, too_long="truncate").report["census"]
    assert (census["cut"], census["ends_lost"], census["unended"], census["answers_lost"]) == (2, 1, 2, 0)
    assert lines(census, "ends_lost") == [2]
    assert lines(census, "unended") == lines(census, "cut") == [2, 3]


def test_a_row_whose_whole_answer_was_cut_off_is_told_from_one_that_has_none(renderer, tmp_path):
    rows = [
        {"messages": [{"role": "user", "content": "why " * 60}, {"role": "assistant", "content": "so"}]},
        {"messages": [{"role": "user", "content": "why"}, {"role": "assistant", "content": "so", "weight": 0}]},
        {"messages": [{"role": "user", "content": "why"}, {"role": "assistant", "content": "so"}]},
    ]
    census = build_token_rows(load(tmp_path, rows), renderer, max_length=60, too_long="truncate").report["census"]
    assert census["dropped"] == {"too_long": 0, "nothing_trained": 2}
    assert lines(census, "nothing_trained") == [1, 2]
    assert lines(census, "answers_lost") == [1]


def test_control_tokens_in_the_text_are_counted_whatever_becomes_of_them(tokenizer, tmp_path):
    answers = ["one", f"two {tokenizer.eos_token} and {tokenizer.eos_token}"]
    for policy in ("escape", "allow"):
        renderer = Renderer(load_template("alpaca", tokenizer), tokenizer, "answers", policy)
        census = build(tmp_path, answers, renderer).report["census"]
        assert census["control_tokens"] == {"rows": 1, "tokens": 2}
        assert lines(census, "control_tokens") == [2]


def test_a_doubled_beginning_is_counted(tokenizer, tmp_path):
    path = tmp_path / "own.jinja"
    path.write_text(
        "{{ bos_token }}{% for message in messages %}{% if message.role == 'user' %}{{ message.content }}"
        "{% else %}{% generation %} {{ message.content }}{{ eos_token }}{% endgeneration %}{% endif %}{% endfor %}"
    )
    renderer = Renderer(load_template(str(path), tokenizer), tokenizer, "answers", "allow")
    rows = [{"instruction": f"{tokenizer.bos_token}why", "output": "so"}, {"instruction": "why", "output": "so"}]
    census = build_token_rows(load(tmp_path, rows), renderer, max_length=99, too_long="drop").report["census"]
    assert census["begins_twice"] == 1
    assert lines(census, "begins_twice") == [1]


def test_pairs_and_prompts_have_a_census_too(renderer, tokenizer, tmp_path):
    end = tokenizer.eos_token
    pairs = [{"prompt": "Say it.", "chosen": f"yes {end}", "rejected": f"no {end}"}]
    rows = build_pair_rows(load(tmp_path, pairs, "preference"), renderer, max_length=99, too_long="drop")
    assert rows.report["census"]["control_tokens"] == {"rows": 1, "tokens": 2}
    assert rows.account[0]["full_trained"] == rows.account[0]["trained"] > 0
    prompts = [{"prompt": f"Say {end}."}, {"prompt": "Say it. " * 40}]
    rows = build_prompt_rows(load(tmp_path, prompts, "prompt"), renderer, max_length=99, too_long="drop")
    assert rows.report["census"]["control_tokens"]["rows"] == 1
    assert rows.report["census"]["dropped"] == {"too_long": 1}
    assert rows.account[1]["prompt"] == []


def test_the_account_holds_every_row_in_its_order_and_the_dropped_ones_without_tokens(renderer, tmp_path):
    limit = build(tmp_path, ["one"], renderer).dataset[0]["length"]
    rows = build(tmp_path, ["one", "one two three", "one"], renderer, max_length=limit)
    assert rows.account["row"][:] == [1, 2, 3]
    assert rows.account["verdict"][:] == ["whole", "too_long", "whole"]
    assert [len(ids) for ids in rows.account["input_ids"]] == [limit, 0, limit]
    assert rows.account["full_length"][1] > limit


def test_the_smallest_length_that_keeps_the_rows_is_found_to_the_token(renderer, tmp_path):
    account = build(tmp_path, ["one"], renderer).account
    lengths = [*range(1, 1001)]  # 99 % of these rows have at most 990 tokens
    of_lengths = Dataset.from_dict(
        {name: account[name][:] * 1000 for name in account.column_names if name != "full_length"}
        | {"full_length": lengths}
    )
    census = build_census(of_lengths, max_length=2000, reasons=("too_long",), tokens_column="length")
    assert census["max_length_keeping"] == {"99%": 990, "99.9%": 999}
    assert census["lengths"]["median"] == 500
    assert sum(bar["rows"] for bar in census["histogram"]) == 1000
    assert census["histogram"][-1]["to"] >= 1000


# ---- the label hash

IDS, LABELS = [[5, 6, 7], [8, 9]], [[-100, 6, 7], [-100, 9]]


def to_rows(ids: list[list[int]] = IDS, labels: list[list[int]] = LABELS, times: int = 1) -> Dataset:
    return Dataset.from_dict({"input_ids": ids * times, "labels": labels * times})


def test_equal_rows_have_equal_sums_however_they_are_stored():
    rows = to_rows()
    assert hash_labels(rows) == hash_labels(rows.select([1, 0]).select([1, 0]))


@pytest.mark.parametrize(
    ("ids", "labels", "ids_differ"),
    [
        ([[5, 6, 4], [8, 9]], [[-100, 6, 4], [-100, 9]], True),
        (IDS, [[-100, -100, 7], [-100, 9]], False),
        ([[5, 6], [7, 8, 9]], [[-100, 6], [7, -100, 9]], True),
        ([[8, 9], [5, 6, 7]], [[-100, 9], [-100, 6, 7]], True),
    ],
    ids=["another token", "another mask", "another border between the rows", "another order"],
)
def test_the_hash_changes_with_any_id_mask_border_or_order(ids, labels, ids_differ):
    before, after = hash_labels(to_rows()), hash_labels(to_rows(ids, labels))
    assert before.all != after.all
    assert (before.ids != after.ids) is ids_differ


def test_blocks_say_where_two_runs_part():
    rows = to_rows(times=BLOCK_ROWS)
    other = [list(row) for row in LABELS * BLOCK_ROWS]
    other[BLOCK_ROWS + 3][1] = -100
    before, after = hash_labels(rows), hash_labels(to_rows(IDS * BLOCK_ROWS, other))
    assert [one == two for one, two in zip(before.blocks, after.blocks, strict=True)] == [True, False]


def test_the_report_of_rows_holds_their_hash(renderer, tmp_path):
    rows = build(tmp_path, ["one", "two"], renderer)
    assert rows.report["label_hash"] == hash_labels(rows.dataset).all
    assert rows.report["label_hash"] != build(tmp_path, ["one", "too"], renderer).report["label_hash"]


# ---- what is trained is not always what is answered


CHAT = [
    {
        "messages": [
            {"role": "user", "content": "Name one."},
            {"role": "assistant", "content": "one"},
            {"role": "user", "content": "Name another one."},
            {"role": "assistant", "content": "two three four"},
        ]
    }
]


@pytest.mark.parametrize("train_on", ["answers", "everything", "last_answer"])
def test_a_lost_answer_is_counted_whatever_else_is_trained(tokenizer, tmp_path, train_on):
    renderer = Renderer(load_template("alpaca", tokenizer), tokenizer, train_on)
    (whole,) = renderer.render([from_json(load(tmp_path, CHAT).dataset[0]["example"])])
    behind_the_first = whole.answers[-1][0] - 1  # within the second question

    limit = max(behind_the_first, 8)
    if train_on == "last_answer":  # nothing else of it carries loss
        with pytest.raises(DataError, match="no row is left"):
            build_token_rows(load(tmp_path, CHAT), renderer, max_length=limit, too_long="truncate")
        return
    census = build_token_rows(load(tmp_path, CHAT), renderer, max_length=limit, too_long="truncate").report["census"]
    assert (census["cut"], census["answers_lost"], census["unended"]) == (1, 1, 0)


def test_a_document_in_pieces_is_counted_once(renderer, tokenizer, tmp_path):
    rows = [{"text": f"word {tokenizer.eos_token} " + "word " * 50}, {"text": "a few words"}]
    built = build_token_rows(load(tmp_path, rows, "document"), renderer, max_length=20, too_long="split")
    census = built.report["census"]
    assert census["rows"] > 3
    assert census["control_tokens"] == {"rows": 1, "tokens": 1}
    assert sum(bar["rows"] for bar in census["histogram"]) == 2
    assert census["lengths"]["min"] < 10 < 50 < census["lengths"]["max"]


def test_the_prompt_of_a_pair_is_counted_once_and_a_dropped_pair_loses_no_answer(renderer, tokenizer, tmp_path):
    pairs = [
        {"prompt": f"Say {tokenizer.eos_token} it.", "chosen": "yes", "rejected": "no"},
        {"prompt": "Say it.", "chosen": "yes " * 60, "rejected": "no"},
    ]
    loaded = load(tmp_path, pairs, "preference")
    census = build_pair_rows(loaded, renderer, max_length=60, too_long="drop").report["census"]
    assert census["control_tokens"] == {"rows": 1, "tokens": 1}
    assert (census["dropped"]["too_long"], census["answers_lost"], census["unended"]) == (1, 0, 0)
    scored = build_pair_rows(loaded, renderer, max_length=60, too_long="drop", trains_tokens=False).report["census"]
    assert (scored["trained_tokens"], scored["tokens"]) == (0, census["tokens"])


def test_the_hash_of_judged_rows_covers_the_answers_to_other_prompts(renderer, tmp_path):
    rows = [{"prompt": f"Say {n}.", "completion": f"said {n}", "label": n % 2 == 0} for n in range(4)]
    loaded = load(tmp_path, rows, "judged")
    before = build_judged_rows(loaded, renderer, max_length=99, too_long="drop")
    assert before.report["label_hash"] == hash_labels(before.dataset).all
    assert {"kl_input_ids", "kl_labels"} <= set(before.dataset.column_names)
