"""The verbs: the files, the list that `python -m finetune` prints, the pages and the README name the same ones."""

import re
import subprocess
import sys

import pytest

from docs.make_verb_pages import INDEX, PAGES, build_index, build_page
from tests.house.test_layers import HEAVY
from tests.house.tree import ROOT, find_verbs

VERBS = find_verbs()


def test_the_package_lists_its_verbs_one_line_each() -> None:
    listed = subprocess.run(
        [sys.executable, "-m", "finetune"], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout
    # A verb's line: its name, a gap, what it does.
    assert sorted(re.findall(r"^\s+(?:python -m finetune\.)?([a-z_]+) {2,}\S", listed, re.MULTILINE)) == VERBS


def test_every_verb_has_a_page_and_every_page_a_verb() -> None:
    assert sorted(page.stem for page in PAGES.glob("*.md")) == VERBS


def test_the_index_of_the_docs_lists_the_verbs() -> None:
    assert build_index(VERBS) == INDEX.read_text(encoding="utf-8"), "run `make docs`"


@pytest.mark.parametrize("verb", VERBS)
def test_the_page_of_a_verb_is_its_help(verb: str) -> None:
    assert build_page(verb) == (PAGES / f"{verb}.md").read_text(encoding="utf-8"), "run `make docs`"


@pytest.mark.parametrize("verb", VERBS)
def test_the_help_of_a_verb_holds_an_example(verb: str) -> None:
    page = (PAGES / f"{verb}.md").read_text(encoding="utf-8")
    shown = page.split("--help\n", 1)[1]
    assert f"python -m finetune.{verb} " in shown


def test_help_and_recipe_errors_never_wait_for_the_stack() -> None:
    modules = ["errors", "cli", "__main__", "recipe.schema", "recipe.reading", *VERBS]
    program = "\n".join(
        [
            "import sys",
            *(f"import finetune.{module}" for module in modules),
            "print(*sorted(set(name.split('.')[0] for name in sys.modules)))",
        ]
    )
    loaded = subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout.split()
    assert "finetune" in loaded
    assert not set(loaded) & (HEAVY | {"matplotlib", "numpy", "pandas"})
