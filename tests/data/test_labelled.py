"""Labelled texts: read from every kind of file, turned into rows whose tokens and labels can be checked by eye."""

import gzip
import json
from pathlib import Path

import pytest
import torch

from finetune.data.batches import LabelCollator
from finetune.data.examples import Labelled, from_json, labelled_from_json, to_json
from finetune.data.label_rows import build_label_rows, count_labels, find_labels, find_majority_label, take_shots
from finetune.data.sources import LoadedExamples, load_examples
from finetune.errors import DataError, RecipeError
from finetune.recipe.schema import SourceSettings
from tests.data.small_encoder import CLS, PAD, SEP, UNK, build_tokenizer, ids_of

FILMS = [
    {"text": "the film was good", "label": "good"},
    {"text": "the play was dull", "label": "bad"},
    {"text": "a great play", "label": "good"},
    {"text": "an old film", "label": "bad"},
    {"text": "a fine new film", "label": "good"},
]


def load(path: Path | str, *, kind: str = "labelled", on_bad_rows: str = "error", **source) -> LoadedExamples:
    return load_examples(SourceSettings(path=str(path), **source), kind=kind, seed=0, on_bad_rows=on_bad_rows)


def write_jsonl(path: Path, rows: list[dict]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def read(loaded: LoadedExamples) -> list[Labelled]:
    return [labelled_from_json(text) for text in loaded.dataset["example"]]


@pytest.fixture
def films(tmp_path) -> LoadedExamples:
    return load(write_jsonl(tmp_path / "films.jsonl", FILMS))


# ---- reading


def test_a_labelled_text_survives_its_json_and_is_not_taken_for_a_document():
    for example in (Labelled("a", "b", "c"), Labelled("a", None, 2.5), Labelled("a", "", None)):
        assert labelled_from_json(to_json(example)) == example
    with pytest.raises(KeyError):
        from_json(to_json(Labelled("a")))


@pytest.mark.parametrize(
    ("written", "label"),
    [(1, "1"), (True, "true"), ("pos", "pos"), (2.5, 2.5), (None, None), ("", None)],
    ids=["integer", "truth", "name", "number", "null", "empty"],
)
def test_labels_are_names_but_numbers_with_a_fraction_stay_numbers(written, label, tmp_path):
    (only,) = read(load(write_jsonl(tmp_path / "rows.jsonl", [{"text": "a", "label": written}])))
    assert only == Labelled("a", None, label)
    assert type(only.label) is type(label)


def test_the_same_rows_come_out_of_csv_tsv_and_json(tmp_path, films):
    header, rows = "text{0}label\n", [f"{row['text']}{{0}}{row['label']}\n" for row in FILMS]
    for name, sign in (("films.csv", ","), ("films.tsv", "\t")):
        (tmp_path / name).write_text("".join([header, *rows]).format(sign))
    with gzip.open(tmp_path / "films.tsv.gz", "wt") as file:
        file.write((tmp_path / "films.tsv").read_text())
    for name in ("films.csv", "films.tsv", "films.tsv.gz"):
        assert read(load(tmp_path / name)) == read(films)


def test_tsv_keeps_quotation_marks_and_line_separators_and_drops_mark_and_carriage_returns(tmp_path):
    content = '\ufefftext\tlabel\r\n" a lone quote\t1\r\n""\u2028x\x85y\t0\r\n'
    (tmp_path / "rows.tsv").write_bytes(content.encode())
    assert read(load(tmp_path / "rows.tsv")) == [
        Labelled('" a lone quote', None, "1"),
        Labelled('""\u2028x\x85y', None, "0"),
    ]


@pytest.mark.parametrize(
    ("content", "line", "words"),
    [
        (b"text\tlabel\na\tb\nc\n", 3, "another number of fields than the header: 1 for 2"),
        (b"text\tlabel\na\tb\nc\td\te\n", 3, "another number of fields than the header: 3 for 2"),
        (b"text\tlabel\na\tb\n\nc\td\n", 3, "a blank line between rows"),
        (b"text\tlabel\na\tb\ncaf\xe9\td\n", 3, "not UTF-8 (column `text`)"),
        (b"text\tlabel\na\tb\nc\0\td\n", 3, "a NUL character in a text"),
        (b"text\ttext\na\tb\n", 1, "the header names `text` twice"),
        (b"", 1, "the file is empty"),
        (b"text\tlabel\na\tb\n \td\n", 3, "`text` is empty"),
    ],
    ids=["too few", "too many", "blank", "not UTF-8", "NUL", "twice", "empty", "no text"],
)
def test_a_fault_planted_in_tsv_is_named_with_its_line(content, line, words, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("rows.tsv").write_bytes(content)
    with pytest.raises(DataError) as caught:
        load("rows.tsv")
    assert str(caught.value).startswith(f"rows.tsv:{line}: {words}")
    if line == 3:
        assert load("rows.tsv", on_bad_rows="skip").report["sources"][0]["bad_rows"] == 1


def test_a_label_of_another_type_is_a_fault(tmp_path):
    path = write_jsonl(tmp_path / "rows.jsonl", [{"text": "a", "label": ["x"]}])
    with pytest.raises(DataError, match="`label` is neither a text nor a number"):
        load(path)
    with pytest.raises(DataError, match="`text_pair` is not text"):
        load(write_jsonl(tmp_path / "pairs.jsonl", [{"text": "a", "text_pair": 3, "label": "x"}]))


def test_columns_of_other_names_get_a_mapping_proposed(tmp_path):
    path = write_jsonl(tmp_path / "rows.jsonl", [{"review": "a", "sentiment": "x"}])
    with pytest.raises(DataError, match=r"columns: \{text: review, label: sentiment\}"):
        load(path)
    pairs = write_jsonl(tmp_path / "pairs.jsonl", [{"sentence1": "a", "sentence2": "b", "label": "x"}])
    with pytest.raises(DataError, match=r"columns: \{text: sentence1, text_pair: sentence2, label: label\}"):
        load(pairs)
    mapped = load(pairs, columns={"text": "sentence1", "text_pair": "sentence2"})
    assert read(mapped) == [Labelled("a", "b", "x")]
    with pytest.raises(DataError, match=r"no column `sentence_2`, .*\n  Did you mean `sentence2`"):
        load(pairs, columns={"text": "sentence1", "text_pair": "sentence_2"})


def test_labelled_rows_and_another_objective_are_told_apart(tmp_path, films):
    path = write_jsonl(tmp_path / "rows.jsonl", FILMS)
    with pytest.raises(RecipeError, match=r"classify labelled\s+texts"):
        load(path, kind="conversation", format="labelled")
    with pytest.raises(DataError, match=r"hold labelled texts.*\n.*objective: classify"):
        load(path, kind="preference")


def test_a_real_csv_is_read_whole(shared_data):
    train = load(shared_data / "imdb/imdb_train_2000.csv")
    assert count_labels(train) == {"0": 1000, "1": 1000}


# ---- labels


def test_labels_are_found_sorted_and_numbers_by_their_worth(tmp_path, films):
    assert find_labels(films) == ["bad", "good"]
    assert count_labels(films) == {"bad": 2, "good": 3}
    assert find_majority_label(films) == "good"
    stars = load(write_jsonl(tmp_path / "stars.jsonl", [{"text": "a", "label": n} for n in (10, 9, 2, 10)]))
    assert find_labels(stars) == ["2", "9", "10"]


def test_rows_of_one_label_or_none_are_refused(tmp_path):
    one = load(write_jsonl(tmp_path / "one.jsonl", [{"text": "a", "label": "x"}] * 3))
    with pytest.raises(DataError, match=r"one.jsonl: the rows have only the label `x`"):
        find_labels(one)
    none = load(write_jsonl(tmp_path / "none.jsonl", [{"text": "a"}]))
    with pytest.raises(DataError, match=r"none.jsonl: the rows have no label"):
        find_labels(none)


def test_shots_are_so_many_of_each_label_by_the_seed(tmp_path):
    rows = [{"text": f"{n}", "label": "odd" if n % 2 else "even"} for n in range(40)]
    loaded = load(write_jsonl(tmp_path / "rows.jsonl", rows))
    taken = take_shots(loaded, 4, seed=1)
    assert count_labels(taken) == {"even": 4, "odd": 4}
    places = taken.dataset["row"][:]
    assert places == sorted(places)
    again, other = take_shots(loaded, 4, seed=1), take_shots(loaded, 4, seed=2)
    assert again.dataset["row"][:] == places
    assert again.fingerprint == taken.fingerprint
    assert other.dataset["row"][:] != places
    assert other.fingerprint != taken.fingerprint
    with pytest.raises(DataError, match=r"the label `even` has 20 rows, and `classification.shots` asks for 21"):
        take_shots(loaded, 21, seed=1)


# ---- tokens


def build(loaded: LoadedExamples, **settings):
    chosen = {"labels": ["good", "bad"], "max_length": 16, "too_long": "drop", **settings}
    return build_label_rows(loaded, build_tokenizer(), **chosen)


def test_a_row_is_what_the_tokenizer_makes_of_it_with_its_labels_place(films):
    rows = build(films)
    assert rows.dataset[0] == {
        "input_ids": [CLS, *ids_of("the", "film", "was", "good"), SEP],
        "token_type_ids": [0] * 6,
        "label": 0,
        "length": 6,
    }
    assert rows.dataset["label"][:] == [0, 1, 0, 1, 0]
    assert (rows.report["census"]["rows"], rows.report["census"]["tokens"]) == (5, sum(rows.dataset["length"]))


def test_a_pair_is_one_row_with_its_types_and_the_longer_text_is_cut(tmp_path):
    pair = {"text": "one two three four five six", "text_pair": "a film", "label": "good"}
    loaded = load(write_jsonl(tmp_path / "rows.jsonl", [pair]))
    (whole,) = build(loaded).dataset
    assert whole["input_ids"] == [CLS, *ids_of(*pair["text"].split()), SEP, *ids_of("a", "film"), SEP]
    assert whole["token_type_ids"] == [0] * 8 + [1] * 3
    cut = build(loaded, max_length=8, too_long="truncate")
    assert cut.dataset[0]["input_ids"] == [CLS, *ids_of("one", "two", "three"), SEP, *ids_of("a", "film"), SEP]
    assert cut.report["census"]["cut"] == 1
    turned = {"text": pair["text_pair"], "text_pair": pair["text"], "label": "good"}
    (row,) = build(load(write_jsonl(tmp_path / "turned.jsonl", [turned])), max_length=8, too_long="truncate").dataset
    assert row["input_ids"] == [CLS, *ids_of("a", "film"), SEP, *ids_of("one", "two", "three"), SEP]
    own = build_tokenizer()(pair["text"], pair["text_pair"], truncation=True, max_length=8)
    assert cut.dataset[0]["input_ids"] == own["input_ids"]
    assert cut.dataset[0]["token_type_ids"] == own["token_type_ids"]


def test_a_row_that_is_too_long_is_dropped_and_counted_or_stops(films):
    rows = build(films, max_length=5)
    assert rows.dataset["label"][:] == [0, 1]
    assert rows.report["census"]["dropped"] == {"too_long": 3}
    with pytest.raises(DataError, match=r"films.jsonl:1: the row has 6 tokens and `data.max_length` is 5"):
        build(films, max_length=5, too_long="error")


def test_a_tokenizer_without_types_gives_none(films):
    rows = build_label_rows(
        films, build_tokenizer(with_types=False), labels=["bad", "good"], max_length=16, too_long="drop"
    )
    assert rows.dataset.column_names == ["input_ids", "label", "length"]


def test_reading_rows_leaves_the_tokenizer_as_it_was_and_the_fingerprint_alone(films):
    tokenizer = build_tokenizer()
    before = tokenizer.backend_tokenizer.to_str()
    settings = {"labels": ["bad", "good"], "max_length": 4, "too_long": "truncate"}
    first = build_label_rows(films, tokenizer, **settings)
    assert tokenizer.backend_tokenizer.to_str() == before
    assert build_label_rows(films, tokenizer, **settings).fingerprint == first.fingerprint
    assert (
        build_label_rows(films, tokenizer, **{**settings, "labels": ["good", "bad"]}).fingerprint != first.fingerprint
    )


def test_a_control_token_in_a_text_is_broken_up_unless_allowed(tmp_path):
    loaded = load(write_jsonl(tmp_path / "rows.jsonl", [{"text": "a [SEP] film", "label": "good"}]))
    assert build(loaded).dataset[0]["input_ids"].count(SEP) == 1
    assert build(loaded, special_tokens_in_data="allow").dataset[0]["input_ids"].count(SEP) == 2
    with pytest.raises(DataError, match=r"rows.jsonl:1: the control token '\[SEP\]'"):
        build(loaded, special_tokens_in_data="error")


@pytest.mark.parametrize(
    ("label", "words"),
    [("fine", "the label `fine` is not among `good`, `bad`"), (None, "the row has no label")],
    ids=["unknown", "absent"],
)
def test_a_label_that_is_not_known_is_named_with_its_line(label, words, tmp_path):
    loaded = load(write_jsonl(tmp_path / "rows.jsonl", [FILMS[0], {"text": "a", "label": label}]))
    with pytest.raises(DataError) as caught:
        build(loaded)
    assert f"rows.jsonl:2: {words}" in str(caught.value)


def test_rows_to_be_labelled_need_no_label_and_keep_their_places(tmp_path):
    loaded = load(write_jsonl(tmp_path / "rows.jsonl", [{"text": "a film", "label": "unheard of"}, {"text": "xyz"}]))
    rows = build(loaded, needs_labels=False)
    assert "label" not in rows.dataset.column_names
    assert rows.dataset["row"][:] == [1, 2]
    assert rows.dataset[1]["input_ids"] == [CLS, UNK, SEP]
    assert "labels" not in LabelCollator(PAD)(list(rows.dataset))


def test_numbers_are_float32_and_words_among_them_a_fault(tmp_path):
    loaded = load(write_jsonl(tmp_path / "rows.jsonl", [{"text": "a", "label": 2.5}, {"text": "b", "label": "4"}]))
    rows = build(loaded, labels=None)
    assert rows.dataset["label"][:] == [2.5, 4.0]
    assert LabelCollator(PAD)(list(rows.dataset))["labels"].dtype == torch.float32
    worded = load(write_jsonl(tmp_path / "worded.jsonl", [{"text": "a", "label": "high"}]))
    with pytest.raises(DataError, match=r"worded.jsonl:1: a label that is not a number: `high`"):
        build(worded, labels=None)


def test_single_texts_and_pairs_do_not_mix(tmp_path):
    rows = [FILMS[0], {**FILMS[1], "text_pair": "a film"}]
    with pytest.raises(DataError, match=r"rows.jsonl:2: the row has a `text_pair`, and the first row has none"):
        build(load(write_jsonl(tmp_path / "rows.jsonl", rows)))
    with pytest.raises(DataError, match=r"turned.jsonl:2: the row has no `text_pair`, and the first row has one"):
        build(load(write_jsonl(tmp_path / "turned.jsonl", rows[::-1])))


def test_a_batch_is_padded_on_the_right_and_counts_its_tokens(films):
    batch = LabelCollator(PAD)([build(films).dataset[place] for place in (0, 2)])
    assert batch["input_ids"].tolist()[1] == [CLS, *ids_of("a", "great", "play"), SEP, PAD]
    assert batch["attention_mask"].tolist() == [[1] * 6, [1] * 5 + [0]]
    assert batch["token_type_ids"].shape == batch["input_ids"].shape
    assert batch["labels"].tolist() == [0, 0]
    assert batch["labels"].dtype == torch.int64
    assert batch["num_real_tokens"] == 11


def test_labels_that_are_all_fractions_are_asked_to_be_told_as_numbers(tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps({"text": "a", "label": number / 7}) + "\n" for number in (1, 2, 3)))
    with pytest.raises(DataError, match=r"the labels are numbers, such as 0\.142857") as caught:
        find_labels(load(path))
    assert "classification.problem_type=regression" in str(caught.value)
