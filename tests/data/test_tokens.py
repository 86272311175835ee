"""Every row that is read is kept, cut or dropped, and counted as what became of it."""

import copy
import json
from importlib.metadata import version
from pathlib import Path

import pytest
from transformers import PreTrainedTokenizerFast

from finetune.data import row_cache
from finetune.data.batches import IGNORE_INDEX
from finetune.data.rendering import Renderer
from finetune.data.sources import load_examples
from finetune.data.templates import load_template
from finetune.data.tokens import TokenRows, build_token_rows
from finetune.errors import DataError
from finetune.model.tokenizer import load_tokenizer
from finetune.recipe.schema import ModelSettings, SourceSettings


@pytest.fixture(scope="module")
def renderer(shared_data) -> Renderer:
    tokenizer = load_tokenizer(ModelSettings(model_name_or_path=str(shared_data / "models" / "stories260K")))
    return Renderer(load_template("vicuna", tokenizer), tokenizer)


def write(tmp_path: Path, answers: list[str], question: str = "Say it") -> SourceSettings:
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps({"prompt": question, "completion": answer}) + "\n" for answer in answers))
    return SourceSettings(path=str(path))


def build(source: SourceSettings, renderer: Renderer, max_length: int, too_long: str = "drop") -> TokenRows:
    kind = "document" if source.format == "text" else "conversation"
    loaded = load_examples(source, kind=kind, seed=1, on_bad_rows="error")
    return build_token_rows(loaded, renderer, max_length=max_length, too_long=too_long)


def length_of(answer: str, renderer: Renderer, tmp_path: Path) -> int:
    return build(write(tmp_path, [answer]), renderer, 1000).dataset[0]["length"]


def test_only_the_answer_and_its_end_token_are_trained(renderer, tmp_path):
    row = build(write(tmp_path, ["hello"]), renderer, 1000).dataset[0]
    trained = [token for token, label in zip(row["input_ids"], row["labels"], strict=True) if label != IGNORE_INDEX]
    assert renderer.tokenizer.decode(trained).strip() == "hello</s>"
    assert all(label in (IGNORE_INDEX, token) for token, label in zip(row["input_ids"], row["labels"], strict=True))


def test_rows_that_are_too_long_are_dropped_and_counted_with_their_line(renderer, tmp_path):
    limit = length_of("short", renderer, tmp_path)
    rows = build(write(tmp_path, ["short", "long " * 60, "short", "long " * 60]), renderer, limit)
    assert len(rows.dataset) == 2
    assert rows.report["census"]["dropped"] == {"too_long": 2, "nothing_trained": 0}
    assert [place.rpartition(":")[2] for place in rows.report["census"]["first_places"]["too_long"]] == ["2", "4"]
    assert rows.report["rows_read"] == rows.report["census"]["rows"] + sum(rows.report["census"]["dropped"].values())


def test_a_row_of_exactly_the_limit_is_kept_whole(renderer, tmp_path):
    limit = length_of("an answer of some words", renderer, tmp_path)
    assert build(write(tmp_path, ["an answer of some words"]), renderer, limit).report["census"]["cut"] == 0
    with pytest.raises(DataError, match="no row is left"):
        build(write(tmp_path, ["an answer of some words"]), renderer, limit - 1)


def test_truncation_cuts_the_end_and_drops_what_loses_its_whole_answer(renderer, tmp_path):
    limit = length_of("short", renderer, tmp_path) + 10
    rows = build(write(tmp_path, ["short", "long " * 60]), renderer, limit, "truncate")
    assert (rows.report["census"]["cut"], rows.report["census"]["rows"]) == (1, 2)
    assert max(rows.dataset["length"]) == limit
    long_question = write(tmp_path, ["short", "long"], question="why " * 80)
    with pytest.raises(DataError, match="2 have no trained token"):
        build(long_question, renderer, limit, "truncate")


def test_too_long_error_names_the_line_and_both_lengths(renderer, tmp_path):
    limit = length_of("short", renderer, tmp_path)
    with pytest.raises(DataError, match=rf"rows.jsonl:2: the row has \d+ tokens and `data.max_length` is {limit}"):
        build(write(tmp_path, ["short", "long " * 60]), renderer, limit, "error")


def test_a_long_document_becomes_several_rows_that_hold_all_its_tokens(renderer, tmp_path):
    path = tmp_path / "text.jsonl"
    path.write_text(json.dumps({"text": "once upon a time " * 40}) + "\n")
    source = SourceSettings(path=str(path), format="text")
    whole = build(source, renderer, 1000).dataset[0]["input_ids"]
    pieces = build(source, renderer, 50, "split")
    assert [token for row in pieces.dataset["input_ids"] for token in row] == whole
    assert max(pieces.dataset["length"]) == 50
    assert pieces.report["pieces_of_split_rows"] == len(pieces.dataset) > 1


@pytest.mark.parametrize("change", ["max_length", "train_on", "content"])
def test_the_fingerprint_changes_with_whatever_changes_the_tokens(renderer, tmp_path, change):
    source = write(tmp_path, ["hello", "there"])
    before = build(source, renderer, 300).fingerprint
    assert build(source, renderer, 300).fingerprint == before
    if change == "max_length":
        after = build(source, renderer, 299)
    elif change == "train_on":
        after = build(source, Renderer(renderer.template, renderer.tokenizer, "everything"), 300)
    else:
        after = build(write(tmp_path, ["hello", "where"]), renderer, 300)
    assert after.fingerprint != before


def test_rows_of_another_version_of_a_library_are_made_anew(renderer, tmp_path, monkeypatch):
    source = write(tmp_path, ["hello"])
    before = build(source, renderer, 300).fingerprint
    monkeypatch.setattr(row_cache, "version", lambda name: "0.0" if name == "tokenizers" else version(name))
    row_cache.hash_makers.cache_clear()
    try:
        assert build(source, renderer, 300).fingerprint != before
    finally:
        row_cache.hash_makers.cache_clear()


@pytest.mark.parametrize("format", ["prompt_completion", "text"])
def test_rows_end_with_the_end_token_of_their_own_tokenizer_where_two_share_a_backend(renderer, tmp_path, format):
    path = tmp_path / "rows.jsonl"
    path.write_text(json.dumps({"prompt": "Say it", "completion": "hello", "text": "hello"}) + "\n")
    ends = []
    for token in ("</s>", "<unk>"):
        tokenizer = copy.deepcopy(renderer.tokenizer)
        assert isinstance(tokenizer, PreTrainedTokenizerFast)
        tokenizer.eos_token = token
        assert tokenizer.backend_tokenizer.to_str() == renderer.tokenizer.backend_tokenizer.to_str()
        bound = Renderer(load_template("vicuna", tokenizer), tokenizer)
        rows = build(SourceSettings(path=str(path), format=format), bound, 300)
        ends.append(tokenizer.convert_ids_to_tokens(rows.dataset[0]["input_ids"][-1]))
    assert ends == ["</s>", "<unk>"]


def test_rows_of_a_copy_name_the_copy_and_are_the_same(renderer, tmp_path):
    source = write(tmp_path, ["hello"])
    copied = Path(source.path).with_name("copy.jsonl")
    copied.write_bytes(Path(source.path).read_bytes())
    first, second = build(source, renderer, 300), build(SourceSettings(path=str(copied)), renderer, 300)
    assert first.account["source"][:] == [source.path]
    assert second.account["source"][:] == [str(copied)]
    assert first.fingerprint == second.fingerprint
