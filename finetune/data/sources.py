"""Sources of a recipe to examples on disk, with an account of every row and a fingerprint.

In go `SourceSettings`; out comes a `datasets.Dataset` of `example` (JSON, see `examples.to_json`),
`source` and `row`, read from the disk as it is used. Nothing here is tokenized.
"""

import hashlib
import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import islice
from typing import Any

import datasets
import numpy as np
import pyarrow as pa
from datasets.utils import tqdm
from numpy.typing import NDArray

from finetune.data.examples import AnyExample, Conversation, Labelled, Origin, RowError, to_json
from finetune.data.files import Folder, find_files, hash_file, read_rows
from finetune.data.formats import (
    FORMATS,
    KINDS,
    Kind,
    build_column_error,
    check_mapping,
    find_format,
    map_columns,
    to_examples,
)
from finetune.data.hub import load_hub_rows
from finetune.data.labelled import LabelReading
from finetune.data.mixing import mix_rows, split_rows
from finetune.data.row_cache import build_key, read_cached, write_cached
from finetune.data.strict_json import BadRow, Row
from finetune.errors import DataError, RecipeError
from finetune.recipe.places import is_local
from finetune.recipe.row_kinds import FORMAT_KINDS
from finetune.recipe.schema import SourceSettings

__all__ = ["LoadedExamples", "load_examples", "split_examples"]

_SCHEMA = pa.schema({"example": pa.string(), "source": pa.string(), "row": pa.int64()})
_ROWS_LOOKED_AT = 100  # for the format: so many rows may be broken or lack a column before one shows it
_PLACES_SHOWN = 5
_HINT = "`data.on_bad_rows: skip` counts such rows and goes on."


@dataclass(frozen=True, slots=True)
class LoadedExamples:
    """Examples of one purpose, e.g. training.

    Attributes:
        dataset: columns `example` (JSON), `source` and `row`, memory-mapped.
        report: `sources`, one entry each: path, format, rows, bad rows by reason, notes.
        fingerprint: SHA-256 over the bytes read and every setting that decides the rows: equal means the same rows.
    """

    dataset: datasets.Dataset
    report: dict[str, Any]
    fingerprint: str


@dataclass(frozen=True, slots=True)
class _Opened:
    """A source that was found: its rows (with the file's name), the hash of its content, what to report."""

    read: Callable[[], Iterator[tuple[str, Row | BadRow]]]
    content: str
    facts: dict[str, Any]


@dataclass(slots=True)
class _Account:
    """What became of the rows of a source."""

    rows: int = 0
    examples: int = 0
    unanswered: int = 0
    bad: dict[str, list[str]] = field(default_factory=dict)
    counts: dict[str, int] = field(default_factory=dict)

    def note(self, fault: RowError) -> None:
        self.counts[fault.reason] = self.counts.get(fault.reason, 0) + 1
        places = self.bad.setdefault(fault.reason, [])
        if len(places) < _PLACES_SHOWN:
            places.append(str(fault.origin))

    def to_report(self) -> dict[str, Any]:
        reasons = {reason: {"rows": self.counts[reason], "first": places} for reason, places in self.bad.items()}
        several = {"examples": self.examples} if self.examples != self.rows else {}
        return {"rows": self.rows, **several, "bad_rows": sum(self.counts.values()), "bad_reasons": reasons}


def load_examples(
    sources: SourceSettings | Sequence[SourceSettings],
    *,
    kind: Kind,
    seed: int,
    on_bad_rows: str,
    setting: str = "data.train",
    reading: LabelReading | None = None,
) -> LoadedExamples:
    """Load the examples of one source, in its order, or of several mixed by weight.

    Args:
        sources: where the rows come from.
        kind: what the rows are read as, e.g. `conversation`, or `document` for plain text.
        seed: of the mix; one source is not shuffled.
        on_bad_rows: `error` stops at the first row that cannot be used, `skip` counts it.
        setting: where the sources stand in the recipe, for messages.
        reading: for labelled rows, what a benchmark fixes of how they are written.

    Raises:
        DataError: a row, a column or a file, named with its line.
        PlaceError: a dataset of the Hub that cannot be had; a cache that cannot be written.
        RecipeError: a format, mapping, subset or split that does not exist.
    """
    if isinstance(sources, SourceSettings):
        return _load_source(sources, kind, on_bad_rows, setting, reading)
    parts = [_load_source(one, kind, on_bad_rows, f"{setting}[{place}]", reading) for place, one in enumerate(sources)]
    if len(parts) == 1:
        return parts[0]
    weights = [source.weight for source in sources]
    order, taken = mix_rows([len(part.dataset) for part in parts], weights, seed)
    reports = [part.report["sources"][0] for part in parts]
    return LoadedExamples(
        dataset=datasets.concatenate_datasets([part.dataset for part in parts]).select(order),
        report={
            "sources": [
                {**report, "weight": weight, "rows_taken": count}
                for report, weight, count in zip(reports, weights, taken, strict=True)
            ]
        },
        fingerprint=_hash(["mix", [part.fingerprint for part in parts], weights, seed]),
    )


def split_examples(loaded: LoadedExamples, fraction: float, seed: int) -> tuple[LoadedExamples, LoadedExamples]:
    """Split into examples to train on and examples held out, by the seed, at least one each.

    Raises:
        DataError: there is only one row.
    """
    row_of = _number_rows(loaded)
    num_rows = len(np.unique(row_of))
    if num_rows < 2:
        raise DataError(
            f"{loaded.report['sources'][0]['path']}: one row cannot be split into training and evaluation.\n"
            "  Give `data.eval` a source of its own, or set it to null."
        )
    sides = zip(("train", "held_out"), split_rows(num_rows, fraction, seed), strict=True)
    train, held_out = (
        LoadedExamples(
            dataset=loaded.dataset.select(np.flatnonzero(np.isin(row_of, rows))),
            report={**loaded.report, "split": {"side": side, "rows": len(rows), "of": num_rows, "seed": seed}},
            fingerprint=_hash(["split", loaded.fingerprint, side, fraction, seed]),
        )
        for side, rows in sides
    )
    return train, held_out


def _number_rows(loaded: LoadedExamples) -> NDArray[np.int64]:
    """Number the row of each example from 0, so that those of one row, and its prompt, stay on one side."""
    if not any("examples" in source for source in loaded.report["sources"]):
        return np.arange(len(loaded.dataset))
    numbers: dict[tuple[str, int], int] = {}
    places = zip(loaded.dataset["source"], loaded.dataset["row"], strict=True)
    return np.array([numbers.setdefault(place, len(numbers)) for place in places])


def _hash(parts: list[Any]) -> str:
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


def _load_source(
    source: SourceSettings, kind: Kind, on_bad_rows: str, setting: str, reading: LabelReading | None
) -> LoadedExamples:
    check_mapping(source.columns, source.format, setting)
    if source.format != "auto" and FORMAT_KINDS[source.format] not in KINDS[kind].read_from:
        given, wanted = KINDS[FORMAT_KINDS[source.format]].plural, KINDS[kind].plural
        raise RecipeError(
            f"`{setting}.format: {source.format}` gives {given}, and {wanted} are wanted.\n"
            "  `objective: sft` takes conversations, `objective: pretrain` and mlm plain text, classify labelled\n"
            "  texts; dpo, orpo and reward take preferences, kto those or judged answers, rloo and grpo prompts or\n"
            "  conversations."
        )
    if is_local(source.path):
        opened = _open_files(source, find_files(source.path), reading.headings if reading else ())
    else:
        opened = _open_hub(source, kind, setting)
    decides = {
        "content": opened.content,
        "format": source.format,
        "columns": source.columns,
        "limit": source.limit,
        "kind": kind,
        **({"reading": reading.to_key()} if reading else {}),
    }
    named = {"path": source.path, "files": opened.facts.get("files")}  # as rows and messages name them
    key = build_key({**decides, **named, "on_bad_rows": on_bad_rows})
    cached = read_cached(key)
    dataset, report = cached if cached else _convert_and_cache(key, opened, source, kind, on_bad_rows, setting, reading)
    return LoadedExamples(dataset, {"sources": [report]}, _hash(["source", decides]))


def _open_files(source: SourceSettings, folder: Folder, headings: Sequence[str]) -> _Opened:
    hashes = [hash_file(file) for file in folder.files]
    notes = []
    dropped = [name for name in ("split", "subset", "revision") if getattr(source, name) is not None]
    if dropped:
        notes.append(f"{', '.join(f'`{name}`' for name in dropped)} not read: the path is local")
    if folder.ignored:
        notes.append(f"left alone in the folder: {', '.join(folder.ignored[:8])}")

    def read() -> Iterator[tuple[str, Row | BadRow]]:
        for file in folder.files:
            for row in read_rows(file, headings):
                yield file.name, row

    # One file's hash is the file's own, as `sha256sum` prints it.
    content = hashes[0] if len(hashes) == 1 else _hash([[file.path.name for file in folder.files], hashes])
    return _Opened(read, content, {"files": [file.name for file in folder.files], "sha256": content, "notes": notes})


def _open_hub(source: SourceSettings, kind: Kind, setting: str) -> _Opened:
    rows = load_hub_rows(source, setting)
    # Where the Hub keeps a label's name beside its number, the name is what a person typed and reads.
    named = kind == "labelled"
    facts = {"subset": source.subset, "split": source.split or "train", "commit": rows.commit, "sha256": rows.content}
    return _Opened(
        lambda: ((source.path, row) for row in rows.read_rows(named=named)), rows.content, {**facts, "notes": []}
    )


def _convert_and_cache(
    key: str,
    opened: _Opened,
    source: SourceSettings,
    kind: Kind,
    on_bad_rows: str,
    setting: str,
    reading: LabelReading | None,
) -> tuple[datasets.Dataset, dict[str, Any]]:
    format, extra = _choose_format(opened, source, kind, on_bad_rows, setting)
    account = _Account()

    def build_report() -> dict[str, Any]:
        if account.rows == 0:
            raise DataError(_say_nothing_left(source.path, account))
        ends = [f"{account.unanswered} conversations end without an answer; their last turns are not trained"]
        return {
            "path": source.path,
            "format": format,
            "format_chosen_by": "columns" if source.format == "auto" else "recipe",
            "columns_ignored": extra,
            "limit": source.limit,
            **account.to_report(),
            **opened.facts,
            "notes": opened.facts["notes"] + (ends if account.unanswered else []),
        }

    rows = _convert(opened, source, format, kind, on_bad_rows, account, reading)
    return write_cached(key, _SCHEMA, rows, build_report)


def _choose_format(
    opened: _Opened, source: SourceSettings, kind: Kind, on_bad_rows: str, setting: str
) -> tuple[str, list[str]]:
    """Choose the format by the first row whose columns show one; also list the columns that nothing reads."""
    first: tuple[str, Row] | None = None
    broken: RowError | None = None
    for name, row in islice(opened.read(), _ROWS_LOOKED_AT):
        if isinstance(row, BadRow):
            broken = broken or RowError(Origin(name, row.number), row.reason, row.detail)
            if on_bad_rows == "error":
                raise _to_error(broken)
            continue
        first = first or (name, row)
        columns = map_columns(row.columns, source.columns)
        found = find_format(columns, kind) if source.format == "auto" else source.format
        # A second text that is not there would leave single texts, which train as well and mean something else.
        is_whole = kind != "labelled" or source.columns.get("text_pair") in (None, *row.columns)
        if found and is_whole and set(FORMATS[found].required) <= set(columns):
            read = {*FORMATS[found].columns, *source.columns.values()}
            return found, [column for column in row.columns if column not in read]
    if first is None:
        raise broken or DataError(f"{source.path}: there are no rows.")
    name, row = first
    raise build_column_error(
        list(row.columns),
        mapping=source.columns,
        format=source.format,
        kind=kind,
        place=f"{name}:{row.number}",
        setting=setting,
    )


def _to_error(fault: RowError) -> DataError:
    return DataError(f"{fault}\n  {_HINT}")


def _convert(
    opened: _Opened,
    source: SourceSettings,
    format: str,
    kind: Kind,
    on_bad_rows: str,
    account: _Account,
    reading: LabelReading | None,
) -> Iterator[tuple[str, str, int]]:
    """Convert rows until the limit, noting each in the account; the first bad one ends it where the recipe says so."""
    for name, row in tqdm(opened.read(), desc=source.path, unit=" rows", leave=False, disable=None):
        origin = Origin(name, row.number)
        try:
            if isinstance(row, BadRow):
                raise RowError(origin, row.reason, row.detail)
            examples = to_examples(row.columns, format, source.columns, origin, kind)
            if reading is not None:
                examples = [reading.apply(one, origin) for one in examples if isinstance(one, Labelled)]
        except RowError as fault:
            if on_bad_rows == "error":
                raise _to_error(fault) from None
            account.note(fault)
            continue
        account.rows += 1
        account.examples += len(examples)
        for example in examples:
            account.unanswered += kind == "conversation" and _ends_unanswered(example)
            yield to_json(example), name, row.number
        if account.rows == source.limit:
            return


def _ends_unanswered(example: AnyExample) -> bool:
    return isinstance(example, Conversation) and example.messages[-1].role != "assistant"


def _say_nothing_left(path: str, account: _Account) -> str:
    lines = [f"  {account.counts[reason]} rows: {reason}, first {places[0]}" for reason, places in account.bad.items()]
    return "\n".join([f"{path}: no row can be used, of {sum(account.counts.values())} read.", *lines[:3]])
