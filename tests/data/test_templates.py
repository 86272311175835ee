"""What each template writes, what it trains, and that training, serving and the originals agree."""

import functools
import hashlib
import json
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from mistral_common.protocol.instruct.messages import AssistantMessage, UserMessage
from mistral_common.protocol.instruct.request import InstructRequest
from mistral_common.tokens.tokenizers.mistral import MistralTokenizer
from sentencepiece import SentencePieceProcessor
from tokenizers import Tokenizer, decoders, pre_tokenizers, trainers
from tokenizers.models import BPE
from transformers import LlamaTokenizer, PreTrainedTokenizerFast

from finetune.data.examples import Conversation, Message, Origin
from finetune.data.rendering import Renderer
from finetune.data.templates import SHIPPED, load_template
from finetune.errors import DataError
from finetune.model.sentencepiece_conversion import convert_sentencepiece
from finetune.model.tokenizer import load_tokenizer
from finetune.recipe.schema import ModelSettings

AWKWARD = (
    Message("user", "  Write   code:\n\n\tdef f(x):\n\t    return  x 😀 ", "a\n\nb"),
    Message("assistant", "   leading\n\n```py\nx  =  1\n```\n"),
    Message("user", "\n\nand 👩‍👩‍👧 naïve — 中文?"),
    Message("assistant", "\n\nyes  "),
)
PLAIN = tuple(Message(message.role, message.content) for message in AWKWARD)
SYSTEM = Message("system", "You are terse.")
TOKENIZERS = ("mistral", "mistral_spaced", "llama2", "tiny", "byte_level")


@functools.cache
def mistral_path() -> Path:
    """Mistral-7B's own model, which mistral-common ships."""
    return Path(MistralTokenizer.v1().instruct_tokenizer.tokenizer.file_path)


@functools.cache
def load(name: str, shared_data: Path):
    if name == "mistral":
        return convert_sentencepiece(mistral_path())
    if name == "mistral_spaced":
        return spaced_mistral(load("mistral", shared_data))
    if name == "llama2":
        return load_tokenizer(ModelSettings(model_name_or_path=f"{shared_data}/tokenizers/llama2_tokenizer.model"))
    if name == "tiny":
        folder = Path(__file__).parents[2] / "data" / "tiny_base"
        if not (folder / "tokenizer.json").is_file():
            pytest.skip("data/tiny_base is not there: recipes/tiny_base.yaml makes it")
        return load_tokenizer(ModelSettings(model_name_or_path=str(folder)))
    return byte_level_tokenizer()


def spaced_mistral(converted):
    """Mistral's pieces in Transformers' own class, which puts a space before a text but not behind a control token."""
    model = json.loads(converted.backend_tokenizer.to_str())["model"]
    return LlamaTokenizer(vocab=model["vocab"], merges=[tuple(merge) for merge in model["merges"]])


def byte_level_tokenizer():
    """A byte-level BPE that joins line breaks, with the control tokens of ChatML and Llama 3."""
    backend = Tokenizer(BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    control = ["<|begin|>", "<|end|>", "<|im_start|>", "<|im_end|>", "<|eot_id|>"]
    control += ["<|start_header_id|>", "<|end_header_id|>"]
    trainer = trainers.BpeTrainer(
        vocab_size=400,
        special_tokens=control,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    backend.train_from_iterator(["a line\n\n\nanother one\n\n  and the user asks:\n\n\n\n"] * 50, trainer)
    return PreTrainedTokenizerFast(tokenizer_object=backend, bos_token="<|begin|>", eos_token="<|end|>")


@pytest.fixture(params=TOKENIZERS)
def tokenizer(request, shared_data):
    return load(request.param, shared_data)


@pytest.fixture
def mistral(shared_data):
    return load("mistral", shared_data)


@functools.cache
def build(template: str, tokenizer, **how) -> Renderer:
    return Renderer(load_template(template, tokenizer), tokenizer, **how)


def render(template: str, tokenizer, messages, tools=()):
    return build(template, tokenizer).render([Conversation(tuple(messages), tuple(tools), Origin("rows.jsonl", 7))])[0]


def trained_text(tokenizer, rendered) -> str:
    return tokenizer.decode([token for token, is_trained in zip(*_columns(rendered), strict=True) if is_trained])


def _columns(rendered):
    return rendered.input_ids, rendered.trained


@pytest.mark.parametrize("name", SHIPPED)
@pytest.mark.parametrize(
    "messages", [PLAIN, AWKWARD, (SYSTEM, *PLAIN), PLAIN[:2]], ids=["plain", "input", "system", "1"]
)
def test_every_answer_is_trained_with_its_end_token_and_the_row_begins_once(name, messages, tokenizer):
    rendered = render(name, tokenizer, messages)
    stop_ids = build(name, tokenizer).stop_ids
    assert rendered.input_ids.count(tokenizer.bos_token_id) == 1
    assert rendered.input_ids[0] == tokenizer.bos_token_id
    ends = [
        index
        for index, is_trained in enumerate(rendered.trained)
        if is_trained and (index + 1 == len(rendered.trained) or not rendered.trained[index + 1])
    ]
    assert len(ends) == sum(message.role == "assistant" for message in messages)
    assert all(rendered.input_ids[end] in stop_ids for end in ends)
    trained = [token for token, is_trained in zip(rendered.input_ids, rendered.trained, strict=True) if is_trained]
    assert sum(token in stop_ids for token in trained) == len(ends)


@pytest.mark.parametrize("name", SHIPPED)
def test_what_is_trained_is_the_answers_and_nothing_else(name, mistral):
    rendered = render(name, mistral, [SYSTEM, Message("user", "ask"), Message("assistant", "one"), *PLAIN[2:]])
    assert trained_text(mistral, rendered).replace(" ", "") == "one</s>\n\nyes</s>".replace(
        "\n\n", "" if name in ("llama2", "llama3") else "\n\n"
    )


@pytest.mark.parametrize("name", SHIPPED)
@pytest.mark.parametrize("num_turns", [1, 3])
def test_the_served_prompt_is_the_beginning_of_the_training_row(name, num_turns, tokenizer):
    renderer = build(name, tokenizer, train_on="last_answer")
    messages = (SYSTEM, *AWKWARD)[: num_turns + 2]
    row = renderer.render([Conversation(messages)])[0]
    prompt = renderer.render_prompt(messages[:-1])
    assert row.input_ids[: len(prompt)] == prompt
    assert row.trained.index(True) == len(prompt)


@pytest.mark.parametrize("name", SHIPPED)
@pytest.mark.parametrize("which", ["mistral", "mistral_spaced"])
def test_transformers_serves_the_ids_that_were_trained(name, which, shared_data):
    tokenizer = load(which, shared_data)
    template = build(name, tokenizer).template
    messages = [{"role": m.role, "content": m.content} for m in (SYSTEM, *PLAIN)]
    rendered = render(name, tokenizer, (SYSTEM, *PLAIN))
    served = tokenizer.apply_chat_template(messages, chat_template=template.serving_source, return_dict=False)
    assert served == rendered.input_ids
    masked = tokenizer.apply_chat_template(
        messages, chat_template=template.source, return_dict=True, return_assistant_tokens_mask=True
    )
    assert masked["input_ids"] == rendered.input_ids
    prompt = tokenizer.apply_chat_template(
        messages[:-1], chat_template=template.serving_source, add_generation_prompt=True, return_dict=False
    )
    assert prompt == build(name, tokenizer).render_prompt((SYSTEM, *PLAIN[:-1]))
    assert "generation %}" not in template.serving_source


# A template that changes changes every model trained with it: these were written down once.
GOLDEN = {
    "alpaca": "5efc76b64eda1a13",
    "chatml": "ab719d7550456668",
    "llama2": "bd9366d5b537fe1e",
    "llama3": "51c6000e04d9aba0",
    "mistral": "f6a729ad0b373df3",
    "vicuna": "0bd9fce4703d179f",
    "zephyr": "56f150b979d4d9be",
}


@pytest.mark.parametrize("name", SHIPPED)
def test_the_ids_of_a_template_stay_as_they_were(name, mistral):
    rendered = [render(name, mistral, messages) for messages in (AWKWARD, (SYSTEM, *AWKWARD), PLAIN[:2])]
    written = json.dumps([[row.input_ids, row.trained] for row in rendered])
    assert hashlib.sha256(written.encode()).hexdigest()[:16] == GOLDEN[name]


awkward_text = st.text(
    st.sampled_from(list(" \n\t") * 6 + list("abcxyzAZ019_=-.,;:'\"()[]{}<>/#*&é中😀👩‍▁\u200b"))
    | st.characters(exclude_categories=["Cs"]),
    min_size=1,
)
fragments = st.lists(
    st.sampled_from(["[INST]", "[/INST]", "    ", "def f():\n        return 1\n", "\n\n\n", "😀", " " * 17]), max_size=3
)
answer = st.builds(lambda text, more: text + "".join(more), awkward_text, fragments).filter(
    lambda text: not any(token in text for token in ("<s>", "</s>", "<unk>"))
)


@pytest.mark.parametrize("which", ["mistral", "mistral_spaced"])
@settings(max_examples=150, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
@given(turns=st.lists(st.tuples(answer, answer), min_size=1, max_size=3), system=st.none() | answer)
def test_mistral_gives_the_very_ids_of_mistral_common(which, turns, system, shared_data):
    tokenizer = load(which, shared_data)
    messages = [Message("system", system)] if system else []
    original = []
    for question, reply in turns:
        messages += [Message("user", question), Message("assistant", reply)]
        original += [UserMessage(content=question), AssistantMessage(content=reply)]
    encoder = _mistral_common().instruct_tokenizer
    expected = encoder.encode_instruct(InstructRequest(messages=original, system_prompt=system)).tokens
    assert build("mistral", tokenizer).render([Conversation(tuple(messages))])[0].input_ids == expected
    assert tokenizer.bos_token_id == expected[0]


@functools.cache
def _mistral_common():
    return MistralTokenizer.v1()


@pytest.mark.parametrize("system", [None, "Be  brief.\n"])
def test_llama2_gives_the_ids_of_metas_reference_but_for_the_repeated_beginning(system, shared_data):
    tokenizer = load("llama2", shared_data)
    pieces = SentencePieceProcessor(model_file=str(shared_data / "tokenizers" / "llama2_tokenizer.model"))
    prompts, answers = [m.content for m in PLAIN[::2]], [m.content for m in PLAIN[1::2]]
    opening = [f"<<SYS>>\n{system}\n<</SYS>>\n\n{prompts[0]}", *prompts[1:]] if system else prompts
    expected = [pieces.bos_id()]
    for prompt, reply in zip(opening, answers, strict=True):
        expected += [*pieces.encode(f"[INST] {prompt.strip()} [/INST] {reply.strip()} "), pieces.eos_id()]
    messages = [Message("system", system), *PLAIN] if system else PLAIN
    assert render("llama2", tokenizer, messages).input_ids == expected


def test_alpaca_writes_the_original_blocks_and_repeats_them(mistral):
    text = mistral.decode(
        render("alpaca", mistral, (Message("user", "Sum.", "1 2"), Message("assistant", "3"))).input_ids
    )
    assert text == (
        "<s> Below is an instruction that describes a task, paired with an input that provides further context. "
        "Write a response that appropriately completes the request.\n\n"
        "### Instruction:\nSum.\n\n### Input:\n1 2\n\n### Response:\n3</s>"
    )
    turns = (SYSTEM, Message("user", "a"), Message("assistant", "b"), Message("user", "c"), Message("assistant", "d"))
    text = load_template("alpaca", mistral).render([{"role": m.role, "content": m.content} for m in turns]).text
    assert text == (
        "<s>You are terse.\n\n### Instruction:\na\n\n### Response:\nb</s>"
        "\n\n### Instruction:\nc\n\n### Response:\nd</s>"
    )


def test_an_input_joins_the_message_where_a_template_has_no_block_for_it(mistral):
    joined = render("mistral", mistral, (Message("user", "Sum.\n\n1 2"), Message("assistant", "3")))
    assert render("mistral", mistral, (Message("user", "Sum.", "1 2"), Message("assistant", "3"))) == joined


def test_chatml_ends_a_turn_with_its_own_token_where_the_tokenizer_has_it(mistral, shared_data):
    byte_level = load("byte_level", shared_data)
    own, end = byte_level.convert_tokens_to_ids(["<|im_end|>", "<|end|>"])
    assert build("chatml", byte_level).stop_ids == sorted([own, end])
    assert build("chatml", mistral).stop_ids == [mistral.eos_token_id]


TOOL = {"type": "function", "function": {"name": "add", "parameters": {"type": "object", "properties": {}}}}
CALL = {"type": "function", "function": {"name": "add", "arguments": {"a": 1, "b": "<2>"}}}
TOOL_TURNS = (
    Message("user", "1+2?"),
    Message("assistant", "", tool_calls=(CALL,)),
    Message("tool", "3"),
    Message("assistant", "It is 3."),
)


def test_chatml_offers_calls_and_answers_tools_as_hermes_does(shared_data):
    tokenizer = load("byte_level", shared_data)
    rendered = render("chatml", tokenizer, TOOL_TURNS, [TOOL])
    text = tokenizer.decode(rendered.input_ids)
    assert f"<tools>\n{json.dumps(TOOL)}\n</tools>" in text
    assert (
        '<|im_start|>assistant\n<tool_call>\n{"name": "add", "arguments": {"a": 1, "b": "<2>"}}\n</tool_call>'
        "<|im_end|>\n"
        "<|im_start|>user\n<tool_response>\n3\n</tool_response><|im_end|>\n<|im_start|>assistant\nIt is 3.<|im_end|>\n"
    ) in text
    assert trained_text(tokenizer, rendered).count("<|im_end|>") == 2
    assert "tool_response" not in trained_text(tokenizer, rendered)


@pytest.mark.parametrize("name", sorted(set(SHIPPED) - {"chatml"}))
def test_a_template_without_tools_refuses_a_row_that_has_them(name, mistral):
    with pytest.raises(DataError, match=r"^rows\.jsonl:7: the row has `tools`, and the template"):
        render(name, mistral, TOOL_TURNS, [TOOL])
    with pytest.raises(DataError, match=r"^rows\.jsonl:7: the row has `tool_calls`"):
        render(name, mistral, TOOL_TURNS)
    with pytest.raises(DataError, match=r"^rows\.jsonl:7: .* no place for a tool message"):
        render(name, mistral, TOOL_TURNS[:1] + TOOL_TURNS[2:])
