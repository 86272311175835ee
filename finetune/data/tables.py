"""CSV, TSV and Parquet files to rows."""

import csv
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, BinaryIO

import pyarrow as pa
import pyarrow.parquet

from finetune.data.strict_json import MAX_ROW_BYTES, BadRow, Row
from finetune.errors import DataError

__all__ = ["drop_nulls", "read_csv", "read_parquet", "read_tsv"]

_BATCH_ROWS = 1000


def read_csv(file: BinaryIO, name: str) -> Iterator[Row | BadRow]:
    """Read CSV in UTF-8: a header line, commas, `"` around what holds commas or line ends.

    A row is known by its first line. A row of more or fewer fields than the header is a fault, and so is
    a blank line between rows.

    Raises:
        DataError: no header, or a name twice in it.
    """
    # The module's limit of 128 KiB a field is one for the whole process; ours is that of a JSON row.
    csv.field_size_limit(MAX_ROW_BYTES)
    # Bytes that are not UTF-8 become half surrogates, which the check of each field finds with its row.
    lines = (line.decode("utf-8", "surrogateescape") for line in file)
    reader = csv.reader(lines, strict=True)
    header: list[str] | None = None
    blank: list[int] = []
    while True:
        number = reader.line_num + 1
        try:
            fields = next(reader)
        except StopIteration:
            break
        except csv.Error as error:
            yield BadRow(number, "broken CSV", f" ({error})")
            continue
        if not fields:
            blank.append(number)
            continue
        if header is None:
            header = _check_header([fields[0].removeprefix("\ufeff"), *fields[1:]], f"{name}:{number}")
            blank.clear()
            continue
        yield from (BadRow(place, "a blank line between rows") for place in blank)
        blank.clear()
        yield _check_fields(header, fields, number)
    if header is None:
        yield BadRow(1, "the file is empty")


def read_tsv(file: BinaryIO, name: str, headings: Sequence[str] = ()) -> Iterator[Row | BadRow]:
    """Read tab-separated values in UTF-8: a row a line, a quotation mark is one like any other character.

    A row of more or fewer fields than the header is a fault, and so is a blank line between rows. A line
    ends with a line feed, with or without a carriage return before it, and with nothing else: texts hold
    line separators of their own.

    Args:
        file: opened in binary.
        name: for messages.
        headings: the columns where the first line is not a header, that is, names none of them.

    Raises:
        DataError: no header, or a name twice in it.
    """
    header: list[str] | None = None
    blank: list[int] = []
    for number, line in enumerate(file, start=1):
        # Bytes that are not UTF-8 become half surrogates, which the check of each field finds with its row.
        text = line.decode("utf-8", "surrogateescape").removesuffix("\n").removesuffix("\r")
        text = text.removeprefix("\ufeff") if number == 1 else text
        if not text:
            blank.append(number)
            continue
        fields = text.split("\t")
        if header is None:
            is_header = not headings or not set(headings).isdisjoint(fields)
            header = _check_header(fields, f"{name}:{number}") if is_header else list(headings)
            if is_header:
                blank.clear()
                continue
        yield from (BadRow(place, "a blank line between rows") for place in blank)
        blank.clear()
        yield _check_fields(header, fields, number)
    if header is None:
        yield BadRow(1, "the file is empty")


def _check_header(header: list[str], place: str) -> list[str]:
    twice = sorted({name for name in header if header.count(name) > 1})
    if twice:
        raise DataError(f"{place}: the header names `{twice[0]}` twice.")
    return header


def _check_fields(header: list[str], fields: list[str], number: int) -> Row | BadRow:
    if len(fields) != len(header):
        return BadRow(number, "another number of fields than the header", f": {len(fields)} for {len(header)}")
    for column, field in zip(header, fields, strict=True):
        if "\0" in field:
            return BadRow(number, "a NUL character in a text", f" (column `{column}`)")
        if not field.isascii() and any("\ud800" <= character <= "\udfff" for character in field):
            return BadRow(number, "not UTF-8", f" (column `{column}`)")
    return Row(number, dict(zip(header, fields, strict=True)))


def read_parquet(path: Path, name: str) -> Iterator[Row | BadRow]:
    """Read Parquet, a batch of rows at a time; a row is known by its place from 1.

    Raises:
        DataError: the file is not Parquet, or it is torn.
    """
    number = 0
    try:
        with pa.parquet.ParquetFile(path) as file:
            for batch in file.iter_batches(_BATCH_ROWS):
                for columns in batch.to_pylist():
                    number += 1
                    yield Row(number, drop_nulls(columns))
    except pa.ArrowException as error:
        raise DataError(f"{name}:{number + 1}: not a Parquet file that can be read ({error}).") from None
    if number == 0:
        yield BadRow(1, "the file is empty", ": a table without rows")


def drop_nulls(value: Any) -> Any:
    """Drop the fields that hold null: Arrow gives all rows of a column the fields that any of them has."""
    if isinstance(value, dict):
        return {name: drop_nulls(part) for name, part in value.items() if part is not None}
    if isinstance(value, list):
        return [drop_nulls(part) for part in value]
    return value
