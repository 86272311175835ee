"""A finding in words: how many, what was done, its figures, what to do and where."""

from finetune.inspection.findings import NamedFinding, name_findings, say_that_there_are_none

FINDING = {
    "name": "length_bias",
    "severity": "serious",
    "count": 1200,
    "examples": [{"places": ["a.json:1", "a.json:2"], "text": "Say it"}],
    "advice": "Read a few.",
    "details": {"favours": "longer", "share": 0.81234, "main_language": {"en": 3, "de": 1}, "same_answer": 1200},
    "policy": "report",
    "rows_dropped": 0,
    "dropped": {},
}


def test_a_finding_says_how_many_by_what_policy_its_figures_what_to_do_and_where():
    assert name_findings([FINDING]) == [
        NamedFinding(
            severity="serious",
            what="length bias: 1,200 (policy: report)",
            figures="favours longer · share 0.8123 · main language (en 3, de 1) · same answer 1,200",
            advice="Read a few.",
            quotes=("a.json:1, a.json:2: Say it",),
        )
    ]


def test_rows_that_are_left_out_are_told_with_the_policy():
    (named,) = name_findings([FINDING | {"policy": "drop", "rows_dropped": 3, "details": {}}])
    assert (named.what, named.figures) == ("length bias: 1,200 (policy: drop, 3 left out)", "")


def test_nothing_found_is_told_from_nothing_looked_for():
    assert say_that_there_are_none([]) == "findings: none"
    assert say_that_there_are_none(None) == "findings: not looked for (data.findings is null)"
    assert say_that_there_are_none([FINDING]) == ""
    assert name_findings(None) == []
