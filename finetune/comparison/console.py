"""What a comparison says at its end: the table for people, or one object for programs.

In go the findings; the table goes to standard output, as wide as the terminal lets it.
"""

import sys
from collections.abc import Mapping
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from finetune.comparison.scores import Row, Spread
from finetune.comparison.table import Findings, build_columns, name_recipes, pick_best_rows, to_cells, to_words

_FILE_WIDTH = 160  # columns where no terminal says how many there are

__all__ = ["print_findings", "to_object"]


def print_findings(findings: Findings, folder: Path) -> None:
    """Print the best row of every method, and where the rest stands."""
    table = Table(box=None, header_style="", pad_edge=False)
    columns = build_columns(findings)
    for column in columns:
        is_text = column in ("method", "settings")
        table.add_column(column, justify="left" if is_text else "right", overflow="fold", no_wrap=column != "settings")
    for row in pick_best_rows(findings):
        table.add_row(*to_cells(row, findings))
    console = Console(highlight=False, markup=False, width=None if sys.stdout.isatty() else _FILE_WIDTH)
    console.print(table)
    if findings.recommended is not None:
        console.print(f"Recommended: {to_words(findings.recommended, findings)}", soft_wrap=True)
        for file in name_recipes("recommended", findings).values():
            console.print(f"  Its recipe: {folder / file}", soft_wrap=True)
    console.print(f"All of it: {folder / 'report.html'}", soft_wrap=True)


def to_object(findings: Findings) -> dict[str, Any]:
    """The rows as plain values, scores as in summary.json: the best of each method, and what is recommended."""
    recommended = findings.recommended
    return {
        "name": findings.name,
        "score": findings.score,
        "rows": [_to_plain(row) for row in pick_best_rows(findings)],
        "recommended": None if recommended is None else recommended.point.name,
        "unfinished": [
            {"run": result.cell.name, "state": result.state, "reason": result.reason}
            for result in [*findings.probes, *findings.results]
            if result.state != "done"
        ],
    }


def _to_plain(row: Row) -> dict[str, Any]:
    values = {field.name: getattr(row, field.name) for field in fields(row) if field.name != "point"}
    plain = {name: _to_plain_value(value) for name, value in values.items()}
    return {"method": row.point.method, "settings": dict(row.point.chosen), **plain}


def _to_plain_value(value: Any) -> Any:
    if isinstance(value, Spread):
        return {**asdict(value), "standard_error": value.standard_error}
    return {key: _to_plain_value(inner) for key, inner in value.items()} if isinstance(value, Mapping) else value
