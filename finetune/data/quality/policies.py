"""What the recipe wants done about findings: report them, drop their rows, or stop.

In go findings and a policy for each kind; out come the training examples that are left and what the report says.
"""

import hashlib
import json
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from finetune.data.quality.finding import Finding
from finetune.data.sources import LoadedExamples
from finetune.errors import DataError

__all__ = ["apply_policies"]

_PLACES_SHOWN = 3
_KINDS_SHOWN = 8


def apply_policies(
    findings: Sequence[Finding], policies: Mapping[str, str], train: LoadedExamples
) -> tuple[LoadedExamples, dict[str, Any]]:
    """Apply the recipe's policies.

    Args:
        findings: of the training examples.
        policies: kind -> `report`, `drop` or `error`, every kind that was found among them.
        train: the examples that the findings' rows are indices into.

    Returns:
        The examples without the rows that `drop` takes out; with some gone, another fingerprint. And for the report
        `findings`, each with its `policy`, `rows_dropped` and which rows these are by source (`dropped`), and the
        whole `rows_dropped`: a row that is faulty alone in two ways counts in both and once in the whole.

    Raises:
        DataError: a kind whose policy is `error` was found, or nothing is left.
    """
    stopping = [finding for finding in findings if policies[finding.name] == "error"]
    if stopping:
        raise DataError(_say_found(stopping))
    taken = _choose_rows([finding for finding in findings if policies[finding.name] == "drop"])
    dropped = np.unique(np.concatenate([np.empty(0, np.int64), *taken.values()]))
    report = {
        "findings": [
            {
                **finding.to_json(),
                "policy": policies[finding.name],
                "rows_dropped": len(taken.get(finding.name, ())),
                "dropped": _list_rows(train, taken.get(finding.name)),
            }
            for finding in findings
        ],
        "rows_dropped": len(dropped),
    }
    if not len(dropped):
        return train, report
    if len(dropped) == len(train.dataset):
        raise DataError(
            f"{train.dataset[0]['source']}: nothing is left to train on: `data.findings` drops all {len(dropped)} "
            "examples.\n"
            f"  Found: {', '.join(f'{finding.name} {finding.count}' for finding in findings)}.\n"
            "  Set one of them back to `report`."
        )
    kept = np.setdiff1d(np.arange(len(train.dataset)), dropped, assume_unique=True)
    hashed = json.dumps(["findings", train.fingerprint, dropped.tolist()]).encode()
    left = LoadedExamples(train.dataset.select(kept), train.report, hashlib.sha256(hashed).hexdigest())
    return left, report


def _choose_rows(dropping: Sequence[Finding]) -> dict[str, NDArray[np.int64]]:
    """Choose the rows that go: those that are faulty alone first, then what repeats or contradicts a row that stays.

    So a bad answer that stands first does not take the good one along that stands second.
    """
    taken: dict[str, NDArray[np.int64]] = {finding.name: finding.rows for finding in dropping if not finding.groups}
    gone = {row for rows in taken.values() for row in rows.tolist()}
    for finding in dropping:
        if not finding.groups:
            continue
        spare: list[int] = []
        for group in finding.groups:
            found = group.find_spare(gone)
            gone.update(found)
            spare += found
        taken[finding.name] = np.array(sorted(spare), np.int64)
    return taken


def _list_rows(train: LoadedExamples, indices: NDArray[np.int64] | None) -> dict[str, list[int]]:
    """List the rows of each source; all of them, so that none is gone without a trace."""
    listed: dict[str, list[int]] = {}
    if indices is not None:
        rows = train.dataset.select(indices).select_columns(["source", "row"])
        for source, row in zip(rows["source"][:], rows["row"][:], strict=True):
            listed.setdefault(source, []).append(row)
    return listed


def _say_found(stopping: Sequence[Finding]) -> str:
    first = stopping[0]
    places = [one.places[0] for one in first.examples[:_PLACES_SHOWN]]
    others = [f"{finding.name} {finding.count}" for finding in stopping[1:_KINDS_SHOWN]]
    ways = ["report"] if first.name == "length_bias" else ["drop", "report"]
    lines = [
        f"{places[0]}: {first.name.replace('_', ' ')}: {first.count} in all, first {', '.join(places)}.",
        f"  {first.advice}",
        f"  Go on: {' or '.join(f'`data.findings: {{{first.name}: {way}}}`' for way in ways)}.",
    ]
    return "\n".join([*lines, *([f"  Set to stop too: {', '.join(others)}."] if others else [])])
