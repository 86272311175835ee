"""Write `docs/verbs/VERB.md`, a page per verb made from what its `--help` prints, and their list in `docs/README.md`.

    python docs/make_verb_pages.py

The help text is the one place that tells of arguments; a test makes the pages again and fails where they differ.
"""

import ast
import os
import subprocess
import sys
from pathlib import Path

from finetune.__main__ import VERBS

ROOT = Path(__file__).resolve().parents[1]
PAGES = ROOT / "docs" / "verbs"
INDEX = ROOT / "docs" / "README.md"
LIST_STARTS = "## Verbs\n"


def find_verbs() -> list[str]:
    """The verbs that the package runs, by name."""
    return sorted(VERBS)


def read_help(verb: str) -> str:
    """What `--help` of a verb prints on a terminal of 100 columns without colour."""
    plain = {"COLUMNS": "100", "TERMINAL_WIDTH": "100", "NO_COLOR": "1", "TERM": "dumb", "PYTHONIOENCODING": "utf-8"}
    kept = {name: value for name, value in os.environ.items() if name not in ("FORCE_COLOR", "GITHUB_ACTIONS")}
    printed = subprocess.run(
        [sys.executable, "-m", f"finetune.{verb}", "--help"],
        cwd=ROOT,
        env=kept | plain,
        capture_output=True,
        encoding="utf-8",
        check=True,
    )
    return "\n".join(line.rstrip() for line in printed.stdout.strip().splitlines())


def build_page(verb: str) -> str:
    """The page of a verb, whole."""
    return (
        f"<!-- Made by docs/make_verb_pages.py from the verb's own --help; `make docs` writes it again. -->\n"
        f"# {verb}\n\n```text\n$ python -m finetune.{verb} --help\n{read_help(verb)}\n```\n"
    )


def build_index(verbs: list[str]) -> str:
    """The index of the docs, with the list under `## Verbs` made anew: each verb and the first line of its file."""
    above, heading, _ = INDEX.read_text(encoding="utf-8").partition(LIST_STARTS)
    lines = ["| verb | what it does |", "|---|---|"]
    for verb in verbs:
        module = ast.parse((ROOT / "finetune" / f"{verb}.py").read_text(encoding="utf-8"))
        first_line = (ast.get_docstring(module) or "").split("\n")[0]
        lines.append(f"| [{verb}](verbs/{verb}.md) | {first_line} |")
    return f"{above}{heading}\n" + "\n".join(lines) + "\n"


def main() -> None:
    """Write every page and the list of them; delete the pages whose verb is gone."""
    PAGES.mkdir(exist_ok=True)
    verbs = find_verbs()
    for page in PAGES.glob("*.md"):
        if page.stem not in verbs:
            page.unlink()
    for verb in verbs:
        (PAGES / f"{verb}.md").write_text(build_page(verb), encoding="utf-8")
    INDEX.write_text(build_index(verbs), encoding="utf-8")
    print(f"wrote docs/verbs: {', '.join(verbs)}")


if __name__ == "__main__":
    main()
