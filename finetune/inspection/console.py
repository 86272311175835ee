"""The preview in a terminal: the census as a table, then rows with what is trained in brackets and in colour.

In go the census, rows and the reader of their pieces; text goes to standard output. Whatever colour says, a sign
says too, so that a pipe and NO_COLOR lose nothing.
"""

import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from rich.cells import cell_len
from rich.console import Console
from rich.table import Table
from rich.text import Text

from finetune.inspection.census_table import build_lines, list_sources, name_findings, to_bar
from finetune.inspection.pieces import Piece, PieceReader, to_visible
from finetune.inspection.rows import Part, Row, explain_verdict

__all__ = ["build_console", "print_census", "print_rows"]

_FILE_WIDTH = 120  # columns where no terminal says how many there are
_BAR_WIDTH = 40

_TRAINED = "bold green"
_CONTROL = "reverse"
_MARK = "dim"
_WARNING = "yellow"

_CONTROL_MARKS = ("❮", "❯")
# The first pair that stands nowhere in the text.
_TRAINED_MARKS = (("⟦", "⟧"), ("⦗", "⦘"), ("⦅", "⦆"), ("⧼", "⧽"))


def build_console() -> Console:
    """Build the console on standard output; text that its encoding lacks comes out escaped."""
    if sys.stdout.encoding.lower() not in ("utf-8", "utf8"):
        sys.stdout.reconfigure(errors="backslashreplace")  # type: ignore[union-attr]
    return Console(highlight=False, markup=False, emoji=False, width=None if sys.stdout.isatty() else _FILE_WIDTH)


def print_census(console: Console, report: Mapping[str, Any], findings: Sequence[Mapping[str, Any]]) -> None:
    """Print the table of the census, its sources where there are several, the lengths and the findings.

    Args:
        console: where to.
        report: of the rows to train on, with its `census`.
        findings: of the quality pass.
    """
    census = report["census"]
    table = Table(box=None, header_style="bold", pad_edge=False)
    table.add_column("census", no_wrap=True)
    table.add_column("", justify="right", no_wrap=True)
    table.add_column("", overflow="fold")
    for line in build_lines(report):
        table.add_row(line.name, Text(line.value, _WARNING if line.needs_look else ""), Text(line.note, _MARK))
    console.print(table)
    if len(census["sources"]) > 1:
        sources = Table(box=None, header_style="bold", pad_edge=False)
        sources.add_column("source", overflow="fold")
        for name in ("rows", "tokens", "trained"):
            sources.add_column(name, justify="right")
        for cells in list_sources(census):
            sources.add_row(*cells)
        console.print("", sources)
    _print_histogram(console, census["histogram"])
    for severity, what, advice, quotes in name_findings(findings):
        console.print(f"\n{severity}: {what}", style=_WARNING if severity != "note" else "", soft_wrap=True)
        console.print(f"  {advice}", soft_wrap=True)
        for quote in quotes:
            console.print(f"    {to_visible(quote)}", style=_MARK, soft_wrap=True)


def _print_histogram(console: Console, bars: Sequence[Mapping[str, int]]) -> None:
    if not bars:
        return
    most = max(bar["rows"] for bar in bars)
    first = next(place for place, bar in enumerate(bars) if bar["rows"])
    table = Table(box=None, header_style="bold", pad_edge=False)
    table.add_column("tokens", justify="right", no_wrap=True)
    table.add_column("rows", justify="right", no_wrap=True)
    table.add_column("", no_wrap=True)
    for bar in bars[first:]:
        drawn = to_bar(bar["rows"], most, _BAR_WIDTH)
        table.add_row(f"{bar['from']:,} – {bar['to']:,}", f"{bar['rows']:,}", drawn)
    console.print("", table)


def print_rows(
    console: Console, rows: Sequence[Row], reader: PieceReader, *, max_length: int, note: str, shows_ids: bool
) -> None:
    """Print rows, each under a line that says where it stands and how long it is.

    Args:
        console: where to.
        rows: to print.
        reader: of the tokenizer.
        max_length: tokens of a row at most.
        note: what is trained where no token is marked; empty: the marked ones.
        shows_ids: whether each token's id is listed below.
    """
    read = {
        (number, part.name): reader.read(part.ids, part.trained)
        for number, row in enumerate(rows)
        for part in row.parts
    }
    marks = _choose_marks(piece.text for pieces in read.values() for piece in pieces)
    legend = Text("\n")
    legend.append(f"{marks[0]}trained{marks[1]}", _TRAINED).append(f" carries loss · {_CONTROL_MARKS[0]}")
    legend.append("control token", _CONTROL).append(f"{_CONTROL_MARKS[1]} · ↵ line break, ⇥ tab, ‹U+200B› unseen")
    console.print(legend, soft_wrap=True)
    if note:
        console.print(note, soft_wrap=True)
    for number, row in enumerate(rows):
        console.print(f"\n── row {row.number} · {row.place} · {explain_verdict(row, max_length)}", soft_wrap=True)
        for name, value in row.facts.items():
            console.print(f"   {name.replace('_', ' ')}: {to_visible(str(value))}", soft_wrap=True)
        for part in row.parts:
            pieces = read[number, part.name]
            if not pieces:
                continue
            console.print(Text(f"   {_describe_part(part)}", _MARK), soft_wrap=True)
            console.print(_draw_pieces(pieces, marks), soft_wrap=True)
            if shows_ids:
                for line in _list_ids(pieces, marks, console.width):
                    console.print(line, soft_wrap=True)


def _describe_part(part: Part) -> str:
    name = f"{part.name}: " if part.name else ""
    return f"{name}{len(part.ids):,} tokens, {sum(part.trained):,} trained"


def _choose_marks(texts: Iterable[str]) -> tuple[str, str]:
    """Choose the brackets around what is trained: signs that the text itself does not use."""
    used = set("".join(texts))
    return next((pair for pair in _TRAINED_MARKS if not used & set(pair)), _TRAINED_MARKS[0])


def _draw_pieces(pieces: Sequence[Piece], marks: tuple[str, str]) -> Text:
    """Draw a row; brackets are closed at a line's end and opened again, so that each line says it of itself."""
    drawn = Text()
    is_open = False
    for piece in pieces:
        for line in to_visible(piece.text).splitlines(keepends=True) or [""]:
            if piece.trained != is_open:
                drawn.append(marks[0] if piece.trained else marks[1], _MARK)
                is_open = piece.trained
            text, end, _ = line.partition("\n")
            _append(drawn, piece, text)
            if end and is_open:
                drawn.append(marks[1], _MARK)
                is_open = False
            drawn.append(end)
    if is_open:
        drawn.append(marks[1], _MARK)
    return drawn


def _append(drawn: Text, piece: Piece, text: str) -> None:
    colour = _TRAINED if piece.trained else ""
    if piece.is_control:
        drawn.append(_CONTROL_MARKS[0], _MARK).append(text, f"{_CONTROL} {colour}").append(_CONTROL_MARKS[1], _MARK)
    else:
        drawn.append(text, f"italic {colour}" if piece.is_bytes else colour)


def _list_ids(pieces: Sequence[Piece], marks: tuple[str, str], width: int) -> Iterator[str]:
    """List every piece as `id "text"`, the trained ones in their brackets, in lines of the width."""
    line = "  "
    for piece in pieces:
        # Line breaks are marked and not made: a piece stays on its line.
        text = to_visible(piece.text).replace("\n", "").replace("\t", "")
        named = f"{_CONTROL_MARKS[0]}{text}{_CONTROL_MARKS[1]}" if piece.is_control else f'"{text}"'
        told = f"{'+'.join(map(str, piece.ids))} {named}"
        told = f"{marks[0]}{told}{marks[1]}" if piece.trained else told
        if cell_len(line) + 2 + cell_len(told) > width and line.strip():
            yield line
            line = "  "
        line += f"  {told}"
    yield line
