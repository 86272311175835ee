"""One measurement of the speed benchmark: a contender trains its rows once, in a process of its own.

In go a line, a contender, the rows and the base; out come its figures, or why there are none. Nothing is kept of a
process that the time limit ends.
"""

import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from statistics import median
from typing import Any

from benchmarks.recording import ROOT
from benchmarks.speed_bases import TINY_TOKENIZER
from benchmarks.speed_grid import Contender, Line
from benchmarks.speed_rows import RowSet

__all__ = ["OutOfTime", "Place", "build_environment", "measure", "read_figures", "run_part"]

_MAX_REASON = 300
_OUT_OF_MEMORY = ("out of memory", "memory is full", "memory ran out")  # torch's words and ours
# Of summary.json; what idle memory was spent on says what the speed is that of.
_KEPT = ("peak_memory_bytes", "memory_spending", "predicted")


class OutOfTime(Exception):
    """The time limit came while a process ran; nothing of it counts."""


@dataclass(frozen=True, slots=True)
class Place:
    """What all measurements of a call have in common.

    Attributes:
        device: cpu or cuda.
        python_with_unsloth: an interpreter; None: Unsloth is left out.
        threads: of a process; None: all cores.
        deadline: by `time.monotonic`, in seconds.
    """

    device: str
    python_with_unsloth: Path | None
    threads: int | None
    deadline: float


def build_environment(place: Place, cache_dir: Path) -> dict[str, str]:
    """Build the variables of a measured process: all cores, offline, quiet, and a cache without rows of others."""
    environment = {
        name: value for name, value in os.environ.items() if name not in ("OMP_NUM_THREADS", "MKL_NUM_THREADS")
    }
    if place.threads is not None:
        environment |= {"OMP_NUM_THREADS": str(place.threads), "MKL_NUM_THREADS": str(place.threads)}
    return environment | {
        "HF_HUB_OFFLINE": "1",
        "HF_DATASETS_CACHE": str(cache_dir),
        "UNSLOTH_COMPILE_LOCATION": str(cache_dir / "unsloth"),  # else into the repository
        "HF_DATASETS_DISABLE_PROGRESS_BARS": "1",
        "TOKENIZERS_PARALLELISM": "false",
    }


def run_part(command: Sequence[str], place: Place, folder: Path) -> str | None:
    """Run a process to its end; what it says goes to `said.txt` in the folder.

    Returns:
        None, or the last line that it said where it failed.

    Raises:
        OutOfTime: the time limit came first; the process is ended.
    """
    folder.mkdir(parents=True, exist_ok=True)
    said = folder / "said.txt"
    with said.open("w", encoding="utf-8") as file:
        process = subprocess.Popen(
            command, cwd=ROOT, env=build_environment(place, folder / "cache"), stdout=file, stderr=subprocess.STDOUT
        )
        try:
            code = process.wait(max(1.0, place.deadline - time.monotonic()))
        except subprocess.TimeoutExpired:
            raise OutOfTime from None
        finally:
            process.kill()
            process.wait()
    if code == 0:
        return None
    lines = [line.strip() for line in said.read_text(encoding="utf-8", errors="replace").splitlines() if line.strip()]
    full = [line for line in lines if any(words in line.lower() for words in _OUT_OF_MEMORY)]
    return (full or lines or [f"exit code {code}"])[-1][:_MAX_REASON]


def measure(
    line: Line, contender: Contender, rows: RowSet, base: Path, place: Place, folder: Path, seed: int
) -> dict[str, Any]:
    """Train the rows with a contender.

    Args:
        line: of the table.
        contender: of the line.
        rows: from `write_rows`.
        base: folder of the base.
        place: of this call.
        folder: of this measurement; the adapter stays in it.
        seed: of the shuffling and of the adapter's start.

    Returns:
        Its figures; `failed` with the reason in their place.

    Raises:
        OutOfTime: the time limit came first.
    """
    build = build_ours_command if contender.kind == "ours" else build_rival_command
    start = time.monotonic()
    failed = run_part(build(line, contender, rows, base, place, folder, seed), place, folder)
    seconds = round(time.monotonic() - start, 1)
    shutil.rmtree(folder / "cache", ignore_errors=True)
    if failed is not None:
        return {"failed": failed, "process_seconds": seconds}
    if contender.kind == "ours":
        summary = json.loads((folder / "run" / "summary.json").read_text(encoding="utf-8"))
        text = (folder / "run" / "metrics.jsonl").read_text(encoding="utf-8")
        lines = [one for one in map(json.loads, text.splitlines()) if "loss" in one]
        further = {name: summary[name] for name in _KEPT if name in summary}
        shutil.rmtree(folder / "run" / "checkpoints", ignore_errors=True)  # the adapter alone is asked for again
    else:
        noted = json.loads((folder / "steps.json").read_text(encoding="utf-8"))
        lines, further = noted["lines"], {"peak_memory_bytes": noted["peak_memory_bytes"]}
    return {**read_figures(lines, rows, line.shape.warmup_steps), **further, "process_seconds": seconds}


def find_adapter(contender: Contender, folder: Path) -> Path:
    """Find where a measurement left its adapter."""
    return folder / "run" / "adapter" if contender.kind == "ours" else folder / "adapter"


def build_ours_command(
    line: Line, contender: Contender, rows: RowSet, base: Path, place: Place, folder: Path, seed: int
) -> list[str]:
    """Build the command of ours: the verb as users type it, behind the ideas that are switched off."""
    sizes = line.to_sizes(rows.sizes)
    tokenizer = [] if (base / "tokenizer.json").exists() else [f"model.tokenizer_name_or_path={TINY_TOKENIZER}"]
    too_long = ["data.too_long=truncate"] if line.full_tokens is not None else []
    return [
        sys.executable, "-m", "benchmarks.speed_ours", *(f"--without={idea}" for idea in contender.without),
        line.objective, f"benchmarks/recipes/speed_{line.objective}.yaml",
        "name=run", f"output_dir={folder}", f"seed={seed}",
        f"model.model_name_or_path={base}", f"model.device={place.device}", *tokenizer,
        f"data.train.path={rows.train}", *too_long,
        f"training.learning_rate={line.learning_rate}",
        *(setting.format(**sizes) for setting in contender.settings),
    ]  # fmt: skip


def build_rival_command(
    line: Line, contender: Contender, rows: RowSet, base: Path, place: Place, folder: Path, seed: int
) -> list[str]:
    """Build the command of a rival's script."""
    sizes = line.to_sizes(rows.sizes)
    python = sys.executable if contender.kind == "trl" else str(place.python_with_unsloth)
    script = "benchmarks.speed_plain_trl" if contender.kind == "trl" else "benchmarks.speed_unsloth"
    tokenizer = base if (base / "tokenizer.json").exists() else TINY_TOKENIZER
    return [
        python, "-m", script, f"--model={base}", f"--tokenizer={tokenizer}", f"--rows={rows.train}",
        f"--output={folder}", f"--device={place.device}", f"--seed={seed}",
        f"--learning-rate={line.learning_rate}",
        *(setting.format(**sizes) for setting in contender.settings),
    ]  # fmt: skip


def read_figures(lines: Sequence[Mapping[str, Any]], rows: RowSet, warmup_steps: int) -> dict[str, Any]:
    """Turn a contender's lines (step, seconds, tokens so far, loss) into its figures.

    Timed are the steps behind the warm-up but for the last one, which need not be full. All contenders train the same
    rows, so their tokens are counted alike: a tool's own count says which share of them a step held.
    """
    timed = lines[warmup_steps - 1 : -1] if len(lines) > warmup_steps + 2 else lines
    seconds = [after["seconds"] - before["seconds"] for before, after in pairwise(timed)]
    all_tokens = lines[-1]["tokens"]
    share = (timed[-1]["tokens"] - timed[0]["tokens"]) / all_tokens
    return {
        "steps": lines[-1]["step"],
        "steps_timed": len(seconds),
        "rows_per_step": round(rows.num_rows / lines[-1]["step"], 2),
        "tokens_per_second": round(share * rows.tokens / sum(seconds), 1),
        "seconds_per_step": round(median(seconds), 4),
        "tokens_counted": all_tokens,
        "tokens_counted_share": round(all_tokens / rows.tokens, 4),
        "first_loss": lines[0]["loss"],
        "last_loss": lines[-1]["loss"],
    }
