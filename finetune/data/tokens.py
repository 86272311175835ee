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
from itertools import islice, pairwise
from typing import TYPE_CHECKING, Any, Literal

from datasets import Dataset, Features, List, Value
from datasets.utils import tqdm

from finetune.data.account import ACCOUNT_FEATURES, Ends, build_account, build_ends
from finetune.data.batches import IGNORE_INDEX
from finetune.data.census import build_census, find_verdicts
from finetune.data.examples import Origin
from finetune.data.formats import from_json
from finetune.data.label_hash import hash_labels
from finetune.data.rendering import Rendered, Renderer
from finetune.data.row_cache import hash_makers, read_cached, write_cached
from finetune.data.sources import LoadedExamples
from finetune.errors import DataError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

__all__ = [
    "RowFitter",
    "TokenRows",
    "TooLong",
    "build_fingerprint",
    "build_token_rows",
    "count_trained",
    "finish_rows",
    "hash_rows",
    "map_examples",
    "refuse_length",
    "to_labels",
]

TooLong = Literal["drop", "truncate", "split", "error"]

_BATCH_ROWS = 1000
_READ_ROWS = 100  # rows may be whole books
_REASONS = {
    "too_long": "have more than {max_length} tokens",
    "nothing_trained": "have no trained token",
    "equal_after_cut": "have answers that are equal once cut",
    "equal_in_tokens": "have answers of the same tokens",
}
_COLUMNS = ("input_ids", "labels", "length")
_FEATURES = Features({"input_ids": List(Value("int32")), "labels": List(Value("int32")), **ACCOUNT_FEATURES})


@dataclass(frozen=True, slots=True)
class TokenRows:
    """Rows ready for batches.

    Attributes:
        dataset: columns `input_ids`, `labels` and `length` (tokens), one document a row; pairs and judged
            answers have columns of their own (see `preference_tokens`).
        account: every row read, in order, those dropped with empty ids: ids and labels, `source` and `row`, and the
            columns of `ACCOUNT_FEATURES`.
        report: what `data_report.json` says of them.
        fingerprint: of content, template, tokenizer and settings: equal means the same tokens.
    """

    dataset: Dataset
    account: Dataset
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
    fitter = RowFitter.of(renderer, max_length, too_long)

    def convert(read: Iterator[tuple[str, Origin]]) -> Iterator[tuple[Origin, dict[str, Any]]]:
        for example, rendered in renderer.render_each(from_json(text, place) for text, place in read):
            assert example.origin is not None
            for piece in fitter.fit(rendered, example.origin):
                yield example.origin, piece

    rows = _write_rows(loaded, _FEATURES, fingerprint, convert)
    reasons = ("too_long", "nothing_trained")
    return finish_rows(loaded, rows, fingerprint, max_length=max_length, reasons=reasons, columns=_COLUMNS)


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

    def convert_all(read: Iterator[tuple[str, Origin]]) -> Iterator[tuple[Origin, dict[str, Any]]]:
        while batch := list(islice(read, _BATCH_ROWS)):
            yield from convert(*zip(*batch, strict=True))

    return _write_rows(loaded, features, fingerprint, convert_all)


def _write_rows(
    loaded: LoadedExamples,
    features: Features,
    fingerprint: str,
    convert: Callable[[Iterator[tuple[str, Origin]]], Iterator[tuple[Origin, dict[str, Any]]]],
) -> Dataset:
    """Write what examples are converted to, as it comes; `convert` gets all of them and may read ahead."""
    key = _build_key(loaded, fingerprint)
    cached = read_cached(key)
    if cached is not None:
        return cached[0]

    def read() -> Iterator[tuple[str, Origin]]:
        with tqdm(total=len(loaded.dataset), desc="tokens", unit=" rows", leave=False, disable=None) as bar:
            for batch in loaded.dataset.iter(_READ_ROWS):
                for text, source, row in zip(batch["example"], batch["source"], batch["row"], strict=True):
                    yield text, Origin(source, row)
                bar.update(len(batch["row"]))

    def list_values() -> Iterator[tuple[Any, ...]]:
        for place, row in convert(read()):
            values = {**row, "source": place.source, "row": place.row}
            yield tuple(values[name] for name in features)

    dataset, _ = write_cached(key, features.arrow_schema, list_values())
    return dataset


def _build_key(loaded: LoadedExamples, fingerprint: str) -> str:
    """Build the cache's key: the names of files stand in the rows and not in their fingerprint."""
    names = [[source["path"], source.get("files")] for source in loaded.report["sources"]]
    return hashlib.sha256(json.dumps([fingerprint, names]).encode()).hexdigest()


def to_labels(rendered: Rendered) -> list[int]:
    """Write down which tokens are trained: the token itself, or IGNORE_INDEX."""
    labels = [IGNORE_INDEX] * len(rendered.input_ids)
    for start, end in rendered.spans:
        labels[start:end] = rendered.input_ids[start:end]
    return labels


@dataclass(frozen=True, slots=True)
class RowFitter:
    """Fits rendered examples into rows, and keeps the account of each.

    Attributes:
        max_length: tokens of a row at most.
        too_long: what becomes of a longer one.
        stop_ids: tokens that end an answer.
        bos_id: the token that a row begins with; None: there is none.
    """

    max_length: int
    too_long: TooLong
    stop_ids: frozenset[int]
    bos_id: int | None

    @classmethod
    def of(cls, renderer: Renderer, max_length: int, too_long: TooLong) -> "RowFitter":
        """Build from a renderer's tokens."""
        return cls(max_length, too_long, frozenset(renderer.stop_ids), renderer.tokenizer.bos_token_id)

    def fit(self, rendered: Rendered, origin: Origin) -> list[dict[str, Any]]:
        """Turn one rendered example into the rows it gives: one, or several where a long document is split.

        Raises:
            DataError: it is too long under `error`.
        """
        ids, labels = rendered.input_ids, to_labels(rendered)
        if len(ids) <= self.max_length:
            return [self._build_row(rendered, ids, labels, "whole")]
        match self.too_long:
            case "drop":
                return [self._build_row(rendered, [], [], "too_long")]
            case "truncate":
                kept = slice(0, self.max_length)
                return [self._build_row(rendered, ids[kept], labels[kept], "cut")]
            case "split":
                bounds = pairwise([*range(0, len(ids), self.max_length), len(ids)])
                return [self._build_row(rendered, ids[s:e], labels[s:e], "piece") for s, e in bounds]
            case "error":
                raise refuse_length(origin, len(ids), self.max_length)

    def look_at_ends(self, rendered: Rendered, num_kept: int) -> Ends:
        """Look at the beginning and the answers' ends of a row of which so many tokens are kept."""
        answers = rendered.answers
        return build_ends(rendered.input_ids, answers, num_kept, stop_ids=self.stop_ids, bos_id=self.bos_id)

    def _build_row(self, rendered: Rendered, ids: list[int], labels: list[int], verdict: str) -> dict[str, Any]:
        full_trained = sum(end - max(start, 1) for start, end in rendered.spans)
        trained = full_trained if verdict == "whole" else count_trained(labels)
        # A row that is left out ends nowhere, and of a split document the last piece alone has an end.
        ends = self.look_at_ends(rendered, len(ids)) if verdict in ("whole", "cut") else Ends()
        if ids and trained == 0:
            ids, labels, verdict = [], [], "nothing_trained"
        account = build_account(
            length=len(ids),
            trained=trained,
            full_length=len(rendered.input_ids),
            full_trained=full_trained,
            verdict=verdict,
            control_tokens=rendered.num_control_tokens,
            ends=ends,
        )
        return {"input_ids": ids, "labels": labels, **account}


def refuse_length(origin: Origin, length: int, max_length: int) -> DataError:
    """Build the error of a row that is too long."""
    return DataError(
        f"{origin}: the row has {length} tokens and `data.max_length` is {max_length}.\n"
        f"  Let it be dropped or cut (`data.too_long: drop | truncate`), or raise `data.max_length`."
    )


def count_trained(labels: Sequence[int]) -> int:
    """Count the tokens that carry loss; the first one of a row is predicted by nothing, so its label never counts."""
    return len(labels) - labels.count(IGNORE_INDEX) - (bool(labels) and labels[0] != IGNORE_INDEX)


def finish_rows(
    loaded: LoadedExamples,
    account: Dataset,
    fingerprint: str,
    *,
    max_length: int,
    reasons: Sequence[str],
    columns: Sequence[str],
    tokens_column: str = "length",
) -> TokenRows:
    """Take the rows that stay, and report what became of every row.

    Args:
        loaded: the examples that were rendered.
        account: one or more rows for each, with the columns of `ACCOUNT_FEATURES`.
        fingerprint: of whatever decides the rows.
        max_length: tokens of a row at most.
        reasons: those that a row can be dropped for, counted even where none is.
        columns: those that are trained on.
        tokens_column: how many tokens a row holds.

    Raises:
        DataError: no row is left.
    """
    verdicts, kept = find_verdicts(account)
    census = build_census(account, max_length=max_length, reasons=reasons, tokens_column=tokens_column)
    report = {"rows_read": len(loaded.dataset), "census": census, **loaded.report}
    if len(kept) == 0:
        raise DataError(_nothing_left(report))
    dataset = account.select(kept).select_columns(list(columns))
    report |= {"content_fingerprint": loaded.fingerprint, **hash_labels(dataset).to_report()}
    if "piece" in verdicts:
        report["pieces_of_split_rows"] = int((verdicts == "piece").sum())
    return TokenRows(dataset, account, report, fingerprint)


def _nothing_left(report: dict[str, Any]) -> str:
    census = report["census"]
    first = [place for reason in census["dropped"] for place in census["first_places"].get(reason, [])][:1]
    lost = [
        f"{count} {_REASONS[reason].format(max_length=census['max_length'])}"
        for reason, count in census["dropped"].items()
        if count
    ]
    return (
        f"{first[0] if first else 'data.train'}: no row is left, of {report['rows_read']} read: {', '.join(lost)}.\n"
        f"  The median row has {census['lengths']['median']} tokens: raise `data.max_length`"
        + (", or set `data.too_long: truncate`." if census["dropped"].get("too_long") else ".")
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
        # Which of its tokens begins or ends a text stands beside the backend, in `tokenizer_config.json`.
        json.dumps([sorted(tokenizer.special_tokens_map.items()), tokenizer.all_special_tokens]),
        json.dumps(settings),
        hash_makers(),
    )
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()
