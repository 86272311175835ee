"""What every benchmark shares: a run of the verb in a process of its own, and a result beside the machine that made it.

In go a recipe with overrides, or figures; out come the run's summary, or a file in `results/`.
"""

import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from finetune.run.environment import read_environment

__all__ = ["DATA_DIR", "ROOT", "Run", "find_emulation", "run_recipe", "write_result"]

ROOT = Path(__file__).resolve().parents[1]
RESULTS_DIR = ROOT / "benchmarks" / "results"
# Models, tokenizers and rows of others, too large for this repository: a folder beside the clone. Its parts are named
# where they are read (`models/stories260K`, `instructions/alpaca_cleaned_first5000.json`); what is absent is left out
# or asked for, and every benchmark that reads it takes another folder on its command line.
DATA_DIR = ROOT.parent / "shared" / "data"
# Hold the libraries to an older processor's instructions: what a plain laptop does, on whatever machine.
_EMULATION = ("ONEDNN_MAX_CPU_ISA", "ATEN_CPU_CAPABILITY")


@dataclass(frozen=True, slots=True)
class Run:
    """A finished run's figures.

    Attributes:
        summary: its summary.json.
        data_report: its data_report.json.
        process_seconds: from the command to its end: imports, tokens and answers as well.
    """

    summary: dict[str, Any]
    data_report: dict[str, Any]
    process_seconds: float


def run_recipe(recipe: str, name: str, output_dir: Path, overrides: Sequence[str] = (), *, verb: str = "sft") -> Run:
    """Train a recipe through its verb, its output shown; the process's failure is ours."""
    command = [sys.executable, "-m", f"finetune.{verb}", recipe, f"name={name}", f"output_dir={output_dir}", *overrides]
    print(f"\n--- {' '.join(['python', *command[1:4], *overrides])}\n", flush=True)
    start = time.monotonic()
    subprocess.run(command, check=True, cwd=ROOT)
    seconds = time.monotonic() - start
    summary, data_report = (
        json.loads((output_dir / name / file).read_text(encoding="utf-8"))
        for file in ("summary.json", "data_report.json")
    )
    return Run(summary, data_report, round(seconds, 1))


def find_emulation() -> dict[str, str]:
    """Find the variables that hold this process to an older processor's instructions; empty: none is set."""
    return {name: os.environ[name] for name in _EMULATION if name in os.environ}


def write_result(script: str, figures: dict[str, Any], *, machine: str | None = None) -> Path:
    """Write `results/SCRIPT_MACHINE.json`, with `_avx2` behind it where that is emulated.

    Args:
        script: name of the benchmark.
        figures: what was measured.
        machine: the device measured, a GPU's name; None: the processor's.
    """
    # The command line holds paths that mean nothing elsewhere.
    environment = {key: value for key, value in read_environment().items() if key != "command"}
    cpu = environment["cpu"]
    device = machine or f"{cpu['model']} {cpu['cores_usable']} cores"
    emulation = find_emulation()
    suffix = f"_{'_'.join(sorted({value.lower() for value in emulation.values()}))}" if emulation else ""
    path = RESULTS_DIR / f"{script}_{_to_slug(device)}{suffix}.json"
    RESULTS_DIR.mkdir(exist_ok=True)
    result = {"machine": device, "emulation": emulation, **figures, "environment": environment}
    path.write_text(json.dumps(result, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    print(f"\nwritten: {path.relative_to(ROOT)}")
    return path


def _to_slug(name: str) -> str:
    """`Intel(R) Xeon(R) @ 2.10GHz` as `intel_xeon_2.10ghz`."""
    plain = re.sub(r"\((r|tm)\)", " ", name.lower())
    return re.sub(r"[^a-z0-9.]+", "_", plain).strip("_")
