"""One template means the same tokens in training, chat, evaluation and wherever it is exported to, or is refused."""

import copy
import dataclasses
import functools
import hashlib
import json
import random
import re
from importlib.resources import files
from pathlib import Path

import pytest
from datasets import Dataset
from mistral_common.protocol.instruct.messages import AssistantMessage, UserMessage
from mistral_common.protocol.instruct.request import InstructRequest
from mistral_common.tokens.tokenizers.mistral import MistralTokenizer
from sentencepiece import SentencePieceProcessor
from transformers import PreTrainedTokenizerFast

from finetune.data.examples import Conversation, Message, to_json
from finetune.data.marked_jinja import remove_marks
from finetune.data.parity import build_parity_conversations, check_parity
from finetune.data.rendering import Renderer
from finetune.data.serving import History, build_serving_renderer
from finetune.data.sources import LoadedExamples
from finetune.data.templates import SHIPPED, find_stop_token, load_template
from finetune.errors import FinetuneError, RecipeError
from finetune.model.tokenizer import load_tokenizer
from finetune.objectives.answers import build_questions
from finetune.recipe.schema import ModelSettings
from tests.data.test_templates import load

REAL = ("llama2", "mistral")
TOKENIZERS = (*REAL, "mistral_spaced", "tiny", "stories260K", "byte_level")


@functools.cache
def find_tokenizer(name: str, shared_data: Path):
    if name == "stories260K":
        return load_tokenizer(ModelSettings(model_name_or_path=str(shared_data / "models" / "stories260K")))
    return load(name, shared_data)


@functools.cache
def bind(tokenizer) -> Renderer:
    """A renderer to copy: making one costs a copy of the tokenizer."""
    return Renderer(load_template("alpaca", tokenizer), tokenizer)


def build(template, tokenizer, **settings) -> Renderer:
    """A renderer of a template, by name or as it is."""
    renderer = copy.copy(bind(tokenizer))
    renderer.template = load_template(template, tokenizer) if isinstance(template, str) else template
    answered = renderer.template.render([{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}])
    stop_token = find_stop_token(renderer.template, answered.text[slice(*answered.spans[-1])])
    renderer.stop_ids = sorted({tokenizer.convert_tokens_to_ids(stop_token), tokenizer.eos_token_id})
    for name, value in settings.items():
        setattr(renderer, name, value)
    return renderer


@pytest.mark.parametrize("which", TOKENIZERS)
@pytest.mark.parametrize("name", SHIPPED)
def test_every_shipped_template_is_the_same_everywhere(name, which, shared_data):
    tokenizer = find_tokenizer(which, shared_data)
    before = tokenizer.chat_template
    renderer = build(name, tokenizer)
    check_parity(renderer)
    assert tokenizer.chat_template == before, "the check left its template in the tokenizer"
    assert len(build_parity_conversations(renderer)) == 13, "conversations were left out"


@pytest.mark.parametrize("how", [{"train_on": "last_answer"}, {"train_on": "everything"}])
@pytest.mark.parametrize("policy", ["escape", "error", "allow"])
def test_what_is_trained_and_what_becomes_of_control_tokens_make_no_difference(how, policy, shared_data):
    tokenizer = find_tokenizer("byte_level", shared_data)
    check_parity(Renderer(load_template("chatml", tokenizer), tokenizer, special_tokens_in_data=policy, **how))


@pytest.mark.parametrize("which", REAL)
def test_a_tokenizer_saved_and_opened_again_serves_the_ids_that_were_trained(which, shared_data, tmp_path):
    tokenizer = copy.copy(find_tokenizer(which, shared_data))
    tokenizer.chat_template = build("zephyr", tokenizer).template.serving_source
    tokenizer.save_pretrained(tmp_path)
    opened = load_tokenizer(ModelSettings(model_name_or_path=str(tmp_path)))
    assert opened.chat_template == (tmp_path / "chat_template.jinja").read_text("utf-8") == tokenizer.chat_template
    served = build_serving_renderer(opened)
    for name in SHIPPED:
        trained = build(name, tokenizer)
        opened.chat_template = trained.template.serving_source
        chat = copy.copy(served)
        chat.template = load_template("model", opened)
        for case, messages in build_parity_conversations(trained).items():
            row = trained.render([Conversation(messages)])[0].input_ids
            # The whole row, where a server's tokens of these two part at the answers as training's do.
            assert opened.apply_chat_template(to_dicts(messages, name), return_dict=False) == row, (name, case)
            history = History(chat, None, messages[0].content if messages[0].role == "system" else None)
            for place, message in enumerate(messages):
                if message.role == "user":
                    prompt, _ = history.ask(message.content, message.input)
                    asked = to_dicts(messages[: place + 1], name)
                    assert row[: len(prompt)] == prompt, (name, case)
                    assert opened.apply_chat_template(asked, add_generation_prompt=True, return_dict=False) == prompt
                elif message.role == "assistant":
                    history.keep(message.content)


def to_dicts(messages, name: str) -> list[dict[str, str]]:
    """What a server is sent; only Alpaca's template has a block for an `input`."""
    return [
        {"role": m.role, "content": m.content} | ({"input": m.input} if m.input else {})
        if name == "alpaca"
        else {"role": m.role, "content": "\n\n".join(filter(None, (m.content, m.input)))}
        for m in messages
    ]


@pytest.mark.parametrize("name", SHIPPED)
def test_evaluation_asks_with_the_beginning_of_the_training_row(name, shared_data):
    renderer = build(name, find_tokenizer("llama2", shared_data))
    conversations = [Conversation(messages) for messages in build_parity_conversations(renderer).values()]
    rows = [{"example": to_json(one), "source": "a.json", "row": n} for n, one in enumerate(conversations, 1)]
    questions = build_questions(LoadedExamples(Dataset.from_list(rows), {}, ""), renderer)
    for question, rendered in zip(questions, renderer.render(conversations), strict=True):
        assert rendered.input_ids[: len(question.prompt_ids)] == question.prompt_ids
        assert rendered.spans[-1][0] == len(question.prompt_ids)


def test_mistral_common_gives_every_row_and_every_prompt_of_the_fixed_set(shared_data):
    encoder = MistralTokenizer.v1().instruct_tokenizer

    def encode(messages):
        kinds = {"user": UserMessage, "assistant": AssistantMessage}
        turns = [kinds[m["role"]](content=m["content"]) for m in to_dicts(messages, "mistral") if m["role"] in kinds]
        system = messages[0].content if messages[0].role == "system" else None
        return encoder.encode_instruct(InstructRequest(messages=turns, system_prompt=system)).tokens

    for which in ("mistral", "mistral_spaced"):
        renderer = build("mistral", find_tokenizer(which, shared_data))
        for case, messages in build_parity_conversations(renderer).items():
            assert renderer.render([Conversation(messages)])[0].input_ids == encode(messages), case
            for place, message in enumerate(messages):
                if message.role == "user":
                    assert renderer.render_prompt(messages[: place + 1]) == encode(messages[: place + 1]), case


def test_metas_reference_gives_every_row_of_the_fixed_set_but_for_the_repeated_beginning(shared_data):
    pieces = SentencePieceProcessor(model_file=str(shared_data / "tokenizers" / "llama2_tokenizer.model"))
    renderer = build("llama2", find_tokenizer("llama2", shared_data))
    for case, messages in build_parity_conversations(renderer).items():
        turns = [message["content"] for message in to_dicts(messages, "llama2")]
        if messages[0].role == "system":
            turns[:2] = [f"<<SYS>>\n{turns[0]}\n<</SYS>>\n\n{turns[1]}"]
        expected = [pieces.bos_id()]
        for asked, answer in zip(turns[::2], turns[1::2], strict=True):
            expected += [*pieces.encode(f"[INST] {asked.strip()} [/INST] {answer.strip()} "), pieces.eos_id()]
        assert renderer.render([Conversation(messages)])[0].input_ids == expected, case


TOOL = {"type": "function", "function": {"name": "add", "description": "adds", "parameters": {"type": "object"}}}
CALLS = tuple({"type": "function", "function": {"name": "add", "arguments": {"a": n, "b": "<2>"}}} for n in (1, 2))
TOOL_TURNS = (
    Message("user", "1+2 and 2+2?"),
    Message("assistant", "", tool_calls=CALLS),
    Message("tool", "3"),
    Message("tool", "4"),
    Message("assistant", "3 and 4."),
    Message("user", "And 1+2 again?"),
    Message("assistant", "Once more:", tool_calls=CALLS[:1]),
    Message("tool", "3"),
    Message("assistant", "3."),
)
SYSTEM = Message("system", "Be brief.")


@pytest.mark.parametrize("which", TOKENIZERS)
@pytest.mark.parametrize("opening", [(), (SYSTEM,)])
def test_tools_are_the_same_in_training_evaluation_and_export(which, opening, shared_data):
    tokenizer = find_tokenizer(which, shared_data)
    renderer = build("chatml", tokenizer)
    messages = (*opening, *TOOL_TURNS)
    row = renderer.render([Conversation(messages, (TOOL,))])[0]
    source = renderer.template.serving_source
    dicts = [
        {"role": m.role, "content": m.content} | ({"tool_calls": list(m.tool_calls)} if m.tool_calls else {})
        for m in messages
    ]
    starts = []
    for place, message in enumerate(messages):
        if message.role == "assistant":
            prompt = renderer.render_prompt(messages[:place], (TOOL,))
            assert row.input_ids[: len(prompt)] == prompt
            starts.append(len(prompt))
            asked = {"conversation": dicts[:place], "tools": [TOOL], "chat_template": source}
            served = tokenizer.apply_chat_template(
                **asked, add_generation_prompt=True, return_dict=False, tokenizer_kwargs={"verbose": False}
            )
            assert served == prompt
    assert [start for start, _ in row.spans] == starts


# A template that changes changes every model trained with it: ids and masks of the fixed set, written down once.
PINNED = {
    ("alpaca", "llama2"): "9b70d8ac09c8c2a0f3c3a4fbf163dcd117cae7d44f89117754d05e3d74b09582",
    ("alpaca", "mistral"): "2d5789a20e285816c45f0286e18cd7530ec5da2294fb127c35b9d0444d0b98b6",
    ("chatml", "llama2"): "0b95145130c93454f6866f1564f764587dba76eff41eb7e6b2cfc5886be0b62e",
    ("chatml", "mistral"): "50768dbcc19a6d57d3e003d7c3e839d78ed455547a499c040fb076c619412b3c",
    ("llama2", "llama2"): "24629a61fdb93194d2f80930895e24ec31e29df90c9fb62a0e7726561fdfe675",
    ("llama2", "mistral"): "c51f60267371d0a2d53e9a99aa035f3d06d3027edd043fcbdc0fc1a3b5ddbef2",
    ("llama3", "llama2"): "c8aec01a6108aab9299b77c2b9b14cc43be4eaa73648f49b23d4d231463f3fcc",
    ("llama3", "mistral"): "e5e0abcf0068da013a8c682c98050c38eca68d5b11096790bac6d6cbf0d195b3",
    ("mistral", "llama2"): "ca3f1bf2d54f3b0938cdbc477a555a884ec5a9542393de05ff9091d0ad0d34ce",
    ("mistral", "mistral"): "3b9867d6ff5acced1a92578c7e1ef5024bbe1e14b9cdd1a4b3edbfa71ea55405",
    ("vicuna", "llama2"): "e4afdb53d04acf858edecc5e3ab30f8d0aed6e76c05ddd44bd48d30a7a678754",
    ("vicuna", "mistral"): "e7118869d1e30ed02fd4b0182aebb9593bc2628df2b4c74aec26bfaeec83faf2",
    ("zephyr", "llama2"): "098a1164fedc8c0e57eed3b5297cae819e1728cc4916d77afe22fdac613416a8",
    ("zephyr", "mistral"): "e129802e24d5f785cf4158cc70a00f711e89919ad66b11e7ea7a8b0b5ad60029",
}


def digest(renderer: Renderer) -> str:
    conversations = [Conversation(messages) for messages in build_parity_conversations(renderer).values()]
    if "tools" in renderer.template.reads:
        conversations += [Conversation(TOOL_TURNS, (TOOL,)), Conversation((SYSTEM, *TOOL_TURNS), (TOOL,))]
        conversations += [Conversation(TOOL_TURNS)]
    rows = [[row.input_ids, row.trained] for row in renderer.render(conversations)]
    prompts = [renderer.render_prompt(one.messages[:-1], one.tools) for one in conversations]
    return hashlib.sha256(json.dumps([rows, prompts]).encode()).hexdigest()


@pytest.mark.parametrize("which", REAL)
@pytest.mark.parametrize("name", SHIPPED)
def test_the_ids_and_the_mask_of_a_template_stay_as_they_were(name, which, shared_data):
    assert digest(build(name, find_tokenizer(which, shared_data))) == PINNED[name, which]


LITERAL = re.compile(r"\{#.*?#\}|raise_exception\([^)]*\)|'((?:[^'\\]|\\.)*)'|\"((?:[^\"\\]|\\.)*)\"", re.DOTALL)


def plant_in_texts(source: str):
    """Change one character of each text in a template, comments and refusals left alone."""
    draw = random.Random(6)
    start = source.index("{#")  # what stands before is the tokenizer's
    for found in LITERAL.finditer(source, start):
        text, begins = found.group(1) or found.group(2), found.start() + 1
        if text:
            place = draw.choice([n for n, sign in enumerate(text) if sign != "\\" and text[n - 1 : n] != "\\"] or [0])
            at = begins + place
            planted = source[:at] + ("z" if source[at] != "z" else "y") + source[at + 1 :]
            yield f"{text!r} at {at}", planted


ANSWER = re.compile(r"\{%- generation -%\}\s*\{\{- (' ' ~ )?(\(message\['content'\] \| trim\)|message\['content'\])")


def move_the_mark(source: str) -> str:
    """Begin what is trained behind the answer's first character; the text stays as it is."""
    return ANSWER.sub(r"{{- \1\2[:1] -}}{%- generation -%}{{- \2[1:]", source)


def leave_out_the_end(source: str) -> str:
    """End what is trained before the token that ends the answer; the text stays as it is."""
    start, end = source.index("{%- generation -%}"), source.index("{%- endgeneration -%}")
    block = source[start:end].replace("~ end_of_turn", "-}}{{- end_of_turn")
    return (
        source[:start] + block.replace("{{- end_of_turn", "{%- endgeneration -%}{{- end_of_turn") + source[end + 21 :]
    )


@pytest.mark.parametrize("name", SHIPPED)
def test_one_character_changed_in_a_template_or_in_its_marks_changes_what_is_pinned(name, shared_data):
    tokenizer = find_tokenizer("mistral", shared_data)
    template = build(name, tokenizer).template
    pinned = PINNED[name, "mistral"]
    planted = dict(plant_in_texts(template.source))
    found = {what: digest_of(template, source, tokenizer) for what, source in planted.items()}
    assert len(found) > 8
    assert not [what for what, digested in found.items() if digested == pinned]
    assert sum(digested.startswith("refused") for digested in found.values()) < len(found) / 2
    moved = digest_of(template, move_the_mark(template.source), tokenizer)
    assert not moved.startswith("refused") and moved != pinned
    assert "not within what is trained" in digest_of(template, leave_out_the_end(template.source), tokenizer)


def digest_of(template, source, tokenizer) -> str:
    changed = dataclasses.replace(template, source=source, serving_source=remove_marks(source))
    try:
        return digest(build(changed, tokenizer))
    except Exception as error:  # a template that does not render at all is noticed as well
        return f"refused: {error}"


# Accepted; each fault below changes it in one place, in a conversation of which loading a template knows nothing.
SOUND = (
    "{{ bos_token }}{% for m in messages %}"
    "{% if m.role == 'user' %}Q: {{ m.content }}{% if m.input %} ({{ m.input }}){% endif %}{{ '\\nA:\\n' }}"
    "{% elif m.role == 'assistant' %}{% generation %}{{ m.content ~ eos_token }}{% endgeneration %}{{ '\\n' }}"
    "{% else %}S: {{ m.content ~ '\\n' }}{% endif %}{% endfor %}"
)
WITH_SYSTEM = "messages[0].role == 'system'"
FAULTS = {
    "a stop token outside of the marks": (
        SOUND.replace(
            "{% generation %}{{ m.content ~ eos_token }}{% endgeneration %}",
            "{% generation %}{{ m.content }}{% if not " + WITH_SYSTEM + " %}{{ eos_token }}{% endif %}"
            "{% endgeneration %}{% if " + WITH_SYSTEM + " %}{{ eos_token }}{% endif %}",
        ),
        r"the token that ends answer 1 is not trained.*\n.*`a system message`",
    ),
    "a doubled beginning": (
        SOUND.replace("{% for", "{% if " + WITH_SYSTEM + " %}{{ bos_token }}{% endif %}{% for"),
        r"a row begins with <s> twice.*\n.*`a system message`",
    ),
    "a missing beginning": (
        SOUND.replace("{{ bos_token }}", "{% if not " + WITH_SYSTEM + " %}{{ bos_token }}{% endif %}"),
        r"a row does not begin with <s>.*\n.*`a system message`",
    ),
    "a mask that begins one token early": (
        SOUND.replace("'\\nA:\\n'", "'\\nA:' ~ ('\\n' if not m.input or not messages[loop.index] else '')").replace(
            "{% generation %}{{",
            "{% generation %}{{ '\\n' if messages[loop.index0 - 1].input else '' }}{{",
        ),
        r"what is trained of answer 1 begins 1 tokens before the prompt's end.*\n.*`an input`",
    ),
    "a mask that begins late": (
        SOUND.replace("{% generation %}{{", "{{ '\\n' if messages[0].input else '' }}{% generation %}{{"),
        r"what is trained of answer 1 begins 1 tokens behind the prompt's end.*\n.*`an input`",
    ),
    "a mask that begins where the user writes the marker": (
        SOUND.replace(
            "Q: {{ m.content }}",
            "Q: {% if 'A:' in m.content %}{% generation %}{{ m.content }}{% endgeneration %}"
            "{% else %}{{ m.content }}{% endif %}",
        ),
        r"the template .* cannot render this row: it marks 4 spans for 2 answers.*\n.*`the template's own marks`",
    ),
    "an answer trimmed in the middle of a conversation alone": (
        SOUND.replace("m.content ~ eos_token", "(m.content if loop.last else m.content | trim) ~ eos_token"),
        r"chat cannot render it: .*a conversation's beginning does not stay.*\n.*`white space at the edges`",
    ),
    "another prompt where there is an input": (
        SOUND.replace("{% endfor %}", "{% endfor %}{% if add_generation_prompt and messages[0].input %}So:{% endif %}"),
        r"token \d+ of the prompt of answer 1 is '3' \(\d+\) in training and 'So' .* in evaluation.*\n.*`an input`",
    ),
}


@pytest.fixture
def mistral(shared_data):
    return find_tokenizer("mistral", shared_data)


def load_source(source: str, tokenizer, folder: Path):
    path = folder / "own.jinja"
    path.write_text(source, encoding="utf-8")
    return load_template(str(path), tokenizer)


@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_that_loading_a_template_cannot_see_is_refused_with_the_reason(fault, mistral, tmp_path):
    check_parity(build(load_source(SOUND, mistral, tmp_path), mistral))
    source, reason = FAULTS[fault]
    faulty = build(load_source(source, mistral, tmp_path), mistral)
    with pytest.raises(
        RecipeError, match=rf"^data\.template: `.*own\.jinja` cannot be trained on with this tokenizer: {reason}"
    ):
        check_parity(faulty)


@pytest.mark.parametrize(
    ("old", "new", "reason"),
    [
        (
            "\\nA:\\n",
            "\\nB:\\n",
            r"token 8 of the prompt of answer 1 is 'A' \(\d+\) in training and 'B' \(\d+\) in chat",
        ),
        ("S: ", "S : ", r"token 3 of .* in chat.*\n.*`a system message`"),
        (" ~ eos_token", "", r"chat cannot load it as it is saved with the tokenizer \(.*has no end token"),
        (
            "{% endfor %}",
            "{% endfor %}{% if not add_generation_prompt %}So{% endif %}",
            r"from character \d+ on the text is '' in training and 'So' in the exported template",
        ),
        ("{{ bos_token }}", "{{ bos_token ~ bos_token }}", r"chat cannot load it .*<s> twice"),
    ],
)
def test_an_exported_template_that_differs_is_refused(old, new, reason, mistral, tmp_path):
    template = load_source(SOUND, mistral, tmp_path)
    other = dataclasses.replace(template, serving_source=template.serving_source.replace(old, new))
    assert other != template
    with pytest.raises(RecipeError, match=reason):
        check_parity(build(other, mistral))


class DoublingTokenizer(PreTrainedTokenizerFast):
    """A tokenizer that puts its own beginning before a rendered template too, as some servers did."""

    def apply_chat_template(self, conversation, **how):
        rendered = super().apply_chat_template(conversation, **how)
        return rendered if isinstance(rendered, str) else [self.bos_token_id, *rendered]


def test_a_server_that_begins_a_rendered_prompt_once_more_is_refused(mistral):
    doubling = DoublingTokenizer(tokenizer_object=mistral.backend_tokenizer, bos_token="<s>", eos_token="</s>")
    reason = r"token 2 of the prompt of answer 1 is .* in training and '<s>' \(1\) in the exported template"
    with pytest.raises(RecipeError, match=reason):
        check_parity(Renderer(load_template("zephyr", doubling), doubling))


@pytest.mark.parametrize(
    ("old", "new", "content", "given"),
    [
        ("Q: {{ m.content }}", "Q: <{{ m.content }}", "/s> and more", ""),
        ("Q: {{ m.content }}", "Q: {{ m.content }}/s>", "ask <", ""),
        (" ({{ m.input }})", "{{ m.input }}", "ask </", "s> and more"),
        (" ({{ m.input }})", "/{{ m.input }}", "ask <", "s> and more"),
    ],
)
def test_a_template_that_completes_a_control_token_with_a_rows_text_is_refused(
    old, new, content, given, mistral, tmp_path
):
    faulty = build(load_source(SOUND.replace(old, new), mistral, tmp_path), mistral)
    with pytest.raises(RecipeError, match=r"it writes a part of the control token </?s> beside a row's text"):
        check_parity(faulty)
    # The refusal is true: such a row ends its own turn, whatever becomes of control tokens in its fields.
    row = faulty.render([Conversation((Message("user", content, given), Message("assistant", "a")))])[0]
    assert row.input_ids.count(mistral.eos_token_id) == 2
    assert row.num_control_tokens == 0


def test_a_template_without_a_place_for_a_system_message_is_not_asked_for_one(mistral, tmp_path):
    source = SOUND.replace("S: {{ m.content ~ '\\n' }}", "{{ raise_exception('no place for it') }}")
    renderer = build(load_source(source, mistral, tmp_path), mistral)
    check_parity(renderer)
    assert not [name for name in build_parity_conversations(renderer) if "system" in name]


@pytest.mark.parametrize("name", ["cohere2", "gemma3", "lfm2", "llama3_1", "llama3_training", "qwen2_5", "qwen3_vl"])
def test_templates_of_well_known_models_are_not_refused(name, shared_data):
    source = (files("trl") / "chat_templates" / f"{name}.jinja").read_text("utf-8")
    tokenizer = copy.deepcopy(find_tokenizer("byte_level", shared_data))
    control = sorted(set(re.findall(r"<\|\w+\|>|<\w+_of_turn>", source)))
    tokenizer.add_special_tokens({"extra_special_tokens": control})
    tokenizer.eos_token = next(token for token in control if token.lower() in ENDS)
    tokenizer.chat_template = source
    renderer = Renderer(load_template("model", tokenizer), tokenizer)
    check_parity(renderer)


ENDS = ("<|im_end|>", "<|eot_id|>", "<end_of_turn>", "<|end_of_turn_token|>")


def test_a_marker_that_is_a_token_of_its_own_is_no_text_of_the_set(shared_data):
    tokenizer = find_tokenizer("byte_level", shared_data)
    renderer = build("chatml", tokenizer)
    texts = [m.content + m.input for messages in build_parity_conversations(renderer).values() for m in messages]
    assert any("[INST]" in text for text in texts)
    assert not any(token in text for text in texts for token in tokenizer.all_special_tokens)
    rows = renderer.render([Conversation(messages) for messages in build_parity_conversations(renderer).values()])
    assert sum(row.num_control_tokens for row in rows) == 0


def test_a_refusal_is_an_error_of_the_recipe_and_has_at_most_four_lines(mistral, tmp_path):
    renderer = build(load_source(FAULTS["a doubled beginning"][0], mistral, tmp_path), mistral)
    with pytest.raises(FinetuneError) as caught:
        check_parity(renderer)
    assert caught.value.exit_code == 2
    assert len(str(caught.value).splitlines()) <= 4
