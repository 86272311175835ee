"""Conversations to rows that ask for an answer, and the account of what became of every row.

In go conversations (`sources.load_examples`) and a renderer; out come rows that end where the answer
starts, with the row's own answer beside them where it has one.
"""

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from datasets import Features, List, Value

from finetune.data.account import ACCOUNT_FEATURES, build_account, build_ends
from finetune.data.examples import Conversation, Example, Origin
from finetune.data.formats import from_json
from finetune.data.rendering import Renderer
from finetune.data.sources import LoadedExamples
from finetune.data.tokens import TokenRows, TooLong, build_fingerprint, finish_rows, map_examples, refuse_length
from finetune.errors import DataError

__all__ = ["build_prompt_rows"]

_FEATURES = Features({"prompt": List(Value("int32")), "reference": Value("string"), **ACCOUNT_FEATURES})
_COLUMNS = ("prompt", "reference", "length")


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

    bos_id = renderer.tokenizer.bos_token_id

    def convert(texts: Sequence[str], places: Sequence[Origin]) -> Iterator[tuple[Origin, dict[str, Any]]]:
        examples = [from_json(text, place) for text, place in zip(texts, places, strict=True)]
        asked, references = zip(*(_part(example) for example in examples), strict=True)
        for place, rendered, reference in zip(places, renderer.render_prompts(asked), references, strict=True):
            length = len(rendered.input_ids)
            if length > max_length and too_long == "error":
                raise refuse_length(place, length, max_length)
            fits = length <= max_length
            account = build_account(
                length=length if fits else 0,
                full_length=length,
                verdict="whole" if fits else "too_long",
                control_tokens=rendered.num_control_tokens,
                ends=build_ends(rendered.input_ids, [], length, stop_ids=frozenset(), bos_id=bos_id),
            )
            yield place, {"prompt": rendered.input_ids if fits else [], "reference": reference, **account}

    account = map_examples(loaded, _FEATURES, fingerprint, convert)
    rows = finish_rows(loaded, account, fingerprint, max_length=max_length, reasons=("too_long",), columns=_COLUMNS)
    unanswered = int(np.sum([reference is None for reference in rows.dataset["reference"][:]]))
    return replace(rows, report=rows.report | {"rows_without_answer": unanswered})


def _part(example: Example) -> tuple[Conversation, str | None]:
    """Part what is asked from the words of the last answer, if the conversation ends with one."""
    if not isinstance(example, Conversation):
        raise DataError(f"{example.origin}: plain text asks nothing; a prompt is wanted.")
    *asked, last = example.messages
    if last.role != "assistant":
        return example, None
    return replace(example, messages=tuple(asked)), last.content.strip() or None
