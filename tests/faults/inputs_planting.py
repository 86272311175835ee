"""Files of rows with one kind of fault planted at drawn lines, and what has to be said of it.

It knows nothing of the code that reads rows: each kind is written here by hand as bytes, beside the words that a
person needs to see what is wrong. In goes a generator of random numbers, out comes a file and the truth about it.
"""

import json
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

__all__ = ["KINDS", "SHAPES", "PlantedRows", "draw_rows", "list_kinds"]

Row = dict[str, Any]

_WORDS = [
    "river", "amber", "seven", "quickly", "lantern", "über", "東京", "naïve", "cold", "paper",
    "grid", "marble", "😀", "soft", "tune", "of", "the", "a", "and",
]  # fmt: skip


@dataclass(frozen=True, slots=True)
class PlantedRows:
    """A file, and the truth about it.

    Attributes:
        kind: of the fault.
        shape: of the good rows: the name of their format.
        reads: what such rows are read as.
        filename: under which it has to lie.
        content: the file.
        lines: that hold the fault; () where the file is good all the same.
        words: of which one has to stand in the reason; () where nothing is wrong.
        num_good: rows that can be used.
        skippable: whether the other rows can be read where bad ones are left out.
    """

    kind: str
    shape: str
    reads: str
    filename: str
    content: bytes
    lines: tuple[int, ...]
    words: tuple[str, ...]
    num_good: int
    skippable: bool = True


def _say(dice: random.Random) -> str:
    return " ".join(dice.choices(_WORDS, k=dice.randint(2, 12))).capitalize() + "."


def _alpaca(dice: random.Random) -> Row:
    return {"instruction": _say(dice), "input": dice.choice(("", _say(dice))), "output": _say(dice)}


def _turns(dice: random.Random, role: str, content: str, names: Sequence[str]) -> list[Row]:
    system, user, assistant = names
    turns = [{role: system, content: _say(dice)}] if dice.random() < 0.3 else []
    for _ in range(dice.randint(1, 3)):
        turns += [{role: user, content: _say(dice)}, {role: assistant, content: _say(dice)}]
    return turns


def _messages(dice: random.Random) -> Row:
    return {"messages": _turns(dice, "role", "content", ("system", "user", "assistant"))}


def _sharegpt(dice: random.Random) -> Row:
    return {"conversations": _turns(dice, "from", "value", ("system", "human", "gpt"))}


def _completion(dice: random.Random) -> Row:
    return {"prompt": _say(dice), "completion": _say(dice)}


def _preference(dice: random.Random) -> Row:
    return {"prompt": _say(dice), "chosen": f"Yes, {_say(dice)}", "rejected": f"No, {_say(dice)}"}


def _dialogues(dice: random.Random) -> Row:
    asked = f"\n\nHuman: {_say(dice)}\n\nAssistant:"
    return {"chosen": f"{asked} Yes, {_say(dice)}", "rejected": f"{asked} No, {_say(dice)}"}


def _judged(dice: random.Random) -> Row:
    return {"prompt": _say(dice), "completion": _say(dice), "label": dice.random() < 0.5}


def _text(dice: random.Random) -> Row:
    return {"text": _say(dice)}


# What a row is, what such rows are read as, and how many columns a good one must have.
SHAPES: dict[str, tuple[Callable[[random.Random], Row], str, tuple[str, ...]]] = {
    "alpaca": (_alpaca, "conversation", ("instruction", "output")),
    "messages": (_messages, "conversation", ("messages",)),
    "sharegpt": (_sharegpt, "conversation", ("conversations",)),
    "prompt_completion": (_completion, "conversation", ("prompt", "completion")),
    "preference": (_preference, "preference", ("prompt", "chosen", "rejected")),
    "dialogues": (_dialogues, "preference", ("chosen", "rejected")),
    "judged": (_judged, "judged", ("prompt", "completion", "label")),
    "text": (_text, "document", ("text",)),
}
_TURNS = {"messages": ("messages", "role", "content", "user", "assistant"),
          "sharegpt": ("conversations", "from", "value", "human", "gpt")}  # fmt: skip


def _dump(row: Any, dice: random.Random) -> bytes:
    return json.dumps(row, ensure_ascii=dice.random() < 0.5).encode()


# Each takes a good row, its shape and the dice, and gives the line that stands in its place.
Plant = Callable[[Row, str, random.Random], bytes]


def _cut(row: Row, shape: str, dice: random.Random) -> bytes:
    # Cut in ASCII: half a character would be another fault.
    line = json.dumps(row).encode()
    return line[: dice.randint(1, len(line) - 1)]


def _break(row: Row, shape: str, dice: random.Random) -> bytes:
    line = json.dumps(row)
    way = dice.choice(("single quotes", "no colon", "no comma", "bare word", "trailing comma", "tab in text", "python"))
    first = json.dumps(next(iter(row)))
    changed = {
        "single quotes": "{'a': 'b'}",
        "no colon": line.replace(f"{first}: ", f"{first} ", 1),
        "no comma": line[:-1] + ' "more": 1}',
        "bare word": line[:-1] + ', "more": yes}',
        "trailing comma": line[:-1] + ",}",
        "tab in text": line[:-1] + ', "more": "a\tb"}',
        "python": line[:-1] + ', "more": None}',
    }[way]
    return changed.encode()


def _after(row: Row, shape: str, dice: random.Random) -> bytes:
    return json.dumps(row).encode() + dice.choice((b" {}", b",", b" x", b"}", b"]", b' "a"'))


def _with_text(*texts: str) -> Plant:
    """Put raw JSON characters inside a text of a row."""

    def plant(row: Row, shape: str, dice: random.Random) -> bytes:
        line = json.dumps(row | {"note": "MARK"})
        return line.replace("MARK", f"a{dice.choice(texts)}b").encode()

    return plant


def _not_utf8(row: Row, shape: str, dice: random.Random) -> bytes:
    bad = dice.choice((b"\xe9", b"\xff", b"\xc3\x28", b"\xed\xa0\xbd", b"\xf0\x28\x8c\xbc", b"\x80"))
    return json.dumps(row | {"note": "MARK"}).encode().replace(b"MARK", bad)


def _array(row: Row, shape: str, dice: random.Random) -> bytes:
    return _dump(dice.choice((list(row), [row], "text", 5, None, True, 0.5, [])), dice)


def _blank(row: Row, shape: str, dice: random.Random) -> bytes:
    return dice.choice((b"", b" ", b"\t", b"   "))


def _twice(row: Row, shape: str, dice: random.Random) -> bytes:
    name = dice.choice(list(row))
    again = f", {json.dumps(name)}: {json.dumps(row[name])}}}"
    return (json.dumps(row)[:-1] + again).encode()


def _constant(row: Row, shape: str, dice: random.Random) -> bytes:
    return (json.dumps(row)[:-1] + f', "score": {dice.choice(("NaN", "Infinity", "-Infinity"))}}}').encode()


def _deep(row: Row, shape: str, dice: random.Random) -> bytes:
    number = dice.choice((20_000, 100_000))
    return (json.dumps(row)[:-1] + f', "more": {"[" * number}{"]" * dice.choice((0, number))}}}').encode()


def _missing(row: Row, shape: str, dice: random.Random) -> bytes:
    name = dice.choice(SHAPES[shape][2])
    return _dump({key: value for key, value in row.items() if key != name}, dice)


def _renamed(row: Row, shape: str, dice: random.Random) -> bytes:
    name = dice.choice(SHAPES[shape][2])
    return _dump({(f"{key}_" if key == name else key): value for key, value in row.items()}, dice)


def _null(row: Row, shape: str, dice: random.Random) -> bytes:
    return _dump(row | {dice.choice(SHAPES[shape][2]): None}, dice)


def _typed(row: Row, shape: str, dice: random.Random) -> bytes:
    names = [name for name in SHAPES[shape][2] if name != "label"]
    may_be_list = shape in ("preference", "dialogues", "judged", "prompt_completion")
    wrong = [5, 0.5, True, {"a": 1}, *([] if may_be_list else [["x"]])]
    return _dump(row | {dice.choice(names): dice.choice(wrong)}, dice)


def _empty(row: Row, shape: str, dice: random.Random) -> bytes:
    if shape in _TURNS:
        column, _, content, *_ = _TURNS[shape]
        turns = [dict(turn) for turn in row[column]]
        dice.choice(turns)[content] = dice.choice(("", " ", "\n\t", "\u00a0"))
        return _dump(row | {column: turns}, dice)
    names = [name for name in SHAPES[shape][2] if name != "label"]
    blank = dice.choice(("", " ", "\n \n"))
    if shape == "dialogues":
        name = dice.choice(names)
        return _dump(row | {name: row[name].partition("\n\nAssistant:")[0] + "\n\nAssistant:" + blank}, dice)
    return _dump(row | {dice.choice(names): blank}, dice)


class Names(NamedTuple):
    """What a chat's format calls its parts."""

    column: str
    role: str
    content: str
    user: str
    assistant: str


def _of_turns(change: Callable[[list[Row], "Names", random.Random], list[Row]]) -> Plant:
    def plant(row: Row, shape: str, dice: random.Random) -> bytes:
        names = Names(*_TURNS[shape])
        return _dump(row | {names.column: change([dict(turn) for turn in row[names.column]], names, dice)}, dice)

    return plant


@_of_turns
def _two_users(turns: list[Row], its: Names, dice: random.Random) -> list[Row]:
    at = next(number for number, turn in enumerate(turns) if turn[its.role] == its.user)
    return [*turns[:at], {its.role: its.user, its.content: "And?"}, *turns[at:]]


@_of_turns
def _two_answers(turns: list[Row], its: Names, dice: random.Random) -> list[Row]:
    return [*turns, {its.role: its.assistant, its.content: "Also."}]


@_of_turns
def _no_answer(turns: list[Row], its: Names, dice: random.Random) -> list[Row]:
    return dice.choice(
        (
            [{its.role: its.user, its.content: "Hi?"}],
            [{its.role: "system", its.content: "x"}, {its.role: its.user, its.content: "Hi?"}],
        )
    )


@_of_turns
def _system_inside(turns: list[Row], its: Names, dice: random.Random) -> list[Row]:
    at = dice.randint(1, len(turns))
    return [*turns[:at], {its.role: "system", its.content: "Be kind."}, *turns[at:]]


@_of_turns
def _unknown_role(turns: list[Row], its: Names, dice: random.Random) -> list[Row]:
    dice.choice(turns)[its.role] = dice.choice(("narrator", "User", "bot", "", "ai", 5, "humans"))
    return turns


@_of_turns
def _no_role(turns: list[Row], its: Names, dice: random.Random) -> list[Row]:
    del dice.choice(turns)[its.role]
    return turns


@_of_turns
def _answer_first(turns: list[Row], its: Names, dice: random.Random) -> list[Row]:
    return [{its.role: its.assistant, its.content: "Hello."}, *[turn for turn in turns if turn[its.role] != "system"]]


@_of_turns
def _not_objects(turns: list[Row], its: Names, dice: random.Random) -> list[Row]:
    return [*turns, dice.choice(("text", 5, ["x"]))]  # type: ignore[list-item]


def _no_turns(row: Row, shape: str, dice: random.Random) -> bytes:
    return _dump({_TURNS[shape][0]: []}, dice)


def _equal(row: Row, shape: str, dice: random.Random) -> bytes:
    return _dump(row | {"rejected": row["chosen"]}, dice)


def _prompts_differ(row: Row, shape: str, dice: random.Random) -> bytes:
    return _dump(row | {"rejected": "\n\nHuman: Something else?\n\nAssistant: No."}, dice)


def _repeated_prompt_differs(row: Row, shape: str, dice: random.Random) -> bytes:
    told = [{"role": "user", "content": "Something else?"}, {"role": "assistant", "content": "No."}]
    return _dump(row | {dice.choice(("chosen", "rejected")): told}, dice)


def _no_verdict(row: Row, shape: str, dice: random.Random) -> bytes:
    return _dump(row | {"label": dice.choice(("maybe", 2, -1, [], "", 0.5, {}))}, dice)


_ANY = tuple(SHAPES)
_CHATS = ("messages", "sharegpt")
# Kind -> the shapes it is planted in, the line, and words of which one has to stand in the reason.
KINDS: dict[str, tuple[tuple[str, ...], Plant, tuple[str, ...]]] = {
    "a line cut off": (_ANY, _cut, ("broken JSON",)),
    "a broken line": (_ANY, _break, ("broken JSON",)),
    "something behind the object": (_ANY, _after, ("broken JSON",)),
    "a NUL byte": (_ANY, _with_text("\0"), ("NUL",)),
    "an escaped NUL": (_ANY, _with_text("\\u0000"), ("NUL",)),
    "bytes that are not UTF-8": (_ANY, _not_utf8, ("not UTF-8",)),
    "a lone surrogate": (_ANY, _with_text("\\ud83d", "\\uDC00", "\\ud83d\\u0041", "\\udfff"), ("surrogate",)),
    "no object": (_ANY, _array, ("not an object",)),
    "a blank line between rows": (_ANY, _blank, ("blank line",)),
    "a key twice": (_ANY, _twice, ("twice",)),
    "a NaN literal": (_ANY, _constant, ("NaN", "Infinity")),
    "brackets without end": (_ANY, _deep, ("nested too deeply",)),
    "a missing field": (_ANY, _missing, ("no `", "columns fit no format", "these rows")),
    "a wrong field name": (_ANY, _renamed, ("no `", "columns fit no format", "these rows")),
    "a null field": (_ANY, _null, ("is null",)),
    "a field of another type": (_ANY, _typed, ("is not text", "is not a list", "not an object", "without `role`")),
    "an empty text": (_ANY, _empty, ("is empty", "empty answer", "empty chosen", "empty rejected", "empty completion")),
    "two users in a row": (_CHATS, _two_users, ("two user messages in a row",)),
    "two answers in a row": (_CHATS, _two_answers, ("two assistant messages in a row",)),
    "no assistant": (_CHATS, _no_answer, ("no answer",)),
    "a system message in the middle": (_CHATS, _system_inside, ("system message in the middle",)),
    "an unknown role": (_CHATS, _unknown_role, ("unknown role",)),
    "a turn without its role": (_CHATS, _no_role, ("without `",)),
    "an answer at the start": (_CHATS, _answer_first, ("answer at the start",)),
    "a turn that is no object": (_CHATS, _not_objects, ("not an object",)),
    "no turns": (_CHATS, _no_turns, ("without turns",)),
    "chosen equals rejected": (("preference", "dialogues"), _equal, ("chosen equals rejected",)),
    "prompts that differ": (("dialogues",), _prompts_differ, ("prompts differ",)),
    "a repeated prompt that differs": (("preference",), _repeated_prompt_differs, ("prompts differ",)),
    "no verdict": (("judged",), _no_verdict, ("neither true nor false",)),
}  # fmt: skip
# Of the whole file: what is passed over, and what leaves no row.
_TOLERATED = (
    "a byte order mark", "CRLF line ends", "blank lines at the end", "no line end at the end", "LF and CRLF mixed",
)  # fmt: skip
_HOPELESS = ("an empty file", "blank lines alone", "UTF-16", "a list under this name")


def list_kinds() -> list[str]:
    """Every kind, those of a whole file too."""
    return [*KINDS, *_TOLERATED, *_HOPELESS]


def draw_rows(dice: random.Random, kind: str | None = None) -> PlantedRows:
    """Draw a file of 2 to 40 good rows of one shape, and plant a kind of fault in one line, sometimes in several.

    Args:
        dice: draws.
        kind: one of `list_kinds`; None: drawn.
    """
    kind = kind or dice.choice(list_kinds())
    shape = dice.choice(KINDS[kind][0] if kind in KINDS else _ANY)
    build, reads, _ = SHAPES[shape]
    rows = [build(dice) for _ in range(dice.randint(2, 40))]
    lines = [_dump(row, dice) for row in rows]
    if kind not in KINDS:
        return _draw_whole(kind, shape, reads, lines, dice)
    _, plant, words = KINDS[kind]
    # A first row decides what the others are; a last blank line is the file's end, not a fault.
    count = min(len(rows) - 1, dice.choices((1, dice.randint(2, 9)), (85, 15))[0])
    places = sorted(dice.sample(range(0 if count == 1 and dice.random() < 0.1 else 1, len(rows)), count))
    if "blank" in kind:
        places = [place for place in places if place < len(rows) - 1] or [len(rows) - 2]
    for place in places:
        lines[place] = plant(rows[place], shape, dice)
    content = b"\n".join(lines) + b"\n"
    numbers = tuple(place + 1 for place in places)
    return PlantedRows(kind, shape, reads, "rows.jsonl", content, numbers, words, len(rows) - len(places))


def _draw_whole(kind: str, shape: str, reads: str, lines: list[bytes], dice: random.Random) -> PlantedRows:
    content = b"\n".join(lines) + b"\n"
    hopeless: dict[str, tuple[bytes, tuple[str, ...]]] = {
        "an empty file": (b"", ("empty",)),
        "blank lines alone": (dice.choice((b"\n", b"\n\r\n  \n", b" ")), ("empty",)),
        "UTF-16": (content.decode().encode(dice.choice(("utf-16-le", "utf-16-be"))), ("UTF-16", "not UTF-8", "NUL")),
        "a list under this name": (b"[\n" + b",\n".join(lines) + b"\n]\n", ("broken JSON",)),
    }
    if kind in hopeless:
        content, words = hopeless[kind]
        return PlantedRows(kind, shape, reads, "rows.jsonl", content, (1,), words, 0, skippable=False)
    changed = {
        "a byte order mark": b"\xef\xbb\xbf" + content,
        "CRLF line ends": content.replace(b"\n", b"\r\n"),
        "blank lines at the end": content + dice.choice((b"\n\n", b"\r\n \n\t", b"   ")),
        "no line end at the end": content.rstrip(b"\n"),
        "LF and CRLF mixed": b"".join(line + dice.choice((b"\n", b"\r\n")) for line in lines),
    }[kind]
    return PlantedRows(kind, shape, reads, "rows.jsonl", changed, (), (), len(lines))
