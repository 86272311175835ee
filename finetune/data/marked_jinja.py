"""Chat templates in Jinja, and the marks in them around what is trained.

In goes a template's source; out comes rendered text with the spans that stood between
`{% generation %}` and `{% endgeneration %}`. The environment equals Transformers' own (sandboxed, the
same trimming, filters and functions) but for its bounds, so that the text is the one that any server renders.
"""

import json
import re
import secrets
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from functools import lru_cache
from typing import Any

from jinja2 import Template, TemplateError, meta, nodes
from jinja2.ext import Extension, loopcontrols
from jinja2.parser import Parser

from finetune.data.bounded_jinja import BoundedEnvironment, check_size, find_limit, to_measured

__all__ = ["MarkedText", "Span", "compile_template", "find_names", "has_marks", "remove_marks", "render_marked"]

Span = tuple[int, int]

_MAX_INDENT = 64

# Written into the text by a mark and taken out again below. Drawn anew in each process, so no row can hold them.
_OPEN, _CLOSE = (f"\ue000{secrets.randbits(64)}{end}\ue001" for end in "<>")

_TAG = re.compile(r"\{%(?P<left>[-+]?)\s*(?P<end>end)?generation\s*(?P<right>[-+]?)%\}")
_STRIPPING_TAG = re.compile(r"\s*\{%-\s*(?:end)?generation\s*-%\}\s*")


@dataclass(frozen=True, slots=True)
class MarkedText:
    """Rendered text, and its marked spans as (start, end) in characters, in order."""

    text: str
    spans: list[Span]


class _GenerationMarks(Extension):
    """The tags `{% generation %}` and `{% endgeneration %}`."""

    tags = {"generation"}  # noqa: RUF012 - Jinja's own declaration

    def parse(self, parser: Parser) -> list[nodes.Node]:
        """Put the block's own content between two marks."""
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        opening, closing = (nodes.Output([nodes.TemplateData(mark)], lineno=line) for mark in (_OPEN, _CLOSE))
        return [opening, *body, closing]


def _raise_exception(message: str) -> None:
    raise TemplateError(message)


def _to_json(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | str | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    if indent is not None and (indent if isinstance(indent, int) else len(indent)) > _MAX_INDENT:
        raise TemplateError(f"JSON is indented by {_MAX_INDENT} at most")
    # Jinja's own filter escapes <, > and & for HTML.
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


def _build_environment() -> BoundedEnvironment:
    environment = BoundedEnvironment(trim_blocks=True, lstrip_blocks=True, extensions=[_GenerationMarks, loopcontrols])
    environment.filters["tojson"] = _to_json
    environment.globals["raise_exception"] = _raise_exception
    environment.globals["strftime_now"] = lambda form: datetime.now().strftime(form)
    return environment


_ENVIRONMENT = _build_environment()


@lru_cache(maxsize=32)
def compile_template(source: str) -> Template:
    """Compile a source; the same one is compiled once.

    Raises:
        jinja2.TemplateSyntaxError: with the line.
    """
    return _ENVIRONMENT.from_string(source)


def render_marked(template: Template, values: Mapping[str, Any]) -> MarkedText:
    """Render, take the marks out and note where they stood.

    Raises:
        jinja2.TemplateError: the template refuses these values, or a marked block lies in another.
    """
    first, *pieces = _render(template, to_measured(values)).split(_OPEN)
    spans: list[Span] = []
    texts, length = [first], len(first)
    for piece in pieces:
        marked, closed, after = piece.partition(_CLOSE)
        if not closed:
            raise TemplateError("a {% generation %} block lies inside another one")
        spans.append((length, length + len(marked)))
        texts += (marked, after)
        length += len(marked) + len(after)
    return MarkedText("".join(texts), spans)


def _render(template: Template, values: Mapping[str, Any]) -> str:
    """Render piece by piece, so that a loop that never ends is stopped where the text is longer than any."""
    limit, length = find_limit(values), 0
    pieces = []
    for piece in template.generate(values):
        length += len(piece)
        check_size(length, limit)
        pieces.append(piece)
    return "".join(pieces)


def has_marks(source: str) -> bool:
    """Say whether a source marks what is trained."""
    return _TAG.search(source) is not None


def remove_marks(source: str) -> str:
    """Remove the marks, which only Transformers knows; the text rendered stays the same.

    A tag that does not strip the space on both sides becomes an `if true`, which trims as it does.
    """
    source = _STRIPPING_TAG.sub("", source)
    return _TAG.sub(
        lambda tag: "{%" + tag["left"] + (" endif " if tag["end"] else " if true ") + tag["right"] + "%}", source
    )


def find_names(source: str) -> frozenset[str]:
    """Find what a template reads: its variables, and the fields it takes of anything."""
    tree = _ENVIRONMENT.parse(source)
    fields = {node.attr for node in tree.find_all(nodes.Getattr)}
    keys = {
        node.arg.value
        for node in tree.find_all(nodes.Getitem)
        if isinstance(node.arg, nodes.Const) and isinstance(node.arg.value, str)
    }
    return frozenset(meta.find_undeclared_variables(tree) | fields | keys | _find_texts(tree))


def _find_texts(tree: nodes.Template) -> set[str]:
    """Find words given as arguments, as in `message.get('input')`."""
    return {
        argument.value
        for call in tree.find_all(nodes.Call)
        for argument in call.args
        if isinstance(argument, nodes.Const) and isinstance(argument.value, str)
    }
