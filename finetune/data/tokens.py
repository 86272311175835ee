"""Examples to rows of tokens, and the account of what became of every row.

In go examples (`sources.load_examples`) and a renderer; out come rows of `input_ids` and `labels`,
none longer than `max_length`, and a report in which each row read is either kept or counted under
the reason it is missing. Which token is trained was decided by the template alone; here it is only
written down as labels. `preference_tokens` does the same for rows that compare answers, with these parts.
"""

import hashlib
import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from datasets import Dataset, Features, List, Value
from numpy.typing import NDArray

from finetune.data.batches import IGNORE_INDEX
from finetune.data.examples import Origin
from finetune.data.formats import from_json
from finetune.data.rendering import Rendered, Renderer
from finetune.data.row_cache import hash_own_code
from finetune.data.sources import LoadedExamples
from finetune.errors import DataError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

__all__ = [
    "ACCOUNT_FEATURES",
    "TokenRows",
    "TooLong",
    "build_fingerprint",
    "build_report",
    "build_token_rows",
    "fit_row",
    "hash_rows",
    "map_examples",
    "refuse_length",
    "select_kept",
    "to_labels",
]

TooLong = Literal["drop", "truncate", "split", "error"]

_BATCH_ROWS = 1000
_PLACES_SHOWN = 5
_KEPT = ("whole", "cut", "piece")  # the verdicts of rows that stay; any other is the reason why one is dropped
_REASONS = {
    "too_long": "have more than {max_length} tokens",
    "nothing_trained": "have no trained token",
    "equal_after_cut": "have answers that are equal once cut",
    "equal_in_tokens": "have answers of the same tokens",
}

# What the account of a row stands on, beside its ids and labels.
ACCOUNT_FEATURES = {
    "length": Value("int32"),
    "trained": Value("int32"),
    "full_length": Value("int32"),  # before it was cut
    "verdict": Value("string"),
    "source": Value("string"),
    "row": Value("int64"),
}
_FEATURES = Features({"input_ids": List(Value("int32")), "labels": List(Value("int32")), **ACCOUNT_FEATURES})


@dataclass(frozen=True, slots=True)
class TokenRows:
    """Rows ready for batches.

    Attributes:
        dataset: columns `input_ids`, `labels` and `length` (tokens), one document a row; pairs and judged
            answers have columns of their own (see `preference_tokens`).
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
    fingerprint = build_fingerprint(loaded, renderer, max_length, too_long)

    def convert(texts: Sequence[str], places: Sequence[Origin]) -> Iterator[tuple[Origin, dict[str, Any]]]:
        examples = [from_json(text, place) for text, place in zip(texts, places, strict=True)]
        for rendered, place in zip(renderer.render(examples), places, strict=True):
            for piece in fit_row(rendered, max_length, too_long, place):
                yield place, piece

    rows = map_examples(loaded, _FEATURES, fingerprint, convert)
    verdicts, kept = select_kept(rows)
    report = build_report(loaded, rows, max_length=max_length, reasons=("too_long", "nothing_trained"))
    report["pieces_of_split_rows"] = int((verdicts == "piece").sum())
    dataset = rows.select(kept).select_columns(["input_ids", "labels", "length"])
    return TokenRows(dataset=dataset, report=report, fingerprint=fingerprint)


def map_examples(
    loaded: LoadedExamples,
    features: Features,
    fingerprint: str,
    convert: Callable[[Sequence[str], Sequence[Origin]], Iterator[tuple[Origin, dict[str, Any]]]],
) -> Dataset:
    """Convert examples to rows on disk, a batch at a time; a fingerprint seen before is read from there.

    Args:
        loaded: the examples of one split.
        features: columns of the rows, `source` and `row` among them.
        fingerprint: of whatever decides the rows.
        convert: examples as JSON and where they stand -> rows and where they stand, any number.
    """

    def convert_batch(batch: dict[str, list[Any]]) -> dict[str, list[Any]]:
        places = [Origin(*place) for place in zip(batch["source"], batch["row"], strict=True)]
        rows: dict[str, list[Any]] = {name: [] for name in features}
        for place, row in convert(batch["example"], places):
            for name, value in {**row, "source": place.source, "row": place.row}.items():
                rows[name].append(value)
        return rows

    return loaded.dataset.map(
        convert_batch,
        batched=True,
        batch_size=_BATCH_ROWS,
        remove_columns=loaded.dataset.column_names,
        features=features,
        new_fingerprint=fingerprint[:16],
        desc="tokens",
    )


def to_labels(rendered: Rendered) -> list[int]:
    """Write down which tokens are trained: the token itself, or IGNORE_INDEX."""
    return [
        token if trained else IGNORE_INDEX for token, trained in zip(rendered.input_ids, rendered.trained, strict=True)
    ]


def fit_row(rendered: Rendered, max_length: int, too_long: TooLong, origin: Origin) -> list[dict[str, Any]]:
    """Turn one rendered example into the rows it gives: one, or several where a long document is split."""
    ids, labels = rendered.input_ids, to_labels(rendered)
    length = len(ids)
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
            raise refuse_length(origin, length, max_length)


def refuse_length(origin: Origin, length: int, max_length: int) -> DataError:
    """Build the error of a row that is too long."""
    return DataError(
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


def select_kept(rows: Dataset) -> tuple[NDArray[np.str_], NDArray[np.int64]]:
    """Select the rows that stay: the verdict on every row, and the indices of those kept."""
    verdicts = np.asarray(rows.with_format("numpy")["verdict"][:])
    return verdicts, np.flatnonzero(np.isin(verdicts, _KEPT))


def build_report(
    loaded: LoadedExamples, rows: Dataset, *, max_length: int, reasons: Sequence[str], tokens_column: str = "length"
) -> dict[str, Any]:
    """Report what became of every row.

    Args:
        loaded: the examples that were rendered.
        rows: one or more for each, with the columns of `ACCOUNT_FEATURES`.
        max_length: tokens of a row at most.
        reasons: those that a row can be dropped for, counted even where none is.
        tokens_column: how many tokens a row holds.

    Raises:
        DataError: no row is left.
    """
    columns = rows.with_format("numpy")
    verdicts, kept = select_kept(rows)
    lengths = np.asarray(columns["full_length"][:])
    places = {reason: _find_first_places(rows, np.flatnonzero(verdicts == reason)) for reason in (*reasons, "cut")}
    report = {
        "rows_read": len(loaded.dataset),
        "rows": len(kept),
        "tokens": int(np.asarray(columns[tokens_column][:]).sum()),
        "trained_tokens": int(np.asarray(columns["trained"][:]).sum()),
        "max_length": max_length,
        "dropped": {reason: int((verdicts == reason).sum()) for reason in reasons},
        "cut": int((verdicts == "cut").sum()),
        "first_places": {reason: found for reason, found in places.items() if found},
        "full_length_tokens": {
            "median": int(np.percentile(lengths, 50)) if len(lengths) else 0,
            "p99": int(np.percentile(lengths, 99)) if len(lengths) else 0,
            "max": int(lengths.max()) if len(lengths) else 0,
        },
        **loaded.report,
        "content_fingerprint": loaded.fingerprint,
    }
    if len(kept) == 0:
        raise DataError(_nothing_left(report))
    return report


def _find_first_places(rows: Dataset, indices: NDArray[np.int64]) -> list[str]:
    """Name the first places, each once: one row of the data may have given several of these."""
    places: dict[str, None] = {}
    for index in indices:
        row = rows[int(index)]
        places[str(Origin(row["source"], row["row"]))] = None
        if len(places) == _PLACES_SHOWN:
            break
    return list(places)


def _nothing_left(report: dict[str, Any]) -> str:
    first = [place for places in report["first_places"].values() for place in places][:1]
    lost = [
        f"{count} {_REASONS[reason].format(max_length=report['max_length'])}"
        for reason, count in report["dropped"].items()
        if count
    ]
    return (
        f"{first[0] if first else 'data.train'}: no row is left, of {report['rows_read']} read: {', '.join(lost)}.\n"
        f"  The median row has {report['full_length_tokens']['median']} tokens: raise `data.max_length`"
        + (", or set `data.too_long: truncate`." if report["dropped"].get("too_long") else ".")
    )


def build_fingerprint(loaded: LoadedExamples, renderer: Renderer, *settings: Any) -> str:
    """Build the SHA-256 of whatever decides the tokens: content, template, tokenizer, code and settings."""
    of_renderer = [renderer.template.source, renderer.train_on, renderer.special_tokens_in_data]
    return hash_rows(loaded, renderer.tokenizer, *of_renderer, *settings)


def hash_rows(loaded: LoadedExamples, tokenizer: "PreTrainedTokenizerBase", *settings: Any) -> str:
    """Hash what decides the tokens of rows that no template is put around: content, tokenizer, code and settings."""
    parts: Sequence[str] = (
        loaded.fingerprint,
        tokenizer.backend_tokenizer.to_str(),
        json.dumps(settings),
        hash_own_code(),
    )
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()
