"""The census as a table: names, values and where to look, the same in the console and on the page.

In goes the report that the rows were counted into; out come lines of words and numbers, in one order, that add up from
the rows in the files to those that are trained on.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any

__all__ = ["Line", "build_lines", "lay_out", "list_sources", "to_bar", "to_object"]

_BLOCKS = " ▏▎▍▌▋▊▉█"
_BETWEEN_NOTES = " · "

# Figures that count rows, each with what it means; the first places stand under the same names.
_DROPPED = {
    "too_long": "dropped: longer than max_length",
    "nothing_trained": "dropped: no trained token",
    "equal_in_tokens": "dropped: both answers of the same tokens",
    "equal_after_cut": "dropped: both answers equal once cut",
}
_FLAGGED = {
    "cut": "cut to max_length",
    "answers_lost": "lost a whole answer to the cut",
    "ends_lost": "lost only an answer's end token to the cut",
    "unended": "end of an answer not trained",
    "begins_twice": "two beginning-of-sequence tokens",
}
# Where no token is trained as such, what they mean instead.
_OWN_WORDS: Mapping[str, Mapping[str, str]] = {
    "mlm": {"nothing_trained": "dropped: no token that may be masked"},
    "reward": {"nothing_trained": "dropped: an answer without tokens", "unended": "answer without its end token"},
}
_TRAINED_INSTEAD = {
    "reward": "the score of a whole answer carries loss",
    "classify": "the label of a whole text carries loss",
    "grpo": "the answers are sampled in the run",
    "rloo": "the answers are sampled in the run",
}


@dataclass(frozen=True, slots=True)
class Line:
    """One line of the table.

    Attributes:
        name: what is counted.
        value: how many, with the unit where it is not rows.
        notes: what the number is a share of, where the first of them stand; each stays on one line.
        needs_look: it counts something that is seldom meant.
    """

    name: str
    value: str
    notes: tuple[str, ...] = ()
    needs_look: bool = False

    @property
    def note(self) -> str:
        """All notes in one."""
        return _BETWEEN_NOTES.join(self.notes)


def build_lines(report: Mapping[str, Any], *, objective: str) -> list[Line]:
    """Build the table of a report's census.

    Args:
        report: of the rows to train on, as `data_report.json` holds it, with the `census` (`data.census.build_census`).
        objective: decides what of a row is trained.
    """
    census = report["census"]
    words = {**_DROPPED, **_FLAGGED, **_OWN_WORDS.get(objective, {})}
    lines = _count_up_to_examples(report)
    for reason, count in census["dropped"].items():
        lines.append(_count(words[reason], count, census["first_places"].get(reason, [])))
    pieces = census["rows"] - (report["rows_read"] - sum(census["dropped"].values()))
    if pieces:
        lines.append(Line("further pieces of split rows", f"{pieces:,}"))
    lines += [
        Line("rows trained on", f"{census['rows']:,}"),
        Line("tokens", f"{census['tokens']:,}"),
        _count_trained(census, objective),
    ]
    lines += [_count(words[name], census[name], census["first_places"].get(name, [])) for name in _FLAGGED]
    control = census["control_tokens"]
    found = [f"{control['tokens']:,} tokens"] if control["tokens"] else []
    places = census["first_places"].get("control_tokens", [])
    lines.append(_count("control tokens in rows' text", control["rows"], places, found))
    return [*lines, *_describe_lengths(census)]


def _count_up_to_examples(report: Mapping[str, Any]) -> list[Line]:
    """Count from the rows in the files to the examples that are made into tokens."""
    sources, dropped = report["sources"], report.get("rows_dropped", 0)
    rows, bad = (sum(source[name] for source in sources) for name in ("rows", "bad_rows"))
    lines = [
        Line("rows in the files", f"{rows + bad:,}"),
        Line("bad rows left out", f"{bad:,}", needs_look=bad > 0),
        *_count_bad_reasons(sources),
    ]
    left = sum(source.get("examples", source["rows"]) for source in sources)
    if left != rows:
        lines.append(Line("examples in the other rows", f"{left:,}", ("several in a row",)))
    if any("rows_taken" in source for source in sources):
        taken = sum(source.get("rows_taken", 0) for source in sources)
        lines.append(Line("left out by the mix", f"{left - taken:,}", ("weights in data.train",)))
        left = taken
    shots = report.get("shots")
    # Drawn after the split, and of what it left.
    before_shots = shots["of"] if shots else report["rows_read"] + dropped
    if "split" in report:
        split = report["split"]
        note = (f"data.eval: {split['of'] - split['rows']:,} of {split['of']:,} rows",)
        lines.append(Line("held out by the split", f"{left - before_shots:,}", note))
    if shots:
        note = (f"classification.shots: {shots['of_each']:,} of each label",)
        lines.append(Line("not drawn as shots", f"{shots['of'] - shots['rows']:,}", note))
    if dropped:
        lines.append(Line("dropped by findings", f"{dropped:,}", ("data.findings",), needs_look=True))
    lines.append(Line("examples to train on", f"{report['rows_read']:,}", (f"--row 1 to --row {report['rows_read']}",)))
    return lines


def _count_bad_reasons(sources: Sequence[Mapping[str, Any]]) -> list[Line]:
    counts: dict[str, int] = {}
    places: dict[str, list[str]] = {}
    for source in sources:
        for reason, found in source.get("bad_reasons", {}).items():
            counts[reason] = counts.get(reason, 0) + found["rows"]
            places.setdefault(reason, []).extend(found["first"])
    return [_count(f"bad row: {reason}", count, places[reason]) for reason, count in counts.items()]


def _count_trained(census: Mapping[str, Any], objective: str) -> Line:
    if objective in _TRAINED_INSTEAD:
        return Line("trained tokens", "none", (_TRAINED_INSTEAD[objective],))
    name = "tokens that may be masked" if objective == "mlm" else "trained tokens"
    return Line(name, f"{census['trained_tokens']:,}", (f"{census['trained_share']:.1%} of the tokens",))


def _describe_lengths(census: Mapping[str, Any]) -> list[Line]:
    lengths = census["lengths"]
    lines = [
        Line(
            "length of a row",
            f"{lengths['median']:,} tokens",
            tuple(f"{name} {length:,}" for name, length in lengths.items()),
        ),
        Line("max_length", f"{census['max_length']:,} tokens"),
    ]
    for share, length in census["max_length_keeping"].items():
        lines.append(Line(f"max_length keeping {share} whole", f"{length:,} tokens", ("the smallest",)))
    if "packing_fill" in census:
        lines.append(Line("packed rows filled", f"{census['packing_fill']:.1%}", ("of their tokens",)))
    return lines


def _count(what: str, count: int, places: Sequence[str], notes: Iterable[str] = ()) -> Line:
    more = [f"{count - len(places):,} more"] if places and count > len(places) else []
    return Line(what, f"{count:,}", (*notes, *_group_places(places), *more), needs_look=count > 0)


def _group_places(places: Sequence[str]) -> list[str]:
    """Name each file once: `a.json: 942, 957`."""
    rows_in: dict[str, list[str]] = {}
    for place in places:
        path, _, row = place.rpartition(":")
        rows_in.setdefault(path, []).append(row)
    return [f"{path}: {', '.join(rows)}" for path, rows in rows_in.items()]


def lay_out(lines: Sequence[Line], width: int) -> list[tuple[str, str, list[str]]]:
    """Lay the table out for letters of one width.

    Args:
        lines: of the table.
        width: columns; a note that is wider by itself is written whole all the same.

    Returns:
        For each line its name and its value, padded, and the notes, in as many lines as they need.
    """
    name_width, value_width = (max(len(cell) for cell in cells) for cells in zip(*_name_and_value(lines), strict=True))
    room = width - name_width - value_width - 4
    return [(f"{line.name:<{name_width}}  ", f"{line.value:>{value_width}}", _fold(line.notes, room)) for line in lines]


def _name_and_value(lines: Sequence[Line]) -> list[tuple[str, str]]:
    return [(line.name, line.value) for line in lines]


def _fold(notes: Sequence[str], room: int) -> list[str]:
    """Put notes into lines, none of them folded inside."""
    folded: list[str] = []
    for note in notes:
        if folded and len(folded[-1]) + len(_BETWEEN_NOTES) + len(note) <= room:
            folded[-1] += f"{_BETWEEN_NOTES}{note}"
        else:
            folded.append(note)
    return folded


def list_sources(census: Mapping[str, Any], *, objective: str) -> list[tuple[str, ...]]:
    """List the sources below their headings: path, rows, tokens and, where any are, trained tokens."""
    trained = [] if objective in _TRAINED_INSTEAD else ["may be masked" if objective == "mlm" else "trained"]
    figures = ("rows", "tokens", *(["trained_tokens"] if trained else []))
    rows = ((source["path"], *(f"{source[figure]:,}" for figure in figures)) for source in census["sources"])
    return list(chain([("source", "rows", "tokens", *trained)], rows))


def to_bar(rows: int, most: int, width: int) -> str:
    """Draw a bar of at most `width` characters; what is not zero is seen."""
    if rows == 0:
        return ""
    eighths = max(1, round(rows / most * width * 8))
    full, rest = divmod(eighths, 8)
    return "█" * full + (_BLOCKS[rest] if rest else "")


def to_object(census: Mapping[str, Any]) -> dict[str, Any]:
    """The census for programs: `dropped` as one number, the table by reason beside it."""
    return {**census, "dropped": sum(census["dropped"].values()), "dropped_by_reason": census["dropped"]}
