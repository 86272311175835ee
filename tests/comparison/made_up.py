"""A comparison whose runs never ran: cells from a real recipe, summaries made up."""

from pathlib import Path
from typing import Any

from finetune.comparison.cells import Cell, Point, build_cells, build_points
from finetune.comparison.folder import Result
from finetune.comparison.scores import build_rows, find_recommended
from finetune.comparison.table import Findings
from finetune.recipe.comparison import Comparison, read_comparison

BASE = """\
name: base
model: {model_name_or_path: org/base, quantization: nf4}
data:
  train: {path: org/rows, format: alpaca}
  eval: {fraction: 0.1}
evaluation: {questions: {path: org/questions}}
"""


def read_small(folder: Path, text: str) -> Comparison:
    (folder / "base.yaml").write_text(BASE)
    (folder / "c.yaml").write_text(f"name: small\nrecipe: base.yaml\noutput_dir: {folder}/out\n{text}")
    return read_comparison(folder / "c.yaml")


def build_all(comparison: Comparison) -> list[Cell]:
    return build_cells(comparison, build_points(comparison), comparison.seeds)


def make_result(cell: Cell, **figures: Any) -> Result:
    """A finished run; what is not named is of no matter."""
    summary = {
        "trainable_parameters": 10, "total_parameters": 1000, "peak_memory_bytes": 2**20, "seconds": 2.0,
        "adapter_bytes": 5_000, "device": "a processor", "steps": 3,
    }  # fmt: skip
    return Result(cell, "done", summary | figures)


def make_findings(comparison: Comparison, results: list[Result], score: str = "exact_match") -> Findings:
    rows = build_rows(results, score, comparison.reference)
    return Findings(
        name=comparison.name,
        score=score,
        reference=comparison.reference,
        tasks=list(comparison.tasks) or [""],
        methods=[method.name for method in comparison.methods],
        seeds=comparison.seeds,
        rows=rows,
        results=results,
        probes=[],
        recommended=find_recommended(rows, score),
    )


def make_points(*values: int) -> list[Point]:
    return [Point("lora", f"r{value}", {"adapter.r": value}) for value in values]
