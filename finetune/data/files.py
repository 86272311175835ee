"""Local files of rows: which a path means, what kind each is, its bytes' hash and its rows."""

import difflib
import gzip
import hashlib
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, cast

from finetune.data.strict_json import BadRow, Row, read_json, read_json_lines
from finetune.data.tables import read_csv, read_parquet, read_tsv
from finetune.errors import DataError
from finetune.recipe.places import expand

__all__ = ["DataFile", "Folder", "find_files", "hash_file", "read_rows"]

_TEXT_KINDS = (".json", ".jsonl", ".csv", ".tsv")
_KINDS = (*_TEXT_KINDS, ".parquet")
_READABLE = ".json .jsonl .csv .tsv .parquet, all but the last also as .gz"
_HASH_CHUNK_BYTES = 1 << 20


@dataclass(frozen=True, slots=True)
class DataFile:
    """One file: its path, its name as a message shows it, and its kind (`.jsonl` for `rows.jsonl.gz` too)."""

    path: Path
    name: str
    kind: str


@dataclass(frozen=True, slots=True)
class Folder:
    """The files that a path means, in the order of their names, and the names of those left alone."""

    files: tuple[DataFile, ...]
    ignored: tuple[str, ...] = ()


def _find_kind(name: str) -> str | None:
    suffixes = Path(name.lower()).suffixes
    if suffixes and suffixes[-1] == ".gz":
        return suffixes[-2] if len(suffixes) > 1 and suffixes[-2] in _TEXT_KINDS else None
    return suffixes[-1] if suffixes and suffixes[-1] in _KINDS else None


def find_files(typed: str) -> Folder:
    """Find the files of a path, relative to the current folder: the file itself, or those directly in the folder.

    Raises:
        DataError: nothing is there, no file of a kind that is read, or several kinds in one folder.
    """
    path = Path(expand(typed))
    if not path.exists():
        raise DataError(_say_absent(typed, path))
    if not path.is_dir():
        kind = _find_kind(path.name)
        if kind is None:
            raise DataError(f"{typed}: not a kind of file that is read: {_READABLE}.")
        return Folder((DataFile(path, typed, kind),))
    return _list_folder(typed, path)


def _list_folder(typed: str, path: Path) -> Folder:
    entries = sorted(entry for entry in path.iterdir() if not entry.name.startswith("."))
    if {"dataset_info.json", "state.json"} <= {entry.name for entry in entries}:
        raise DataError(
            f"{typed}: a dataset as `save_to_disk` writes it, which only the same library reads.\n"
            f'  Write it as Parquet: python -c "from datasets import load_from_disk; '
            f"load_from_disk('{typed}').to_parquet('rows.parquet')\""
        )
    files = tuple(
        DataFile(entry, f"{typed.rstrip('/')}/{entry.name}", kind)
        for entry in entries
        if entry.is_file() and (kind := _find_kind(entry.name)) is not None
    )
    kinds = sorted({file.kind for file in files})
    if not files:
        raise DataError(f"{typed}: the folder holds no file of a kind that is read: {_READABLE}.")
    if len(kinds) > 1:
        raise DataError(
            f"{typed}: the folder holds files of several kinds ({', '.join(kinds)}): the same rows twice?\n"
            f"  Name one file, e.g. {files[0].name}, or list several under `data.train`."
        )
    taken = {file.path for file in files}
    return Folder(files, tuple(entry.name for entry in entries if entry not in taken))


def _say_absent(typed: str, path: Path) -> str:
    """Name the nearest thing that exists: in the folder of the path, or the first part of the path that is missing."""
    if "://" in typed:
        return f"{typed}: an address on the web is not read.\n  Download the file and name its path."
    parent = path.parent
    if not parent.is_dir():
        while not parent.parent.is_dir():
            parent = parent.parent
        return f"{typed}: there is no folder {parent}.\n  Paths start at the current folder, {Path.cwd()}."
    names = sorted(entry.name for entry in parent.iterdir() if entry.is_dir() or _find_kind(entry.name))
    near = difflib.get_close_matches(path.name, names, 1)
    if near:
        return f"{typed}: there is no such file or folder.\n  Did you mean {path.with_name(near[0])}?"
    held = f"{parent} holds: {', '.join(names[:8])}." if names else f"{parent} holds no data files."
    return f"{typed}: there is no such file or folder.\n  {held} Paths start at {Path.cwd()}."


def hash_file(file: DataFile) -> str:
    """Hash a file's bytes as they lie on the disk: SHA-256 in hex.

    Raises:
        DataError: it cannot be opened.
    """
    digest = hashlib.sha256()
    with _open(file) as opened:
        while chunk := opened.read(_HASH_CHUNK_BYTES):
            digest.update(chunk)
    return digest.hexdigest()


def _open(file: DataFile) -> BinaryIO:
    try:
        return file.path.open("rb")
    except OSError as error:
        raise DataError(f"{file.name}: cannot be opened ({error.strerror}).") from None


def read_rows(file: DataFile, headings: Sequence[str] = ()) -> Iterator[Row | BadRow]:
    """Read the rows of a file, each with its line (or its place in a table).

    Args:
        file: one of `find_files`.
        headings: the columns of a .tsv file that has no header line.

    Raises:
        DataError: the file is torn, or of another kind than its name says.
    """
    if file.kind == ".parquet":
        yield from read_parquet(file.path, file.name)
        return
    number = 0
    with _open(file) as raw:
        packed = file.path.suffix.lower() == ".gz"
        opened = cast(BinaryIO, gzip.GzipFile(fileobj=raw)) if packed else raw
        try:
            for row in _read_text_rows(opened, file, headings):
                number = row.number
                yield row
        except (gzip.BadGzipFile, EOFError, zlib.error) as error:
            raise DataError(f"{file.name}:{number + 1}: a torn gzip file ({error}).") from None


def _read_text_rows(opened: BinaryIO, file: DataFile, headings: Sequence[str]) -> Iterator[Row | BadRow]:
    match file.kind:
        case ".json":
            return read_json(opened, file.name)
        case ".csv":
            return read_csv(opened, file.name)
        case ".tsv":
            return read_tsv(opened, file.name, headings)
        case _:
            return read_json_lines(opened)
