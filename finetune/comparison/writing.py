"""What a comparison leaves in its folder: tables, picture, page, and recipes of the best choices.

In go the findings, out come files that are whole at any moment; they are made anew after every run.
"""

import json
import shlex
from pathlib import Path

from finetune.comparison.cells import RUNS, Cell, join_stem, render_recipe
from finetune.comparison.page import render_page
from finetune.comparison.plot import draw_plot
from finetune.comparison.scores import Row
from finetune.comparison.table import Findings, name_recipes, pick_best_rows, render_csv, render_markdown, to_words
from finetune.recipe.comparison import Comparison
from finetune.recipe.yaml_lines import read_yaml, to_plain
from finetune.run.layout import RunLayout
from finetune.run.writing import write_bytes, write_text

__all__ = ["write_findings"]


def write_findings(folder: Path, comparison: Comparison, findings: Findings) -> None:
    """Write table.md, table.csv, plot.png, report.html, best/ and recommended.yaml.

    Raises:
        PlaceError: the disk is full or may not be written.
    """
    png = draw_plot(findings)
    page = render_page(
        findings,
        png,
        command=shlex.join(["python", "-m", "finetune.compare", str(comparison.path), *comparison.overrides]),
        sources={str(comparison.path): comparison.text, str(comparison.base_path): comparison.base_text},
        environment=_read_environment(folder, findings),
    )
    write_text(folder / "table.md", render_markdown(findings))
    write_text(folder / "table.csv", render_csv(findings))
    write_bytes(folder / "plot.png", png)
    write_text(folder / "report.html", page)
    _write_best(folder, comparison, findings)


def _read_environment(folder: Path, findings: Findings) -> dict[str, object]:
    """The record of machine and software of the first run that has one."""
    for result in [*findings.probes, *findings.results]:
        path = RunLayout(folder / RUNS / result.cell.name).environment_path
        if path.exists():
            environment: dict[str, object] = json.loads(path.read_text(encoding="utf-8"))
            return environment
    return {}


def _write_best(folder: Path, comparison: Comparison, findings: Findings) -> None:
    """Write the best choice of every method as a recipe, and the recommended one; one a task."""
    best_dir = folder / "best"
    best_dir.mkdir(exist_ok=True)
    texts = {}
    for row in pick_best_rows(findings):
        files = name_recipes(row.point.method, findings)
        for cell in _find_cells(row, findings):
            texts[best_dir / files[cell.task]] = _render(row, cell, comparison, findings)
    if findings.recommended is not None:
        files = name_recipes("recommended", findings)
        for cell in _find_cells(findings.recommended, findings):
            texts[folder / files[cell.task]] = _render(findings.recommended, cell, comparison, findings)
    for path, text in texts.items():
        write_text(path, text)
    for stale in {*best_dir.glob("*.yaml"), *folder.glob("recommended*.yaml")} - texts.keys():
        stale.unlink()


def _find_cells(row: Row, findings: Findings) -> list[Cell]:
    """The row's run with the first seed, on each task."""
    cells = [result.cell for result in findings.results if result.cell.point == row.point]
    return [cell for cell in cells if cell.seed == findings.seeds[0]]


def _render(row: Row, cell: Cell, comparison: Comparison, findings: Findings) -> str:
    """A recipe that trains this choice again, saying where it comes from."""
    values = to_plain(read_yaml(cell.text, cell.name)[0])
    name = name_recipes(f"{comparison.name}_{row.point.method}", findings)[cell.task].removesuffix(".yaml")
    # The comparison's runs lie in its own folder; this one is a run like any other.
    values |= {"name": name, "output_dir": comparison.output_dir}
    comments = [
        f"{to_words(row, findings)}: from the comparison {comparison.path} ({comparison.folder}/table.md).",
        f"It started from {comparison.base_path}; settings chosen on the held-out rows of that comparison.",
        f"The runs behind it: {comparison.folder / RUNS}/{join_stem(cell.task, cell.point)}-seed*.",
        f"Hardware: it trained on {_find_device(row, findings)}.",
    ]
    return render_recipe(values, comments)


def _find_device(row: Row, findings: Findings) -> str:
    devices = [
        result.summary["device"] for result in findings.results if result.cell.point == row.point and result.summary
    ]
    return str(devices[0]) if devices else "no machine yet"
