"""A finding: one kind of fault, the rows that show it, and what to do; every kind with its severity and advice.

The kinds are a closed list, the same as the fields of `data.findings` in the recipe.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, get_args

import numpy as np
from numpy.typing import NDArray

__all__ = ["FACTS", "FINDING_NAMES", "Finding", "FindingExample", "FindingFacts", "FindingName", "Severity", "quote"]

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
Severity = Literal["error", "warning", "note"]

MAX_EXAMPLES = 5
_MAX_QUOTE = 160  # characters


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
        severity: `error` spoils what is trained or measured, `warning` should be looked at, `note` is good to know.
        rows: indices into the training examples that show it, sorted; of repeats all but the first of each group.
        count: of rows; for `length_bias`, which no single row shows, the pairs whose longer answer was chosen, or
            whose shorter one was where those are favoured.
        examples: the first rows that show it, at most five.
        advice: what it means and what to do.
        details: figures of this kind, e.g. shares of languages.
    """

    name: FindingName
    severity: Severity
    rows: NDArray[np.int64]
    count: int
    examples: list[FindingExample]
    advice: str
    details: dict[str, Any] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        """Convert to what the report holds; the rows themselves stay out of it."""
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
    line = "".join(sign if sign.isprintable() else ascii(sign)[1:-1] for sign in " ".join(cut.split()))
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
        "error",
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
        "error",
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
        "error",
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
        "Length alone tells most chosen answers from the rejected ones, so that is what will be learnt. Balance the "
        "pairs by length, or score lengths beside the win rate.",
    ),
}
