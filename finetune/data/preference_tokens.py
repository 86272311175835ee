"""Pairs and judged answers to rows of tokens, and the account of what became of every row.

In go preferences or judged conversations (`sources.load_examples`) and a renderer; out come rows in which
labels mark the answers that are compared. A row whose two answers can no longer be told apart, or one of
which has no trained token left, is dropped and counted: it would be a loss of nothing, or of 0/0.
"""

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import takewhile
from typing import Any

import numpy as np
from datasets import Dataset, Features, List, Value
from numpy.typing import NDArray

from finetune.data.account import ACCOUNT_FEATURES, build_account
from finetune.data.batches import IGNORE_INDEX
from finetune.data.examples import Origin, Preference, judged_from_json, preference_from_json
from finetune.data.label_hash import hash_labels
from finetune.data.rendering import Rendered, Renderer
from finetune.data.sources import LoadedExamples
from finetune.data.tokens import (
    RowFitter,
    TokenRows,
    TooLong,
    build_fingerprint,
    count_trained,
    finish_rows,
    map_examples,
    refuse_length,
    to_labels,
)

__all__ = ["build_judged_rows", "build_pair_rows"]

_IDS = List(Value("int32"))
_PAIR_COLUMNS = ["chosen_ids", "chosen_labels", "rejected_ids", "rejected_labels", "length"]
_PAIR_FEATURES = Features({**dict.fromkeys(_PAIR_COLUMNS[:-1], _IDS), "tokens": Value("int32"), **ACCOUNT_FEATURES})
_PAIR_REASONS = ("too_long", "nothing_trained", "equal_in_tokens", "equal_after_cut")
_JUDGED_FEATURES = Features(
    {
        "input_ids": _IDS,
        "labels": _IDS,
        "desirable": Value("bool"),
        "answer_start": Value("int32"),
        "prompt_hash": Value("int64"),
        "answer_hash": Value("int64"),
        **ACCOUNT_FEATURES,
    }
)
_JUDGED_COLUMNS = ["input_ids", "labels", "kl_input_ids", "kl_labels", "desirable", "length"]
_NEIGHBOURS_LOOKED_AT = 64


def build_pair_rows(
    loaded: LoadedExamples, renderer: Renderer, *, max_length: int, too_long: TooLong, trains_tokens: bool = True
) -> TokenRows:
    """Render both answers of every preference behind their prompt.

    Args:
        loaded: the preferences of one split.
        renderer: template and tokenizer, bound.
        max_length: tokens of prompt and answer together, at most.
        too_long: `drop` the pair where either is longer, `truncate` the ends of both, or stop (`error`).
        trains_tokens: False where a score of the whole answer is trained: then no token counts as trained.

    Returns:
        Rows of `chosen_ids`, `chosen_labels`, `rejected_ids`, `rejected_labels`, each with its prompt, and
        `length`, that of the longer one in tokens.

    Raises:
        DataError: a pair is too long under `error`, or no pair is left.
    """
    _refuse_split(too_long)
    fingerprint = build_fingerprint(loaded, renderer, "pairs", max_length, too_long, trains_tokens)
    fitter = RowFitter.of(renderer, max_length, too_long)

    def convert(texts: Sequence[str], places: Sequence[Origin]) -> Iterator[tuple[Origin, dict[str, Any]]]:
        pairs = [preference_from_json(text, place) for text, place in zip(texts, places, strict=True)]
        rendered = renderer.render([pair.chosen for pair in pairs] + [pair.rejected for pair in pairs])
        sides = zip(places, pairs, rendered[: len(pairs)], rendered[len(pairs) :], strict=True)
        for place, pair, chosen, rejected in sides:
            row = _fit_pair(chosen, rejected, fitter, place)
            if chosen.num_control_tokens and rejected.num_control_tokens:
                row["control_tokens"] -= _count_shared(pair, renderer)
            yield place, row if trains_tokens else {**row, "trained": 0, "full_trained": 0}

    account = map_examples(loaded, _PAIR_FEATURES, fingerprint, convert)
    return finish_rows(
        loaded,
        account,
        fingerprint,
        max_length=max_length,
        reasons=_PAIR_REASONS,
        columns=_PAIR_COLUMNS,
        tokens_column="tokens",
    )


def _count_shared(pair: Preference, renderer: Renderer) -> int:
    """Count the control tokens in the text of the prompt, which stands before both answers."""
    both = zip(pair.chosen.messages, pair.rejected.messages, strict=False)
    prompt = tuple(one for one, _ in takewhile(lambda turns: turns[0] == turns[1], both))
    (rendered,) = renderer.render_prompts([replace(pair.chosen, messages=prompt)])
    return rendered.num_control_tokens


def _fit_pair(chosen: Rendered, rejected: Rendered, fitter: RowFitter, origin: Origin) -> dict[str, Any]:
    """Turn a rendered pair into its row; one that teaches nothing, cut or whole, is left empty with the reason."""
    sides = [(side.input_ids, to_labels(side)) for side in (chosen, rejected)]
    full_length, full_trained = max(len(ids) for ids, _ in sides), sum(count_trained(labels) for _, labels in sides)
    verdict = _judge_pair(sides, equal="equal_in_tokens") or "whole"
    if verdict == "whole" and full_length > fitter.max_length:
        if fitter.too_long == "error":
            raise refuse_length(origin, full_length, fitter.max_length)
        if fitter.too_long == "truncate":
            sides = [(ids[: fitter.max_length], labels[: fitter.max_length]) for ids, labels in sides]
            verdict = _judge_pair(sides, equal="equal_after_cut") or "cut"
        else:
            verdict = "too_long"
    ends = fitter.look_at_ends(chosen, len(sides[0][0])) | fitter.look_at_ends(rejected, len(sides[1][0]))
    if verdict not in ("whole", "cut"):
        sides = [([], []), ([], [])]
    (chosen_ids, chosen_labels), (rejected_ids, rejected_labels) = sides
    return {
        "chosen_ids": chosen_ids,
        "chosen_labels": chosen_labels,
        "rejected_ids": rejected_ids,
        "rejected_labels": rejected_labels,
        "tokens": len(chosen_ids) + len(rejected_ids),
        **build_account(
            length=max(len(chosen_ids), len(rejected_ids)),
            trained=count_trained(chosen_labels) + count_trained(rejected_labels),
            full_length=full_length,
            full_trained=full_trained,
            verdict=verdict,
            control_tokens=chosen.num_control_tokens + rejected.num_control_tokens,
            ends=ends,
        ),
    }


def _judge_pair(sides: Sequence[tuple[list[int], list[int]]], equal: str) -> str:
    """Name what keeps a pair from being trained: an answer without a trained token, or two of the same; else ''."""
    chosen, rejected = (_find_trained(labels) for _, labels in sides)
    if not chosen or not rejected:
        return "nothing_trained"
    return equal if chosen == rejected else ""


def _find_trained(labels: Sequence[int]) -> list[int]:
    # The first token of a row is predicted by nothing, so its label never counts.
    return [label for label in labels[1:] if label != IGNORE_INDEX]


def build_judged_rows(loaded: LoadedExamples, renderer: Renderer, *, max_length: int, too_long: TooLong) -> TokenRows:
    """Render every judged conversation, and its prompt with another row's answer, which KTO takes its KL from.

    Args:
        loaded: the judged conversations of one split.
        renderer: template and tokenizer, bound.
        max_length: tokens of a row at most; the row of the KL is cut to it.
        too_long: `drop` the row, `truncate` its end, or stop (`error`).

    Returns:
        Rows of `input_ids`, `labels`, `kl_input_ids`, `kl_labels`, `desirable` and `length` in tokens. The
        answer of the KL is that of the next row that has another prompt and another answer.

    Raises:
        DataError: a row is too long under `error`, or no row is left.

    Source of the KL's mismatched answers: Ethayarajh et al. 2024 (arXiv:2402.01306), section 4.1.
    """
    _refuse_split(too_long)
    fingerprint = build_fingerprint(loaded, renderer, "judged", max_length, too_long)
    fitter = RowFitter.of(renderer, max_length, too_long)

    def convert(texts: Sequence[str], places: Sequence[Origin]) -> Iterator[tuple[Origin, dict[str, Any]]]:
        judged = [judged_from_json(text, place) for text, place in zip(texts, places, strict=True)]
        rendered = renderer.render([one.conversation for one in judged])
        for place, one, row in zip(places, judged, rendered, strict=True):
            (fitted,) = fitter.fit(row, place)
            yield place, {**fitted, "desirable": one.desirable, **_part_row(fitted)}

    account = map_examples(loaded, _JUDGED_FEATURES, fingerprint, convert)
    reasons = ("too_long", "nothing_trained")
    columns = [name for name in _JUDGED_FEATURES if name not in ACCOUNT_FEATURES or name == "length"]
    rows = finish_rows(loaded, account, fingerprint, max_length=max_length, reasons=reasons, columns=columns)
    dataset = _add_kl_rows(rows.dataset, max_length, fingerprint)
    num_desirable = int(np.asarray(dataset.with_format("numpy")["desirable"][:]).sum())
    dataset = dataset.select_columns(_JUDGED_COLUMNS)
    counts = {"desirable_rows": num_desirable, "undesirable_rows": len(dataset) - num_desirable}
    return replace(rows, dataset=dataset, report=rows.report | counts | hash_labels(dataset).to_report())


def _part_row(row: dict[str, Any]) -> dict[str, int]:
    """Find where the answer starts, its first trained token, and hash what stands before it and from there on."""
    start = next((place for place, label in enumerate(row["labels"]) if label != IGNORE_INDEX), 0)
    prompt, answer = row["input_ids"][:start], row["input_ids"][start:]
    return {"answer_start": start, "prompt_hash": _hash_ids(prompt), "answer_hash": _hash_ids(answer)}


def _hash_ids(ids: Sequence[int]) -> int:
    digest = hashlib.sha256(np.asarray(ids, dtype=np.int32).tobytes()).digest()
    return int.from_bytes(digest[:8], "big", signed=True)


def _add_kl_rows(rows: Dataset, max_length: int, fingerprint: str) -> Dataset:
    columns = rows.with_format("numpy")
    neighbours = _choose_neighbours(np.asarray(columns["prompt_hash"][:]), np.asarray(columns["answer_hash"][:]))

    def join(batch: dict[str, list[Any]], indices: list[int]) -> dict[str, list[Any]]:
        others = rows[neighbours[indices].tolist()]
        joined: dict[str, list[Any]] = {"kl_input_ids": [], "kl_labels": []}
        for index, (start, other_start) in enumerate(zip(batch["answer_start"], others["answer_start"], strict=True)):
            prompt = batch["input_ids"][index][:start]
            answer, labels = others["input_ids"][index][other_start:], others["labels"][index][other_start:]
            joined["kl_input_ids"].append((prompt + answer)[:max_length])
            joined["kl_labels"].append(([IGNORE_INDEX] * start + labels)[:max_length])
        return joined

    features = Features({**rows.features, "kl_input_ids": _IDS, "kl_labels": _IDS})
    key = hashlib.sha256(f"{fingerprint} kl".encode()).hexdigest()[:16]
    return rows.map(
        join, batched=True, with_indices=True, features=features, new_fingerprint=key, desc="answers to other prompts"
    )


def _choose_neighbours(prompts: NDArray[np.int64], answers: NDArray[np.int64]) -> NDArray[np.int64]:
    """Choose for each row the next one, around the end, whose answer it is compared with.

    Best is one of another prompt and another answer, as two answers to one prompt often stand side by side; then
    one of another answer; then the very next.
    """
    rows = np.arange(len(prompts))
    chosen = (rows + 1) % len(rows)
    found = np.zeros(len(rows), dtype=np.int64)  # how good the choice is: 2, 1 or 0 as above
    for shift in range(1, min(len(rows), _NEIGHBOURS_LOOKED_AT + 1)):
        other = (rows + shift) % len(rows)
        good = np.where(answers == answers[other], 0, np.where(prompts == prompts[other], 1, 2))
        chosen = np.where(good > found, other, chosen)
        found = np.maximum(found, good)
    return chosen


def _refuse_split(too_long: TooLong) -> None:
    if too_long == "split":
        raise ValueError("an answer cannot be split into several rows: drop, truncate or error")
