"""The repository as the house tests see it: its root, its files, its verbs and its modules."""

import ast
import subprocess
from functools import cache
from pathlib import Path

from docs.make_verb_pages import find_verbs

__all__ = ["NOT_VERBS", "PACKAGE", "ROOT", "find_bound_names", "find_files", "find_modules", "find_verbs"]

ROOT = Path(__file__).resolve().parents[2]
PACKAGE = ROOT / "finetune"
# The files in the root of the package that are no verbs.
NOT_VERBS = frozenset(path.stem for path in PACKAGE.glob("*.py")) - set(find_verbs())


@cache
def find_files() -> tuple[Path, ...]:
    """Every file that git tracks or would track, relative to the root; without git, all but hidden folders."""
    if (ROOT / ".git").exists():
        listed = subprocess.run(
            ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
            cwd=ROOT,
            capture_output=True,
            text=True,
            check=True,
        )
        paths = [Path(name) for name in listed.stdout.split("\0") if name]
        return tuple(sorted(path for path in paths if (ROOT / path).is_file()))
    paths = [path.relative_to(ROOT) for path in ROOT.rglob("*") if path.is_file()]
    return tuple(sorted(path for path in paths if not any(part.startswith(".") for part in path.parts[:-1])))


def find_modules() -> list[Path]:
    """Every module of the package."""
    return sorted(PACKAGE.rglob("*.py"))


def find_bound_names(node: ast.stmt) -> set[str]:
    """The names that a statement at the top of a module binds."""
    if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
        return {node.name}
    if isinstance(node, ast.Import | ast.ImportFrom):
        return {alias.asname or alias.name.split(".")[0] for alias in node.names}
    return {name.id for name in ast.walk(node) if isinstance(name, ast.Name) and isinstance(name.ctx, ast.Store)}
