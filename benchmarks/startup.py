"""From the command to the first optimizer step: ours and TRL's own command line, in pairs, on the tiny base.

    python -m benchmarks.startup [--pairs N] [--threads N] [--data-dir FOLDER]

Both get the same base folder and the same rows as files, NF4 with LoRA on all linear layers, packed rows of 512 tokens,
no held-out rows, and a cache of datasets that is empty. The clock runs from the start of the process to the moment its
log says that step 1 is done; then it is ended. Every second pair begins with the other one. Cases: the tiny world's
rows, and real Alpaca rows where they are. Writes `results/startup_<machine>.json`.
"""

import argparse
import contextlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from statistics import median
from typing import Any

from benchmarks.recording import DATA_DIR, ROOT, write_result
from benchmarks.speed_rows import ALPACA, to_texts

MODEL = ROOT / "data" / "tiny_base"
TINY_ROWS = ROOT / "data" / "tiny_world" / "train.json"
MAX_TOKENS = 512
POLL_SECONDS = 0.005
MAX_SECONDS = 600.0
TOOLS = ("ours", "trl")


def build_ours(rows_dir: Path, folder: Path) -> list[str]:
    """Build our command."""
    return [
        sys.executable, "-m", "finetune.sft", "benchmarks/recipes/speed_sft.yaml", "name=run", f"output_dir={folder}",
        f"data.train.path={rows_dir / 'alpaca.json'}", f"data.max_length={MAX_TOKENS}", "data.packing=true",
        "training.per_device_train_batch_size=2", "training.max_steps=3", "model.device=cpu",
    ]  # fmt: skip


def build_trl(rows_dir: Path, folder: Path) -> list[str]:
    """Build the command of TRL's own, its defaults but for what ours has too."""
    return [
        str(Path(sys.executable).parent / "trl"), "sft", "--model_name_or_path", str(MODEL),
        "--dataset_name", str(rows_dir / "trl"), "--output_dir", str(folder / "run"), "--dtype", "bfloat16",
        "--load_in_4bit", "--bnb_4bit_quant_type", "nf4", "--use_bnb_nested_quant",
        "--use_peft", "--lora_r", "16", "--lora_alpha", "16", "--lora_dropout", "0",
        "--lora_target_modules", "all-linear",
        "--max_length", str(MAX_TOKENS), "--packing", "--per_device_train_batch_size", "2", "--max_steps", "3",
        "--logging_steps", "1", "--report_to", "none", "--use_cpu", "--disable_tqdm", "true",
    ]  # fmt: skip


def ours_has_stepped(folder: Path) -> bool:
    """Whether metrics.jsonl holds a whole line of step 1."""
    path = folder / "run" / "metrics.jsonl"
    return path.exists() and any('"loss"' in line for line in path.read_text(encoding="utf-8").split("\n")[:-1])


def trl_has_stepped(folder: Path) -> bool:
    """Whether what it says holds a step's loss."""
    return "'loss'" in (folder / "said.txt").read_text(encoding="utf-8", errors="replace")


COMMANDS: Mapping[str, Callable[[Path, Path], list[str]]] = {"ours": build_ours, "trl": build_trl}
HAS_STEPPED: Mapping[str, Callable[[Path], bool]] = {"ours": ours_has_stepped, "trl": trl_has_stepped}


def write_rows(source: Path, folder: Path) -> Path:
    """Write a case's rows as each of the two reads them: Alpaca's columns, and a folder of prompts with completions."""
    rows = [
        {name: row.get(name) or "" for name in ("instruction", "input", "output")}
        for row in json.loads(source.read_text(encoding="utf-8"))
    ]
    rows = [row for row in rows if row["output"].strip()]
    (folder / "trl").mkdir(parents=True)
    (folder / "alpaca.json").write_text(json.dumps(rows), encoding="utf-8")
    with (folder / "trl" / "train.jsonl").open("w", encoding="utf-8") as file:
        for row in rows:
            ((prompt, completion),) = to_texts(row)
            file.write(json.dumps({"prompt": prompt, "completion": completion}) + "\n")
    return folder


def measure(tool: str, rows_dir: Path, threads: int | None) -> float:
    """Measure the seconds to the first step.

    Raises:
        SystemExit: the process ended before it, with the last of what it said.
    """
    held = ("OMP_NUM_THREADS", "MKL_NUM_THREADS")
    environment = {name: value for name, value in os.environ.items() if name not in held}
    environment |= {} if threads is None else dict.fromkeys(held, str(threads))
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        environment |= {"HF_HUB_OFFLINE": "1", "HF_DATASETS_CACHE": f"{folder}/cache", "PYTHONUNBUFFERED": "1"}
        with (folder / "said.txt").open("w", encoding="utf-8") as said:
            start = time.monotonic()
            process = subprocess.Popen(
                COMMANDS[tool](rows_dir, folder), cwd=ROOT, env=environment, stdout=said, stderr=said,
                start_new_session=True,  # TRL's starts the training in a process of its own
            )  # fmt: skip
            try:
                while not HAS_STEPPED[tool](folder):
                    if process.poll() is not None or time.monotonic() > start + MAX_SECONDS:
                        last = (folder / "said.txt").read_text(encoding="utf-8", errors="replace")[-2000:]
                        raise SystemExit(f"{tool} came to no step:\n{last}")
                    time.sleep(POLL_SECONDS)
                seconds = time.monotonic() - start
            finally:
                end_group(process)
    print(f"  {tool:5} {seconds:6.2f} s", flush=True)
    return round(seconds, 3)


def end_group(process: "subprocess.Popen[bytes]") -> None:
    """End a process and those that it started, and wait for it."""
    with contextlib.suppress(ProcessLookupError):  # all have ended
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def sum_up(pairs: Sequence[Mapping[str, float]]) -> dict[str, Any]:
    """Sum a case up: medians, and the ratio of each pair, ours over TRL's."""
    ratios = [pair["ours"] / pair["trl"] for pair in pairs]
    return {
        **{f"{tool}_seconds": round(median(pair[tool] for pair in pairs), 3) for tool in TOOLS},
        **{f"{tool}_range": [min(pair[tool] for pair in pairs), max(pair[tool] for pair in pairs)] for tool in TOOLS},
        "ours_over_trl": {
            "median": round(median(ratios), 3),
            "min": round(min(ratios), 3),
            "max": round(max(ratios), 3),
        },
        "pairs": list(pairs),
    }


def main() -> None:
    """Measure the pairs of every case and write the results of this machine."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.startup", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--pairs", type=int, default=5)
    parser.add_argument("--threads", type=int, help="of a process; without it: all cores")
    parser.add_argument("--data-dir", type=Path, default=DATA_DIR, help=f"may hold {ALPACA}")
    parser.add_argument("--trial", action="store_true", help="print the figures and write none")
    given = parser.parse_args()
    sources = {"the tiny world": TINY_ROWS, "Alpaca": given.data_dir.resolve() / ALPACA}
    results = {}
    with tempfile.TemporaryDirectory() as folder:
        for number_of_case, (case, source) in enumerate(sources.items()):
            if not source.exists():
                print(f"left out: {case}: {source} is not there")
                continue
            print(case, flush=True)
            rows_dir = write_rows(source, Path(folder) / str(number_of_case))
            pairs = []
            for number in range(given.pairs + 1):
                order = TOOLS if number % 2 == 0 else TOOLS[::-1]
                pairs.append({tool: measure(tool, rows_dir, given.threads) for tool in order})
            results[case] = sum_up(pairs[1:])  # the first pair brings files into memory
            print(f"  ours over TRL's: {results[case]['ours_over_trl']}", flush=True)
    if not given.trial:
        write_result("startup", {"max_tokens": MAX_TOKENS, "threads": given.threads, "cases": results})


if __name__ == "__main__":
    main()
