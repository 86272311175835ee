"""The census as a table: names, values and where to look, the same in the console and on the page.

In goes the census that the rows were counted into; out come lines of words and numbers, in one order.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

__all__ = ["Line", "build_lines", "list_sources", "name_findings", "to_bar", "to_object"]

_BLOCKS = " ▏▎▍▌▋▊▉█"

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


@dataclass(frozen=True, slots=True)
class Line:
    """One line of the table.

    Attributes:
        name: what is counted.
        value: how many, with the unit where it is not rows.
        note: where the first of them stand, or what the number is a share of.
        needs_look: it counts something that is seldom meant.
    """

    name: str
    value: str
    note: str = ""
    needs_look: bool = False


def build_lines(report: Mapping[str, Any]) -> list[Line]:
    """Build the table of a report's census.

    Args:
        report: of the rows to train on, as `data_report.json` holds it, with the `census` (`data.census.build_census`).
    """
    census = report["census"]
    lengths, keeping = census["lengths"], census["max_length_keeping"]
    dropped = report.get("rows_dropped", 0)
    bad_rows = sum(source["bad_rows"] for source in report["sources"])
    control = census["control_tokens"]
    lines = [
        Line("rows read", f"{report['rows_read'] + dropped:,}"),
        Line("bad rows left out", f"{bad_rows:,}", "reasons: data_report.json" if bad_rows else "", bad_rows > 0),
        *([Line("dropped by findings", f"{dropped:,}", "data.findings", dropped > 0)] if dropped else []),
        Line("rows trained on", f"{census['rows']:,}"),
        Line("tokens", f"{census['tokens']:,}"),
        Line("trained tokens", f"{census['trained_tokens']:,}", f"{census['trained_share']:.1%} of the tokens"),
    ]
    for reason, count in census["dropped"].items():
        lines.append(_count(_DROPPED[reason], count, reason, census))
    lines += [_count(what, census[name], name, census) for name, what in _FLAGGED.items()]
    lines.append(_count("control tokens in rows' text", control["rows"], "control_tokens", census, control["tokens"]))
    spread = " · ".join(f"{name} {length:,}" for name, length in lengths.items())
    lines += [
        Line("length of a row", f"{lengths['median']:,} tokens", spread),
        Line("max_length", f"{census['max_length']:,} tokens"),
        *(
            Line(f"max_length keeping {share} whole", f"{length:,} tokens", "the smallest")
            for share, length in keeping.items()
        ),
    ]
    if "packing_fill" in census:
        lines.append(Line("packed rows filled", f"{census['packing_fill']:.1%}", "of their tokens"))
    return lines


def _count(what: str, count: int, name: str, census: Mapping[str, Any], tokens: int | None = None) -> Line:
    places = census["first_places"].get(name, [])
    more = f" and {count - len(places):,} more" if count > len(places) else ""
    note = f"{', '.join(places)}{more}" if places else ""
    if tokens:
        note = f"{tokens:,} of them: {note}"
    return Line(what, f"{count:,}", note, needs_look=count > 0)


def list_sources(census: Mapping[str, Any]) -> list[tuple[str, str, str, str]]:
    """List the sources: path, rows, tokens and trained tokens."""
    return [
        (source["path"], f"{source['rows']:,}", f"{source['tokens']:,}", f"{source['trained_tokens']:,}")
        for source in census["sources"]
    ]


def to_bar(rows: int, most: int, width: int) -> str:
    """Draw a bar of at most `width` characters; what is not zero is seen."""
    if rows == 0:
        return ""
    eighths = max(1, round(rows / most * width * 8))
    full, rest = divmod(eighths, 8)
    return "█" * full + (_BLOCKS[rest] if rest else "")


def name_findings(findings: Sequence[Mapping[str, Any]]) -> list[tuple[str, str, str, list[str]]]:
    """Name the findings of the quality pass: severity, what and how many, what to do, and quotes with places."""
    named = []
    for finding in findings:
        what = f"{finding['name'].replace('_', ' ')}: {finding['count']:,}"
        if finding["rows_dropped"]:
            what += f", {finding['rows_dropped']:,} dropped"
        quotes = [f"{', '.join(example['places'])}: {example['text']}" for example in finding["examples"]]
        named.append((finding["severity"], what, finding["advice"], quotes))
    return named


def to_object(census: Mapping[str, Any]) -> dict[str, Any]:
    """The census for programs: `dropped` as one number, the table by reason beside it."""
    return {**census, "dropped": sum(census["dropped"].values()), "dropped_by_reason": census["dropped"]}
