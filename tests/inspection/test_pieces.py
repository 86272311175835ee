"""Ids back to text: whole characters, spaces as they stood, control tokens apart."""

import pytest

from finetune.inspection.pieces import Piece, PieceReader, to_visible
from finetune.model.tokenizer import load_tokenizer
from finetune.recipe.schema import ModelSettings
from tests.data.small_encoder import build_tokenizer
from tests.inspection.small_tokenizers import END, build_byte_level, build_space_at_the_beginning_alone

AWKWARD = "naïve  café 日本語 😀 👩‍👩‍👧\n\n  indented\ttab  end \u200b x\ufffd y "


def read(tokenizer, text: str, trained_from: int | None = None) -> list[Piece]:
    ids = tokenizer.backend_tokenizer.encode(text, add_special_tokens=False).ids
    start = len(ids) if trained_from is None else trained_from
    return PieceReader(tokenizer).read(ids, [place >= start for place in range(len(ids))])


def join(pieces: list[Piece]) -> str:
    return "".join(piece.text for piece in pieces)


@pytest.fixture(scope="module", params=["llama2_tokenizer.model", "mistral_tokenizer.model.v1"])
def sentencepiece(request, shared_data):
    return load_tokenizer(ModelSettings(tokenizer_name_or_path=str(shared_data / "tokenizers" / request.param)))


@pytest.mark.parametrize("start", ["", " ", "   "])
def test_text_comes_back_as_it_was_with_sentencepiece_behind_control_tokens_too(sentencepiece, start):
    pieces = read(sentencepiece, f"<s>{start}{AWKWARD}</s>{start}{AWKWARD}")
    assert join(pieces) == f"<s>{start}{AWKWARD}</s>{start}{AWKWARD}"
    assert [piece.text for piece in pieces if piece.is_control] == ["<s>", "</s>"]


def test_the_bytes_of_one_character_are_one_piece_with_all_their_ids(sentencepiece):
    (family,) = [piece for piece in read(sentencepiece, "a 👧") if "👧" in piece.text]
    assert len(family.ids) == 4
    assert family.text == "👧"


def test_text_comes_back_as_it_was_with_a_token_for_each_byte():
    pieces = read(build_byte_level(), f"{END}{AWKWARD}")
    assert join(pieces) == f"{END}{AWKWARD}"
    assert not [piece for piece in pieces if piece.is_bytes]
    assert [len(piece.ids) for piece in pieces if piece.text in ("é", "日", "😀")] == [2, 3, 4]


def test_a_character_cut_in_two_shows_its_bytes_and_no_broken_sign():
    tokenizer = build_byte_level()
    ids = tokenizer.backend_tokenizer.encode("é日b", add_special_tokens=False).ids
    pieces = PieceReader(tokenizer).read(ids[1:4], [False] * 3)  # half an é, two thirds of 日
    assert [(piece.text, piece.is_bytes) for piece in pieces] == [(r"\xa9", True), (r"\xe6\x97", True)]


def test_a_mask_that_begins_within_a_character_is_seen():
    pieces = read(build_byte_level(), "é", trained_from=1)
    assert [(piece.text, piece.trained) for piece in pieces] == [(r"\xc3", False), (r"\xa9", True)]


def test_a_piece_is_never_half_trained():
    # U+FFFD is a character like any other: the prompt may end with it.
    pieces = read(build_byte_level(), "a\ufffdb", trained_from=4)
    assert [(piece.text, piece.trained) for piece in pieces] == [("a", False), ("\ufffd", False), ("b", True)]


@pytest.mark.parametrize("text", ["a b<s>a b", "a b<s> a b", "<s>a", "<s> a", "a<s>  b"])
def test_spaces_are_right_where_one_is_put_before_the_beginning_alone(text):
    assert join(read(build_space_at_the_beginning_alone(), text)) == text


def test_words_of_an_encoder_stand_apart_and_its_marks_are_control_tokens():
    pieces = read(build_tokenizer(), "[CLS] the film was unseen [SEP]")
    assert [piece.text for piece in pieces if piece.is_control] == ["[CLS]", "[UNK]", "[SEP]"]
    assert join([piece for piece in pieces if not piece.is_control]) == "the film was"


@pytest.mark.parametrize(
    ("text", "drawn"),
    [
        ("a\nb", "a↵\nb"),
        ("a\tb", "a⇥\tb"),
        ("\x1b[31m", "␛[31m"),
        ("\u200b<\u202e", "‹U+200B›<‹U+202E›"),
        ("a\u00a0b\u2028", "a‹U+00A0›b‹U+2028›"),
        ("a↵b⇥‹U+200B›␛", "a‹U+21B5›b‹U+21E5›‹U+2039›U+200B›‹U+241B›"),
        ("👩‍👩‍👧 naïve", "👩‍👩‍👧 naïve"),
    ],
)
def test_nothing_is_unseen_and_nothing_steers_the_terminal(text, drawn):
    assert to_visible(text) == drawn
