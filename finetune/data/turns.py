"""Turns as ShareGPT and OpenAI write them to checked messages.

In go the list under `conversations`, `messages`, `prompt` or `completion`; out come `Message`s whose
roles, contents, tool calls and order hold, or a `RowError` that names the row and the reason.
A conversation is put together here too, from its turns and what stands beside them in the row.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from finetune.data.examples import Conversation, Message, Origin, RowError
from finetune.data.strict_json import Row, StrictDecoder

__all__ = [
    "build_conversation",
    "check_order",
    "check_text",
    "leave_untrained",
    "read_json",
    "to_list",
    "to_messages",
    "to_prompt",
    "to_tools",
    "to_turns",
]

_SHAREGPT_ROLES = {
    "human": "user",
    "user": "user",
    "gpt": "assistant",
    "assistant": "assistant",
    "system": "system",
    "function_call": "function_call",
    "observation": "tool",
    "tool": "tool",
}
_OPENAI_ROLES = {"system": "system", "developer": "system", "user": "user", "assistant": "assistant", "tool": "tool"}


def check_text(value: Any, what: str, origin: Origin) -> str:
    """Check that a value is text with something in it.

    Raises:
        RowError: it is another type, or blank.
    """
    if not isinstance(value, str):
        raise RowError(origin, f"{what} is not text", f" but {_name_type(value)}")
    if not value or value.isspace():
        raise RowError(origin, f"{what} is empty")
    return value


def _name_type(value: Any) -> str:
    names = {dict: "an object", list: "a list", bool: "true or false", type(None): "null"}
    return names.get(type(value), "a number")


def to_list(value: Any, column: str, origin: Origin) -> list[dict[str, Any]]:
    """Convert a column to a list of objects; tables that have no lists hold it as JSON text.

    Raises:
        RowError: the text is not JSON, the value no list, or an item no object.
    """
    if isinstance(value, str):
        value = read_json(value, f"`{column}`", origin)
    if not isinstance(value, list):
        raise RowError(origin, f"`{column}` is not a list", f" but {_name_type(value)}")
    for place, item in enumerate(value, 1):
        if not isinstance(item, dict):
            raise RowError(origin, f"`{column}` holds something that is not an object", f" (item {place})")
    return value


def read_json(text: str, what: str, origin: Origin) -> Any:
    """Read JSON that stands as text in a column, by the rules of the files.

    Raises:
        RowError: it is broken.
    """
    try:
        # The decoder gives rows; the value becomes the one column of a row.
        row, end = StrictDecoder().decode(f'{{"value":{text}}}', origin.row)
    except json.JSONDecodeError as error:
        raise RowError(origin, f"{what} holds broken JSON", f" ({error.msg})") from None
    if not isinstance(row, Row):
        raise RowError(origin, f"{what} holds broken JSON", f" ({row.reason}{row.detail})")
    if end != len(text) + len('{"value":}') or list(row.columns) != ["value"]:
        raise RowError(origin, f"{what} holds broken JSON", " (text after the value)")
    return row.columns["value"]


def to_turns(value: Any, origin: Origin) -> list[Message]:
    """Convert ShareGPT's turns: `from` and `value`."""
    turns = to_list(value, "conversations", origin)
    for place, turn in enumerate(turns, 1):
        if "from" not in turn and "role" in turn:
            raise RowError(
                origin,
                "a turn under `conversations` has `role` and `content`",
                f" (turn {place}); read it as OpenAI's: `format: messages`, `columns: {{messages: conversations}}`",
            )
    return [_to_turn(turn, place, origin) for place, turn in enumerate(turns, 1)]


def _to_turn(turn: Mapping[str, Any], place: int, origin: Origin) -> Message:
    role = _find_role(turn.get("from"), "from", _SHAREGPT_ROLES, place, origin)
    value = check_text(turn.get("value"), f"the {turn['from']} turn", origin)
    if role != "function_call":
        return Message(role, value)
    calls = read_json(value, "a function_call turn", origin)
    return Message("assistant", "", tool_calls=_to_calls(calls if isinstance(calls, list) else [calls], origin))


def _find_role(value: Any, key: str, roles: Mapping[str, str], place: int, origin: Origin) -> str:
    if value is None:
        raise RowError(origin, f"a turn without `{key}`", f" (turn {place})")
    if not isinstance(value, str) or value not in roles:
        raise RowError(origin, "unknown role", f" {json.dumps(value)} (turn {place}); known: {', '.join(roles)}")
    return roles[value]


def to_messages(value: Any, column: str, origin: Origin) -> list[Message]:
    """Convert OpenAI's messages: `role` and `content`, `tool_calls`, `weight`."""
    turns = to_list(value, column, origin)
    for place, turn in enumerate(turns, 1):
        if "role" not in turn and "from" in turn:
            raise RowError(
                origin,
                f"a turn under `{column}` has `from` and `value`",
                f" (turn {place}); read it as ShareGPT's: `format: sharegpt`, `columns: {{conversations: {column}}}`",
            )
    return [_to_message(turn, place, origin) for place, turn in enumerate(turns, 1)]


def _to_message(turn: Mapping[str, Any], place: int, origin: Origin) -> Message:
    role = _find_role(turn.get("role"), "role", _OPENAI_ROLES, place, origin)
    calls = _to_calls(to_list(turn.get("tool_calls") or [], "tool_calls", origin), origin)
    if calls and role != "assistant":
        raise RowError(origin, f"a {role} message calls tools", f" (turn {place}); only the assistant does")
    content = _join_parts(turn.get("content"), origin)
    if not calls:
        content = check_text(content, f"the {role} message", origin)
    return Message(
        role,
        content or "",
        weight=_check_weight(turn.get("weight"), role, place, origin),
        tool_calls=calls,
        tool_call_id=_check_name(turn.get("tool_call_id"), "tool_call_id", origin) if role == "tool" else "",
        name=_check_name(turn.get("name"), "name", origin) if role == "tool" else "",
    )


def _join_parts(content: Any, origin: Origin) -> Any:
    """Join a content that is a list of text parts; leave any other as it is."""
    if not isinstance(content, list):
        return content
    texts = []
    for part in content:
        if not isinstance(part, dict) or part.get("type") != "text" or not isinstance(part.get("text"), str):
            kind = part.get("type") if isinstance(part, dict) else part
            raise RowError(origin, "a part of a content that is not text", f": {json.dumps(kind)}")
        texts.append(part["text"])
    return "".join(texts)


def _check_weight(weight: Any, role: str, place: int, origin: Origin) -> int | None:
    if weight is None:
        return None
    # A bool equals 0 or 1 in Python and not in JSON.
    if isinstance(weight, bool) or weight not in (0, 1):
        raise RowError(origin, "a weight that is neither 0 nor 1", f": {json.dumps(weight)} (turn {place})")
    if role == "assistant":
        return int(weight)
    if weight == 1:
        raise RowError(origin, f"weight 1 on a {role} message", f" (turn {place}); only the assistant's are trained")
    return None


def _check_name(value: Any, what: str, origin: Origin) -> str:
    if value is not None and not isinstance(value, str):
        raise RowError(origin, f"`{what}` is not text", f" but {_name_type(value)}")
    return value or ""


def _to_calls(calls: Sequence[Any], origin: Origin) -> tuple[dict[str, Any], ...]:
    """Convert calls, bare (`name`, `arguments`) or under `function`, to one shape with arguments as an object."""
    return tuple(_to_call(call, origin) for call in calls)


def _to_call(call: Any, origin: Origin) -> dict[str, Any]:
    function = call.get("function", call) if isinstance(call, dict) else None
    if not isinstance(function, dict) or not isinstance(function.get("name"), str) or not function["name"]:
        raise RowError(origin, "a tool call without a `name`")
    arguments = function.get("arguments")
    if isinstance(arguments, str) and arguments.strip():
        arguments = read_json(arguments, "a tool call's `arguments`", origin)
    arguments = arguments or {}
    if not isinstance(arguments, dict):
        raise RowError(origin, "a tool call's `arguments` are not an object", f" but {_name_type(arguments)}")
    identity = _check_name(call.get("id"), "id", origin)
    shaped = {"type": "function", "function": {"name": function["name"], "arguments": arguments}}
    return {"id": identity, **shaped} if identity else shaped


def to_tools(value: Any, origin: Origin) -> tuple[dict[str, Any], ...]:
    """Convert the tools on offer, bare or under `function`, as a list or as JSON text; none gives ()."""
    if value is None or (isinstance(value, str) and not value.strip()):
        return ()
    tools = []
    for tool in to_list(value, "tools", origin):
        function = tool.get("function", tool)
        if not isinstance(function, dict) or not isinstance(function.get("name"), str) or not function["name"]:
            raise RowError(origin, "a tool without a `name`")
        tools.append({"type": "function", "function": function})
    return tuple(tools)


# What may follow a turn, and how to say which turn that was.
_NEXT_ROLES = {
    "start": ({"user"}, "at the start"),
    "user": ({"assistant"}, "after a user message"),
    "assistant": ({"user"}, "after an answer"),
    "call": ({"tool"}, "after a tool call, before its result"),
    "tool": ({"tool", "assistant"}, "after a tool's result"),
}
_PHRASES = {"user": "a user message", "assistant": "an answer", "call": "a tool call", "tool": "a tool's result"}


def check_order(messages: Sequence[Message], origin: Origin) -> None:
    """Check that turns alternate: at most one system message, first; then user and assistant in turn.

    A tool call is followed by one or more results, and those by the assistant.

    Raises:
        RowError: the first turn out of order, or no turns.
    """
    state = "start"
    for place, message in enumerate(messages, 1):
        if message.role == "system":
            if place > 1:
                raise RowError(origin, "a system message in the middle", f" (turn {place}); it belongs first")
            continue
        turn = "call" if message.tool_calls else message.role
        allowed, after = _NEXT_ROLES[state]
        if message.role not in allowed:
            twice = state == message.role
            wrong = f"two {message.role} messages in a row" if twice else f"{_PHRASES[turn]} {after}"
            raise RowError(origin, wrong, f" (turn {place})")
        state = turn
    if not messages:
        raise RowError(origin, "a conversation without turns")


def build_conversation(messages: Sequence[Message], row: Mapping[str, Any], origin: Origin) -> Conversation:
    """Put the row's own `system` first, check the order and add the row's `tools`.

    Raises:
        RowError: two system messages, a turn out of order, or tools that are none.
    """
    system = row.get("system")
    if system is not None and not isinstance(system, str):
        check_text(system, "`system`", origin)
    if system and not system.isspace():
        if messages and messages[0].role == "system":
            raise RowError(origin, "two system messages", ": one in the column `system`, one among the turns")
        messages = [Message("system", system), *messages]
    check_order(messages, origin)
    return Conversation(tuple(messages), to_tools(row.get("tools"), origin), origin)


def to_prompt(value: Any, origin: Origin) -> list[Message]:
    """Convert a prompt, a text or a list of messages; answers inside it are not trained."""
    if isinstance(value, list):
        return leave_untrained(to_messages(value, "prompt", origin))
    return [Message("user", check_text(value, "`prompt`", origin))]


def leave_untrained(messages: Sequence[Message]) -> list[Message]:
    """Give the assistant's turns weight 0."""
    return [replace(message, weight=0) if message.role == "assistant" else message for message in messages]
