"""Templates that reach out of Jinja's sandbox, or that never end: refused as a fault of the recipe, nothing run."""

import time
from pathlib import Path

import pytest
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from finetune.data.templates import load_template
from finetune.errors import RecipeError

TURNS = (
    "{% for message in messages %}{% if message.role == 'assistant' %}{% generation %}{{ message.content + eos_token }}"
    "{% endgeneration %}{% else %}{{ bos_token + message.content }}{% endif %}{% endfor %}"
)
ESCAPES = {
    "the class tree": "{{ ''.__class__.__mro__ }}",
    "the class tree by a filter": "{{ (''|attr('__class__')).__mro__ }}",
    "globals of a function": "{{ raise_exception.__globals__['__builtins__'] }}",
    "the environment's own": "{{ self.__init__.__globals__ }}",
    "a call": "{{ ''.__class__.__base__.__subclasses__()[0]() }}",
    "format's fields": "{{ '{0.__class__.__mro__}'.format('').__class__.x.y }}",
    "an import": "{% import 'os' as os %}{{ os.system('true') }}",
    "an include": "{% include '/etc/passwd' %}",
    "changing what it is given": "{{ messages.append(1) }}",
}
BOMBS = {
    "a long range": "{% for i in range(10 ** 9) %}x{% endfor %}",
    "a product": "{{ 'x' * 10000000000 }}",
    "a product of lists": "{{ ([0] * 100000000)|length }}",
    "a power": "{{ 9 ** (9 ** 9) }}",
    "a division": "{{ 1 / 0 }}",
    "endless macros": "{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}",
}


@pytest.fixture(scope="module")
def tokenizer(tiny_base: Path) -> PreTrainedTokenizerBase:
    return AutoTokenizer.from_pretrained(tiny_base)


@pytest.mark.parametrize("source", [*ESCAPES.values(), *BOMBS.values()], ids=[*ESCAPES, *BOMBS])
def test_a_template_that_reaches_out_is_refused_at_once(source, tokenizer, tmp_path):
    path = tmp_path / "hostile.jinja"
    path.write_text(TURNS)
    load_template(str(path), tokenizer)
    path.write_text(source + TURNS)
    began = time.monotonic()
    with pytest.raises(RecipeError) as refusal:
        load_template(str(path), tokenizer)
    assert time.monotonic() - began < 5
    text = str(refusal.value)
    assert text.startswith((f"data.template: `{path}` cannot be trained on", f"{path}:")), text
    assert len(text.splitlines()) <= 3
    assert "root:" not in text


def test_products_and_powers_that_a_template_wants_are_computed(tokenizer, tmp_path):
    path = tmp_path / "plain.jinja"
    path.write_text("{% if 2 ** 10 == 1024 and '-' * 3 == '---' and 3 * [1] == [1, 1, 1] %}" + TURNS + "{% endif %}")
    load_template(str(path), tokenizer)
