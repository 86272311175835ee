"""The preview in a terminal: the census as a table, then rows with what is trained in brackets and in colour.

In go the census, rows and the reader of their pieces; text goes to standard output. Whatever colour says, a sign
says too, so that a pipe and NO_COLOR lose nothing.
"""

import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from rich.cells import cell_len
from rich.console import Console
from rich.text import Text

from finetune.inspection.census_table import build_lines, lay_out, list_sources, to_bar
from finetune.inspection.findings import name_findings, say_that_there_are_none
from finetune.inspection.pieces import Piece, PieceReader, to_visible
from finetune.inspection.rows import Part, Row, explain_verdict

__all__ = ["build_console", "print_census", "print_rows"]

_FILE_WIDTH = 120  # columns where no terminal says how many there are
_BAR_WIDTH = 40

_TRAINED = "bold green"
_CONTROL = "reverse"
_MARK = "dim"
_WARNING = "yellow"

# Of each the first pair that stands nowhere in the text.
_TRAINED_MARKS = ("⟦⟧", "⦗⦘", "⦅⦆", "⧼⧽", "⟬⟭", "⦃⦄", "⦇⦈", "⦋⦌", "⸢⸣")
_CONTROL_MARKS = ("❮❯", "❰❱", "❬❭", "⟪⟫", "⦉⦊", "⦑⦒", "⧘⧙", "⧚⧛", "⸤⸥")


@dataclass(frozen=True, slots=True)
class _Marks:
    """The signs around what is trained and around control tokens.

    Attributes:
        trained: opening and closing sign.
        control: opening and closing sign.
        are_used: the text uses signs of each pair that there is, so that these are not for certain ours.
    """

    trained: str
    control: str
    are_used: bool


def build_console() -> Console:
    """Build the console on standard output; text that its encoding lacks comes out escaped."""
    if sys.stdout.encoding.lower() not in ("utf-8", "utf8"):
        sys.stdout.reconfigure(errors="backslashreplace")  # type: ignore[union-attr]
    return _Console(highlight=False, markup=False, emoji=False, width=None if sys.stdout.isatty() else _FILE_WIDTH)


class _Console(Console):
    """Leaves it to the command line what a reader that has left means: rich would end with 1, the code of a bug."""

    def on_broken_pipe(self) -> None:
        """Pass on the BrokenPipeError during which this is called."""
        raise BrokenPipeError


def print_census(
    console: Console, report: Mapping[str, Any], findings: Sequence[Mapping[str, Any]] | None, *, objective: str
) -> None:
    """Print the table of the census, its sources where there are several, the lengths and the findings.

    Args:
        console: where to.
        report: of the rows to train on, with its `census`.
        findings: of the quality pass; None: nothing was looked for.
        objective: decides what of a row is trained.
    """
    census = report["census"]
    lines = build_lines(report, objective=objective)
    for line, (name, value, notes) in zip(lines, lay_out(lines, console.width), strict=True):
        text = Text(name).append(value, _WARNING if line.needs_look else "")
        if notes:
            text.append("  ").append(f"\n{' ' * (text.cell_len)}".join(notes), _MARK)
        console.print(text, soft_wrap=True)
    if len(census["sources"]) > 1:
        heads, *rows = list_sources(census, objective=objective)
        console.print()
        _print_columns(console, heads, rows, left=(0,))
    _print_histogram(console, census["histogram"])
    nothing = say_that_there_are_none(findings)
    if nothing:
        console.print(f"\n{nothing}", soft_wrap=True)
    for finding in name_findings(findings):
        style = _WARNING if finding.severity != "note" else ""
        console.print(f"\n{finding.severity}: {finding.what}", style=style, soft_wrap=True)
        if finding.figures:
            console.print(f"  {to_visible(finding.figures)}", soft_wrap=True)
        console.print(f"  {finding.advice}", soft_wrap=True)
        for quote in finding.quotes:
            console.print(f"    {to_visible(quote)}", style=_MARK, soft_wrap=True)


def _print_columns(
    console: Console, heads: Sequence[str], rows: Sequence[Sequence[str]], *, left: Sequence[int]
) -> None:
    """Print cells below each other, numbers to the right; no line ends with spaces, and no cell is folded."""
    widths = [max(map(cell_len, column)) for column in zip(heads, *rows, strict=True)]
    for number, cells in enumerate([heads, *rows]):
        padded = []
        for place, (cell, width) in enumerate(zip(cells, widths, strict=True)):
            spaces = " " * (width - cell_len(cell))
            padded.append(f"{cell}{spaces}" if place in left else f"{spaces}{cell}")
        console.print("  ".join(padded).rstrip(), style="bold" if number == 0 else "", soft_wrap=True)


def _print_histogram(console: Console, bars: Sequence[Mapping[str, int]]) -> None:
    if not bars:
        return
    most = max(bar["rows"] for bar in bars)
    first = next(place for place, bar in enumerate(bars) if bar["rows"])
    rows = [
        (f"{bar['from']:,} – {bar['to']:,}", f"{bar['rows']:,}", to_bar(bar["rows"], most, _BAR_WIDTH))
        for bar in bars[first:]
    ]
    console.print()
    _print_columns(console, ("tokens", "rows", ""), rows, left=(2,))


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
    _print_legend(console, marks, note)
    for number, row in enumerate(rows):
        console.print(f"\n── row {row.number} · {row.place} · {explain_verdict(row, max_length)}", soft_wrap=True)
        for name, value in row.facts.items():
            console.print(f"   {name.replace('_', ' ')}: {to_visible(str(value))}", soft_wrap=True)
        for part in row.parts:
            pieces = read[number, part.name]
            if not pieces:
                continue
            console.print(Text(f"   {_describe_part(part, note)}", _MARK), soft_wrap=True)
            console.print(_draw_pieces(pieces, marks), soft_wrap=True)
            if shows_ids:
                for line in _list_ids(pieces, marks, console.width):
                    console.print(line, soft_wrap=True)


def _print_legend(console: Console, marks: _Marks, note: str) -> None:
    legend = Text("\n")
    if not note:
        legend.append(f"{marks.trained[0]}trained{marks.trained[1]}", _TRAINED).append(" carries loss · ")
    legend.append(marks.control[0]).append("control token", _CONTROL)
    legend.append(f"{marks.control[1]} · ↵ line break, ⇥ tab, ‹U+200B› unseen")
    console.print(legend, soft_wrap=True)
    if marks.are_used:
        console.print(
            "The text uses each pair of signs that there is for this: what is trained, --json and --html tell surely.",
            style=_WARNING,
            soft_wrap=True,
        )
    if note:
        console.print(note, soft_wrap=True)


def _describe_part(part: Part, note: str) -> str:
    name = f"{part.name}: " if part.name else ""
    return f"{name}{len(part.ids):,} tokens" + ("" if note else f", {sum(part.trained):,} trained")


def _choose_marks(texts: Iterable[str]) -> _Marks:
    """Choose signs that the text itself does not use."""
    used = set("".join(texts))
    trained, control = (
        next((pair for pair in pairs if not used & set(pair)), None) for pairs in (_TRAINED_MARKS, _CONTROL_MARKS)
    )
    are_used = trained is None or control is None
    return _Marks(trained or _TRAINED_MARKS[0], control or _CONTROL_MARKS[0], are_used)


def _draw_pieces(pieces: Sequence[Piece], marks: _Marks) -> Text:
    """Draw a row; brackets are closed at a line's end and opened again, so that each line says it of itself."""
    drawn = Text()
    is_open = False
    for piece in pieces:
        for line in to_visible(piece.text).splitlines(keepends=True) or [""]:
            if piece.trained != is_open:
                drawn.append(marks.trained[0] if piece.trained else marks.trained[1], _MARK)
                is_open = piece.trained
            text, end, _ = line.partition("\n")
            _append(drawn, piece, text, marks)
            if end and is_open:
                drawn.append(marks.trained[1], _MARK)
                is_open = False
            drawn.append(end)
    if is_open:
        drawn.append(marks.trained[1], _MARK)
    return drawn


def _append(drawn: Text, piece: Piece, text: str, marks: _Marks) -> None:
    colour = _TRAINED if piece.trained else ""
    if piece.is_control:
        drawn.append(marks.control[0], _MARK).append(text, f"{_CONTROL} {colour}").append(marks.control[1], _MARK)
    else:
        drawn.append(text, f"italic {colour}" if piece.is_bytes else colour)


def _list_ids(pieces: Sequence[Piece], marks: _Marks, width: int) -> Iterator[str]:
    """List every piece as `id "text"`, the trained ones in their brackets, in lines of the width."""
    line = "  "
    for piece in pieces:
        # Line breaks are marked and not made: a piece stays on its line.
        text = to_visible(piece.text).replace("\n", "").replace("\t", "")
        named = f"{marks.control[0]}{text}{marks.control[1]}" if piece.is_control else f'"{text}"'
        told = f"{'+'.join(map(str, piece.ids))} {named}"
        told = f"{marks.trained[0]}{told}{marks.trained[1]}" if piece.trained else told
        if cell_len(line) + 2 + cell_len(told) > width and line.strip():
            yield line
            line = "  "
        line += f"  {told}"
    yield line
