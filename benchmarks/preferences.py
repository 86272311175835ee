"""Trains the quickstart, then each of the six recipes on preferences and rewards, and records what each came to.

    python -m benchmarks.preferences [key=value ...]

Further arguments go to every recipe as overrides. Writes `results/preferences_<machine>.json`.
"""

import os
import sys
import tempfile
from pathlib import Path
from typing import Any

from benchmarks.recording import Run, run_recipe, write_result

VERBS = ("dpo", "kto", "orpo", "reward", "grpo", "rloo")
FIGURES = ("exact_match", "preference_accuracy", "preference_margin", "eval_reward", "answer_tokens")
KEPT = ("preference_accuracy_base", "steps", "seconds", "tokens_per_second", "adapter_bytes", "peak_memory_bytes")


def to_figures(verb: str, run: Run) -> dict[str, Any]:
    """Take from a run what it has of the figures, each before and after."""
    names = [name for figure in FIGURES for name in (f"{figure}_before", figure)]
    kept = {name: run.summary[name] for name in (*names, *KEPT) if name in run.summary}
    return {"verb": verb, **kept, "process_seconds": run.process_seconds}


def render_table(rows: list[dict[str, Any]]) -> str:
    """Lay the runs out, one a line."""
    lines = [f"{'verb':<8}{'exact match':>20}{'pairs right':>20}{'reward':>18}{'training':>11}{'in all':>9}"]
    for row in rows:
        changes = [_to_change(row, name, pattern) for name, pattern in (
            ("exact_match", "{:.1%}"), ("preference_accuracy", "{:.1%}"), ("eval_reward", "{:.3f}"),
        )]  # fmt: skip
        lines.append(
            f"{row['verb']:<8}{changes[0]:>20}{changes[1]:>20}{changes[2]:>18}"
            f"{row['seconds']:>9.0f} s{row['process_seconds']:>7.0f} s"
        )
    return "\n".join(lines)


def _to_change(row: dict[str, Any], name: str, pattern: str) -> str:
    if name not in row:
        return "-"
    return f"{pattern.format(row[f'{name}_before'])} -> {pattern.format(row[name])}"


def main() -> None:
    """Train them all, one after the other, and write the results of this machine."""
    overrides = sys.argv[1:]
    os.environ.setdefault("OMP_NUM_THREADS", "1")  # as `make quickstart` has it
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        os.environ["HF_DATASETS_CACHE"] = f"{folder}/cache"  # so that no reference is there from an earlier run
        runs = Path(folder) / "runs"
        start = run_recipe("recipes/quickstart.yaml", "quickstart", runs, overrides)
        for verb in VERBS:
            settings = [f"adapter.init_from={runs / 'quickstart'}"] if verb in ("dpo", "kto", "orpo") else []
            name = f"quickstart_{verb}"
            run = run_recipe(f"recipes/{name}.yaml", name, runs, [*settings, *overrides], verb=verb)
            rows.append(to_figures(verb, run))
    print(f"\n{render_table(rows)}")
    write_result(
        "preferences",
        {
            "overrides": overrides,
            "threads": os.environ["OMP_NUM_THREADS"],
            "quickstart": to_figures("sft", start),
            "runs": rows,
        },
    )


if __name__ == "__main__":
    main()
