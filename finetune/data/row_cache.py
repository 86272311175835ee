"""Rows as an Arrow file in the cache of `datasets`, so that no number of them fills the memory.

A folder a key, put in its place in one step when complete: processes that make the same rows at once
each write their own, and the first one's is kept.
"""

import gc
import hashlib
import json
import shutil
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import cache
from importlib.metadata import version
from itertools import chain, islice
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pyarrow as pa

from finetune.errors import PlaceError

__all__ = ["build_key", "hash_makers", "read_cached", "write_cached"]

_MAKERS = ("tokenizers", "transformers", "sentencepiece", "jinja2")
_OBJECTS_BETWEEN_COLLECTIONS = 100_000
_BATCH_ROWS = 500


def build_key(parts: dict[str, Any]) -> str:
    """Build a cache's key from what decides its rows, and from what makes them."""
    return hashlib.sha256(json.dumps([parts, hash_makers()], sort_keys=True).encode()).hexdigest()


@cache
def hash_makers() -> str:
    """Hash what makes rows: this layer's source and the versions of the libraries that it renders and tokenizes with.

    So nothing that an older version of either cached is ever used again.
    """
    files = sorted(path for path in Path(__file__).parent.rglob("*") if path.suffix in (".py", ".jinja"))
    versions = json.dumps({name: version(name) for name in _MAKERS}).encode()
    return hashlib.sha256(b"".join([*(path.read_bytes() for path in files), versions])).hexdigest()


def _find_folder(key: str) -> Path:
    return Path(datasets.config.HF_DATASETS_CACHE) / "finetune_rows" / key[:32]


def read_cached(key: str) -> tuple[datasets.Dataset, dict[str, Any]] | None:
    """Read the rows and the report of a key; None where they were never written."""
    folder = _find_folder(key)
    if not folder.is_dir():
        return None
    report = json.loads((folder / "report.json").read_text(encoding="utf-8"))
    return datasets.Dataset.from_file(str(folder / "rows.arrow")), report


def write_cached(
    key: str,
    schema: pa.Schema,
    rows: Iterator[Sequence[Any]],
    build_report: Callable[[], dict[str, Any]] = dict,
) -> tuple[datasets.Dataset, dict[str, Any]]:
    """Write rows and, after the last, the report; nothing stays where reading them raises.

    Args:
        key: of `build_key`.
        schema: the columns.
        rows: their values, in the order of the columns; a few hundred are in memory at a time.
        build_report: called when all were read.

    Raises:
        PlaceError: the cache cannot be written.
    """
    folder = _find_folder(key)
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        unfinished = Path(tempfile.mkdtemp(prefix="unfinished-", dir=folder.parent))
    except OSError as error:
        raise _unwritable(folder, error) from None
    try:
        with _seldom_collected():
            _write_rows(unfinished / "rows.arrow", schema, rows)
        report = build_report()
        _write_report(unfinished / "report.json", report)
        if not folder.is_dir():
            _put_in_place(unfinished, folder)
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)
    return datasets.Dataset.from_file(str(folder / "rows.arrow")), report


def _write_rows(path: Path, schema: pa.Schema, rows: Iterator[Sequence[Any]]) -> None:
    try:
        with pa.OSFile(str(path), "wb") as sink, pa.ipc.new_stream(sink, schema) as writer:
            while batch := list(islice(rows, _BATCH_ROWS)):
                columns = zip(zip(*batch, strict=True), schema.types, strict=True)
                writer.write_batch(pa.record_batch([_to_array(*column) for column in columns], schema=schema))
    except OSError as error:
        raise _unwritable(path.parent, error) from None


def _write_report(path: Path, report: dict[str, Any]) -> None:
    try:
        path.write_text(json.dumps(report, ensure_ascii=False), encoding="utf-8")
    except OSError as error:
        raise _unwritable(path.parent, error) from None


@contextmanager
def _seldom_collected() -> Iterator[None]:
    """Look for garbage in cycles every 100,000 objects: rows make none, and looking takes 5 % of the time."""
    before = gc.get_threshold()
    gc.set_threshold(_OBJECTS_BETWEEN_COLLECTIONS, *before[1:])
    try:
        yield
    finally:
        gc.set_threshold(*before)


def _to_array(values: Sequence[Any], type: pa.DataType) -> pa.Array:
    if type != pa.list_(pa.int32()):
        return pa.array(values, type)
    # Half the time that Arrow takes to look into each list of tokens by itself.
    offsets = np.cumsum([0, *map(len, values)], dtype=np.int32)
    tokens = np.fromiter(chain.from_iterable(values), np.int32, offsets[-1])
    return pa.ListArray.from_arrays(offsets, tokens)


def _put_in_place(unfinished: Path, folder: Path) -> None:
    try:
        unfinished.rename(folder)
    except OSError:
        if not folder.is_dir():
            raise


def _unwritable(folder: Path, error: OSError) -> PlaceError:
    there = next(place for place in (folder, *folder.parents) if place.exists())
    free = f"{shutil.disk_usage(there).free / 1e6:,.1f} MB free"
    return PlaceError(
        f"{folder.parent}: the rows cannot be written there ({error.strerror or error}; {free}).\n"
        "  HF_DATASETS_CACHE names another folder for them."
    )
