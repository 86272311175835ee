"""report.html: the comparison on one page that needs no other file, to be sent to anyone.

In go the findings, the picture and what the comparison was made from; out comes HTML with the table, the picture as a
data URI, every run, the settings, the machine, the date and how to repeat it.
"""

import base64
import html
import json
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

from finetune.comparison.scores import Row, read_score
from finetune.comparison.table import Findings, build_columns, describe, list_unfinished, pick_best_rows, to_cells

__all__ = ["render_page"]

_STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; margin: 2em auto; max-width: 70em; padding: 0 1em; color: #222; }
table { border-collapse: collapse; margin: 1em 0; font-variant-numeric: tabular-nums; }
th, td { padding: .3em .7em; border-bottom: 1px solid #ddd; text-align: right; white-space: nowrap; }
th:first-child, td:first-child, th:last-child, td:last-child { text-align: left; }
tr.recommended { background: #eef6ee; }
img { max-width: 100%; height: auto; }
pre { background: #f6f6f6; padding: 1em; overflow-x: auto; }
"""


def render_page(
    findings: Findings,
    png: bytes,
    *,
    command: str,
    sources: Mapping[str, str],
    environment: Mapping[str, Any],
) -> str:
    """Render the page.

    Args:
        findings: what the comparison came to.
        png: the picture.
        command: what repeats it.
        sources: the comparison and the recipe it starts from, as typed, by path.
        environment: a run's environment.json; empty before the first has begun.
    """
    best, columns = pick_best_rows(findings), build_columns(findings)
    picture = base64.b64encode(png).decode()
    unfinished = list_unfinished(findings)
    parts = [
        f"<h1>{_text(findings.name)}</h1>",
        _render_rows(columns, [(to_cells(row, findings), _is_recommended(row, findings)) for row in best]),
        *(f"<p>{_text(sentence)}</p>" for sentence in describe(findings)),
        f'<img alt="score against trainable parameters" src="data:image/png;base64,{picture}">',
        "<h2>Every choice</h2>",
        _render_rows(
            columns,
            [(to_cells(row, findings, name=row.point.name), _is_recommended(row, findings)) for row in findings.rows],
        ),
        "<h2>Every run</h2>",
        _render_runs(findings),
    ]
    if unfinished:
        parts += ["<h2>Without a score</h2>", "<ul>", *(f"<li>{_text(line)}</li>" for line in unfinished), "</ul>"]
    parts += ["<h2>Repeat it</h2>", f"<pre>{_text(command)}</pre>"]
    for path, text in sources.items():
        parts += [f"<h3>{_text(path)}</h3>", f"<pre>{_text(text)}</pre>"]
    parts += ["<h2>Machine</h2>", _render_machine(environment)]
    date = datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC")
    parts.append(f"<p>Written {date}.</p>")
    head = f'<meta charset="utf-8"><title>{_text(findings.name)}</title><style>{_STYLE}</style>'
    return f'<!doctype html>\n<html lang="en"><head>{head}</head>\n<body>\n{chr(10).join(parts)}\n</body></html>\n'


def _text(text: str) -> str:
    return html.escape(text)


def _is_recommended(row: Row, findings: Findings) -> bool:
    return findings.recommended is not None and row.point == findings.recommended.point


def _render_rows(columns: Sequence[str], rows: Sequence[tuple[Sequence[str], bool]]) -> str:
    head = "".join(f"<th>{_text(column)}</th>" for column in columns)
    lines = []
    for cells, is_marked in rows:
        opening = '<tr class="recommended">' if is_marked else "<tr>"
        lines.append(f"{opening}{''.join(f'<td>{_text(cell)}</td>' for cell in cells)}</tr>")
    return f"<table><thead><tr>{head}</tr></thead><tbody>{''.join(lines)}</tbody></table>"


def _render_runs(findings: Findings) -> str:
    rows = []
    for result in [*findings.probes, *findings.results]:
        score = read_score(result.summary, findings.score)
        seconds = result.summary.get("seconds")
        rows.append(
            (
                [
                    result.cell.name,
                    "–" if score is None else f"{score:.4f}",
                    "–" if seconds is None else f"{seconds:,.0f}",
                    f"{result.state}{f': {result.reason}' if result.reason else ''}",
                ],
                False,
            )
        )
    return _render_rows(["run", findings.score, "seconds", "state"], rows)


def _render_machine(environment: Mapping[str, Any]) -> str:
    if not environment:
        return "<p>No run has begun yet.</p>"
    kept = {key: environment.get(key) for key in ("platform", "python", "cpu", "memory_bytes", "gpus", "packages")}
    return f"<pre>{_text(json.dumps(kept, indent=2, ensure_ascii=False))}</pre>"
