"""Templates that reach out of Jinja's sandbox, or that never end: refused as a fault of the recipe, nothing run."""

import time
from pathlib import Path

import pytest
from jinja2.sandbox import ImmutableSandboxedEnvironment
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from finetune.data.marked_jinja import compile_template, render_marked
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
    "a sum": "{% set ns = namespace(x='x' * 1000) %}{% for i in range(40) %}{% set ns.x = ns.x + ns.x %}{% endfor %}",
    "a sum of lists": "{% set ns = namespace(x=[0]) %}{% for i in range(40) %}{% set ns.x = ns.x + ns.x %}{% endfor %}",
    "a text put to itself": "{% set ns = namespace(x='xy') %}{% for i in range(40) %}{% set ns.x = ns.x ~ ns.x %}"
    "{% endfor %}",
    "a width": "{{ 'a'.ljust(300000000)|length }}",
    "a width on the left": "{{ 'a'.rjust(300000000)|length }}",
    "a width on both sides": "{{ 'a'.center(300000000)|length }}",
    "a width of zeros": "{{ 'a'.zfill(300000000)|length }}",
    "a width of bytes": "{{ 'a'.encode().ljust(300000000)|length }}",
    "a width of tabs": "{{ '\t'.expandtabs(tabsize=300000000)|length }}",
    "bytes of a number": "{{ (1).to_bytes(300000000, 'big')|length }}",
    "a field": "{{ '{:>300000000}'.format('a')|length }}",
    "a field in a field": "{{ '{:>{}}'.format('a', 300000000)|length }}",
    "a field of a safe text": "{{ ('{:>300000000}'|safe).format('a')|length }}",
    "a field of a mapping": "{{ '{a:>300000000}'.format_map({'a': 1})|length }}",
    "a printf": "{{ ('%300000000d' % 1)|length }}",
    "a printf with a star": "{{ ('%*d' % (300000000, 1))|length }}",
    "a printf's precision": "{{ '%.300000000f'|format(1)|length }}",
    "the filter center": "{{ 'a'|center(300000000)|length }}",
    "the filter center by another": "{{ ['a']|map('center', 300000000)|list|length }}",
    "the filter batch": "{{ [1]|batch(300000000, 'x')|list|length }}",
    "the filter indent": "{{ 'a'|indent(300000000, first=true)|length }}",
    "the filter join": "{{ (['x' * 1000000] * 100000)|join|length }}",
    "a join": "{{ ('x' * 1000000).join(['a'] * 100000)|length }}",
    "the filter replace": "{{ ('x' * 100000)|replace('x', 'y' * 100000)|length }}",
    "a replacement": "{{ ('x' * 100000).replace('x', 'y' * 100000)|length }}",
    "a translation": "{{ ('x' * 100000).translate({120: 'y' * 100000})|length }}",
    "the filter wordwrap": "{{ ('x' * 100000)|wordwrap(1, wrapstring='y' * 100000)|length }}",
    "an indent of JSON": "{{ [1]|tojson(indent=300000000)|length }}",
    "random text": "{{ lipsum(n=100000000)|length }}",
    "a long text in pieces": "{% for i in range(90000) %}{{ 'x' * 100000 }}{% endfor %}",
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


def test_what_a_template_wants_of_texts_is_what_jinja_gives():
    source = (
        "{% set ns = namespace(x='a') %}{% set ns.x = ns.x + 'b' ~ 3 ~ none %}{{ ns.x }} {{ [1] + [2] }} {{ 2 + 3 }} "
        "{{ '%s-%03d' % ('a', 7) }} {{ '%s'|format('b') }} {{ '{:>4}|{a}'.format('c', a=1) }} {{ 'a'.ljust(3) }}| "
        "{{ 'a'|center(5) }}| {{ [1, 2, 3]|batch(2, 'x')|list }} {{ 'a\nb'|indent(2) }} "
        "{{ [{'k': 1}]|join(',', 'k') }} {{ ','.join(['a', 'b']) }} {{ 'aa'|replace('a', 'b', 1) }} "
        "{{ 'a b'.replace(' ', '') }} {{ 'a b'|wordwrap(1) }} "
        "{{ ('<{}>'|safe).format('&') }} {{ '{a}'.format_map({'a': 2}) }} {{ 7 % 4 }} {{ 'a\tb'.expandtabs(2) }}"
    )
    plain = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True).from_string(source).render()
    assert render_marked(compile_template(source), {}).text == plain


def test_a_row_that_is_longer_than_the_limit_is_rendered():
    long = "x" * 3_000_000
    template = compile_template("{{ '<' + message.content ~ '>' }}")
    assert render_marked(template, {"message": {"content": long}}).text == f"<{long}>"
