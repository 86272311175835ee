"""Rows of labelled texts: columns to an example, and what a benchmark fixes of how they are written."""

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from finetune.data.examples import Labelled, Origin, RowError

__all__ = ["LabelReading", "from_labelled", "read_number"]


@dataclass(frozen=True, slots=True)
class LabelReading:
    """How labelled rows are written where that is fixed, as GLUE's are.

    Attributes:
        headings: the columns of a .tsv file that has no header line.
        spellings: a label as it is written -> its name; empty where labels are taken as they are.
        is_number: labels are numbers.
        with_labels: False for test rows, whose labels are kept secret: whatever stands there is none.
    """

    headings: tuple[str, ...] = ()
    spellings: Mapping[str, str] = field(default_factory=dict)
    is_number: bool = False
    with_labels: bool = True

    def to_key(self) -> dict[str, Any]:
        """Turn into what a fingerprint is taken of."""
        return asdict(self)

    def apply(self, example: Labelled, origin: Origin) -> Labelled:
        """Give the example its label's name.

        Raises:
            RowError: no label, or one that the benchmark does not have.
        """
        if not self.with_labels:
            return replace(example, label=None)
        if example.label is None:
            raise RowError(origin, "no label")
        if self.is_number:
            return replace(example, label=read_number(example.label, origin))
        if not self.spellings:
            return example
        written = str(example.label)
        if written not in self.spellings:
            known = ", ".join(f"`{name}`" for name in self.spellings)
            raise RowError(origin, "a label that the task does not have", f": `{written}`, not one of {known}")
        return replace(example, label=self.spellings[written])


def read_number(label: str | float, origin: Origin) -> float:
    """Read a label that is a number.

    Raises:
        RowError: it is not one, or not finite.
    """
    try:
        number = float(label)
    except ValueError:
        raise RowError(origin, "a label that is not a number", f": `{label}`") from None
    if not math.isfinite(number):
        raise RowError(origin, "a label that is not a finite number", f": `{label}`")
    return number


def from_labelled(row: Mapping[str, Any], origin: Origin) -> Labelled:
    """Convert a row's `text`, `text_pair` and `label`; the last two may be absent.

    A whole number and a truth value become the label's name (`0`, `true`), any other number stays one. One of two
    texts may be empty, as some of QQP's questions are.
    """
    text = _check_type(row["text"], "`text`", origin)
    pair = None if row.get("text_pair") is None else _check_type(row["text_pair"], "`text_pair`", origin)
    if not text.strip() and not (pair or "").strip():
        raise RowError(origin, "`text` is empty")
    return Labelled(text, pair, _to_label(row.get("label"), origin), origin)


def _check_type(value: Any, what: str, origin: Origin) -> str:
    if not isinstance(value, str):
        raise RowError(origin, f"{what} is not text", f": `{value}`")
    return value


def _to_label(value: Any, origin: Origin) -> str | float | None:
    match value:
        case None | "":
            return None
        case bool():
            return str(value).lower()
        case int():
            return str(value)
        case str() | float():
            return value
    raise RowError(origin, "`label` is neither a text nor a number", f": `{value}`")
