"""Examples to rows of tokens, and the account of what became of every row.

In go examples (`sources.load_examples`) and a renderer; out come rows of `input_ids` and `labels`,
none longer than `max_length`, and a report in which each row read is either kept or counted under
the reason it is missing. Which token is trained was decided by the template alone; here it is only
written down as labels.
"""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from datasets import Dataset, Features, List, Value

from finetune.data.batches import IGNORE_INDEX
from finetune.data.examples import Origin
from finetune.data.formats import from_json
from finetune.data.rendering import Rendered, Renderer
from finetune.data.row_cache import hash_own_code
from finetune.data.sources import LoadedExamples
from finetune.errors import DataError

__all__ = ["TokenRows", "TooLong", "build_token_rows"]

TooLong = Literal["drop", "truncate", "split", "error"]

_BATCH_ROWS = 1000
_PLACES_SHOWN = 5
_FEATURES = Features(
    {
        "input_ids": List(Value("int32")),
        "labels": List(Value("int32")),
        "length": Value("int32"),
        "trained": Value("int32"),
        "full_length": Value("int32"),  # before it was cut
        "verdict": Value("string"),
        "source": Value("string"),
        "row": Value("int64"),
    }
)


@dataclass(frozen=True, slots=True)
class TokenRows:
    """Rows ready for batches.

    Attributes:
        dataset: columns `input_ids`, `labels` and `length` (tokens), one document a row.
        report: what `data_report.json` says of them.
        fingerprint: of content, template, tokenizer and settings: equal means the same tokens.
    """

    dataset: Dataset
    report: dict[str, Any]
    fingerprint: str


def build_token_rows(loaded: LoadedExamples, renderer: Renderer, *, max_length: int, too_long: TooLong) -> TokenRows:
    """Render every example and keep what can be trained on.

    Args:
        loaded: the examples of one split.
        renderer: template and tokenizer, bound.
        max_length: tokens of a row at most.
        too_long: `drop` the row, `truncate` its end, `split` it into rows of `max_length`, or stop (`error`).

    Raises:
        DataError: a row is too long under `error`, or no row is left.
    """
    fingerprint = _fingerprint(loaded, renderer, max_length, too_long)

    def render(batch: dict[str, list[Any]]) -> dict[str, list[Any]]:
        places = [Origin(*place) for place in zip(batch["source"], batch["row"], strict=True)]
        examples = [from_json(text, place) for text, place in zip(batch["example"], places, strict=True)]
        rows: dict[str, list[Any]] = {name: [] for name in _FEATURES}
        for rendered, place in zip(renderer.render(examples), places, strict=True):
            for piece in _fit(rendered, max_length, too_long, place):
                for name, value in {**piece, "source": place.source, "row": place.row}.items():
                    rows[name].append(value)
        return rows

    rows = loaded.dataset.map(
        render,
        batched=True,
        batch_size=_BATCH_ROWS,
        remove_columns=loaded.dataset.column_names,
        features=_FEATURES,
        new_fingerprint=fingerprint[:16],
        desc="tokens",
    )
    verdicts = np.asarray(rows.with_format("numpy")["verdict"][:])
    kept = np.flatnonzero((verdicts == "whole") | (verdicts == "cut") | (verdicts == "piece"))
    report = _report(loaded, rows, verdicts, kept, max_length)
    if len(kept) == 0:
        raise DataError(_nothing_left(report, max_length))
    dataset = rows.select(kept).select_columns(["input_ids", "labels", "length"])
    return TokenRows(dataset=dataset, report=report, fingerprint=fingerprint)


def _fit(rendered: Rendered, max_length: int, too_long: TooLong, origin: Origin) -> list[dict[str, Any]]:
    """Turn one rendered example into the rows it gives: one, or several where a long document is split."""
    ids = rendered.input_ids
    length = len(ids)
    labels = [token if trained else IGNORE_INDEX for token, trained in zip(ids, rendered.trained, strict=True)]
    if length <= max_length:
        return [_row(ids, labels, length, "whole")]
    match too_long:
        case "drop":
            return [_row([], [], length, "too_long")]
        case "truncate":
            return [_row(ids[:max_length], labels[:max_length], length, "cut")]
        case "split":
            starts = range(0, length, max_length)
            return [_row(ids[s : s + max_length], labels[s : s + max_length], length, "piece") for s in starts]
        case "error":
            raise DataError(
                f"{origin}: the row has {length} tokens and `data.max_length` is {max_length}.\n"
                f"  Let it be dropped or cut (`data.too_long: drop | truncate`), or raise `data.max_length`."
            )


def _row(ids: list[int], labels: list[int], full_length: int, verdict: str) -> dict[str, Any]:
    # The first token of a row is predicted by nothing, so its label never counts.
    trained = sum(label != IGNORE_INDEX for label in labels[1:])
    if ids and trained == 0:
        ids, labels, verdict = [], [], "nothing_trained"
    return {
        "input_ids": ids,
        "labels": labels,
        "length": len(ids),
        "trained": trained,
        "full_length": full_length,
        "verdict": verdict,
    }


def _report(
    loaded: LoadedExamples, rows: Dataset, verdicts: np.ndarray, kept: np.ndarray, max_length: int
) -> dict[str, Any]:
    columns = rows.with_format("numpy")
    lengths = np.asarray(columns["full_length"][:])
    trained = np.asarray(columns["trained"][:])
    tokens = np.asarray(columns["length"][:])
    places = {
        reason: [str(Origin(rows[int(i)]["source"], rows[int(i)]["row"])) for i in found[:_PLACES_SHOWN]]
        for reason in ("too_long", "nothing_trained", "cut")
        if len(found := np.flatnonzero(verdicts == reason))
    }
    return {
        "rows_read": len(loaded.dataset),
        "rows": len(kept),
        "tokens": int(tokens.sum()),
        "trained_tokens": int(trained.sum()),
        "max_length": max_length,
        "dropped": {reason: int((verdicts == reason).sum()) for reason in ("too_long", "nothing_trained")},
        "cut": int((verdicts == "cut").sum()),
        "pieces_of_split_rows": int((verdicts == "piece").sum()),
        "first_places": places,
        "full_length_tokens": {
            "median": int(np.percentile(lengths, 50)) if len(lengths) else 0,
            "p99": int(np.percentile(lengths, 99)) if len(lengths) else 0,
            "max": int(lengths.max()) if len(lengths) else 0,
        },
        **loaded.report,
        "content_fingerprint": loaded.fingerprint,
    }


def _nothing_left(report: dict[str, Any], max_length: int) -> str:
    dropped = report["dropped"]
    first = [place for places in report["first_places"].values() for place in places][:1]
    return (
        f"{first[0] if first else 'data.train'}: no row is left, of {report['rows_read']} read: "
        f"{dropped['too_long']} have more than {max_length} tokens, "
        f"{dropped['nothing_trained']} have no trained token.\n"
        f"  The median row has {report['full_length_tokens']['median']} tokens: raise `data.max_length`, "
        f"or set `data.too_long: truncate`."
    )


def _fingerprint(loaded: LoadedExamples, renderer: Renderer, max_length: int, too_long: str) -> str:
    parts: Sequence[str] = (
        loaded.fingerprint,
        renderer.template.source,
        renderer.tokenizer.backend_tokenizer.to_str(),
        json.dumps([renderer.train_on, renderer.special_tokens_in_data, max_length, too_long]),
        hash_own_code(),
    )
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()
