"""Scalars follow YAML 1.2, and what a recipe has no use for is refused with its line."""

import time
import tracemalloc

import pytest

from finetune.errors import RecipeError
from finetune.recipe.yaml_lines import read_yaml, to_plain


def read_value(text: str) -> object:
    tree, faults = read_yaml(f"key: {text}\n", "recipe.yaml")
    assert faults == []
    return to_plain(tree)["key"]


@pytest.mark.parametrize(
    ("text", "value"),
    [("2e-4", 2e-4), ("1e-05", 1e-5), (".5", 0.5), ("-3", -3), ("007", 7), ("1.", 1.0), ("6E+2", 600.0)],
)
def test_a_number_of_yaml_1_2_is_a_number(text: str, value: float) -> None:
    assert read_value(text) == value
    assert type(read_value(text)) is type(value)


@pytest.mark.parametrize("text", ["no", "off", "yes", "on", "0o7", "1_000", "2026-11-20", "12:30:00", ".inf", "1e999"])
def test_what_yaml_1_1_turns_into_something_else_stays_text(text: str) -> None:
    assert read_value(text) == text


@pytest.mark.parametrize("text", ["~", "null", "", "Null"])
def test_null_is_null(text: str) -> None:
    assert read_value(text) is None


def test_a_number_in_quotes_is_text() -> None:
    assert read_value("'5'") == "5"


def test_every_value_and_key_knows_its_line() -> None:
    tree, _ = read_yaml("a: 1\nb:\n  c: {d: 2,\n    e: [3]}\n", "x.yaml")
    assert isinstance(tree.value, dict) and isinstance(tree.value["b"].value, dict)
    group = tree.value["b"].value["c"]
    assert isinstance(group.value, dict)
    assert group.key_place == "x.yaml:3"
    assert group.value["e"].place == "x.yaml:4"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a:\n\tb: 1\n", "x.yaml:2: there is a tab where YAML wants spaces."),
        ("a: &x [1]\nb: *x\n", "x.yaml:2: the alias `*x` is not taken."),
        ("a: 1\n---\nb: 2\n", "x.yaml:2: a second YAML document begins."),
        ("a: b: c\n", "x.yaml:1: YAML cannot be read on from here: mapping values are not allowed here."),
        ("a: [1\nb: 2\n", "x.yaml:2: YAML cannot be read on from here: expected ',' or ']', but got ':'."),
        ("a: @b\n", "x.yaml:1: YAML cannot be read on from here: found character '@' that cannot start any token."),
        ("a: 1\nb: \x00\n", "x.yaml:2: the character U+0000 is not text."),
        ('a: "\\ud800"\n', "x.yaml:1: the character U+D800 is not text."),
        ("? [a, b]\n: c\n", "x.yaml:1: a setting's name is a word."),
        ("a: " + "[" * 30_000, "x.yaml:1: values are nested more than 20 deep."),
    ],
)
def test_text_that_is_no_recipe_is_refused_with_its_line(text: str, message: str) -> None:
    with pytest.raises(RecipeError) as error:
        read_yaml(text, "x.yaml")
    assert str(error.value).splitlines()[0] == message


def test_a_repeated_key_names_both_lines() -> None:
    _, faults = read_yaml("a: 1\nb: 2\na: 3\n", "x.yaml")
    assert [(fault.place, fault.what) for fault in faults] == [
        ("x.yaml:3", "`a` is set twice; the first time at x.yaml:1.")
    ]


def test_a_python_tag_runs_nothing_and_is_a_fault() -> None:
    tree, faults = read_yaml("a: !!python/object/apply:os.system ['exit 3']\n", "x.yaml")
    assert to_plain(tree) == {"a": ["exit 3"]}
    assert [fault.what for fault in faults] == ["the tag `!!python/object/apply:os.system` is not taken."]


def test_an_anchor_bomb_costs_neither_time_nor_memory() -> None:
    bomb = "a0: &a0 [x, x]\n" + "".join(f"a{n}: &a{n} [*a{n - 1}, *a{n - 1}]\n" for n in range(1, 60))
    tracemalloc.start()
    start = time.perf_counter()
    with pytest.raises(RecipeError, match="alias"):
        read_yaml(bomb, "x.yaml")
    assert time.perf_counter() - start < 1
    assert tracemalloc.get_traced_memory()[1] < 20_000_000
    tracemalloc.stop()
