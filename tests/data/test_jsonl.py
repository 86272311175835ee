"""The strict readers of JSON: what they pass, and that any cut of the file into reads gives the same rows."""

import io
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from finetune.data import strict_json
from finetune.data.strict_json import BadRow, Row, read_json, read_json_lines


def read_lines(content: bytes, **options) -> list[Row | BadRow]:
    return list(read_json_lines(io.BytesIO(content), **options))


def read_list(content: bytes, **options) -> list[Row | BadRow]:
    return list(read_json(io.BytesIO(content), "rows.json", **options))


def test_a_byte_order_mark_crlf_and_blank_lines_at_the_end_are_passed_over():
    assert read_lines(b'\xef\xbb\xbf{"a": 1}\r\n{"a": 2}\r\n\r\n\n') == [Row(1, {"a": 1}), Row(2, {"a": 2})]
    assert read_list(b'\xef\xbb\xbf\n[{"a": 1},\r\n {"a": 2}]\n\n') == [Row(2, {"a": 1}), Row(3, {"a": 2})]


def test_a_last_line_without_its_end_is_a_row():
    assert read_lines(b'{"a": 1}\n{"a": 2}') == [Row(1, {"a": 1}), Row(2, {"a": 2})]


def test_a_mark_is_passed_over_at_the_start_alone():
    rows = read_lines(b'{"a": 1}\n\xef\xbb\xbf{"a": 2}\n')
    assert isinstance(rows[1], BadRow) and rows[1].number == 2


def test_rows_after_bad_ones_are_still_read_with_their_own_lines():
    rows = read_lines(b'{"a": 1}\n{broken\n[1]\n\n{"a": NaN}\n{"a": 2}\n')
    assert [type(row) for row in rows] == [Row, BadRow, BadRow, BadRow, BadRow, Row]
    assert [row.number for row in rows] == [1, 2, 3, 4, 5, 6]


def test_a_line_over_the_limit_is_passed_without_being_held():
    rows = read_lines(b'{"a": "' + b"x" * 100 + b'"}\n{"a": 2}\n', max_row_bytes=50)
    assert [(type(row), row.number) for row in rows] == [(BadRow, 1), (Row, 2)]


def test_whole_surrogate_pairs_and_a_written_backslash_u_are_text():
    (row,) = read_lines(rb'{"a": "\ud83d\ude00 and \\u0000 and \\ud83d"}')
    assert row == Row(1, {"a": "\N{GRINNING FACE} and \\u0000 and \\ud83d"})


def test_integers_of_any_length_are_read():
    (row,) = read_lines(b'{"a": 12, "b": ' + b"9" * 5000 + b"}")
    assert isinstance(row, Row) and row.columns["a"] == 12


def test_json_lines_under_the_name_json_are_read():
    assert read_list(b'{"a": 1}\n{"a": 2}\n') == [Row(1, {"a": 1}), Row(2, {"a": 2})]


def test_rows_of_a_list_on_one_line_are_known_by_their_place():
    assert [row.number for row in read_list(b'[{"a": 1}, {"a": 2}, {"a": 3}]')] == [1, 2, 3]


def test_rows_of_an_indented_list_are_known_by_their_first_line():
    content = json.dumps([{"a": 1, "b": 2}, {"a": 3, "b": 4}], indent=2).encode()
    assert [row.number for row in read_list(content)] == [2, 6]


@pytest.mark.parametrize("chunk", [5, 64])
@given(
    values=st.lists(st.dictionaries(st.text(max_size=4), st.text(max_size=12) | st.integers()), min_size=1, max_size=6)
)
def test_a_list_reads_alike_however_its_bytes_arrive(chunk, values):
    content = json.dumps(values, indent=1, ensure_ascii=False).encode("utf-8", "surrogatepass")
    try:
        content.decode()
    except UnicodeDecodeError:
        return
    whole = read_list(content)
    saved = strict_json._CHUNK_CHARACTERS
    strict_json._CHUNK_CHARACTERS = chunk
    try:
        assert read_list(content) == whole
    finally:
        strict_json._CHUNK_CHARACTERS = saved
    assert len(whole) == len(values)
    if not any("\0" in text for value in values for text in (*value, *value.values()) if isinstance(text, str)):
        assert [row.columns for row in whole] == values
        lines = content.decode().split("\n")
        assert all(lines[row.number - 1].lstrip().startswith("{") for row in whole)
