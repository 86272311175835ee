"""How a module looks: its size, its first lines, its name; and what no file may hold."""

import ast
import re
from pathlib import Path

import pytest

from tests.house.tree import PACKAGE, ROOT, find_bound_names, find_files, find_modules

MAX_LINES = 400
DRAWERS = {"utils", "util", "helpers", "helper", "misc", "common", "manager", "handler"}
# Folders of the machine this was written on; spelled so that this file does not hold one.
PRIVATE_PATH = re.compile(r"(?<![\w.])/" + r"(?:work|root)/")
TEXT_SUFFIXES = {
    ".cfg",
    ".ipynb",
    ".jinja",
    ".json",
    ".jsonl",
    ".md",
    ".py",
    ".sh",
    ".toml",
    ".txt",
    ".yaml",
    ".yml",
    "",
}


def name_of(path: Path) -> str:
    return str(path.relative_to(ROOT))


@pytest.mark.parametrize("path", find_modules(), ids=name_of)
def test_a_module_says_first_what_it_owns(path: Path) -> None:
    assert ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))), "no module docstring"


@pytest.mark.parametrize("path", find_modules(), ids=name_of)
def test_a_module_has_at_most_400_lines(path: Path) -> None:
    assert len(path.read_text(encoding="utf-8").splitlines()) <= MAX_LINES


def test_no_file_is_a_drawer_without_a_label() -> None:
    drawers = [str(path) for path in find_files() if path.suffix == ".py" and path.stem in DRAWERS]
    assert not drawers


def test_every_public_name_that_a_module_announces_is_there() -> None:
    missing = []
    for path in find_modules():
        tree = ast.parse(path.read_text(encoding="utf-8"))
        defined = {name for node in tree.body for name in find_bound_names(node)}
        missing += [f"{path.relative_to(PACKAGE)}: {name}" for name in announced_by(tree) if name not in defined]
    assert not missing


def announced_by(tree: ast.Module) -> list[str]:
    for node in tree.body:
        if isinstance(node, ast.Assign) and any(isinstance(to, ast.Name) and to.id == "__all__" for to in node.targets):
            return [str(name) for name in ast.literal_eval(node.value)]
    return []


def test_no_file_names_a_folder_of_a_private_machine() -> None:
    found = []
    for path in find_files():
        if path.suffix not in TEXT_SUFFIXES or (ROOT / path).stat().st_size > 5_000_000:
            continue
        for number, line in enumerate((ROOT / path).read_text(encoding="utf-8").splitlines(), start=1):
            if PRIVATE_PATH.search(line):
                found.append(f"{path}:{number}")
    assert not found
