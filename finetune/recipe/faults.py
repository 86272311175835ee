"""Faults of a recipe, and the one message that reports them all.

A fault is a place, a first line that is complete in itself, and advice. The checks collect faults
and `to_error` puts them, in the order of the file, into one RecipeError of at most 15 lines.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass, field

from finetune.errors import RecipeError

__all__ = ["Fault", "quote", "to_error"]

MAX_LINES = 15
_MAX_QUOTED_LENGTH = 60


@dataclass(frozen=True, slots=True)
class Fault:
    """One thing to mend.

    Attributes:
        place: `file:line`, `command line`, or the file alone.
        what: what was found, as a sentence.
        advice: what to type, or what the setting means; each a line.
        line: the line in the file, 0 where there is none; faults are reported in this order.
        settings: settings that the advice names, so that one slip is not reported twice.
    """

    place: str
    what: str
    advice: tuple[str, ...] = ()
    line: int = 0
    settings: tuple[str, ...] = field(default=(), compare=False)

    def to_lines(self) -> list[str]:
        """The fault as a message: the first line, and each piece of advice below it."""
        return [f"{self.place}: {self.what}", *(f"  {advice}" for advice in self.advice)]

    def to_line(self) -> str:
        """The fault in one line, with the first sentence of its advice."""
        advice = re.match(r"(E\.g\..*|.*?[.?](?= |$))", self.advice[0]) if self.advice else None
        return f"{self.place}: {self.what}{f' {advice[1]}' if advice else ''}"


def quote(text: str) -> str:
    """Text in backticks: shortened, and with control characters and lone surrogates written out."""
    visible = "".join(character if character.isprintable() else repr(character)[1:-1] for character in text)
    shortened = visible if len(visible) <= _MAX_QUOTED_LENGTH else visible[:_MAX_QUOTED_LENGTH] + "…"
    return f"`{shortened}`"


def to_error(faults: Sequence[Fault]) -> RecipeError:
    """Put all faults into one error of at most 15 lines: many take a line each, and the rest is counted."""
    ordered = sorted(faults, key=lambda fault: fault.line)
    lines = [line for fault in ordered for line in fault.to_lines()]
    if len(lines) > MAX_LINES:
        lines = [fault.to_line() for fault in ordered]
    if len(lines) > MAX_LINES:
        shown = lines[: MAX_LINES - 1]
        lines = [*shown, f"And {len(lines) - len(shown)} more; mend these first and run the command again."]
    return RecipeError("\n".join(lines))


def to_line_number(place: str) -> int:
    """The line of a `file:line` place; 0 where it has none."""
    match = re.search(r":(\d+)$", place)
    return int(match[1]) if match else 0
