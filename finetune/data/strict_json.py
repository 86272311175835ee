"""JSON read strictly: a file of rows to rows with their line numbers, each fault under its reason.

Stricter than Python's `json`: a key written twice, NaN and Infinity, half of a surrogate pair and a
NUL character are faults. `Row` and `BadRow` are what every reader of files gives.
"""

import codecs
import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, BinaryIO

from finetune.errors import DataError

__all__ = ["MAX_ROW_BYTES", "BadRow", "Row", "StrictDecoder", "read_json", "read_json_lines"]

MAX_ROW_BYTES = 50_000_000
_CHUNK_CHARACTERS = 1 << 20
_BLANK = re.compile(r"[ \t\r\n]*")
_SUSPECT_ESCAPE = re.compile(r"\\u(0000|[dD][89a-fA-F])")


@dataclass(frozen=True, slots=True)
class Row:
    """A row's columns; `number` is its first line in the file, or its place in a table, from 1."""

    number: int
    columns: dict[str, Any]


@dataclass(frozen=True, slots=True)
class BadRow:
    """A row that cannot be read; `reason` is shared with other rows, `detail` is special to this one."""

    number: int
    reason: str
    detail: str = ""


class StrictDecoder:
    """Decodes one JSON value at a time and remembers the first thing that JSON lets pass and a row may not hold."""

    def __init__(self) -> None:
        self._fault = ("", "")
        self._decoder = json.JSONDecoder(
            object_pairs_hook=self._build_object, parse_constant=self._note_constant, parse_int=_read_integer
        )

    def decode(self, text: str, number: int, start: int = 0) -> tuple[Row | BadRow, int]:
        """Decode the value at `start`, and say where it ends.

        Raises:
            json.JSONDecodeError: the text is not JSON, or stops in the middle of it.
        """
        self._fault = ("", "")
        try:
            value, end = self._decoder.raw_decode(text, start)
            return self._check(value, text, number, start, end), end
        except RecursionError:
            raise json.JSONDecodeError("brackets nested too deeply", text, start) from None

    def _check(self, value: Any, text: str, number: int, start: int, end: int) -> Row | BadRow:
        reason, detail = self._fault
        if not reason and _SUSPECT_ESCAPE.search(text, start, end):
            reason, detail = _find_bad_character(value)
        if not reason and not isinstance(value, dict):
            reason, detail = "the row is not an object", f" but {_name_type(value)}; a row is {{column: value, …}}"
        return BadRow(number, reason, detail) if reason else Row(number, value)

    def _build_object(self, pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        value = dict(pairs)
        if len(value) != len(pairs) and not self._fault[0]:
            names = [name for name, _ in pairs]
            twice = next(name for name in names if names.count(name) > 1)
            self._fault = ("a key stands twice in one object", f": `{twice}`")
        return value

    def _note_constant(self, name: str) -> None:
        self._fault = self._fault if self._fault[0] else ("a number that JSON does not have", f": {name}")


def _read_integer(digits: str) -> int | float:
    """Read an integer; past 300 digits, where Python refuses after 4,300, the nearest float will do."""
    return int(digits) if len(digits) < 300 else float(digits)


def _name_type(value: Any) -> str:
    names = {list: "an array", str: "a string", bool: "true or false", type(None): "null"}
    return names.get(type(value), "a number")


def _find_bad_character(value: Any) -> tuple[str, str]:
    """Find a NUL or half of a surrogate pair in any string of a decoded value."""
    if isinstance(value, str):
        if "\0" in value:
            return "a NUL character in a text", " (\\u0000)"
        half = re.search("[\ud800-\udfff]", value)
        if half:
            return "half of a surrogate pair in a text", f" (\\u{ord(half.group()):04x}): not a character of Unicode"
        return "", ""
    parts = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    keys = list(value) if isinstance(value, dict) else []
    return next((fault for part in (*keys, *parts) if (fault := _find_bad_character(part))[0]), ("", ""))


def read_json_lines(file: BinaryIO, *, max_row_bytes: int = MAX_ROW_BYTES) -> Iterator[Row | BadRow]:
    """Read JSON Lines: one object a line, in UTF-8.

    A byte order mark at the start, CRLF line ends and blank lines at the end are passed over; a blank
    line between rows is a fault, since it is where half a row was lost. A list's opening bracket alone on the first
    line ends the reading. Never holds more than one line.
    """
    decoder = StrictDecoder()
    blank: list[int] = []
    number = 0
    while line := file.readline(max_row_bytes + 1):
        number += 1
        if len(line) > max_row_bytes:
            while line and not line.endswith(b"\n"):
                line = file.readline(_CHUNK_CHARACTERS)
            yield BadRow(number, f"a line of more than {max_row_bytes / 1e6:g} MB")
            continue
        if not line.strip(b" \t\r\n\xef\xbb\xbf" if number == 1 else b" \t\r\n"):
            blank.append(number)
            continue
        yield from (BadRow(place, "a blank line between rows") for place in blank)
        blank.clear()
        yield _read_line(decoder, line, number)
        if number == 1 and line.strip(b" \t\r\n\xef\xbb\xbf") == b"[":
            return  # a list over several lines: the one row without a comma behind it would pass for the whole file
    if number == len(blank):
        yield BadRow(1, "the file is empty")


def _read_line(decoder: StrictDecoder, line: bytes, number: int) -> Row | BadRow:
    if b"\0" in line:
        utf16 = "; is the file UTF-16? Save it as UTF-8" if number == 1 else ""
        return BadRow(number, "a NUL byte in the line", f" (byte {line.index(0) + 1}{utf16})")
    try:
        text = line.decode("utf-8-sig" if number == 1 else "utf-8").rstrip("\r\n")
    except UnicodeDecodeError as error:
        return BadRow(number, "not UTF-8", f" (byte {error.start + 1} of the line is 0x{line[error.start]:02x})")
    start = _skip_blank(text, 0)
    try:
        row, end = decoder.decode(text, number, start)
    except json.JSONDecodeError as error:
        if text.strip() in ("[", "{"):
            return BadRow(number, "broken JSON", ": a row over several lines; a list of rows belongs in a .json file")
        return BadRow(number, "broken JSON", f" at column {error.colno} ({error.msg})")
    rest = _skip_blank(text, end)
    if isinstance(row, Row) and rest < len(text):
        return BadRow(number, "broken JSON", f" at column {rest + 1} (text after the object)")
    return row


def _skip_blank(text: str, start: int) -> int:
    match = _BLANK.match(text, start)
    return match.end() if match else start


def read_json(file: BinaryIO, name: str, *, max_row_bytes: int = MAX_ROW_BYTES) -> Iterator[Row | BadRow]:
    """Read a `.json` file: a list of objects, or JSON Lines under that name.

    A list is scanned a row at a time and each row known by its first line, so a large file is never in
    memory whole.

    Args:
        file: opened for reading and seeking.
        name: the file as typed, for messages.
        max_row_bytes: what one row may take.

    Raises:
        DataError: the list is broken; what follows the break cannot be told apart, so nothing of it is skipped.
    """
    head = file.read(4096)
    file.seek(0)
    if not head.removeprefix(b"\xef\xbb\xbf").lstrip().startswith(b"["):
        yield from read_json_lines(file, max_row_bytes=max_row_bytes)
        return
    yield from _ListScan(file, name, max_row_bytes).read_rows()


class _ListScan:
    """A window on the text of a JSON list, which knows the line it starts at."""

    def __init__(self, file: BinaryIO, name: str, max_row_bytes: int) -> None:
        self._file = file
        self._name = name
        self._max_row_characters = max_row_bytes
        self._text = ""
        self._at = 0
        self._line = 1
        self._num_rows = 0
        self._decode_text = codecs.getincrementaldecoder("utf-8-sig")().decode
        self._complete = False

    def read_rows(self) -> Iterator[Row | BadRow]:
        decoder = StrictDecoder()
        self._next_character()
        self._at += 1  # the opening bracket
        if self._next_character() == "]":
            yield BadRow(1, "the file is empty", ": a list without rows")
        while self._text[self._at : self._at + 1] != "]":
            yield self._read_row(decoder)
            separator = self._next_character()
            if separator == "]":
                break
            if separator != ",":
                raise self._broken("expecting ',' or ']' after a row")
            self._at += 1
            if self._next_character() == "]":
                raise self._broken("a comma and no row after it")
        self._at += 1
        if self._next_character():
            raise self._broken("text after the list's end")

    def _read_row(self, decoder: StrictDecoder) -> Row | BadRow:
        """Decode the row at the window's start, widening the window until the row is whole in it."""
        self._num_rows += 1
        while True:
            # Rows that share a line are told apart by their place in the list.
            number = max(self._line, self._num_rows)
            try:
                row, end = decoder.decode(self._text, number, self._at)
            except json.JSONDecodeError as error:
                if self._complete or len(self._text) - self._at > self._max_row_characters:
                    raise self._broken(error.msg, error.pos) from None
                self._widen()
                continue
            if end == len(self._text) and not self._complete:  # a number may go on beyond the window
                self._widen()
                continue
            self._line += self._text.count("\n", self._at, end)
            self._at = end
            return row

    def _next_character(self) -> str:
        """Move to the next character that is not blank; "" at the file's end."""
        while True:
            start = self._at
            self._at = _skip_blank(self._text, start)
            self._line += self._text.count("\n", start, self._at)
            if self._at < len(self._text):
                return self._text[self._at]
            if self._complete:
                return ""
            self._widen()

    def _widen(self) -> None:
        """Drop what was used and read as much again as is left, so that a long row is decoded few times."""
        self._text = self._text[self._at :]
        self._at = 0
        data = self._file.read(max(_CHUNK_CHARACTERS, len(self._text)))
        self._complete = not data
        try:
            self._text += self._decode_text(data, self._complete)
        except UnicodeDecodeError as error:
            line = self._line + self._text.count("\n") + error.object.count(b"\n", 0, error.start)
            raise DataError(f"{self._name}:{line}: not UTF-8 (a byte 0x{error.object[error.start]:02x}).") from None

    def _broken(self, what: str, position: int | None = None) -> DataError:
        place = self._at if position is None else position
        line = self._line + self._text.count("\n", self._at, place)
        return DataError(
            f"{self._name}:{line}: broken JSON ({what}).\n"
            "  What follows in a list cannot be told apart; in a .jsonl file, one object a line, "
            "`data.on_bad_rows: skip` can pass such a row."
        )
