"""Where outcomes are kept, and what is made of them: the results of a machine and the table of docs/reliability.md.

Goes in: outcomes, one at a time. Comes out: `outputs/faults/TREE.jsonl`, which grows from call to call;
`benchmarks/results/reliability_MACHINE.json`; and the lines between the two markers of the page.
"""

import hashlib
import json
import os
import subprocess
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from tests.faults.measures import Measure, Outcome
from tests.faults.recipes import ROOT

__all__ = [
    "Store",
    "Tree",
    "find_fuller",
    "find_references",
    "read_tree",
    "render_table",
    "sum_up",
    "write_page",
    "write_results",
]

PAGE = ROOT / "docs" / "reliability.md"
BEGIN, END = "<!-- faults: begin, written by `make faults` -->", "<!-- faults: end -->"
MAX_FAILURES = 20
# What decides an outcome: all that measures run, read or import. Results of one tree do not count for another.
_COUNTED = ("finetune", "data", "recipes", "tests/faults", "tests/data", "tests/quality", "tests/end_to_end",
            "pyproject.toml", "constraints.txt")  # fmt: skip
_NOT_COUNTED = {"__pycache__", ".pytest_cache", ".ruff_cache"}


@dataclass(frozen=True, slots=True)
class Tree:
    """What was measured.

    Attributes:
        name: of the store: a hash of the files that decide an outcome, whatever is committed beside them.
        commit: of the checkout; `none` without git.
        is_clean: whether the files that decide an outcome are as that commit has them.
    """

    name: str
    commit: str
    is_clean: bool


def read_tree() -> Tree:
    """Read the files that decide an outcome, and the checkout's commit."""
    files = [path for name in _COUNTED for path in sorted((ROOT / name).rglob("*")) or [ROOT / name]]
    whole = hashlib.sha256()
    for path in files:
        if path.is_file() and not _NOT_COUNTED & set(path.parts):
            whole.update(f"{path.relative_to(ROOT)} {hashlib.sha256(path.read_bytes()).hexdigest()}\n".encode())
    name = whole.hexdigest()[:16]
    if not (ROOT / ".git").exists():
        return Tree(name, "none", False)
    commit = _ask_git("rev-parse", "HEAD").decode().strip()
    return Tree(name, commit, not _ask_git("status", "--porcelain", "--", *_COUNTED))


def _ask_git(*arguments: str) -> bytes:
    return subprocess.run(["git", *arguments], cwd=ROOT, capture_output=True, check=True).stdout


@dataclass(slots=True)
class Total:
    """A measure so far: outcomes, what they weigh, what of that passed, and the seconds they took."""

    runs: int = 0
    cases: int = 0
    passed: int = 0
    seconds: float = 0.0


class Store:
    """The outcomes of one tree.

    Args:
        path: of the file, one object a line; several processes may add to it.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        path.parent.mkdir(parents=True, exist_ok=True)
        self._lines: list[dict[str, Any]] = []
        self._totals: dict[str, Total] = {}
        self._read_bytes = 0

    def add(self, measure: str, seed: int, outcome: Outcome, seconds: float, tree: Tree) -> None:
        """Write an outcome down, in a single write."""
        run_on = {"commit": tree.commit, "is_clean": tree.is_clean}
        line = {"measure": measure, "seed": seed, **asdict(outcome), "seconds": round(seconds, 1), **run_on}
        file = os.open(self.path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
        try:
            # Evidence is published with the results; where on this machine it was met is nobody's business.
            text = json.dumps(line).replace(f"{ROOT}/", "").replace(f"{Path.home()}/", "~/")
            os.write(file, text.encode() + b"\n")
        finally:
            os.close(file)

    def read(self) -> list[dict[str, Any]]:
        """Read all outcomes; a last line that a kill tore is left out."""
        if self.path.exists() and self.path.stat().st_size > self._read_bytes:
            with self.path.open("rb") as file:  # only what is new: typos alone are tens of thousands of lines
                file.seek(self._read_bytes)
                new = file.read()
            whole = new[: new.rfind(b"\n") + 1]
            self._read_bytes += len(whole)
            for line in map(json.loads, whole.splitlines()):
                self._lines.append(line)
                total = self._totals.setdefault(line["measure"], Total())
                total.runs += 1
                total.cases += line["weight"]
                total.passed += line["weight"] * line["passed"]
                total.seconds += line["seconds"]
        return self._lines

    def total(self, measure: str) -> "Total":
        """Sum up one measure's outcomes so far."""
        self.read()
        return self._totals.get(measure, Total())

    def find_next_case(self, measure: str, seed: int) -> int:
        """Find the first case of a measure that has no outcome under a seed."""
        cases = [line["case"] for line in self.read() if (line["measure"], line["seed"]) == (measure, seed)]
        return max(cases, default=-1) + 1


def sum_up(lines: Iterable[Mapping[str, Any]], measures: Mapping[str, Measure]) -> dict[str, dict[str, Any]]:
    """Sum outcomes up by measure, in the table's order; a measure without an outcome is there with 0 cases."""
    sums: dict[str, dict[str, Any]] = {}
    for name, measure in measures.items():
        ours = [line for line in lines if line["measure"] == name]
        failures = [{key: line[key] for key in ("case", "seed", "weight", "drawn", "detail")}
                    for line in ours if not line["passed"]]  # fmt: skip
        figures: dict[str, float] = {}
        for line in ours:
            for figure, value in line["figures"].items():
                figures[figure] = figures.get(figure, 0) + value
        sums[name] = {
            "title": measure.title,
            "row": measure.row,
            "baseline_of": measure.baseline_of,
            "target": measure.target,
            "cases": sum(line["weight"] for line in ours),
            "passed": sum(line["weight"] for line in ours if line["passed"]),
            "runs": len(ours),
            "failed_runs": len(failures),
            "failed_before": sum(not line["weight"] for line in failures),  # any fault was done to them
            "figures": figures,
            "seconds": round(sum(line["seconds"] for line in ours), 1),
            "failures": failures[:MAX_FAILURES],
        }
    return sums


def render_table(sums: Mapping[str, Mapping[str, Any]], measured_on: str) -> str:
    """Render the table: one row for each measure of ours, the baseline's beside it."""
    lines = [
        measured_on,
        "",
        "| row | what was done, and what had to hold | ours | plain TRL script |",
        "|---|---|---|---|",
    ]
    for name, ours in sums.items():
        if ours["baseline_of"] is not None:
            continue
        baselines = [one for one in sums.values() if one["baseline_of"] == name]
        column = "<br>".join(f"{_render_count(one)}{_render_figures(one)}" for one in baselines) or "–"
        lines.append(f"| {ours['row']} | {ours['title']} | {_render_count(ours)}{_render_figures(ours)} | {column} |")
    return "\n".join(lines)


def _render_count(one: Mapping[str, Any]) -> str:
    before = f", {one['failed_before']} failed before any fault" if one["failed_before"] else ""
    if not one["cases"]:
        return f"not measured (target {one['target']:,}){before}"
    target = f" (target {one['target']:,})" if one["cases"] < one["target"] else ""
    return f"{one['passed']:,} of {one['cases']:,}{target}{before}"


def _render_references(values: Mapping[str, Any]) -> str:
    return ", ".join(name for name, is_equal in values["references_equal"].items() if is_equal) or "none was made"


def _render_figures(one: Mapping[str, Any]) -> str:
    shown = ", ".join(f"{name.replace('_', ' ')} {value:,.6g}" for name, value in one["figures"].items())
    return f"<br>{shown}" if shown else ""


def find_fuller(sums: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """Find the measures of which published results have more cases, up to the target, than these.

    Whatever machine they are of: the page has room for one machine's.
    """
    from benchmarks.recording import RESULTS_DIR

    published = [json.loads(path.read_text(encoding="utf-8")) for path in RESULTS_DIR.glob("reliability_*.json")]
    return [
        name
        for name, ours in sums.items()
        if any(ours["cases"] < min(there["measures"][name]["cases"], ours["target"]) for there in published
               if name in there["measures"])
    ]  # fmt: skip


def find_references(work_dir: Path) -> dict[str, bool]:
    """Find of each kind's unbroken run whether it and a second one, without the hook, ended equal."""
    paths = sorted((work_dir / "references").glob("*/ended.json"))
    return {path.parent.name: json.loads(path.read_text(encoding="utf-8"))["is_equal"] for path in paths}


def write_results(
    sums: Mapping[str, Mapping[str, Any]],
    lines: Sequence[Mapping[str, Any]],
    tree: Tree,
    references_equal: Mapping[str, bool],
) -> Path:
    """Write the results beside the machine's and the libraries' names; the file.

    The commit named is the first one that had these very files when a case was run; where they were committed only
    afterwards, the one that has them now.
    """
    from benchmarks.recording import write_result

    run_on: dict[str, int] = {}
    for line in lines:
        name = line["commit"] if line["is_clean"] else f"{line['commit']} with changes"
        run_on[name] = run_on.get(name, 0) + 1
    clean = [line["commit"] for line in lines if line["is_clean"]] + [tree.commit] * tree.is_clean
    figures = {
        "commit": (clean or [tree.commit])[0],
        "tree_is_clean": bool(clean),
        "tree": tree.name,
        "run_on": run_on,
        "seeds": sorted({line["seed"] for line in lines}),
        "references_equal": dict(references_equal),
        "measures": dict(sums),
    }
    return write_result("reliability", figures)


def write_page(results: Path) -> None:
    """Write the table of docs/reliability.md from a file of results; the rest of the page is left as it is."""
    values = json.loads(results.read_text(encoding="utf-8"))
    if not PAGE.exists():
        return
    text = PAGE.read_text(encoding="utf-8")
    before, rest = text.split(BEGIN)
    _, after = rest.split(END)
    packages = values["environment"]["packages"]
    versions = ", ".join(
        f"{name} {packages[name]}" for name in ("torch", "transformers", "trl", "peft", "bitsandbytes")
    )
    state = "" if values["tree_is_clean"] else ", with changes that are not in it"
    measured_on = (
        f"Measured on {values['machine']} with {versions}, at commit `{values['commit'][:12]}`{state}; "
        f"failures and draws in [{results.name}](../{results.relative_to(ROOT)}). "
        f"Two unbroken runs, one of them without the hook, were equal: {_render_references(values)}."
    )
    table = render_table(values["measures"], measured_on)
    PAGE.write_text(f"{before}{BEGIN}\n{table}\n{END}{after}", encoding="utf-8")
