"""The table says what the census counted, with where to look."""

from finetune.inspection.census_table import build_lines, name_findings, to_bar, to_object

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
REPORT = {"rows_read": 12, "sources": [{"path": "a.json", "bad_rows": 2}], "census": CENSUS}


def find(name: str, report: dict = REPORT):
    return next(line for line in build_lines(report) if line.name == name)


def test_a_figure_stands_with_its_share_or_its_first_places():
    assert find("trained tokens").note == "25.0% of the tokens"
    assert find("dropped: longer than max_length").note == "a.json:2, a.json:9"
    assert find("cut to max_length").note == "a.json:1 and 6 more"
    assert find("control tokens in rows' text").note == "3 of them: a.json:4"
    assert find("max_length keeping 99% whole").value == "1,900 tokens"


def test_what_is_seldom_meant_is_marked_and_zero_is_not():
    marked = {line.name for line in build_lines(REPORT) if line.needs_look}
    assert marked == {
        "bad rows left out",
        "dropped: longer than max_length",
        "cut to max_length",
        "control tokens in rows' text",
    }


def test_how_full_packed_rows_are_stands_there_only_where_rows_are_packed():
    assert not [line for line in build_lines(REPORT) if line.name == "packed rows filled"]
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


def test_a_finding_says_how_many_what_to_do_and_where():
    finding = {
        "name": "near_duplicates",
        "severity": "note",
        "count": 3,
        "examples": [{"places": ["a.json:1", "a.json:2"], "text": "Say it"}],
        "advice": "Read a few.",
        "details": {},
        "policy": "drop",
        "rows_dropped": 3,
    }
    assert name_findings([finding]) == [
        ("note", "near duplicates: 3, 3 dropped", "Read a few.", ["a.json:1, a.json:2: Say it"])
    ]
