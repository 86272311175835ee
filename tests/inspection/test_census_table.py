"""The table says what the census counted, with where to look, and adds up."""

from typing import Any

import pytest

from finetune.inspection.census_table import Line, build_lines, lay_out, list_sources, to_bar, to_object

CENSUS = {
    "rows": 8,
    "tokens": 1000,
    "trained_tokens": 250,
    "trained_share": 0.25,
    "sources": [{"path": "a.json", "rows": 8, "tokens": 1000, "trained_tokens": 250}],
    "lengths": {"min": 10, "p10": 20, "median": 90, "p90": 200, "p99": 1900, "max": 2000},
    "histogram": [{"from": 0, "to": 99, "rows": 5}, {"from": 100, "to": 2000, "rows": 5}],
    "max_length": 512,
    "max_length_keeping": {"99%": 1900, "99.9%": 2000},
    "dropped": {"too_long": 2, "nothing_trained": 0},
    "cut": 7,
    "answers_lost": 0,
    "ends_lost": 0,
    "unended": 0,
    "begins_twice": 0,
    "control_tokens": {"rows": 1, "tokens": 3},
    "first_places": {"too_long": ["a.json:2", "a.json:9"], "cut": ["a.json:1"], "control_tokens": ["a.json:4"]},
}
BAD = {"no answer": {"rows": 2, "first": ["a.json:5", "a.json:7"]}}
REPORT = {
    "rows_read": 10,
    "sources": [{"path": "a.json", "rows": 10, "bad_rows": 2, "bad_reasons": BAD}],
    "census": CENSUS,
}


def find(name: str, report: dict[str, Any] = REPORT, objective: str = "sft") -> Line:
    return next(line for line in build_lines(report, objective=objective) if line.name == name)


def count(report: dict[str, Any], *names: str) -> list[int]:
    return [int(find(name, report).value.replace(",", "")) for name in names]


def test_a_figure_stands_with_its_share_or_its_first_places_each_file_once():
    assert find("trained tokens").note == "25.0% of the tokens"
    assert find("dropped: longer than max_length").note == "a.json: 2, 9"
    assert find("cut to max_length").note == "a.json: 1 · 6 more"
    assert find("control tokens in rows' text").note == "3 tokens · a.json: 4"
    assert find("max_length keeping 99% whole").value == "1,900 tokens"


def test_bad_rows_stand_by_their_reason_with_the_first_of_them():
    assert find("bad rows left out").value == "2"
    assert find("bad row: no answer") == Line("bad row: no answer", "2", ("a.json: 5, 7",), needs_look=True)


def test_what_is_seldom_meant_is_marked_and_zero_is_not():
    marked = {line.name for line in build_lines(REPORT, objective="sft") if line.needs_look}
    assert marked == {
        "bad rows left out",
        "bad row: no answer",
        "dropped: longer than max_length",
        "cut to max_length",
        "control tokens in rows' text",
    }


def test_the_table_adds_up_from_the_files_to_what_is_trained_on():
    census = CENSUS | {"rows": 9, "dropped": {"too_long": 2}}
    sources = [
        {"path": "a.json", "rows": 20, "bad_rows": 2, "bad_reasons": BAD, "rows_taken": 12},
        {"path": "b.json", "rows": 5, "examples": 6, "bad_rows": 0, "bad_reasons": {}, "rows_taken": 6},
    ]
    split = {"side": "train", "rows": 14, "of": 17, "seed": 1}
    report = {"rows_read": 11, "rows_dropped": 3, "sources": sources, "split": split, "census": census}
    assert count(report, "rows in the files", "bad rows left out") == [27, 2]
    steps = count(
        report,
        "examples in the other rows",
        "left out by the mix",
        "held out by the split",
        "dropped by findings",
        "dropped: longer than max_length",
        "rows trained on",
    )
    assert steps == [26, 8, 4, 3, 2, 9]
    assert steps[0] - sum(steps[1:-1]) == steps[-1]
    assert find("held out by the split", report).note == "data.eval: 3 of 17 rows"
    assert find("examples to train on", report).note == "--row 1 to --row 11"


def test_shots_and_the_pieces_of_split_rows_add_up_too():
    shots = {"of_each": 3, "rows": 6, "of": 8, "seed": 1}
    report = REPORT | {"rows_read": 6, "shots": shots, "split": {"side": "train", "rows": 8, "of": 10, "seed": 1}}
    assert count(report, "held out by the split", "not drawn as shots", "examples to train on") == [2, 2, 6]
    assert count(report, "further pieces of split rows", "rows trained on") == [4, 8]


@pytest.mark.parametrize("objective", ["reward", "classify", "grpo"])
def test_where_no_token_is_trained_none_is_said_to_be(objective):
    line = find("trained tokens", objective=objective)
    assert line.value == "none"
    assert list_sources(CENSUS, objective=objective)[0] == ("source", "rows", "tokens")


def test_of_masked_rows_it_is_said_that_the_tokens_may_be_masked():
    assert find("tokens that may be masked", objective="mlm").value == "250"
    names = [line.name for line in build_lines(REPORT, objective="mlm")]
    assert "trained tokens" not in names
    assert "dropped: no token that may be masked" in names


def test_lines_are_laid_out_in_columns_within_the_width_and_no_place_is_folded_inside():
    names = [f"folder/a_file_of_rows_{letter}.jsonl" for letter in "abc"]
    places = {"cut": [f"{name}:{row}" for name in names for row in (942, 957)]}
    laid_out = lay_out(build_lines(REPORT | {"census": CENSUS | {"first_places": places}}, objective="sft"), 100)
    assert len({(len(name), len(value)) for name, value, _ in laid_out}) == 1
    assert max(len(f"{name}{value}  {note}") for name, value, notes in laid_out for note in notes) <= 100
    notes = [note for _, _, of_line in laid_out for note in of_line]
    for name in names:
        assert sum(f"{name}: 942, 957" in note for note in notes) == 1


def test_a_note_wider_than_the_room_is_written_whole_on_a_line_of_its_own():
    line = Line("cut", "7", ("5 more", "folder/a_file_of_rows.jsonl: 942", "2 of 9"))
    assert lay_out([line, Line("tokens", "1,000")], 40) == [
        ("cut     ", "    7", ["5 more", "folder/a_file_of_rows.jsonl: 942", "2 of 9"]),
        ("tokens  ", "1,000", []),
    ]


def test_how_full_packed_rows_are_stands_there_only_where_rows_are_packed():
    assert not [line for line in build_lines(REPORT, objective="sft") if line.name == "packed rows filled"]
    packed = REPORT | {"census": CENSUS | {"packing_fill": 0.987}}
    assert find("packed rows filled", packed).value == "98.7%"


def test_for_programs_dropped_is_one_number_with_the_reasons_beside_it():
    told = to_object(CENSUS)
    assert told["dropped"] == 2
    assert told["dropped_by_reason"] == {"too_long": 2, "nothing_trained": 0}
    assert {name: told[name] for name in ("rows", "tokens", "trained_tokens", "cut")} == {
        "rows": 8,
        "tokens": 1000,
        "trained_tokens": 250,
        "cut": 7,
    }


def test_a_bar_is_as_long_as_its_share_and_never_nothing():
    assert to_bar(10, 10, 4) == "████"
    assert to_bar(5, 10, 3) == "█▌"
    assert to_bar(1, 10_000, 4) == "▏"
    assert to_bar(0, 10, 4) == ""
