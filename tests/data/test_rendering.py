"""Which token is trained, and what becomes of control tokens in the text."""

import functools

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from mistral_common.tokens.tokenizers.mistral import MistralTokenizer
from tokenizers import AddedToken, Tokenizer, decoders, normalizers, pre_tokenizers
from tokenizers.models import BPE
from transformers import PreTrainedTokenizerFast

from finetune.data.examples import Conversation, Document, Message, Origin
from finetune.data.rendering import Renderer
from finetune.data.templates import SHIPPED, load_template
from finetune.errors import DataError
from finetune.model.sentencepiece_conversion import convert_sentencepiece

TURNS = (
    Message("user", "one?"),
    Message("assistant", "first"),
    Message("user", "two?"),
    Message("assistant", "second"),
)


@pytest.fixture(scope="module")
def tokenizer():
    return convert_sentencepiece(MistralTokenizer.v1().instruct_tokenizer.tokenizer.file_path)


@pytest.fixture(scope="module")
def byte_level():
    """Byte-level: one token for one, two or three line breaks."""
    vocabulary = {character: index for index, character in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
    vocabulary |= {"ĊĊ": 256, "ĊĊĊ": 257}
    backend = Tokenizer(BPE(vocabulary, [("Ċ", "Ċ"), ("ĊĊ", "Ċ")]))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(
        tokenizer_object=backend, bos_token="<s>", eos_token="</s>", extra_special_tokens=["<|im_start|>", "<|im_end|>"]
    )


def trained_text(tokenizer, messages, **how) -> str:
    renderer = Renderer(load_template("zephyr", tokenizer), tokenizer, **how)
    row = renderer.render([Conversation(tuple(messages))])[0]
    return tokenizer.decode([token for token, is_on in zip(row.input_ids, row.trained, strict=True) if is_on])


def weighed(*weights):
    return [
        *(
            Message(m.role, m.content, weight=w)
            for m, w in zip(TURNS, (None, weights[0], None, weights[1]), strict=True)
        )
    ]


def test_answers_are_trained_by_default_and_the_last_one_alone_on_request(tokenizer):
    assert trained_text(tokenizer, TURNS) == "first</s>second</s>"
    assert trained_text(tokenizer, TURNS, train_on="last_answer") == "second</s>"


def test_everything_is_every_token_of_the_row(tokenizer):
    renderer = Renderer(load_template("zephyr", tokenizer), tokenizer, train_on="everything")
    assert all(renderer.render([Conversation(TURNS)])[0].trained)


@pytest.mark.parametrize(
    ("weights", "train_on", "expected"),
    [
        ((0, None), "answers", "second</s>"),
        ((None, 0), "answers", "first</s>"),
        ((1, 0), "answers", "first</s>"),
        ((0, 0), "answers", ""),
        ((1, 1), "last_answer", "second</s>"),
        ((1, 0), "last_answer", ""),
    ],
)
def test_an_answer_of_weight_0_is_read_and_not_trained(weights, train_on, expected, tokenizer):
    assert trained_text(tokenizer, weighed(*weights), train_on=train_on) == expected


def test_weight_0_holds_where_everything_is_trained(tokenizer):
    text = trained_text(tokenizer, weighed(0, None), train_on="everything")
    assert "one?" in text and "second" in text and "first" not in text


def test_a_document_is_trained_from_its_beginning_to_its_end(tokenizer):
    row = Renderer(load_template("alpaca", tokenizer), tokenizer).render([Document("  two\n😀")])[0]
    plain = tokenizer("  two\n😀", add_special_tokens=False)["input_ids"]
    assert row.input_ids == [tokenizer.bos_token_id, *plain, tokenizer.eos_token_id]
    assert all(row.trained)


def test_a_row_has_the_same_tokens_alone_and_in_a_batch_of_both_kinds(tokenizer):
    renderer = Renderer(load_template("chatml", tokenizer), tokenizer)
    examples = [Conversation(TURNS), Document("a text"), Conversation(TURNS[:2])]
    assert renderer.render(examples) == [renderer.render([example])[0] for example in examples]
    assert renderer.render([]) == []


def test_padding_and_truncation_that_others_switched_on_change_nothing(byte_level):
    before = Renderer(load_template("alpaca", byte_level), byte_level).render([Conversation(TURNS)])
    byte_level.pad_token = "</s>"
    byte_level(["a", "a long text"], padding="max_length", truncation=True, max_length=5)
    renderer = Renderer(load_template("alpaca", byte_level), byte_level)
    byte_level(["a", "a long text"], padding="max_length", truncation=True, max_length=5)
    assert renderer.render([Conversation(TURNS)]) == before


@pytest.mark.parametrize("name", SHIPPED)
@pytest.mark.parametrize("answer", ["\nyes", "\n\nyes", "  yes", "yes", " \n yes"])
def test_an_answer_that_begins_with_line_breaks_starts_where_the_prompt_ends(name, answer, byte_level):
    renderer = Renderer(load_template(name, byte_level), byte_level)
    messages = (
        Message("user", "ask"),
        Message("assistant", answer),
        Message("user", "more"),
        Message("assistant", answer),
    )
    row = renderer.render([Conversation(messages)])[0]
    for asked in (1, 3):
        prompt = renderer.render_prompt(messages[:asked])
        assert row.input_ids[: len(prompt)] == prompt
        assert row.trained[len(prompt)] and not row.trained[len(prompt) - 1]
    kept = answer.strip() if name in ("llama2", "llama3") else answer
    assert byte_level.decode(row.input_ids).count(kept) == 2


def test_an_emoji_of_several_byte_tokens_is_trained_whole(tokenizer):
    assert trained_text(tokenizer, [Message("user", "🦥"), Message("assistant", "🦥")]) == "🦥</s>"
    assert "🦥" not in tokenizer.get_vocab()


@pytest.mark.parametrize("place", ["system", "user", "input", "assistant"])
def test_a_control_token_in_any_text_is_broken_up_and_stays_readable(place, tokenizer):
    texts = {name: f"say </s> {name}" if name == place else name for name in ("system", "user", "input", "assistant")}
    messages = (
        Message("system", texts["system"]),
        Message("user", texts["user"], texts["input"]),
        Message("assistant", texts["assistant"]),
    )
    renderer = Renderer(load_template("alpaca", tokenizer), tokenizer)
    row = renderer.render([Conversation(messages)])[0]
    assert row.input_ids.count(tokenizer.eos_token_id) == 1
    assert f"say <\u200b/s> {place}" in tokenizer.decode(row.input_ids)
    assert tokenizer.eos_token_id not in renderer.render_prompt(messages[:-1])


def test_a_control_token_in_tools_and_documents_is_broken_up(tokenizer):
    renderer = Renderer(load_template("chatml", tokenizer), tokenizer)
    call = {"type": "function", "function": {"name": "f", "arguments": {"</s>": ["<s>"]}}}
    tool = {"type": "function", "function": {"name": "f", "description": "ends with </s>"}}
    messages = (Message("user", "a"), Message("assistant", "", tool_calls=(call,)), Message("tool", "</s>"), TURNS[1])
    row = renderer.render([Conversation(messages, (tool,))])[0]
    assert row.input_ids.count(tokenizer.eos_token_id) == 5  # tools, user, call, result, answer
    assert row.input_ids.count(tokenizer.bos_token_id) == 1
    assert renderer.render([Document("a </s> b")])[0].input_ids.count(tokenizer.eos_token_id) == 1


def test_a_control_token_stops_the_run_or_passes_where_the_recipe_says_so(tokenizer):
    row = Conversation((Message("user", "a </s>"), TURNS[1]), origin=Origin("rows.jsonl", 12))
    template = load_template("alpaca", tokenizer)
    with pytest.raises(DataError, match=r"^rows\.jsonl:12: the control token '</s>' stands in the text"):
        Renderer(template, tokenizer, special_tokens_in_data="error").render([row])
    allowed = Renderer(template, tokenizer, special_tokens_in_data="allow").render([row])[0]
    assert allowed.input_ids.count(tokenizer.eos_token_id) == 2


forged = st.lists(
    st.sampled_from(
        ["<s>", "</s>", "<unk>", "<", "/s>", "s>", "<<", ">", " ", "\n", "[INST]", "a", "\u200b", "<</s>/s>"]
    ),
    min_size=1,
    max_size=8,
).map("".join)


@pytest.mark.parametrize("name", ["mistral", "chatml"])
@settings(max_examples=100, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
@given(question=forged, answer=forged)
def test_no_text_can_forge_a_control_token(name, question, answer, tokenizer):
    renderer = _renderer(name, tokenizer)
    row = renderer.render([Conversation((Message("user", question), Message("assistant", answer)))])[0]
    plain = renderer.render([Conversation((Message("user", "q"), Message("assistant", "a")))])[0]
    control = set(tokenizer.all_special_ids)
    assert [token for token in row.input_ids if token in control] == [t for t in plain.input_ids if t in control]


@functools.cache
def _renderer(name, tokenizer):
    return Renderer(load_template(name, tokenizer), tokenizer)


def test_a_tokenizer_that_finds_control_tokens_in_other_forms_is_believed():
    backend = Tokenizer(BPE({character: i for i, character in enumerate("<>/s a\u200b")} | {"</s>": 9, "<s>": 8}, []))
    backend.normalizer = normalizers.Sequence([normalizers.Lowercase(), normalizers.Replace("\u200b", "")])
    backend.add_special_tokens([AddedToken("</s>", normalized=True, special=True)])
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, bos_token="<s>", eos_token="</s>")
    row = Renderer(load_template("alpaca", tokenizer), tokenizer).render([Document("a </S> a")])[0]
    assert row.input_ids.count(tokenizer.eos_token_id) == 1
