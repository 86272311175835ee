"""YAML text as a tree whose every key and value knows its line.

The tree is built from PyYAML's parse events, so no constructor runs and no tag means anything.
Scalars follow YAML 1.2: `2e-4`, `1e-05` and `.5` are numbers; `no`, `off`, `0o7`, `1_000` and dates
are text. What a recipe has no use for is refused early: tags, aliases, several documents, deep nesting.
"""

import re
from bisect import bisect_right
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from math import isfinite
from typing import Any

import yaml

from finetune.errors import RecipeError
from finetune.recipe.faults import Fault, quote, to_error, to_line_number

__all__ = ["Node", "Scalar", "read_yaml", "to_plain", "to_tree"]

Scalar = str | int | float | bool | None

_LINE_END = re.compile(r"\r\n?|\n")
_MAX_DEPTH = 20  # a recipe needs five, a model's config two or three more
_NULLS = {"", "~", "null", "Null", "NULL"}
_BOOLEANS = {"true": True, "True": True, "TRUE": True, "false": False, "False": False, "FALSE": False}
_INTEGER = re.compile(r"[-+]?[0-9]{1,18}")
_FLOAT = re.compile(r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?")

_UNEVEN = "This line is indented more or less than its neighbours: settings of one group start in one column."
_UNCLOSED = "A quote or a bracket that was opened is not closed."
_HINTS = {
    "mapping values are not allowed here": "A text with a colon and a space in it needs quotes.",
    "could not find expected ':'": "A setting is `key: value`, with a space behind the colon.",
    "expected <block end>": _UNEVEN,
    "found unexpected end of stream": _UNCLOSED,
    "expected ',' or": _UNCLOSED,
    "expected the node content": _UNCLOSED,
    "found character": "A text that begins with a sign such as @ ` % & * ! needs quotes.",
}


@dataclass(frozen=True, slots=True)
class Node:
    """A value and where it was typed.

    Attributes:
        value: a scalar, a list of nodes, or a mapping of nodes by key.
        place: `file:line` of the value, or `command line`.
        key_place: the same of its key.
        quoted: a text that was typed in quotes.
    """

    value: "Scalar | list[Node] | dict[str, Node]"
    place: str
    key_place: str
    quoted: bool = False


def read_yaml(text: str, source: str, *, has_lines: bool = True) -> tuple[Node, list[Fault]]:
    """Read one YAML document.

    Args:
        text: the document.
        source: what places begin with: a file's path, or `command line`.
        has_lines: whether a place says the line; not so for a value on the command line.

    Returns:
        The tree, and the faults that do not keep it from being read: duplicate keys and tags.

    Raises:
        RecipeError: the text is not one YAML document.
    """
    builder = _TreeBuilder(text, source, has_lines)
    try:
        tree = builder.build_document()
    except yaml.MarkedYAMLError as error:
        line = builder.find_line(error.problem_mark.index) if error.problem_mark else 0
        place = f"{source}:{line}" if line and has_lines else source
        raise to_error([_explain(error.problem or "", place)]) from error
    except yaml.reader.ReaderError as error:
        line = builder.find_line(error.position)
        what = f"the character U+{ord(text[error.position]):04X} is not text."
        raise to_error([Fault(f"{source}:{line}" if has_lines else source, what)]) from error
    return tree, builder.faults


def _explain(problem: str, place: str) -> Fault:
    if "'\\t'" in problem:
        return Fault(place, "there is a tab where YAML wants spaces.", ("Indent with two spaces.",))
    hints = tuple(hint for start, hint in _HINTS.items() if problem.startswith(start))
    return Fault(place, f"YAML cannot be read on from here: {problem}.", hints)


class _TreeBuilder:
    """Builds nodes from parse events."""

    def __init__(self, text: str, source: str, has_lines: bool) -> None:
        self.faults: list[Fault] = []
        self._source = source
        self._has_lines = has_lines
        self._events: Iterator[Any] = yaml.parse(text, Loader=yaml.SafeLoader)
        # PyYAML also counts signs such as U+2028 as ends of a line, which editors do not.
        self._line_starts = [0, *(end.end() for end in _LINE_END.finditer(text))]

    def find_line(self, index: int) -> int:
        """Find the line of a character, as an editor counts."""
        return bisect_right(self._line_starts, index)

    def build_document(self) -> Node:
        """Build the one document of the stream."""
        next(self._events)  # the stream's start
        event = next(self._events)
        if isinstance(event, yaml.StreamEndEvent):
            return Node(None, self._source, self._source)
        tree = self._build(next(self._events), depth=0)
        next(self._events)  # the document's end
        event = next(self._events)
        if not isinstance(event, yaml.StreamEndEvent):
            raise self._stop(event, "a second YAML document begins.", "A recipe is one document: one file a run.")
        return tree

    def _build(self, event: Any, depth: int, key_place: str | None = None) -> Node:
        place = self._place(event)
        if isinstance(event, yaml.AliasEvent):
            raise self._stop(event, f"the alias {quote(f'*{event.anchor}')} is not taken.", "Write the value out.")
        if depth > _MAX_DEPTH:
            raise self._stop(event, f"values are nested more than {_MAX_DEPTH} deep.", "A recipe is three deep or so.")
        if event.tag is not None:
            what = f"the tag {quote(event.tag.replace('tag:yaml.org,2002:', '!!'))} is not taken."
            self.faults.append(Fault(place, what, ("A recipe holds plain values only.",), to_line_number(place)))
        key_place = key_place or place
        if isinstance(event, yaml.ScalarEvent):
            self._check_text(event)
            return Node(_to_scalar(event), place, key_place, quoted=event.style is not None)
        if isinstance(event, yaml.SequenceStartEvent):
            return Node(self._build_list(depth), place, key_place)
        return Node(self._build_mapping(depth), place, key_place)

    def _build_list(self, depth: int) -> list[Node]:
        nodes = []
        while not isinstance(event := next(self._events), yaml.SequenceEndEvent):
            nodes.append(self._build(event, depth + 1))
        return nodes

    def _build_mapping(self, depth: int) -> dict[str, Node]:
        nodes: dict[str, Node] = {}
        while not isinstance(event := next(self._events), yaml.MappingEndEvent):
            if not isinstance(event, yaml.ScalarEvent):
                raise self._stop(event, "a setting's name is a word.", "Write `name: value`.")
            self._check_text(event)
            key, place = event.value, self._place(event)
            node = self._build(next(self._events), depth + 1, place)
            if key in nodes:
                what = f"{quote(key)} is set twice; the first time at {nodes[key].key_place}."
                self.faults.append(Fault(place, what, ("Keep one of the two.",), to_line_number(place)))
            else:
                nodes[key] = node
        return nodes

    def _check_text(self, event: Any) -> None:
        """Refuse what only an escape in quotes can write, and no file or path can hold."""
        for character in event.value:
            if (ord(character) < 32 and character not in "\n\t") or 0xD800 <= ord(character) <= 0xDFFF:
                raise self._stop(event, f"the character U+{ord(character):04X} is not text.", "Take its escape out.")

    def _place(self, event: Any) -> str:
        return f"{self._source}:{self.find_line(event.start_mark.index)}" if self._has_lines else self._source

    def _stop(self, event: Any, what: str, advice: str) -> RecipeError:
        return to_error([Fault(self._place(event), what, (advice,))])


def _to_scalar(event: Any) -> Scalar:
    text: str = event.value
    if event.style is not None:
        return text
    if text in _NULLS:
        return None
    if text in _BOOLEANS:
        return _BOOLEANS[text]
    if _INTEGER.fullmatch(text):
        return int(text)
    if _FLOAT.fullmatch(text) and len(text) < 40 and isfinite(float(text)):
        return float(text)
    return text


def to_plain(node: Node) -> Any:
    """The tree as plain Python values."""
    if isinstance(node.value, dict):
        return {key: to_plain(child) for key, child in node.value.items()}
    if isinstance(node.value, list):
        return [to_plain(child) for child in node.value]
    return node.value


def to_tree(value: Any, place: str) -> Node:
    """Plain Python values as a tree, all of it at one place."""
    if isinstance(value, Mapping):
        return Node({str(key): to_tree(child, place) for key, child in value.items()}, place, place)
    if isinstance(value, list | tuple):
        return Node([to_tree(child, place) for child in value], place, place)
    return Node(value, place, place)
