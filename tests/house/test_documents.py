"""What the documents say of the house is what stands there."""

import re
from pathlib import Path

import pytest

from notebooks.make_notebook import read_repository_url, to_badge_url
from tests.house.tree import PACKAGE, ROOT, find_files, find_verbs

# A document of the user's: every relative link in one leads to something.
DOCUMENTS = [path for path in find_files() if path.suffix == ".md" and path.parts[0] not in ("tests", ".github")]


def read_tree(text: str) -> list[Path]:
    """The paths of the README's tree: in the first fenced block that has a line starting with `finetune/`.

    A line is the path, or several with one space between, then two spaces or more and what it is for; a deeper
    indentation means inside the folder above. `├──`, `└──` and `│` count as spaces.
    """
    blocks = re.findall(r"^```\w*\n(.*?)^```", text, re.MULTILINE | re.DOTALL)
    block = next(block for block in blocks if re.search(r"^finetune/", block, re.MULTILINE))
    paths: list[Path] = []
    folders: list[tuple[int, Path]] = []
    for line in block.splitlines():
        plain = re.sub(r"[│├└─]", " ", line)
        indent = len(plain) - len(plain.lstrip())
        names = re.split(r" {2,}", plain.strip())[0].replace("·", " ").split()
        while folders and folders[-1][0] >= indent:
            folders.pop()
        inside = folders[-1][1] if folders else Path()
        paths += [inside / name for name in names]
        if len(names) == 1 and names[0].endswith("/"):
            folders.append((indent, inside / names[0]))
    return paths


@pytest.fixture(scope="module")
def readme() -> str:
    return (ROOT / "README.md").read_text(encoding="utf-8")


def test_the_tree_is_read_as_it_is_drawn() -> None:
    drawn = (
        "```\n"
        "pyproject.toml      dependencies\n"
        "finetune/\n"
        "├── cli.py errors.py    two files, and config.json is none of them\n"
        "└── data/               rows\n"
        "    └── rows.py\n"
        "recipes/            one YAML per run\n"
        "```\n"
    )
    found = [str(path) for path in read_tree(drawn)]
    package = ["finetune", "finetune/cli.py", "finetune/errors.py", "finetune/data", "finetune/data/rows.py"]
    assert found == ["pyproject.toml", *package, "recipes"]


def test_every_path_of_the_readmes_tree_exists(readme: str) -> None:
    missing = [str(path) for path in read_tree(readme) if not (ROOT / path).exists()]
    assert not missing


def test_the_readmes_tree_names_everything_at_the_top(readme: str) -> None:
    named = {path.parts[0] for path in read_tree(readme)}
    there = {path.parts[0] for path in find_files()}
    unnamed = {name for name in there - named if not name.startswith(".")}
    assert not unnamed


def test_the_readmes_tree_names_every_layer_and_verb(readme: str) -> None:
    named = {path.parts[1] for path in read_tree(readme) if path.parts[0] == "finetune" and len(path.parts) > 1}
    there = {path.relative_to(ROOT).parts[1] for path in PACKAGE.rglob("*.py")}
    assert there <= named, f"not in the tree: {sorted(there - named)}"


@pytest.mark.parametrize("verb", find_verbs())
def test_the_readme_shows_the_verb(verb: str, readme: str) -> None:
    assert f"finetune.{verb}" in readme


def test_the_readme_shows_no_verb_that_is_not_there(readme: str) -> None:
    shown = set(re.findall(r"-m finetune\.([a-z_]+)", readme))
    assert shown <= set(find_verbs())


def read_hardware_table(text: str) -> list[tuple[str, str]]:
    """Recipe and hardware of the README's table, a pair for each recipe that a row links."""
    rows = re.findall(r"^\| ([^|]+?) \| ([^|]*\]\(recipes/[^|]*) \|", text, re.MULTILINE)
    return [(name, hardware) for hardware, cell in rows for name in re.findall(r"\(recipes/(\w+)\.yaml\)", cell)]


def read_hardware(recipe: Path) -> str:
    """The first sentence of a recipe's `# Hardware:` line, without what stands in brackets for a setting."""
    (line,) = re.findall(r"^# Hardware: (.*)$", recipe.read_text(encoding="utf-8"), re.MULTILINE)
    return re.sub(r" \(\w+\.\w+=\w+\)", "", re.split(r"\.(?:\s|$)", line)[0])


def test_the_readmes_hardware_table_says_what_the_recipes_say(readme: str) -> None:
    table = read_hardware_table(readme)
    assert dict(table) == {path.stem: read_hardware(path) for path in sorted((ROOT / "recipes").glob("*.yaml"))}
    assert len(table) == len(dict(table)), "a recipe stands in one row"


def test_the_readme_lists_hardware_from_the_smallest_on(readme: str) -> None:
    sizes = [int(found[1]) for _, hardware in read_hardware_table(readme) if (found := re.search(r"(\d+)", hardware))]
    gpus = [size for size in sizes if size >= 16]
    assert gpus == sorted(gpus)


def test_the_benchmarks_page_names_every_script() -> None:
    page = (ROOT / "benchmarks" / "README.md").read_text(encoding="utf-8")
    scripts = [path for path in (ROOT / "benchmarks").glob("*.py") if '__name__ == "__main__"' in path.read_text()]
    assert len(scripts) >= 4
    assert not [path.name for path in scripts if f"`python -m benchmarks.{path.stem}`" not in page]


def test_the_readmes_badge_opens_the_notebook(readme: str) -> None:
    assert to_badge_url(read_repository_url()) in readme


def test_every_make_target_that_a_document_names_exists() -> None:
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    targets = set(re.findall(r"^([a-z][\w-]*):", makefile, re.MULTILINE))
    named = {
        (str(path), target)
        for path in DOCUMENTS
        for target in re.findall(r"(?:`|^)make ([a-z][\w-]*)", (ROOT / path).read_text(encoding="utf-8"), re.MULTILINE)
    }
    assert not {(path, target) for path, target in named if target not in targets}


@pytest.mark.parametrize("document", DOCUMENTS, ids=str)
def test_every_link_inside_the_repository_leads_somewhere(document: Path) -> None:
    text = (ROOT / document).read_text(encoding="utf-8")
    links = [link.split("#")[0] for link in re.findall(r"\]\(([^)\s]+)\)", text) if "://" not in link]
    broken = [link for link in links if link and not (ROOT / document.parent / link).exists()]
    assert not broken


def test_the_changelog_starts_with_what_is_unreleased() -> None:
    changelog = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    assert re.search(r"^## (.*)$", changelog, re.MULTILINE)[1] == "Unreleased"  # type: ignore[index]


def test_every_page_of_docs_is_in_its_index() -> None:
    index = (ROOT / "docs" / "README.md").read_text(encoding="utf-8")
    pages = [path.relative_to("docs") for path in find_files() if path.parts[0] == "docs" and path.suffix == ".md"]
    assert not [str(page) for page in pages if str(page) != "README.md" and f"({page})" not in index]


@pytest.mark.parametrize("path", DOCUMENTS, ids=str)
def test_no_document_waits_to_be_filled_in(path: Path) -> None:
    lines = (ROOT / path).read_text(encoding="utf-8").splitlines()
    assert not [line for line in lines if re.fullmatch(r"(TODO|TBD|FIXME|[A-Z]{4,})\b.*", line) and len(line) < 20]
