"""Ours beside plain TRL and Unsloth: a grid of shapes, rows and objectives, each idea of ours on and off.

    python -m benchmarks.speed [--minutes N] [--seeds N] [--device cpu|cuda] [--groups NAME …] [--shapes NAME …]

Groups: `targets` (short rows, ours, TRL in three settings, Unsloth in two), `ideas` (ours with one idea off at a
time), `dpo`, `full` (rows of 2k and 8k tokens). A round measures each contender of a line once, with the round's seed;
every second round goes through them backwards. What is measured is kept in outputs/bench and gone on with by the next
call on the same code and machine. Writes `results/speed_<machine>.json` and `.md`; with `--steps`, a trial, it prints
them only.
"""

import argparse
import json
import shutil
import signal
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from statistics import median
from typing import Any

from benchmarks.recording import DATA_DIR, ROOT, write_result
from benchmarks.speed_bases import TINY_TOKENIZER, prepare_base, read_config
from benchmarks.speed_grid import CPU_SHAPES, CUDA_SHAPES, GROUPS, Contender, Line, build_lines, find_missing
from benchmarks.speed_measuring import OutOfTime, Place, find_adapter, measure, run_part
from benchmarks.speed_rows import RowSet, write_rows
from benchmarks.speed_store import Store, find_store_path, name_machine, read_tree
from benchmarks.speed_table import render_page, sum_up

BENCH_DIR = ROOT / "outputs" / "bench"
UNSLOTH_PYTHON = ROOT / ".venv-unsloth" / "bin" / "python"
PEAK = "matmul peak"


def read_arguments() -> argparse.Namespace:
    """Read the command line."""
    description = (__doc__ or "").split("\n")[0]
    parser = argparse.ArgumentParser(prog="python -m benchmarks.speed", description=description)
    parser.add_argument("--minutes", type=float, default=20.0, help="no measurement goes on beyond them")
    parser.add_argument("--seeds", type=int, default=3, help="rounds of each line, each with a seed of its own")
    parser.add_argument("--steps", type=int, help="steps timed, for a trial whose figures are not written")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--groups", nargs="+", choices=GROUPS, default=list(GROUPS))
    parser.add_argument("--shapes", nargs="+", choices=[shape.name for shape in (*CPU_SHAPES, *CUDA_SHAPES)])
    parser.add_argument("--contenders", nargs="+", help="by their names in the file of results")
    parser.add_argument("--data-dir", type=Path, default=DATA_DIR, help="rows and bases of others")
    parser.add_argument("--unsloth-python", type=Path, default=UNSLOTH_PYTHON, help="an interpreter that has Unsloth")
    parser.add_argument("--threads", type=int, help="of a process; without it: all cores")
    parser.add_argument("--table", action="store_true", help="measure nothing: write what is there")
    return parser.parse_args()


def choose_lines(given: argparse.Namespace) -> list[Line]:
    """Choose the lines that the command line asks for; a trial's steps go into their shapes."""
    shapes = CPU_SHAPES if given.device == "cpu" else CUDA_SHAPES
    if given.shapes:
        shapes = tuple(shape for shape in shapes if shape.name in given.shapes)
    if given.steps is not None:
        shapes = tuple(replace(shape, warmup_steps=2, timed_steps=given.steps, held_out_rows=4) for shape in shapes)
    lines = [line for line in build_lines(shapes, given.device) if line.group in given.groups]
    if given.contenders:
        lines = [
            replace(line, contenders=tuple(one for one in line.contenders if one.name in given.contenders))
            for line in lines
        ]
    return [line for line in lines if line.contenders]


def prepare_line(line: Line, given: argparse.Namespace) -> tuple[Path, RowSet] | None:
    """Find or make a line's base and rows; None where the base is not to be had here."""
    from transformers import AutoTokenizer

    base = prepare_base(line.shape, data_dir=given.data_dir, bases_dir=BENCH_DIR / "bases", device=given.device)
    if base is None:
        print(f"left out: {line.name}: {line.shape.base} is not in {given.data_dir}", flush=True)
        return None
    tokenizer = AutoTokenizer.from_pretrained(base if (base / "tokenizer.json").exists() else TINY_TOKENIZER)
    tokenizer.model_max_length = sys.maxsize  # rows are counted to be left out where they are too long

    def count(texts: Sequence[str]) -> list[int]:
        return [len(ids) + 1 for ids in tokenizer(list(texts))["input_ids"]]  # and the end token

    shape = line.shape
    rows = write_rows(
        BENCH_DIR / "rows" / f"{line.objective}_{line.full_tokens}_{shape.name}_{shape.timed_steps}",
        data_dir=given.data_dir.resolve(),
        objective=line.objective,
        full_tokens=line.full_tokens,
        max_tokens=shape.max_tokens,
        tokens_per_step=shape.tokens_per_step,
        packed_tokens=shape.packed_tokens,
        num_steps=shape.warmup_steps + shape.timed_steps + 1,
        num_held_out=shape.held_out_rows,
        count=count,
    )
    return base, rows


def find_contenders(line: Line, place: Place) -> Iterator[Contender]:
    """Go through a line's contenders that can be measured here; of the others it is said why not."""
    for contender in line.contenders:
        lacks = find_missing(contender)
        if lacks is not None:
            print(f"left out: {line.name}/{contender.name}: this checkout has no {lacks}", flush=True)
        elif contender.kind == "unsloth" and place.python_with_unsloth is None:
            print(f"left out: {line.name}/{contender.name}: no Unsloth; `make test-unsloth` installs it", flush=True)
        else:
            yield contender


def run_round(
    line: Line, contenders: Sequence[Contender], number: int, base: Path, rows: RowSet, place: Place, store: Store
) -> None:
    """Measure what a round of a line lacks, and let the referee compare the adapters."""
    order = contenders if number % 2 == 0 else list(reversed(contenders))
    folder = BENCH_DIR / "runs" / store.path.stem / line.name.replace("/", "_") / f"round_{number}"
    for contender in order:
        if store.find(line.name, contender.name, number) is not None:
            continue
        known = [
            one["process_seconds"]
            for one in store.read()
            if (one["line"], one["contender"]) == (line.name, contender.name)
        ]
        if known and time.monotonic() + max(known) > place.deadline:
            raise OutOfTime
        own = folder / contender.name
        shutil.rmtree(own, ignore_errors=True)
        figures = measure(line, contender, rows, base, place, own, seed=number)
        store.add(line.name, contender.name, number, figures)
        said = figures.get("failed") or f"{figures['tokens_per_second']:,.0f} tokens/s"
        print(
            f"{line.name}, round {number + 1}: {contender.title}: {said} ({figures['process_seconds']} s)", flush=True
        )
    if line.is_refereed:
        referee(line, contenders, number, base, rows, place, store, folder)


def referee(
    line: Line,
    contenders: Sequence[Contender],
    number: int,
    base: Path,
    rows: RowSet,
    place: Place,
    store: Store,
    folder: Path,
) -> None:
    """Measure the held-out losses of a round's adapters that have none yet."""
    found = {contender: store.find(line.name, contender.name, number) for contender in contenders}
    unmeasured = {
        contender: record
        for contender, record in found.items()
        if record
        and "failed" not in record
        and "held_out_loss" not in record
        and find_adapter(contender, folder / contender.name).exists()
    }
    if not unmeasured:
        return
    result = folder / "losses.json"
    tokenizer = base if (base / "tokenizer.json").exists() else TINY_TOKENIZER
    command = [
        sys.executable, "-m", "benchmarks.speed_referee", f"--model={base}", f"--tokenizer={tokenizer}",
        f"--rows={rows.held_out}", f"--result={result}", f"--device={place.device}",
        f"--max-length={line.full_tokens or line.shape.max_tokens}",
        *(f"{contender.name}={find_adapter(contender, folder / contender.name)}" for contender in unmeasured),
    ]  # fmt: skip
    failed = run_part(command, place, folder / "referee")
    if failed is not None:
        print(f"{line.name}, round {number + 1}: the referee came to no result: {failed}", flush=True)
        return
    losses = json.loads(result.read_text(encoding="utf-8"))
    for contender, record in unmeasured.items():
        figures = {name: value for name, value in record.items() if name not in ("line", "contender", "round")}
        store.add(line.name, contender.name, number, {**figures, "held_out_loss": round(losses[contender.name], 5)})


def measure_peak(place: Place, store: Store, number: int) -> None:
    """Measure the machine's matmul peak once a round."""
    if store.find(PEAK, PEAK, number) is not None:
        return
    result = BENCH_DIR / "peak.json"
    failed = run_part(
        [sys.executable, "-m", "benchmarks.speed_peak", f"--device={place.device}", str(result)],
        place,
        BENCH_DIR / "runs" / PEAK,
    )
    if failed is None:
        store.add(PEAK, PEAK, number, json.loads(result.read_text(encoding="utf-8")))


def is_measured(line: Line, contenders: Sequence[Contender], number: int, store: Store) -> bool:
    """Whether a round of a line lacks nothing."""
    records = [store.find(line.name, contender.name, number) for contender in contenders]
    ends = ("failed", "held_out_loss") if line.is_refereed else ("process_seconds",)
    return all(record is not None and any(end in record for end in ends) for record in records)


def measure_lines(given: argparse.Namespace, lines: Sequence[Line], place: Place, store: Store) -> list[dict[str, Any]]:
    """Measure until all is there or the time is over, then sum up what was measured.

    A line is prepared when its turn comes, so that no base is drawn and saved which no time is left to measure.
    """
    chosen = {line.name: list(find_contenders(line, place)) for line in lines}
    prepared: dict[str, tuple[Path, RowSet] | None] = {}

    def prepare(line: Line) -> tuple[Path, RowSet] | None:
        if line.name not in prepared:
            prepared[line.name] = prepare_line(line, given)
        return prepared[line.name]

    if not given.table:
        try:
            for group in dict.fromkeys(line.group for line in lines):
                for number in range(given.seeds):
                    measure_peak(place, store, number)
                    for line in (one for one in lines if one.group == group):
                        if is_measured(line, chosen[line.name], number, store):
                            continue
                        if time.monotonic() > place.deadline:
                            raise OutOfTime
                        if (made := prepare(line)) is not None:
                            run_round(line, chosen[line.name], number, *made, place, store)
        except OutOfTime:
            print(f"\n{given.minutes:g} minutes are over; the same command goes on from here.", flush=True)
    records = store.read()
    peaks = [record["flops_per_second"] for record in records if record["line"] == PEAK]
    peak = median(peaks) if peaks else None
    summed = []
    for line in lines:
        its_own = [record for record in records if record["line"] == line.name]
        if not its_own and line.name not in prepared:
            print(f"not measured yet: {line.name}", flush=True)
        elif (made := prepare(line)) is not None:
            base, rows = made
            summed.append(sum_up(line, its_own, rows.to_json(), read_config(base), peak))
    return summed


def main() -> None:
    """Measure, sum up and write."""
    given = read_arguments()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # ends the process that is measured as well
    deadline = time.monotonic() + 60 * given.minutes
    machine, tree = name_machine(given.device, given.threads), read_tree()
    store = Store(find_store_path(BENCH_DIR, machine, tree, given.steps))
    unsloth = given.unsloth_python if given.unsloth_python.exists() else None
    place = Place(given.device, unsloth, given.threads, deadline)
    lines = measure_lines(given, choose_lines(given), place, store)
    write_tables(given, lines, machine, tree, store)


def write_tables(given: argparse.Namespace, lines: list[dict[str, Any]], machine: str, tree: str, store: Store) -> None:
    """Write the results and the page; a trial's page is printed alone."""
    from finetune.run.environment import read_environment

    environment = read_environment()
    shown = ("torch", "transformers", "trl", "peft", "bitsandbytes", "accelerate")
    peaks = [record["flops_per_second"] for record in store.read() if record["line"] == PEAK]
    about = {
        "machine": machine,
        "packages": {name: environment["packages"][name] for name in shown},
        "tree": tree,
        "commit": (environment["git_commit"] or "none")[:12],
        "matmul_flops_per_second": median(peaks) if peaks else None,
    }
    page = render_page(lines, about)
    print(f"\n{page}")
    if given.steps is not None:
        return
    figures = {"tree": tree, "matmul_flops_per_second": about["matmul_flops_per_second"], "lines": lines}
    path = write_result("speed", {**figures, "measurements": store.read()}, machine=machine)
    path.with_suffix(".md").write_text(page + "\n", encoding="utf-8")
    print(f"written: {path.with_suffix('.md').relative_to(ROOT)}")


if __name__ == "__main__":
    main()
