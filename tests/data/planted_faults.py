"""Files with one fault each, the line it stands on and the words the message must hold.

The tests of the readers and those of the command line (exit code 3) share this list.
"""

import gzip
import json
from dataclasses import dataclass


@dataclass(frozen=True)
class Planted:
    name: str
    filename: str
    content: bytes
    line: int
    words: tuple[str, ...]
    # A fault that leaves the rest of the file readable is passed with `on_bad_rows: skip`.
    skippable: bool = True


GOOD = {"instruction": "Name a colour.", "output": "Blue."}
GOOD_LINE = json.dumps(GOOD).encode()


def lines(*bad: bytes, before: int = 2, after: int = 1) -> bytes:
    return b"\n".join([GOOD_LINE] * before + list(bad) + [GOOD_LINE] * after) + b"\n"


def row(**columns) -> bytes:
    return json.dumps(columns).encode()


def turns(*roles: str, **columns) -> bytes:
    return row(messages=[{"role": role, "content": f"said by {role}"} for role in roles], **columns)


def chats(bad: bytes) -> bytes:
    good = turns("system", "user", "assistant")
    return b"\n".join([good, good, bad, good]) + b"\n"


def shares(bad: bytes) -> bytes:
    good = row(conversations=[{"from": "human", "value": "Hi."}, {"from": "gpt", "value": "Hello."}])
    return b"\n".join([good, good, bad, good]) + b"\n"


def share(*pairs: tuple[str, str], **columns) -> bytes:
    return row(conversations=[{"from": role, "value": value} for role, value in pairs], **columns)


def listed(*rows: bytes) -> bytes:
    return b"[\n" + b",\n".join(rows) + b"\n]\n"


JSON_FAULTS = [
    Planted(
        "a broken line", "rows.jsonl", lines(b'{"instruction": "x", "output" "y"}'), 3, ("broken JSON", "column 31")
    ),
    Planted("a line cut off", "rows.jsonl", lines(b'{"instruction": "x", "outp', after=0), 3, ("broken JSON",)),
    Planted("two objects on a line", "rows.jsonl", lines(GOOD_LINE + b" " + GOOD_LINE), 3, ("text after the object",)),
    Planted("a NUL byte", "rows.jsonl", lines(b'{"instruction": "x\0", "output": "y"}'), 3, ("NUL byte", "byte 19")),
    Planted(
        "an escaped NUL", "rows.jsonl", lines(b'{"instruction": "x\\u0000", "output": "y"}'), 3, ("NUL character",)
    ),
    Planted(
        "bytes that are not UTF-8",
        "rows.jsonl",
        lines(b'{"instruction": "caf\xe9", "output": "y"}'),
        3,
        ("not UTF-8", "0xe9"),
    ),
    Planted(
        "half a surrogate pair",
        "rows.jsonl",
        lines(b'{"instruction": "x\\ud83d", "output": "y"}'),
        3,
        ("surrogate", "ud83d"),
    ),
    Planted("an array row", "rows.jsonl", lines(b'["x", "y"]'), 3, ("not an object", "an array")),
    Planted("an empty file", "rows.jsonl", b"", 1, ("empty",), skippable=False),
    Planted("a file of blank lines", "rows.jsonl", b"\n\r\n  \n", 1, ("empty",), skippable=False),
    Planted("a blank line between rows", "rows.jsonl", lines(b""), 3, ("blank line",)),
    Planted(
        "a key twice",
        "rows.jsonl",
        lines(b'{"instruction": "x", "output": "y", "output": "z"}'),
        3,
        ("twice", "`output`"),
    ),
    Planted("a NaN literal", "rows.jsonl", lines(b'{"instruction": "x", "output": "y", "score": NaN}'), 3, ("NaN",)),
    Planted(
        "an Infinity literal",
        "rows.jsonl",
        lines(b'{"instruction": "x", "output": "y", "s": -Infinity}'),
        3,
        ("Infinity",),
    ),
    Planted("brackets without end", "rows.jsonl", lines(b"[" * 100_000), 3, ("nested too deeply",)),
    Planted(
        "a line of 50 MB",
        "rows.jsonl",
        lines(b'{"instruction": "' + b"x" * 50_000_000 + b'", "output": "y"}'),
        3,
        ("50 MB",),
    ),
    Planted(
        "a list in a .jsonl file",
        "rows.jsonl",
        json.dumps([GOOD], indent=1).encode(),
        1,
        ("broken JSON", ".json file"),
        skippable=False,
    ),
    Planted(
        "a UTF-16 file", "rows.jsonl", lines().decode().encode("utf-16-le"), 1, ("UTF-16", "UTF-8"), skippable=False
    ),
    Planted("a torn gzip", "rows.jsonl.gz", gzip.compress(lines())[:-20], 1, ("torn gzip",), skippable=False),
    Planted("no gzip at all", "rows.jsonl.gz", lines(), 1, ("torn gzip",), skippable=False),
    Planted(
        "a broken row in a list",
        "rows.json",
        listed(GOOD_LINE, GOOD_LINE, b'{"instruction": x}'),
        4,
        ("broken JSON",),
        skippable=False,
    ),
    Planted("a list cut off", "rows.json", listed(GOOD_LINE, GOOD_LINE)[:-3], 3, ("broken JSON",), skippable=False),
    Planted(
        "no comma between rows",
        "rows.json",
        b"[\n" + GOOD_LINE + b"\n" + GOOD_LINE + b"]",
        3,
        ("expecting ','",),
        skippable=False,
    ),
    Planted(
        "a key twice in a list",
        "rows.json",
        listed(GOOD_LINE, b'{"output": "y",\n"output": "z"}', GOOD_LINE),
        3,
        ("twice", "`output`"),
    ),
    Planted(
        "a string in a list", "rows.json", listed(GOOD_LINE, b'"hello"', GOOD_LINE), 3, ("not an object", "a string")
    ),
    Planted("an empty list", "rows.json", b"[ ]", 1, ("empty", "without rows"), skippable=False),
]

TABLE_FAULTS = [
    Planted(
        "a field too many", "rows.csv", b'instruction,output\na,b\n"c\nd",e\nf,g,h\ni,j\n', 5, ("fields", "3 for 2")
    ),
    Planted("a field too few", "rows.csv", b"instruction,output\na,b\nc\n", 3, ("fields", "1 for 2")),
    Planted("a quote left open", "rows.csv", b'instruction,output\na,b\nc,"d\ne,f\n', 3, ("broken CSV",)),
    Planted("a blank line in CSV", "rows.csv", b"instruction,output\na,b\n\nc,d\n\n\n", 3, ("blank line",)),
    Planted("CSV that is not UTF-8", "rows.csv", b"instruction,output\na,b\nc,caf\xe9\n", 3, ("not UTF-8", "`output`")),
    Planted("a column named twice", "rows.csv", b"output,output\na,b\n", 1, ("`output` twice",), skippable=False),
    Planted("an empty CSV", "rows.csv", b"", 1, ("empty",), skippable=False),
    Planted("no Parquet at all", "rows.parquet", b"PAR2" * 10, 1, ("Parquet",), skippable=False),
]

ROW_FAULTS = [
    Planted("a missing column", "rows.jsonl", lines(row(instruction="x", answer="y")), 3, ("no `output`", "`answer`")),
    Planted("a null answer", "rows.jsonl", lines(row(instruction="x", output=None)), 3, ("`output` is null",)),
    Planted(
        "an empty answer", "rows.jsonl", lines(row(instruction="x", output=" \n")), 3, ("empty answer", "`output`")
    ),
    Planted(
        "an empty instruction", "rows.jsonl", lines(row(instruction="", output="y")), 3, ("`instruction` is empty",)
    ),
    Planted("a number for an answer", "rows.jsonl", lines(row(instruction="x", output=5)), 3, ("not text", "a number")),
    Planted(
        "wrong column names",
        "rows.jsonl",
        row(question="x", reply="y"),
        1,
        ("`question`, `reply`", "instruction + output", "data.train.columns: {instruction: question, output: reply}"),
        skippable=False,
    ),
    Planted(
        "text without answers",
        "rows.jsonl",
        row(text="Once upon a time."),
        1,
        ("plain text", "objective: pretrain"),
        skippable=False,
    ),
    Planted(
        "two users in a row",
        "rows.jsonl",
        chats(turns("user", "user", "assistant")),
        3,
        ("two user messages in a row", "turn 2"),
    ),
    Planted(
        "two answers in a row",
        "rows.jsonl",
        chats(turns("user", "assistant", "assistant")),
        3,
        ("two assistant messages in a row", "turn 3"),
    ),
    Planted("no answer", "rows.jsonl", chats(turns("system", "user")), 3, ("no answer",)),
    Planted("no turns", "rows.jsonl", chats(row(messages=[])), 3, ("without turns",)),
    Planted(
        "a system message in the middle",
        "rows.jsonl",
        chats(turns("user", "assistant", "system", "user")),
        3,
        ("system message in the middle", "turn 3"),
    ),
    Planted(
        "an unknown role",
        "rows.jsonl",
        chats(turns("user", "narrator")),
        3,
        ("unknown role", '"narrator"', "assistant"),
    ),
    Planted("a turn without a role", "rows.jsonl", chats(row(messages=[{"content": "x"}])), 3, ("without `role`",)),
    Planted(
        "empty content",
        "rows.jsonl",
        chats(row(messages=[{"role": "user", "content": ""}])),
        3,
        ("user message is empty",),
    ),
    Planted(
        "content null without a call",
        "rows.jsonl",
        chats(row(messages=[{"role": "user", "content": "x"}, {"role": "assistant", "content": None}])),
        3,
        ("assistant message is not text", "null"),
    ),
    Planted(
        "an image",
        "rows.jsonl",
        chats(row(messages=[{"role": "user", "content": [{"type": "image_url", "image_url": "x"}]}])),
        3,
        ("not text", "image_url"),
    ),
    Planted(
        "a weight of 0.5",
        "rows.jsonl",
        chats(row(messages=[{"role": "user", "content": "x"}, {"role": "assistant", "content": "y", "weight": 0.5}])),
        3,
        ("neither 0 nor 1",),
    ),
    Planted(
        "weight 1 on a user",
        "rows.jsonl",
        chats(row(messages=[{"role": "user", "content": "x", "weight": 1}, {"role": "assistant", "content": "y"}])),
        3,
        ("weight 1 on a user",),
    ),
    Planted("messages that are text", "rows.jsonl", chats(row(messages="hello")), 3, ("`messages` holds broken JSON",)),
    Planted(
        "from and value under messages",
        "rows.jsonl",
        chats(row(messages=[{"from": "human", "value": "x"}])),
        3,
        ("format: sharegpt",),
    ),
    Planted(
        "a conversation that the assistant starts",
        "rows.jsonl",
        shares(share(("gpt", "x"), ("human", "y"), ("gpt", "z"))),
        3,
        ("an answer at the start",),
    ),
    Planted(
        "an unknown speaker", "rows.jsonl", shares(share(("human", "x"), ("bing", "y"))), 3, ("unknown role", '"bing"')
    ),
    Planted("an empty turn", "rows.jsonl", shares(share(("human", "x"), ("gpt", " "))), 3, ("gpt turn is empty",)),
    Planted(
        "role and content under conversations",
        "rows.jsonl",
        shares(row(conversations=[{"role": "user", "content": "x"}])),
        3,
        ("format: messages",),
    ),
    Planted(
        "a call that is not JSON",
        "rows.jsonl",
        shares(share(("human", "x"), ("function_call", "weather()"))),
        3,
        ("function_call turn holds broken JSON",),
    ),
    Planted(
        "a call without a name",
        "rows.jsonl",
        shares(share(("human", "x"), ("function_call", "{}"))),
        3,
        ("without a `name`",),
    ),
    Planted(
        "a call without its result",
        "rows.jsonl",
        shares(share(("human", "x"), ("function_call", '{"name": "f"}'), ("gpt", "y"))),
        3,
        ("after a tool call, before its result",),
    ),
    Planted(
        "a result without a call",
        "rows.jsonl",
        shares(share(("human", "x"), ("observation", "5"), ("gpt", "y"))),
        3,
        ("a tool's result after a user message",),
    ),
    Planted(
        "two system messages",
        "rows.jsonl",
        shares(share(("system", "a"), ("human", "x"), ("gpt", "y"), system="b")),
        3,
        ("two system messages",),
    ),
    Planted(
        "tools that are no list",
        "rows.jsonl",
        shares(share(("human", "x"), ("gpt", "y"), tools="{}")),
        3,
        ("`tools` is not a list",),
    ),
]

FAULTS = JSON_FAULTS + TABLE_FAULTS + ROW_FAULTS
