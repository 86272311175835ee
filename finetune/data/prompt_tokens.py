"""Conversations to rows that ask for an answer, and the account of what became of every row.

In go conversations (`sources.load_examples`) and a renderer; out come rows that end where the answer
starts, with the row's own answer beside them where it has one.
"""

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from datasets import Features, List, Value

from finetune.data.examples import Conversation, Message, Origin
from finetune.data.formats import from_json
from finetune.data.rendering import Renderer
from finetune.data.sources import LoadedExamples
from finetune.data.tokens import (
    ACCOUNT_FEATURES,
    TokenRows,
    TooLong,
    build_fingerprint,
    build_report,
    map_examples,
    refuse_length,
    select_kept,
)
from finetune.errors import DataError

__all__ = ["build_prompt_rows"]

_FEATURES = Features({"prompt": List(Value("int32")), "reference": Value("string"), **ACCOUNT_FEATURES})
_COLUMNS = ["prompt", "reference", "length"]


def build_prompt_rows(loaded: LoadedExamples, renderer: Renderer, *, max_length: int, too_long: TooLong) -> TokenRows:
    """Render every conversation up to where its last answer starts.

    Args:
        loaded: the conversations of one split.
        renderer: template and tokenizer, bound.
        max_length: tokens of a prompt at most, the room of its answer taken off.
        too_long: `drop` the row, or stop (`error`); a prompt that is cut would ask something else.

    Returns:
        Rows of `prompt` (token ids), `reference` (the last answer's text, or None) and `length` in tokens.

    Raises:
        DataError: a prompt is too long under `error`, or no row is left.
    """
    if too_long not in ("drop", "error"):
        raise ValueError("a prompt that is cut or split asks something else: drop or error")
    fingerprint = build_fingerprint(loaded, renderer, "prompts", max_length, too_long)

    def convert(texts: Sequence[str], places: Sequence[Origin]) -> Iterator[tuple[Origin, dict[str, Any]]]:
        for text, place in zip(texts, places, strict=True):
            example = from_json(text, place)
            if not isinstance(example, Conversation):
                raise DataError(f"{place}: plain text asks nothing; a prompt is wanted.")
            ids, reference = _render(example, renderer)
            if len(ids) > max_length and too_long == "error":
                raise refuse_length(place, len(ids), max_length)
            yield place, _row(ids, reference, max_length)

    rows = map_examples(loaded, _FEATURES, fingerprint, convert)
    report = build_report(loaded, rows, max_length=max_length, reasons=("too_long",))
    _, kept = select_kept(rows)
    dataset = rows.select(kept).select_columns(_COLUMNS)
    report["rows_without_answer"] = int(np.sum([reference is None for reference in dataset["reference"][:]]))
    return TokenRows(dataset, report, fingerprint)


def _render(conversation: Conversation, renderer: Renderer) -> tuple[list[int], str | None]:
    """Render what is asked, and take the words of the last answer, if the conversation ends with one."""
    asked: Sequence[Message] = conversation.messages
    reference = None
    if asked[-1].role == "assistant":
        *asked, answer = asked
        reference = answer.content.strip() or None
    return renderer.render_prompt(asked, tools=conversation.tools), reference


def _row(ids: list[int], reference: str | None, max_length: int) -> dict[str, Any]:
    fits = len(ids) <= max_length
    return {
        "prompt": ids if fits else [],
        "reference": reference,
        "length": len(ids) if fits else 0,
        "trained": 0,
        "full_length": len(ids),
        "verdict": "whole" if fits else "too_long",
    }
