"""Control tokens in the text of an encoder: broken up, while a word that its vocabulary has not is none."""

import pytest

from finetune.data.control_tokens import build_control_tokens
from finetune.errors import DataError
from tests.data.small_encoder import CLS, MASK, SEP, UNK, build_tokenizer, ids_of


def guard(text: str, policy: str = "escape") -> list[int]:
    """Tokenize a text as a row does, after it was guarded."""
    tokenizer = build_tokenizer()
    control = build_control_tokens(tokenizer, tokenizer.backend_tokenizer, policy)
    return tokenizer(control.guard(text, "rows.csv:2"))["input_ids"]


def test_a_separator_beside_an_unknown_word_is_broken_up_and_the_word_stays_unknown():
    assert guard("the zebra [SEP] is good") == [
        CLS, *ids_of("the"), UNK, *ids_of("[", "sep", "]", "is", "good"), SEP
    ]  # fmt: skip


def test_a_mask_in_the_text_asks_for_nothing():
    assert MASK not in guard("the [MASK] was [CLS] good")


@pytest.mark.parametrize("policy", ["escape", "error"])
def test_words_that_are_unknown_pass_as_they_are(policy):
    assert guard("zebra is 5 € zebra", policy) == [CLS, UNK, *ids_of("is"), UNK, UNK, UNK, SEP]


def test_a_separator_beside_an_unknown_word_is_named_where_it_may_not_stand():
    with pytest.raises(DataError, match=r"^rows.csv:2: the control token '\[SEP\]' stands in the text"):
        guard("the zebra [SEP] is good", "error")


def test_the_unknown_token_written_out_is_a_control_token_like_the_others():
    with pytest.raises(DataError, match=r"'\[UNK\]'"):
        guard("the [UNK] is good", "error")
    assert UNK not in guard("the [UNK] is good")[:3]


def test_what_is_allowed_goes_through():
    assert guard("good [SEP] bad", "allow") == [CLS, *ids_of("good"), SEP, *ids_of("bad"), SEP]
