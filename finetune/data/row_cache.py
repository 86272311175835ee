"""Examples as an Arrow file in the cache of `datasets`, so that no number of rows fills the memory.

A folder a key, put in its place in one step when complete: processes that load the same rows at once
each write their own, and the first one's is kept.
"""

import hashlib
import json
import shutil
import tempfile
from collections.abc import Callable, Iterator
from functools import cache
from itertools import islice
from pathlib import Path
from typing import Any

import datasets
import pyarrow as pa

from finetune.errors import PlaceError

__all__ = ["build_key", "hash_own_code", "read_cached", "write_cached"]

_SCHEMA = pa.schema({"example": pa.string(), "source": pa.string(), "row": pa.int64()})
_BATCH_ROWS = 1000


def build_key(parts: dict[str, Any]) -> str:
    """Build a cache's key from what decides its rows, this layer's own code included."""
    return hashlib.sha256(json.dumps([parts, hash_own_code()], sort_keys=True).encode()).hexdigest()


@cache
def hash_own_code() -> str:
    """Hash this layer's source, so that nothing an older version of it cached is ever used again."""
    files = sorted(path for path in Path(__file__).parent.rglob("*") if path.suffix in (".py", ".jinja"))
    return hashlib.sha256(b"".join(path.read_bytes() for path in files)).hexdigest()


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
    key: str, rows: Iterator[tuple[str, str, int]], build_report: Callable[[], dict[str, Any]]
) -> tuple[datasets.Dataset, dict[str, Any]]:
    """Write rows (example, source, row) and, after the last, the report; nothing stays where reading them raises.

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
        _write_rows(unfinished / "rows.arrow", rows)
        report = build_report()
        (unfinished / "report.json").write_text(json.dumps(report, ensure_ascii=False), encoding="utf-8")
        if not folder.is_dir():
            _put_in_place(unfinished, folder)
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)
    return datasets.Dataset.from_file(str(folder / "rows.arrow")), report


def _write_rows(path: Path, rows: Iterator[tuple[str, str, int]]) -> None:
    try:
        with pa.OSFile(str(path), "wb") as sink, pa.ipc.new_stream(sink, _SCHEMA) as writer:
            while batch := list(islice(rows, _BATCH_ROWS)):
                writer.write_batch(pa.record_batch(list(zip(*batch, strict=True)), schema=_SCHEMA))
    except OSError as error:
        raise _unwritable(path.parent, error) from None


def _put_in_place(unfinished: Path, folder: Path) -> None:
    try:
        unfinished.rename(folder)
    except OSError:
        if not folder.is_dir():
            raise


def _unwritable(folder: Path, error: OSError) -> PlaceError:
    return PlaceError(
        f"{folder.parent}: the rows cannot be written there ({error.strerror or error}).\n"
        "  HF_DATASETS_CACHE names another folder for them."
    )
