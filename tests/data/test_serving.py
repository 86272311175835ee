from pathlib import Path

import pytest
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from finetune.data.serving import History, build_serving_renderer
from finetune.data.templates import load_template
from finetune.errors import DataError

TOKENIZER_DIR = Path(__file__).parents[2] / "data" / "tiny_base"


@pytest.fixture
def tokenizer() -> PreTrainedTokenizerBase:
    return AutoTokenizer.from_pretrained(TOKENIZER_DIR)


def build_history(tokenizer: PreTrainedTokenizerBase, room: int | None) -> History:
    tokenizer.chat_template = load_template("chatml", tokenizer).serving_source
    return History(build_serving_renderer(tokenizer), room, system="Be kind.")


def test_a_tokenizer_without_a_template_is_asked_in_alpacas(tokenizer):
    assert build_serving_renderer(tokenizer).template.name == "alpaca"


def test_the_prompt_holds_every_turn_in_order(tokenizer):
    history = build_history(tokenizer, None)
    history.ask("one")
    history.keep("two")
    text = tokenizer.decode(history.ask("three")[0])
    assert [text.index(word) for word in ("Be kind.", "one", "two", "three")] == sorted(
        text.index(word) for word in ("Be kind.", "one", "two", "three")
    )


def test_the_oldest_turns_make_room_in_pairs_and_the_system_message_stays(tokenizer):
    history = build_history(tokenizer, 100)
    left_out = 0
    for number in range(12):
        prompt_ids, now = history.ask(f"question {number}")
        history.keep("an answer")
        left_out += now
        assert len(prompt_ids) <= 100
    text = tokenizer.decode(prompt_ids)
    assert left_out > 0
    assert "Be kind." in text
    assert "question 0" not in text
    assert "question 11" in text
    assert len(history.turns) == 2 * (12 - left_out)


def test_a_turn_without_room_is_refused_and_not_kept(tokenizer):
    history = build_history(tokenizer, 60)
    history.ask("one")
    history.keep("two")
    turns = list(history.turns)
    with pytest.raises(DataError, match="there is room for 60"):
        history.ask("word " * 100)
    assert history.turns == turns


def test_reset_forgets_the_turns_alone(tokenizer):
    history = build_history(tokenizer, None)
    first, _ = history.ask("one")
    history.keep("two")
    history.reset()
    assert history.ask("one") == (first, 0)
