"""Rows of instruction, input and answer as the lines of a file, in the format that its name stands for."""

import csv
import io
import json
from collections.abc import Sequence

__all__ = ["join_rows", "render_row"]

Row = dict[str, str]


def render_row(name: str, row: Row) -> str:
    """Write a row as it stands in the file of that name."""
    return _RENDERERS[name](row)


def join_rows(suffix: str, texts: Sequence[str]) -> bytes:
    """Put rows together to a file; the first one of a JSON or CSV file stands on its second line."""
    begin, between, end = _ENDS[suffix]
    return (begin + between.join(texts) + end).encode()


_ENDS = {
    ".json": ("[\n", ",\n", "\n]\n"),
    ".jsonl": ("", "\n", "\n"),
    ".csv": ("instruction,input,output\n", "\n", "\n"),
}


def _render_json(row: Row) -> str:
    return json.dumps(row, ensure_ascii=False)


def _render_chat(row: Row) -> str:
    """Write a conversation of one exchange, or of two."""
    opening = [("user", row["earlier"]), ("assistant", row["earlier answer"])] if "earlier" in row else []
    question = "\n\n".join(filter(None, (row["instruction"], row["input"])))
    turns = [*opening, ("user", question), ("assistant", row["output"])]
    return json.dumps({"messages": [{"role": role, "content": text} for role, text in turns]}, ensure_ascii=False)


def _render_csv(row: Row) -> str:
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerow([row["instruction"], row["input"], row["output"]])
    return text.getvalue().removesuffix("\n")


def _render_pair(row: Row) -> str:
    prompt = "\n\n".join(filter(None, (row["instruction"], row["input"])))
    words = row["output"].split()
    rejected = row.get("rejected") or " ".join([*words[len(words) // 3 :], "and", "so", "on"])
    return json.dumps({"prompt": prompt, "chosen": row["output"], "rejected": rejected}, ensure_ascii=False)


def _render_text(row: Row) -> str:
    return json.dumps({"text": "\n".join(filter(None, row.values()))}, ensure_ascii=False)


_RENDERERS = {
    "rows.json": _render_json,
    "chats.jsonl": _render_chat,
    "table.csv": _render_csv,
    "pairs.jsonl": _render_pair,
    "texts.jsonl": _render_text,
}
