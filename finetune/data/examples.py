"""What a row means: the conversation or the text in it, and the place it came from.

Everything above this file works on these; the formats of rows end here.
"""

import json
from dataclasses import dataclass
from typing import Any

from finetune.errors import DataError

__all__ = [
    "AnyExample",
    "Compared",
    "Conversation",
    "Document",
    "Example",
    "Judged",
    "Labelled",
    "Message",
    "Origin",
    "Preference",
    "RowError",
    "from_json",
    "judged_from_json",
    "labelled_from_json",
    "preference_from_json",
    "to_json",
]


@dataclass(frozen=True, slots=True)
class Origin:
    """A place in the data: `source` as typed in the recipe (or the file in that folder), `row` its line from 1."""

    source: str
    row: int

    def __str__(self) -> str:
        return f"{self.source}:{self.row}"


class RowError(DataError):
    """A row that cannot be used.

    Attributes:
        origin: where it stands.
        reason: what is wrong, in words that other rows share, so that it can be counted.
        detail: what is special to this row.
    """

    def __init__(self, origin: Origin, reason: str, detail: str = "") -> None:
        super().__init__(f"{origin}: {reason}{detail}.")
        self.origin = origin
        self.reason = reason
        self.detail = detail


@dataclass(frozen=True, slots=True)
class Message:
    """One turn.

    Attributes:
        role: system, user, assistant or tool.
        content: the text; empty only beside `tool_calls`.
        input: Alpaca's second part of an instruction; user alone.
        weight: 0 or 1 where the row says itself whether this answer is trained; assistant alone.
        tool_calls: `{"type": "function", "function": {"name": …, "arguments": {…}}}`, with an `id` where given.
        tool_call_id: the call that a tool's message answers, where given.
        name: the tool that answers, where given.
    """

    role: str
    content: str
    input: str = ""
    weight: int | None = None
    tool_calls: tuple[dict[str, Any], ...] = ()
    tool_call_id: str = ""
    name: str = ""


@dataclass(frozen=True, slots=True)
class Conversation:
    """Turns in a checked order, and the tools the assistant could call (`{"type": "function", "function": …}`)."""

    messages: tuple[Message, ...]
    tools: tuple[dict[str, Any], ...] = ()
    origin: Origin | None = None


@dataclass(frozen=True, slots=True)
class Document:
    """Plain text, every token of which is trained."""

    text: str
    origin: Origin | None = None


@dataclass(frozen=True, slots=True)
class Preference:
    """Two answers to one prompt, the better one `chosen`.

    Both conversations begin with the prompt's turns; the assistant's among those have weight 0, so that what is
    trained is what the two differ in.
    """

    chosen: Conversation
    rejected: Conversation
    origin: Origin | None = None


@dataclass(frozen=True, slots=True)
class Judged:
    """A conversation whose last answer was found good (`desirable`) or bad; earlier answers have weight 0."""

    conversation: Conversation
    desirable: bool
    origin: Origin | None = None


@dataclass(frozen=True, slots=True)
class Labelled:
    """A text, or two, and what they were labelled with.

    Attributes:
        text: the first or only text.
        text_pair: the second one; None where rows are single texts.
        label: a label's name, or a number; None where the row has none.
    """

    text: str
    text_pair: str | None = None
    label: str | float | None = None
    origin: Origin | None = None


Example = Conversation | Document  # rendered as one text
Compared = Preference | Judged  # made of conversations
AnyExample = Example | Compared | Labelled


# One encoder for all rows; `json.dumps` makes one for each.
_to_text = json.JSONEncoder(ensure_ascii=False).encode


def to_json(example: AnyExample) -> str:
    """Write an example as one JSON object; its origin is kept beside it, not in it."""
    return _to_text(_to_value(example))


def _to_value(example: AnyExample) -> dict[str, Any]:
    match example:
        case Document():
            return {"text": example.text}
        case Preference():
            return {"chosen": _to_value(example.chosen), "rejected": _to_value(example.rejected)}
        case Judged():
            return {"judged": _to_value(example.conversation), "desirable": example.desirable}
        case Labelled():
            parts = {"labelled": example.text, "text_pair": example.text_pair, "label": example.label}
            return {name: part for name, part in parts.items() if part is not None}
    value: dict[str, Any] = {"messages": [_to_dict(message) for message in example.messages]}
    if example.tools:
        value["tools"] = example.tools
    return value


def _to_dict(message: Message) -> dict[str, Any]:
    value: dict[str, Any] = {"role": message.role, "content": message.content}
    if message.input:
        value["input"] = message.input
    if message.weight is not None:
        value["weight"] = message.weight
    if message.tool_calls:
        value["tool_calls"] = message.tool_calls
    if message.tool_call_id:
        value["tool_call_id"] = message.tool_call_id
    if message.name:
        value["name"] = message.name
    return value


def from_json(text: str, origin: Origin | None = None) -> Example:
    """Read a conversation or a document that `to_json` wrote."""
    value = json.loads(text)
    return Document(value["text"], origin) if "text" in value else _to_conversation(value, origin)


def preference_from_json(text: str, origin: Origin | None = None) -> Preference:
    """Read a preference that `to_json` wrote."""
    value = json.loads(text)
    return Preference(_to_conversation(value["chosen"], origin), _to_conversation(value["rejected"], origin), origin)


def judged_from_json(text: str, origin: Origin | None = None) -> Judged:
    """Read a judged conversation that `to_json` wrote."""
    value = json.loads(text)
    return Judged(_to_conversation(value["judged"], origin), value["desirable"], origin)


def labelled_from_json(text: str, origin: Origin | None = None) -> Labelled:
    """Read a labelled text that `to_json` wrote."""
    value = json.loads(text)
    return Labelled(value["labelled"], value.get("text_pair"), value.get("label"), origin)


def _to_conversation(value: dict[str, Any], origin: Origin | None) -> Conversation:
    messages = (Message(**{**turn, "tool_calls": tuple(turn.get("tool_calls", ()))}) for turn in value["messages"])
    return Conversation(tuple(messages), tuple(value.get("tools", ())), origin)
