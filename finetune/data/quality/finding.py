"""A finding: one kind of fault, the rows that show it, and what to do; every kind with its severity and advice.

The kinds are a closed list, the same as the fields of `data.findings` in the recipe.
"""

import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, get_args

import numpy as np
from numpy.typing import NDArray

__all__ = [
    "FACTS",
    "FINDING_NAMES",
    "Finding",
    "FindingExample",
    "FindingFacts",
    "FindingName",
    "Group",
    "Severity",
    "quote",
]

FindingName = Literal[
    "duplicates",
    "near_duplicates",
    "eval_overlap",
    "near_eval_overlap",
    "conflicting_answers",
    "empty_answers",
    "short_answers",
    "refusals",
    "boilerplate",
    "template_leftovers",
    "other_language",
    "encoding_damage",
    "length_bias",
]
FINDING_NAMES: tuple[FindingName, ...] = get_args(FindingName)
Severity = Literal["serious", "warning", "note"]

MAX_EXAMPLES = 5
_MAX_QUOTE = 160  # characters
# White space, but none that text does not hold: that is damage, and is to be seen.
_SPACE = re.compile(r"[^\S\x1c-\x1f\x85]+")
_MAX_LIKE = 1.0 + 1e-9


@dataclass(frozen=True, slots=True)
class Group:
    """Training rows of which one can stay.

    Attributes:
        rows: indices, in order.
        says: what each says, as numbers: rows within one unit of the first say the same, and go with nothing; empty:
            every row stands for every other.
    """

    rows: list[int]
    says: list[float] = field(default_factory=list)

    def find_spare(self, gone: Collection[int] = ()) -> list[int]:
        """Find the rows that repeat or contradict the first of those that are not gone."""
        left = [place for place, row in enumerate(self.rows) if row not in gone]
        if not self.says:
            return [self.rows[place] for place in left[1:]]
        return [self.rows[place] for place in left[1:] if abs(self.says[place] - self.says[left[0]]) > _MAX_LIKE]


@dataclass(frozen=True, slots=True)
class FindingExample:
    """A row that shows the fault.

    Attributes:
        places: `file:row` of the row, the one it repeats or contradicts first.
        text: a quote of it, at most 160 characters.
    """

    places: list[str]
    text: str


@dataclass(frozen=True, slots=True)
class Finding:
    """One kind of fault in the training rows.

    Attributes:
        name: the kind.
        severity: `serious` spoils what is trained or measured, `warning` should be looked at, `note` is good to know.
        rows: indices into the training examples that show it, sorted; of repeats all but the first of each group.
        count: of rows; for `length_bias`, which no single row shows, the pairs whose longer answer was chosen, or
            whose shorter one was where those are favoured.
        examples: the first rows that show it, at most five.
        advice: what it means and what to do.
        details: figures of this kind, e.g. shares of languages.
        groups: of rows that show it of each other, so that it can be said which of them go when others are gone;
            sorted by what comes last in them where they overlap.
    """

    name: FindingName
    severity: Severity
    rows: NDArray[np.int64]
    count: int
    examples: list[FindingExample]
    advice: str
    details: dict[str, Any] = field(default_factory=dict)
    groups: list[Group] = field(default_factory=list)

    def to_json(self) -> dict[str, Any]:
        """Convert to what the report holds; the rows themselves and their groups stay out of it."""
        return {
            "name": self.name,
            "severity": self.severity,
            "count": self.count,
            "examples": [{"places": one.places, "text": one.text} for one in self.examples],
            "advice": self.advice,
            "details": self.details,
        }


def quote(text: str, start: int = 0) -> str:
    r"""Quote a text on one line from a little before `start`, at most 160 characters, with … where it was cut.

    What cannot be seen is spelt as Python does, e.g. `\u200b`, so that it shows and steers no terminal.
    """
    begin = max(0, start - 40)
    # No more than can be shown is folded, however long the text.
    cut = text[begin : begin + 2 * _MAX_QUOTE]
    line = "".join(sign if sign.isprintable() else ascii(sign)[1:-1] for sign in _SPACE.sub(" ", cut).strip(" "))
    before = "…" if begin else ""
    room = _MAX_QUOTE - len(before)
    if len(line) > room or begin + len(cut) < len(text):
        line = line[: room - 1] + "…"
    return before + line


@dataclass(frozen=True, slots=True)
class FindingFacts:
    """What holds for every finding of a kind.

    Attributes:
        severity: unless the figures say otherwise.
        advice: what it means and what to do.
    """

    severity: Severity
    advice: str


FACTS: Mapping[FindingName, FindingFacts] = {
    "duplicates": FindingFacts(
        "warning",
        "The same row stands here again, so it counts several times in training. `drop` keeps the first of each.",
    ),
    "near_duplicates": FindingFacts(
        "note",
        "Almost the same words stand in an earlier row. Read a few: `drop` keeps the first of each group.",
    ),
    "eval_overlap": FindingFacts(
        "serious",
        "A held-out row asks the same, so the evaluation scores what was learnt by heart. `drop` takes these rows out "
        "of the training rows; the held-out ones stay.",
    ),
    "near_eval_overlap": FindingFacts(
        "warning",
        "A held-out row has almost the same words, so the evaluation flatters. `drop` takes these rows out of the "
        "training rows; the held-out ones stay.",
    ),
    "conflicting_answers": FindingFacts(
        "warning",
        "An earlier row gives the same prompt another answer, so the two pull against each other. Decide which is "
        "right; `drop` keeps the first. Open questions, of which any answer is one of many, can stay.",
    ),
    "empty_answers": FindingFacts(
        "serious",
        "The answer holds nothing that can be seen, so the model learns to end its turn at once. `drop` these rows.",
    ),
    "short_answers": FindingFacts(
        "warning",
        "The answer is a placeholder or signs alone. `drop` these rows, or write their answers.",
    ),
    "refusals": FindingFacts(
        "warning",
        "The answer declines the request; a few hundred such rows make a model decline what it could do. Keep those "
        "that are meant, `drop` where none is.",
    ),
    "boilerplate": FindingFacts(
        "warning",
        "The answer speaks as another assistant would of itself, and the model will too. Rewrite or `drop` these rows.",
    ),
    "template_leftovers": FindingFacts(
        "serious",
        "Marks of a prompt template stand in the text, so rows were rendered once before; the model learns to write "
        "the marks. Cut them out of the rows, or `drop` these.",
    ),
    "other_language": FindingFacts(
        "warning",
        "The row is in another language than most. Keep it where that is meant; `drop` leaves the main language alone.",
    ),
    "encoding_damage": FindingFacts(
        "warning",
        "Text was decoded with the wrong encoding, and the model learns to write the wrong signs. Read the file again "
        "in its own encoding, or repair it with ftfy; `drop` these rows otherwise.",
    ),
    "length_bias": FindingFacts(
        "warning",
        "Length alone tells many chosen answers from the rejected ones, so that is what will be learnt. Balance the "
        "pairs by length, or score lengths beside the win rate.",
    ),
}
