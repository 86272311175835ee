"""The findings of the quality pass in words: how many, what was done, the figures of each, what to do and quotes.

In go the findings as `data_report.json` holds them, or None where nothing was looked for; out come their words, the
same in the console and on the page.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

__all__ = ["NamedFinding", "name_findings", "say_that_there_are_none"]


@dataclass(frozen=True, slots=True)
class NamedFinding:
    """One finding in words.

    Attributes:
        severity: as the quality pass gives it.
        what: its name, how many rows, and what the recipe has done about it.
        figures: of this kind, in one line; empty where there are none.
        advice: what it means and what to do.
        quotes: of the first rows, with their places.
    """

    severity: str
    what: str
    figures: str
    advice: str
    quotes: tuple[str, ...]


def name_findings(findings: Sequence[Mapping[str, Any]] | None) -> list[NamedFinding]:
    """Name the findings of the quality pass; of None none."""
    return [
        NamedFinding(
            severity=finding["severity"],
            what=f"{_to_words(finding['name'])}: {finding['count']:,} ({_say_policy(finding)})",
            figures=" · ".join(f"{_to_words(name)} {_to_text(value)}" for name, value in finding["details"].items()),
            advice=finding["advice"],
            quotes=tuple(f"{', '.join(example['places'])}: {example['text']}" for example in finding["examples"]),
        )
        for finding in findings or []
    ]


def say_that_there_are_none(findings: Sequence[Mapping[str, Any]] | None) -> str:
    """Say whether nothing was found or nothing was looked for; empty where something was found."""
    if findings is None:
        return "findings: not looked for (data.findings is null)"
    return "" if findings else "findings: none"


def _say_policy(finding: Mapping[str, Any]) -> str:
    dropped = finding["rows_dropped"]
    return f"policy: {finding['policy']}" + (f", {dropped:,} left out" if dropped else "")


def _to_words(name: str) -> str:
    return name.replace("_", " ")


def _to_text(value: Any) -> str:
    match value:
        case bool():
            return "yes" if value else "no"
        case int():
            return f"{value:,}"
        case float():
            return f"{value:.4g}"
        case Mapping():
            return f"({', '.join(f'{_to_words(str(name))} {_to_text(one)}' for name, one in value.items())})"
        case list() | tuple():
            return ", ".join(map(_to_text, value))
    return str(value)
