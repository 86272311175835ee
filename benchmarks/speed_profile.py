"""Where the steps of ours and of TRL go: the contenders of the speed benchmark, profiled on a CPU.

    python -m benchmarks.speed_profile [--shape NAME …] [--contender NAME …] [--steps N] [--trial]

Each contender runs as the speed benchmark runs it, in a process of its own, one after the other; behind the warm-up
torch's profiler is on for some steps, which makes them slower. Writes `results/speed_profile_<machine>.json` and `.md`;
with `--trial` it prints the page only.
"""

import argparse
import json
import shutil
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from benchmarks.recording import DATA_DIR, write_result
from benchmarks.speed import BENCH_DIR, prepare_line
from benchmarks.speed_bases import read_config
from benchmarks.speed_grid import CPU_SHAPES, Contender, Line, build_lines
from benchmarks.speed_measuring import Place, build_ours_command, build_rival_command, run_part
from benchmarks.speed_profiled import ELSEWHERE, KINDS
from benchmarks.speed_rows import RowSet
from benchmarks.speed_store import name_machine, read_tree

__all__ = ["render_page", "sum_kinds"]

MAX_SECONDS = 3600.0  # of a contender
NUM_SHOWN = 12  # operations of a contender on the page


def find_lines(shapes: Sequence[str], contenders: Sequence[str], num_steps: int) -> list[tuple[Line, Contender]]:
    """Find the lines of short rows that have these contenders, by shape; Unsloth wants to be imported first."""
    chosen = [replace(shape, timed_steps=num_steps) for shape in CPU_SHAPES if shape.name in shapes]
    found = {
        (line.shape.name, contender.name): (line, contender)
        for line in build_lines(chosen, "cpu")
        for contender in line.contenders
        if line.objective == "sft" and line.full_tokens is None and contender.kind != "unsloth"
    }
    wanted = [(shape, name) for shape in shapes for name in contenders]
    unknown = [one for one in wanted if one not in found]
    if unknown:
        raise SystemExit(f"No line has {', '.join('/'.join(one) for one in unknown)}. There are: "
                         f"{', '.join('/'.join(one) for one in found)}")  # fmt: skip
    return [found[one] for one in wanted]


def profile_contender(line: Line, contender: Contender, base: Path, rows: RowSet, place: Place) -> dict[str, Any]:
    """Profile a contender's steps in a process of its own; `failed` with the reason where it comes to no result."""
    folder = BENCH_DIR / "profiles" / line.shape.name / contender.name
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    build = build_ours_command if contender.kind == "ours" else build_rival_command
    python, _, module, *arguments = build(line, contender, rows, base, place, folder, seed=0)
    result = folder / "profile.json"
    first, number = line.shape.warmup_steps + 1, line.shape.timed_steps
    inside = [str(result), str(first), str(number), str(read_config(base)["vocab_size"])]
    failed = run_part([python, "-m", "benchmarks.speed_profiled", *inside, module, *arguments], place, folder)
    about = {"shape": line.shape.title, "contender": contender.name, "title": contender.title}
    if failed is not None:
        return {**about, "failed": failed}
    found = json.loads(result.read_text(encoding="utf-8"))
    return {**about, **found, "kinds": sum_kinds(found)}


def sum_kinds(found: Mapping[str, Any]) -> dict[str, float]:
    """Sum the seconds of a step up by kind; what no operation took is the rest."""
    sums = dict.fromkeys(KINDS, 0.0)
    for one in found["operations"]:
        sums[one["kind"]] += one["seconds"] / found["steps"]
    sums[ELSEWHERE] = 0.0
    sums[ELSEWHERE] = max(0.0, found["seconds"] / found["steps"] - sum(sums.values()))
    return {kind: round(seconds, 6) for kind, seconds in sums.items()}


def render_page(profiles: Sequence[Mapping[str, Any]], machine: str, tree: str) -> str:
    """Render a table for each shape, and the longest operations of each contender."""
    about = "Milliseconds of a step under torch's profiler, which slows it down, and their share."
    parts = ["# Where a step goes", "", f"Machine: {machine}. Code `{tree}`. {about}"]
    for shape in dict.fromkeys(one["shape"] for one in profiles):
        held = [one for one in profiles if one["shape"] == shape]
        good = [one for one in held if "failed" not in one]
        parts += ["", f"## {shape}", "", *(f"{one['title']}: {one['failed']}" for one in held if "failed" in one)]
        if not good:
            continue
        parts += [f"| | {' | '.join(one['title'] for one in good)} |", "|---" * (len(good) + 1) + "|"]
        for kind in KINDS:
            cells = [_render_share(one["kinds"][kind], one["seconds"] / one["steps"]) for one in good]
            parts.append(f"| {kind} | {' | '.join(cells)} |")
        whole = [f"{1000 * one['seconds'] / one['steps']:,.1f}" for one in good]
        parts.append(f"| a step | {' | '.join(whole)} |")
        for one in good:
            parts += [
                "",
                f"{one['title']}, its longest operations:",
                "",
                "| | kind | calls a step | |",
                "|---|---|---|---|",
            ]
            for operation in one["operations"][:NUM_SHOWN]:
                share = _render_share(operation["seconds"] / one["steps"], one["seconds"] / one["steps"])
                calls = operation["calls"] / one["steps"]
                parts.append(f"| `{operation['name']}` | {operation['kind']} | {calls:,.0f} | {share} |")
    return "\n".join(parts)


def _render_share(seconds: float, whole_seconds: float) -> str:
    return f"{1000 * seconds:,.1f} ({seconds / whole_seconds:.0%})"


def main() -> None:
    """Profile, sum up and write."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.speed_profile")
    parser.add_argument("--shape", nargs="+", choices=[shape.name for shape in CPU_SHAPES], default=["tiny_base"])
    parser.add_argument("--contender", nargs="+", default=["ours", "trl_packed_kept"], help="by name, of the targets "
                        "or the ideas")  # fmt: skip
    parser.add_argument("--steps", type=int, default=5, help="profiled, behind the warm-up")
    parser.add_argument("--data-dir", type=Path, default=DATA_DIR)
    parser.add_argument("--threads", type=int, help="of a process; without it: all cores")
    parser.add_argument("--trial", action="store_true", help="print the page and write nothing")
    parser.set_defaults(device="cpu")
    given = parser.parse_args()
    machine, tree = name_machine(given.device, given.threads), read_tree()
    profiles = []
    for line, contender in find_lines(given.shape, given.contender, given.steps):
        prepared = prepare_line(line, given)
        if prepared is not None:
            place = Place(given.device, None, given.threads, time.monotonic() + MAX_SECONDS)
            profiles.append(profile_contender(line, contender, *prepared, place))
    page = render_page(profiles, machine, tree)
    print(f"\n{page}")
    if not given.trial:
        path = write_result("speed_profile", {"tree": tree, "profiles": profiles}, machine=machine)
        path.with_suffix(".md").write_text(page + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
