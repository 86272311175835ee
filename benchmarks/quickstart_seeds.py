"""Trains the quickstart with three seeds, and once on a base of random weights: what the base's knowledge is worth.

    python -m benchmarks.quickstart_seeds [key=value ...]

The same on a plain laptop's instructions:
    ONEDNN_MAX_CPU_ISA=AVX2 ATEN_CPU_CAPABILITY=avx2 python -m benchmarks.quickstart_seeds

Further arguments go to the recipe as overrides. Writes `results/quickstart_<machine>.json`.
"""

import os
import sys
import tempfile
from pathlib import Path
from typing import Any

from benchmarks.recording import Run, run_recipe, write_result

RECIPE = "recipes/quickstart.yaml"
SEEDS = (1, 2, 3)
# The same shape, tokenizer, adapter and rows; only what the base had learned is missing.
CONTROL = ("model.weights=random", "model.config=data/tiny_base", "model.tokenizer_name_or_path=data/tiny_base")
KEPT = (
    "exact_match_before",
    "exact_match",
    "questions",
    "eval_loss_before",
    "eval_loss",
    "steps",
    "seconds",
    "tokens_per_second",
    "adapter_bytes",
    "peak_memory_bytes",
)


def to_figures(name: str, seed: int, run: Run) -> dict[str, Any]:
    """Take from a run what is compared."""
    kept = {key: run.summary[key] for key in KEPT}
    return {"name": name, "seed": seed, **kept, "process_seconds": run.process_seconds}


def render_table(rows: list[dict[str, Any]]) -> str:
    """Lay the runs out, one a line."""
    lines = [f"{'run':<20}{'before':>8}{'after':>8}{'training':>11}{'in all':>9}{'adapter':>10}"]
    for row in rows:
        lines.append(
            f"{row['name']:<20}{row['exact_match_before']:>8.1%}{row['exact_match']:>8.1%}"
            f"{row['seconds']:>9.0f} s{row['process_seconds']:>7.0f} s{row['adapter_bytes'] / 1e6:>7.2f} MB"
        )
    return "\n".join(lines)


def main() -> None:
    """Train them all, one after the other, and write the results of this machine."""
    overrides = sys.argv[1:]
    os.environ.setdefault("OMP_NUM_THREADS", "1")  # as `make quickstart` has it
    planned = [(f"quickstart_seed_{seed}", seed, ()) for seed in SEEDS] + [("random_base", SEEDS[0], CONTROL)]
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        for name, seed, settings in planned:
            run = run_recipe(RECIPE, name, Path(folder), [f"seed={seed}", *settings, *overrides])
            rows.append(to_figures(name, seed, run))
    print(f"\n{render_table(rows)}")
    write_result(
        "quickstart", {"recipe": RECIPE, "overrides": overrides, "threads": os.environ["OMP_NUM_THREADS"], "runs": rows}
    )


if __name__ == "__main__":
    main()
