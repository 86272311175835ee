"""The preview as one page that needs no other file and makes no request.

In go the census, the findings, rows and the reader of their pieces; out comes HTML. Every text of the data's passes
Jinja's escaping; the page's own style and script are the only ones that its security policy lets run, by their hashes.
"""

import base64
import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from finetune.inspection.census_table import build_lines, list_sources
from finetune.inspection.findings import name_findings, say_that_there_are_none
from finetune.inspection.pieces import PieceReader, to_visible
from finetune.inspection.rows import Part, Row, explain_verdict

__all__ = ["Chart", "build_chart", "render_page"]

_FOLDER = Path(__file__).parent
_ROWS_OPEN = 10  # the others show their first line and open on demand
_CHART_WIDTH, _CHART_HEIGHT = 480, 200
_LABEL_HEIGHT = 20


@dataclass(frozen=True, slots=True)
class Chart:
    """The histogram of lengths, in the units of its own drawing.

    Attributes:
        width: of the drawing.
        height: of the drawing.
        floor: where the bars stand.
        bars: x, y, width, height and what each says.
        ticks: x, anchor and text below the bars.
        most: what the highest bar counts.
        text: all of it in words.
    """

    width: int
    height: int
    floor: int
    bars: list[dict[str, Any]]
    ticks: list[tuple[float, str, str]]
    most: str
    text: str


def render_page(
    *,
    title: str,
    about: Sequence[tuple[str, str]],
    report: Mapping[str, Any],
    findings: Sequence[Mapping[str, Any]] | None,
    objective: str,
    rows: Sequence[Row],
    reader: PieceReader,
    max_length: int,
    note: str,
    shown: str,
    footer: str,
) -> str:
    """Render the page.

    Args:
        title: the run's name.
        about: what the tokens were made from, by name.
        report: of the rows to train on, with its `census`.
        findings: of the quality pass; None: nothing was looked for.
        objective: decides what of a row is trained.
        rows: to show.
        reader: of the tokenizer.
        max_length: tokens of a row at most.
        note: what is trained where no token is marked; empty: the marked ones.
        shown: which rows these are, such as `, the first of the file`.
        footer: how the page was made.
    """
    environment = Environment(
        loader=FileSystemLoader(_FOLDER), autoescape=True, undefined=StrictUndefined, keep_trailing_newline=True
    )
    environment.filters["visible"] = to_visible
    style, script = ((_FOLDER / name).read_text(encoding="utf-8") for name in ("page.css", "page.js"))
    return environment.get_template("page.html.jinja").render(
        title=title,
        about=about,
        lines=build_lines(report, objective=objective),
        sources=list_sources(report["census"], objective=objective),
        chart=build_chart(report["census"]["histogram"]),
        findings=name_findings(findings),
        no_findings=say_that_there_are_none(findings),
        rows=[_to_values(row, reader, max_length, note) for row in rows],
        num_rows=f"{report['census']['rows']:,}",
        num_open=_ROWS_OPEN,
        note=note,
        shown=shown,
        footer=footer,
        style=Markup(style),
        script=Markup(script),
        style_hash=_hash(style),
        script_hash=_hash(script),
    )


def _hash(text: str) -> str:
    return f"sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}"


def _to_values(row: Row, reader: PieceReader, max_length: int, note: str) -> dict[str, Any]:
    single = row.parts[0] if len(row.parts) == 1 and row.is_kept else None
    return {
        "number": f"{row.number:,}",
        "place": str(row.place),
        "lengths": "" if single is None else _name_lengths(single, note),
        "what": explain_verdict(row, max_length),
        "facts": [(name.replace("_", " "), str(value)) for name, value in row.facts.items()],
        "parts": [_to_part(part, reader, note) for part in row.parts if part.ids],
    }


def _to_part(part: Part, reader: PieceReader, note: str) -> dict[str, Any]:
    pieces = reader.read(part.ids, part.trained)
    runs = [(trained, list(run)) for trained, run in groupby(pieces, key=lambda piece: piece.trained)]
    return {"name": part.name, "lengths": _name_lengths(part, note), "runs": runs}


def _name_lengths(part: Part, note: str) -> str:
    return f"{len(part.ids):,} tokens" + ("" if note else f", {sum(part.trained):,} trained")


def build_chart(histogram: Sequence[Mapping[str, int]]) -> Chart | None:
    """Build the drawing of a histogram; None where there is nothing to draw.

    Args:
        histogram: bars with `from`, `to` and `rows`, as the census has them.
    """
    bars = list(histogram)
    while bars and bars[0]["rows"] == 0:
        bars.pop(0)
    if not bars:
        return None
    most, floor = max(bar["rows"] for bar in bars), _CHART_HEIGHT - _LABEL_HEIGHT
    room = floor - _LABEL_HEIGHT
    step = _CHART_WIDTH / len(bars)
    texts = [f"{bar['from']:,} to {bar['to']:,} tokens: {bar['rows']:,} rows" for bar in bars]
    drawn = []
    for place, (bar, text) in enumerate(zip(bars, texts, strict=True)):
        height = max(round(bar["rows"] / most * room, 1), 1) if bar["rows"] else 0
        drawn.append(
            {
                "x": round(place * step + 1, 1),
                "y": round(floor - height, 1),
                "width": round(max(step - 2, 1), 1),
                "height": height,
                "text": text,
            }
        )
    ticks = [(0.0, "start", f"{bars[0]['from']:,}"), (float(_CHART_WIDTH), "end", f"{bars[-1]['to']:,} tokens")]
    if len(bars) > 2:
        middle = len(bars) // 2
        ticks.insert(1, (round(middle * step, 1), "middle", f"{bars[middle]['from']:,}"))
    return Chart(_CHART_WIDTH, _CHART_HEIGHT, floor, drawn, ticks, f"{most:,} rows", "; ".join(texts))
