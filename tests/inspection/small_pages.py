"""A page over rows that would do harm if any of their text were taken for HTML."""

from collections.abc import Mapping, Sequence
from typing import Any

from finetune.data.examples import Origin
from finetune.inspection.page import render_page
from finetune.inspection.pieces import PieceReader
from finetune.inspection.rows import Part, Row
from tests.inspection.small_tokenizers import END, build_byte_level

HARM = "</script><script>document.title='harmed'</script><img src=x onerror=\"document.title='harmed'\">&amp;"
FETCH = '<link rel=stylesheet href="http://example.com/a.css"><img src="http://example.com/a.png">'
CENSUS: dict[str, Any] = {
    "rows": 3,
    "tokens": 1000,
    "trained_tokens": 250,
    "trained_share": 0.25,
    "sources": [
        {"path": f"{HARM}.json", "rows": 2, "tokens": 900, "trained_tokens": 200},
        {"path": "b.json", "rows": 1, "tokens": 100, "trained_tokens": 50},
    ],
    "lengths": {"min": 10, "p10": 20, "median": 90, "p90": 200, "p99": 1900, "max": 2000},
    "histogram": [
        {"from": 0, "to": 99, "rows": 0},
        {"from": 100, "to": 199, "rows": 2},
        {"from": 200, "to": 9999, "rows": 1},
    ],
    "max_length": 512,
    "max_length_keeping": {"99%": 1900, "99.9%": 2000},
    "dropped": {"too_long": 1},
    "cut": 0,
    "answers_lost": 0,
    "ends_lost": 0,
    "unended": 0,
    "begins_twice": 0,
    "control_tokens": {"rows": 0, "tokens": 0},
    "first_places": {"too_long": [f"{HARM}.json:2"]},
}
FINDING = {
    "name": "duplicates",
    "severity": "warning",
    "count": 2,
    "examples": [{"places": [f"{HARM}.json:1", "b.json:2"], "text": HARM}],
    "advice": "Drop them.",
    "details": {"favours": HARM, "share": 0.75},
    "policy": "report",
    "rows_dropped": 0,
    "dropped": {},
}


def build_part(name: str, prompt: str, answer: str) -> Part:
    """One token for each byte; the answer and the end token are trained."""
    backend = build_byte_level().backend_tokenizer
    before = backend.encode(prompt, add_special_tokens=False).ids
    after = backend.encode(f"{answer}{END}", add_special_tokens=False).ids
    return Part(name, [*before, *after], [False] * len(before) + [True] * len(after))


def build_rows() -> list[Row]:
    """A harmful row, a pair in several scripts, one that was dropped."""
    pair = (build_part("chosen", "Say it\n", "naïve 日本 😀"), build_part("rejected", "Say it\n", "\u202eno\u200b"))
    return [
        Row(1, Origin(f"{HARM}.json", 1), "whole", (build_part("", HARM, FETCH),), 300, 0, {"reference": HARM}),
        Row(2, Origin("b.json", 2), "whole", pair, 30, 0, {}),
        Row(3, Origin("b.json", 3), "too_long", (Part("", [], []),), 900, 0, {}),
    ]


def render_small_page(findings: Sequence[Mapping[str, Any]] | None = (FINDING,), objective: str = "sft") -> str:
    """Render the page of these rows."""
    return render_page(
        title=HARM,
        about=[("objective", "sft"), ("template", HARM)],
        report={"rows_read": 4, "sources": [{"path": "a", "rows": 4, "bad_rows": 0}], "census": CENSUS},
        findings=findings,
        objective=objective,
        rows=build_rows(),
        reader=PieceReader(build_byte_level()),
        max_length=512,
        note="",
        shown="",
        footer="made in a test",
    )
