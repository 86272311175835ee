"""The quality pass of a run: what is found in its training rows, said, and dealt with as the recipe asks.

In go the examples to train on, those held out and the policies; out come the examples that stay, with what
`data_report.json` says of the findings.
"""

import logging
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from finetune.data.quality.inspecting import find_faults
from finetune.data.quality.policies import apply_policies
from finetune.data.sources import LoadedExamples
from finetune.recipe.row_kinds import Kind
from finetune.recipe.rows_schema import FindingsSettings

__all__ = ["screen_examples"]

log = logging.getLogger("finetune.data.quality")


def screen_examples(
    train: LoadedExamples,
    held_out: Sequence[tuple[LoadedExamples, Kind]],
    policies: FindingsSettings | None,
    *,
    kind: Kind,
) -> LoadedExamples:
    """Look for faults in the examples to train on, say what was found, and drop rows or stop where asked.

    Args:
        train: examples to train on.
        held_out: every set that must not be among them, with its kind.
        policies: `data.findings` of the recipe; None: nothing is looked for.
        kind: what the examples to train on are read as.

    Returns:
        The examples that stay; their report holds `findings`, and `rows_dropped` by them.

    Raises:
        DataError: something is found whose policy is `error`, or no row would be left.
    """
    if policies is None:
        log.info("Nothing is looked for in the text of the rows: `data.findings` is null.")
        return train
    kept, report = apply_policies(find_faults(train, held_out, kind=kind), policies.model_dump(), train)
    for one in report["findings"]:
        say = log.info if one["severity"] == "note" else log.warning
        say("%s", _to_words(one))
    return replace(kept, report=kept.report | report)


def _to_words(finding: dict[str, Any]) -> str:
    """One line: how many rows, where the first stands, and what became of them."""
    first = [place for example in finding["examples"][:1] for place in example["places"][:1]]
    left_out = ["left out"] if finding["rows_dropped"] else []
    return f"{finding['name'].replace('_', ' ')}: {', '.join([str(finding['count']), *left_out, *first])}"
