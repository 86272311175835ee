"""The tokenizer's own template, and .jinja files: used as they are, or refused with the reason."""

import copy
from pathlib import Path

import pytest
from mistral_common.tokens.tokenizers.mistral import MistralTokenizer

from finetune.data.examples import Conversation, Message, Origin
from finetune.data.rendering import Renderer
from finetune.data.templates import load_template
from finetune.errors import DataError, RecipeError
from finetune.model.sentencepiece_conversion import convert_sentencepiece

TURNS = (Message("user", "a"), Message("assistant", "b"), Message("user", "c"), Message("assistant", "d"))
OWN = (
    "{{ bos_token }}{% for message in messages %}\n"
    "<|{{ message['role'] }}|>\n{{ message['content'] + eos_token }}\n"
    "{% endfor %}\n"
    "{% if add_generation_prompt %}\n<|assistant|>\n{% endif %}"
)


@pytest.fixture(scope="module")
def converted():
    return convert_sentencepiece(MistralTokenizer.v1().instruct_tokenizer.tokenizer.file_path)


@pytest.fixture
def tokenizer(converted):
    return copy.deepcopy(converted)


def write(folder, source: str) -> str:
    path = folder / "own.jinja"
    path.write_text(source, encoding="utf-8")
    return str(path)


def render(name, tokenizer, turns=TURNS, **settings):
    return Renderer(load_template(name, tokenizer), tokenizer, **settings).render(
        [Conversation(turns, origin=Origin("r", 2))]
    )[0]


def test_the_tokenizers_own_template_is_used_and_its_answers_found_by_prefixes(tokenizer):
    tokenizer.chat_template = OWN
    rendered = render("model", tokenizer)
    dicts = [{"role": turn.role, "content": turn.content} for turn in TURNS]
    assert rendered.input_ids == tokenizer.apply_chat_template(dicts, return_dict=False)
    trained = [token for token, is_trained in zip(rendered.input_ids, rendered.trained, strict=True) if is_trained]
    # The line break behind the end token is the template's, not the answer's.
    assert tokenizer.convert_ids_to_tokens(trained) == ["b", "</s>", "d", "</s>"]


def test_marks_and_prefixes_find_the_same_answers(tokenizer, tmp_path):
    tokenizer.chat_template = OWN
    marked = OWN.replace(
        "{{ message['content'] + eos_token }}",
        "{% if message['role'] == 'assistant' %}{% generation %}{{ message['content'] + eos_token }}{% endgeneration %}"
        "{% else %}{{ message['content'] + eos_token }}{% endif %}\n",
    )
    assert render(write(tmp_path, marked), tokenizer) == render("model", tokenizer)


def test_a_tokenizer_without_a_template_is_told_so(tokenizer):
    with pytest.raises(RecipeError, match=r"(?s)`model` means the tokenizer's own template, and .* Choose one: alpaca"):
        load_template("model", tokenizer)


def test_a_conversation_whose_beginning_changes_later_is_refused(tokenizer):
    # Thinking is dropped from every turn but the last, as some reasoning models' templates do.
    tokenizer.chat_template = OWN.replace(
        "message['content'] +", "((message['content'] if loop.last else message['content'].split('|')[-1])) +"
    )
    Renderer(load_template("model", tokenizer), tokenizer)
    with pytest.raises(DataError, match=r"^r:2: .*a conversation's beginning does not stay as it is"):
        render("model", tokenizer, (TURNS[0], Message("assistant", "think|b"), *TURNS[2:]))
    tokenizer.chat_template = OWN.replace("message['content'] +", "(message['content'] if loop.last else '-') +")
    with pytest.raises(RecipeError, match=r"`model` cannot be trained on .* beginning does not stay"):
        load_template("model", tokenizer)


@pytest.mark.parametrize(
    ("source", "reason"),
    [
        ("<s>" + OWN, "writes the beginning-of-sequence <s> twice"),
        (OWN.replace(" + eos_token", ""), "has no end token"),
        (
            OWN.replace(
                "{{ message['content'] + eos_token }}",
                "{% generation %}{{ message['content'] }}{% endgeneration %}{{ eos_token }}",
            ),
            "marks 4 spans for 2 answers",
        ),
        (
            "{{ bos_token }}{% for m in messages %}{% if m.role == 'user' %}Q: {{ m.content }} A:{% else %}"
            "{% generation %} {{ m.content }}{% endgeneration %}{{ eos_token }}{% endif %}{% endfor %}",
            "the token that ends an answer is not within what is trained",
        ),
        (
            "{{ bos_token }}{% for m in messages %}{% if m.role == 'user' %}Q: {{ m.content }}{% else %} A:"
            "{% generation %} {{ m.content ~ eos_token }}{% endgeneration %}{% endif %}{% endfor %}"
            "{% if add_generation_prompt %} Answer:{% endif %}",
            "the prompt it serves is not the one",
        ),
        ("{{ bos_token }}{{ raise_exception('not today') }}", "not today"),
    ],
)
def test_a_template_that_cannot_be_trained_on_is_refused_with_the_reason(source, reason, tokenizer, tmp_path):
    with pytest.raises(RecipeError, match=reason):
        load_template(write(tmp_path, source), tokenizer)


def test_a_template_that_is_no_jinja_names_the_line(tokenizer, tmp_path):
    with pytest.raises(RecipeError, match=r"own\.jinja:2: the template is no Jinja: .*endfor"):
        load_template(write(tmp_path, "{% for m in messages %}\n{% endif %}"), tokenizer)


def test_a_beginning_that_a_template_leaves_out_is_put_in_front(tokenizer, tmp_path):
    name = write(tmp_path, OWN.replace("{{ bos_token }}", ""))
    rendered = render(name, tokenizer)
    assert rendered.input_ids[0] == tokenizer.bos_token_id
    assert rendered.input_ids.count(tokenizer.bos_token_id) == 1
    assert load_template(name, tokenizer).serving_source.startswith("{{ bos_token }}")


def test_an_unknown_name_gets_the_nearest_one(tokenizer):
    with pytest.raises(RecipeError, match=r"(?s)no template `alpacca`.*Did you mean `alpaca`"):
        load_template("alpacca", tokenizer)
    with pytest.raises(RecipeError, match=r"there is no file missing\.jinja"):
        load_template("missing.jinja", tokenizer)


def test_a_template_cannot_reach_outside_its_sandbox(tokenizer, tmp_path):
    with pytest.raises(RecipeError, match=r"__class__"):
        load_template(write(tmp_path, OWN + "{{ ''.__class__.__mro__ }}"), tokenizer)


def test_everything_that_a_template_may_call_is_what_transformers_gives_it(tokenizer, tmp_path):
    extras = "{{ strftime_now('%Y') }}{{ {'a': '<é>'} | tojson }}{% for i in [1, 2] %}{{ i }}{% break %}{% endfor %}"
    source = OWN.replace("{{ bos_token }}", "{{ bos_token }}" + extras)
    template = load_template(write(tmp_path, source), tokenizer)
    dicts = [{"role": turn.role, "content": turn.content} for turn in TURNS]
    assert template.render(dicts).text == tokenizer.apply_chat_template(dicts, chat_template=source, tokenize=False)


def test_the_template_in_the_documentation_trains_its_answers(tokenizer, tmp_path):
    page = (Path(__file__).parents[2] / "docs" / "templates.md").read_text("utf-8")
    rendered = render(write(tmp_path, page.split("```jinja\n")[1].split("```")[0]), tokenizer)
    trained = [token for token, is_trained in zip(rendered.input_ids, rendered.trained, strict=True) if is_trained]
    assert tokenizer.convert_ids_to_tokens(trained) == ["b", "</s>", "d", "</s>"]
    assert tokenizer.decode(rendered.input_ids).count("\nA: ") == 2
