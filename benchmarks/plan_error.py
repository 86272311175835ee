"""Compares the plan's activation bytes with those that real micro-batches hold, over a grid of everything they hang on.

    python -m benchmarks.plan_error [--cells 150] [--counted RESULT.json]

Each cell trains a small base of drawn weights for three steps on this CPU: one plain, one under `saved_tensors_hooks`,
each storage counted once, and one under the profiler, for the fullest moment. Cells are drawn by a seed from the
product of all columns, each value of a column about as often as the others. With `--counted` the formulas alone are
tried, against what a result counted. Writes `results/plan_error_<machine>.json` and `.md`.
"""

import argparse
import json
import statistics
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import datasets

from benchmarks.counting import build_values, count_step
from benchmarks.plan_error_cells import (
    COLUMNS,
    DRAWN,
    EXPERTS,
    METHODS,
    MODELS,
    OTHERS,
    TRAINED_MODULES,
    WIDE,
    Cell,
    draw_cells,
    list_kernels,
    list_others,
    list_trained_modules,
    list_wide,
)
from benchmarks.recording import write_result
from finetune.budget.activations import BatchShape
from finetune.budget.adapter import build_adapter
from finetune.budget.architecture import build_architecture
from finetune.budget.computing import Computing
from finetune.budget.passes import PassActivations, estimate_pass
from finetune.data.batches import IGNORE_INDEX
from finetune.recipe.schema import AdapterSettings

__all__ = ["compare", "count", "estimate"]

_NUM_CELLS = 150
_SHOWN = {
    **COLUMNS,
    "model": (*DRAWN, WIDE),
    "method": (*METHODS, *TRAINED_MODULES),
    "kernel": ("sdpa", "documents", "eager"),
}
_COUNTED = ("num_rows", "row_tokens", "num_trained", "kernel", "saved_bytes", "peak_bytes", "seconds")


def count(cell: Cell, *, with_peak: bool = True) -> dict[str, Any]:
    """Count what a cell's micro-batch holds, and note the sizes that the collator gave it."""
    start = time.monotonic()
    values = build_values(
        MODELS[cell.model],
        cell.adapter,
        objective=cell.objective,
        model__quantization=cell.quantization,
        model__compute_dtype=cell.dtype,
        model__attention=cell.attention,
        data__max_length=cell.tokens,
        data__packing=cell.layout == "packed",
        training__gradient_checkpointing=cell.recompute != "not asked for",
    )
    counted = count_step(values, cell.lengths, num_recomputed=cell.num_recomputed, with_peak=with_peak)
    num_rows, row_tokens = counted.batch["input_ids"].shape
    num_trained = num_rows * (row_tokens - 1)
    if cell.objective == "sft":
        num_trained = int((counted.batch["labels"][:, 1:] != IGNORE_INDEX).sum())
    return {
        "num_rows": num_rows,
        "row_tokens": row_tokens,
        "num_trained": num_trained,
        "kernel": counted.base.attention,
        "saved_bytes": counted.saved_bytes,
        "peak_bytes": counted.peak_bytes,
        "seconds": round(time.monotonic() - start, 1),
    }


def estimate(cell: Cell, counted: Mapping[str, Any]) -> PassActivations:
    """Estimate the same from shapes; of the micro-batch its sizes alone are read, and which kernel attends."""
    architecture = build_architecture(MODELS[cell.model])
    num_rows, row_tokens = counted["num_rows"], counted["row_tokens"]
    return estimate_pass(
        architecture,
        build_adapter(architecture, AdapterSettings(**cell.adapter)),
        BatchShape(
            num_rows=num_rows,
            row_tokens=row_tokens,
            document_tokens=statistics.mean(length for row in cell.lengths for length in row),
            trained_fraction=counted["num_trained"] / (num_rows * (row_tokens - 1)),
            is_packed=cell.layout == "packed",
        ),
        Computing(
            compute_bytes=2 if cell.dtype == "bfloat16" else 4,
            attention=counted["kernel"],
            loss="chunks" if cell.objective == "sft" else "logits",
            is_lean=True,
            is_lean_elementwise=True,
            is_quantized=cell.quantization != "none",
            on_cpu=True,
        ),
        num_recomputed=cell.num_recomputed,
        may_recompute=cell.recompute != "not asked for",
    )


def compare(cell: Cell, counted: Mapping[str, Any]) -> dict[str, Any]:
    """Estimate a cell; errors are shares of what was counted, above 0 where the estimate is too high."""
    estimated = estimate(cell, counted)
    return {
        **{name: getattr(cell, name) for name in cell.__slots__},
        **counted,
        "estimated_saved_bytes": estimated.saved_bytes,
        "saved_error": round(estimated.saved_bytes / counted["saved_bytes"] - 1, 5),
        "estimated_peak_bytes": estimated.peak_bytes,
        "peak_error": round(estimated.peak_bytes / counted["peak_bytes"] - 1, 5),
    }


# ---- the table


def render_table(cells: Sequence[Mapping[str, Any]], others: Sequence[Mapping[str, Any]], machine: str) -> str:
    """Render the errors by the value of each column, medians and worst of their sizes."""
    lines = [
        "# plan_error",
        "",
        f"Activation bytes of `finetune.budget` against what a micro-batch held, {len(cells)} cells on {machine}.  ",
        "Saved: storages that autograd keeps when the backward pass begins. Peak: the fullest moment of both, by",
        "the allocator. Errors are shares of what was counted: their sizes' median, and the one of the largest size.",
        "",
        "| column | value | cells | saved, median | saved, worst | peak, median | peak, worst |",
        "| --- | --- | ---: | ---: | ---: | ---: | ---: |",
        _render_row("all", "", cells),
    ]
    for column, values in _SHOWN.items():
        for value in dict.fromkeys(values):
            found = [cell for cell in cells if cell[column] == value]
            if found:
                lines.append(_render_row(column, str(value), found))
    lines += [
        "",
        "Further methods and a mixture of experts in one cell each; most have no rule and are estimated by LoRA's:",
        "",
        "| method | saved | peak |",
        "| --- | ---: | ---: |",
        *(f"| {_name_other(one)} | {one['saved_error']:+.1%} | {one['peak_error']:+.1%} |" for one in others),
        "",
    ]
    return "\n".join(lines)


def _name_other(one: Mapping[str, Any]) -> str:
    return f"{one['method']}, {one['model']}" if one["model"] == EXPERTS else str(one["method"])


def _render_row(column: str, value: str, cells: Sequence[Mapping[str, Any]]) -> str:
    figures = []
    for name in ("saved_error", "peak_error"):
        errors = [float(cell[name]) for cell in cells]
        figures += [f"{statistics.median(map(abs, errors)):.2%}", f"{max(errors, key=abs):+.2%}"]
    return f"| {column} | {value} | {len(cells)} | {' | '.join(figures)} |"


def summarize(cells: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """Summarize the sizes of the errors."""
    summary: dict[str, float] = {}
    for name in ("saved_error", "peak_error"):
        sizes = [abs(float(cell[name])) for cell in cells]
        summary |= {f"median_{name}": round(statistics.median(sizes), 5), f"worst_{name}": max(sizes)}
    return summary


def read_counts(path: Path) -> dict[Cell, dict[str, Any]]:
    """Read what a result counted, by cell."""
    result = json.loads(path.read_text(encoding="utf-8"))
    return {
        Cell(**{name: one[name] for name in Cell.__slots__}): {name: one[name] for name in _COUNTED}
        for one in (*result["cells"], *result["further_methods"])
    }


def main() -> None:
    """Count and estimate every cell, and write the results of this machine."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cells", type=int, default=_NUM_CELLS)
    parser.add_argument("--counted", type=Path, help="a result: estimate its cells anew instead of counting")
    given = parser.parse_args()
    datasets.disable_progress_bars()
    counts = {} if given.counted is None else read_counts(given.counted)
    cells, others = list(counts) or [], []
    if not counts:
        cells = [*draw_cells(given.cells), *list_kernels(), *list_trained_modules(), *list_wide()]
        others = list(list_others())
    compared = []
    for cell in cells + others:
        compared.append(compare(cell, counts.get(cell) or count(cell)))
        print(f"{compared[-1]['saved_error']:+8.2%} saved {compared[-1]['peak_error']:+8.2%} peak  {cell}", flush=True)
    unruled = [one for one in compared if one["method"] in OTHERS or one["model"] == EXPERTS]
    ruled = [one for one in compared if one not in unruled]
    path = write_result("plan_error", {**summarize(ruled), "cells": ruled, "further_methods": unruled})
    machine = json.loads(path.read_text(encoding="utf-8"))["machine"]
    path.with_suffix(".md").write_text(render_table(ruled, unruled, machine), encoding="utf-8")


if __name__ == "__main__":
    main()
