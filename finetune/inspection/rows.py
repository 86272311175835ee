"""The rows to show: taken from the account of every row read, with what became of each.

In go the account that the training code path keeps (`data.tokens.TokenRows`) and which rows are wanted; out come rows
of ids and masks, the very ones that are trained. A pair has two parts, any other row one.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from datasets import Dataset
from numpy.typing import NDArray

from finetune.data.batches import IGNORE_INDEX
from finetune.data.census import KEPT
from finetune.data.examples import Origin
from finetune.recipe.row_kinds import SAMPLED

__all__ = ["Part", "Row", "explain_verdict", "find_rows_at", "find_rows_numbered", "take_first_rows", "to_object"]

_BATCH_ROWS = 1000

# Columns of ids, and of labels where the row holds any, by the name of the part.
_PAIR: Mapping[str, tuple[str, str | None]] = {
    "chosen": ("chosen_ids", "chosen_labels"),
    "rejected": ("rejected_ids", "rejected_labels"),
}
_SCORED = {side: (ids, None) for side, (ids, _) in _PAIR.items()}  # the score of the whole answer is trained
_PROMPT: Mapping[str, tuple[str, str | None]] = {"": ("prompt", None)}
_LABELLED: Mapping[str, tuple[str, str | None]] = {"": ("input_ids", None)}
_MASKED = _LABELLED  # which tokens are masked is drawn while training
_ANSWERED: Mapping[str, tuple[str, str | None]] = {"": ("input_ids", "labels")}
_COLUMNS: Mapping[str, Mapping[str, tuple[str, str | None]]] = {
    **dict.fromkeys(("dpo", "orpo"), _PAIR),
    "reward": _SCORED,
    **dict.fromkeys(SAMPLED, _PROMPT),
    **dict.fromkeys(("sft", "pretrain", "kto"), _ANSWERED),
    "classify": _LABELLED,
    "mlm": _MASKED,
}
_REASONS = {
    "too_long": "it has {full_length:,} tokens and `data.max_length` is {max_length:,}",
    "nothing_trained": "none of the tokens that would be kept is trained",
    "equal_in_tokens": "its two answers have the same tokens",
    "equal_after_cut": "its two answers have the same tokens once cut",
}


@dataclass(frozen=True, slots=True)
class Part:
    """Token ids as they are trained.

    Attributes:
        name: `chosen` or `rejected`; empty where a row is one.
        ids: of its tokens.
        trained: for each, whether it carries loss; the first of a row is predicted by nothing and never does.
    """

    name: str
    ids: list[int]
    trained: list[bool]


@dataclass(frozen=True, slots=True)
class Row:
    """One row of the account.

    Attributes:
        number: of the examples on its side, from 1; pieces of one share theirs.
        place: where it stands in the data.
        verdict: `whole`, `cut` or `piece` of a kept row, else the reason why it is dropped.
        parts: its tokens; of a dropped row none.
        full_length: tokens before it was cut.
        control_tokens: that stood in its own text.
        facts: what further is known of it, by name: a label, whether an answer is desirable, a fault.
    """

    number: int
    place: Origin
    verdict: str
    parts: tuple[Part, ...]
    full_length: int
    control_tokens: int
    facts: Mapping[str, str | float | bool]

    @property
    def is_kept(self) -> bool:
        """Whether the run trains on it."""
        return self.verdict in KEPT


def take_first_rows(account: Dataset, count: int, *, objective: str, labels: Sequence[str] | None = None) -> list[Row]:
    """Take the first rows that are trained on.

    Args:
        account: of the rows to train on.
        count: how many, or as many as there are.
        objective: decides what columns hold the tokens.
        labels: names of a classifier's labels; None: there are none, or they are numbers.
    """
    verdicts = account.select_columns(["verdict"])
    kept: list[int] = []
    for start in range(0, len(account), _BATCH_ROWS):
        if len(kept) >= count:
            break
        found = verdicts[start : start + _BATCH_ROWS]["verdict"]
        kept += [start + place for place, verdict in enumerate(found) if verdict in KEPT]
    return _build_rows(account, kept[:count], objective, labels)


def find_rows_numbered(
    account: Dataset, number: int, *, objective: str, labels: Sequence[str] | None = None
) -> list[Row]:
    """Find what became of the Nth example of the training side: of a split one each piece; none where it is beyond.

    Args:
        account: of the rows to look in.
        number: from 1, in the order in which they stand after the mix, the split and the findings.
        objective: decides what columns hold the tokens.
        labels: names of a classifier's labels; None: there are none, or they are numbers.
    """
    return _build_rows(account, np.flatnonzero(_number_rows(account) == number), objective, labels)


def find_rows_at(account: Dataset, place: Origin, *, objective: str, labels: Sequence[str] | None = None) -> list[Row]:
    """Find what became of the row that stands in a place, as messages and `first_places` name it.

    Args:
        account: of the rows to look in.
        place: its file as the account names it, and its line.
        objective: decides what columns hold the tokens.
        labels: names of a classifier's labels; None: there are none, or they are numbers.
    """
    at_line = np.flatnonzero(_read_column(account, "row") == place.row)
    sources = account.select_columns(["source"])
    return _build_rows(account, [n for n in at_line if sources[int(n)]["source"] == place.source], objective, labels)


def _number_rows(account: Dataset) -> NDArray[np.int64]:
    """Number the examples; what follows a piece from the same place belongs to the same row."""
    goes_on = _read_column(account, "verdict") == "piece"
    if not goes_on.any():
        return np.arange(1, len(account) + 1)
    lines, sources = _read_column(account, "row"), _read_column(account, "source")
    is_same = goes_on[:-1] & (lines[1:] == lines[:-1]) & (sources[1:] == sources[:-1])
    return np.cumsum(np.concatenate([[True], ~is_same]))


def _read_column(account: Dataset, name: str) -> NDArray[Any]:
    return np.asarray(account.select_columns([name]).with_format("numpy")[name][:])


def explain_verdict(row: Row, max_length: int) -> str:
    """Say what became of a row, and why it is dropped where it is."""
    if row.verdict == "cut":
        return f"cut: {row.full_length - max(len(part.ids) for part in row.parts):,} of its {row.full_length:,} tokens"
    if row.verdict == "piece":
        return f"a piece of a row of {row.full_length:,} tokens"
    if row.verdict == "whole":
        return "whole"
    return f"dropped: {_REASONS[row.verdict].format(full_length=row.full_length, max_length=max_length)}"


def to_object(row: Row) -> list[dict[str, Any]]:
    """The row as plain values, an object for each of its parts; a dropped one has no ids."""
    told = {
        "row": row.place.row,
        "source": row.place.source,
        "number": row.number,
        "verdict": row.verdict,
        "full_length": row.full_length,
        **row.facts,
    }
    return [
        {**told, **({"part": part.name} if part.name else {}), "ids": part.ids, "trained": part.trained}
        for part in row.parts
    ]


def _build_rows(
    account: Dataset, indices: Sequence[int] | NDArray[np.int64], objective: str, labels: Sequence[str] | None
) -> list[Row]:
    if len(indices) == 0:
        return []
    numbers = _number_rows(account)
    return [_build_row(int(numbers[index]), account[int(index)], objective, labels) for index in indices]


def _build_row(number: int, values: Mapping[str, Any], objective: str, labels: Sequence[str] | None) -> Row:
    parts = []
    for name, (ids_column, labels_column) in _COLUMNS[objective].items():
        ids = list(values[ids_column])
        marks = [IGNORE_INDEX] * len(ids) if labels_column is None else values[labels_column]
        trained = [place > 0 and mark != IGNORE_INDEX for place, mark in enumerate(marks)]
        parts.append(Part(name, ids, trained))
    return Row(
        number=number,
        place=Origin(values["source"], values["row"]),
        verdict=values["verdict"],
        parts=tuple(parts),
        full_length=values["full_length"],
        control_tokens=values["control_tokens"],
        facts=_list_facts(values, objective, labels),
    )


def _list_facts(
    values: Mapping[str, Any], objective: str, labels: Sequence[str] | None
) -> dict[str, str | float | bool]:
    facts: dict[str, str | float | bool] = {}
    if objective == "classify":
        facts["label"] = values["label"] if labels is None else labels[values["label"]]
    if objective == "kto":
        facts["desirable"] = values["desirable"]
    if objective in SAMPLED and values["reference"] is not None:
        facts["reference"] = values["reference"]
    for fault in ("answer_lost", "end_lost", "unended", "begins_twice"):
        if values[fault]:
            facts[fault] = True
    return facts
