"""The fault programme's command: `python -m tests.faults --minutes 40 [--only NAME ...] [--seed N] [--list]`."""

import argparse
import os
from contextlib import nullcontext

from tests.faults.measures import LEAST_SHARES, Rig, find_measures
from tests.faults.programme import run_programme
from tests.faults.ready import keep_ready
from tests.faults.recipes import ROOT
from tests.faults.results import (
    Store,
    find_fuller,
    find_references,
    read_tree,
    sum_up,
    write_page,
    write_results,
)

FOLDER = ROOT / "outputs" / "faults"


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="python -m tests.faults",
        description="Break runs in every way known and count what holds. A second call goes on where the first ended.",
    )
    parser.add_argument("--minutes", type=float, default=40.0, help="wall time of this call (default 40)")
    parser.add_argument("--only", nargs="+", metavar="NAME", default=[], help="these measures alone; --list names all")
    parser.add_argument("--seed", type=int, default=0, help="what all draws come from (default 0)")
    parser.add_argument("--processes", type=int, default=len(os.sched_getaffinity(0)), help="at the same time")
    parser.add_argument("--fresh", action="store_true", help="start an interpreter for every run; three times slower")
    parser.add_argument("--list", action="store_true", help="name the measures and how far they are, run nothing")
    parser.add_argument("--publish", action="store_true", help="replace a published table that has more cases, too")
    options = parser.parse_args()

    measures = find_measures()
    unknown = [name for name in options.only if name not in measures]
    if unknown:
        parser.error(f"no measure is named {', '.join(unknown)}; there are {', '.join(measures)}")
    tree = read_tree()
    store = Store(FOLDER / f"{tree.name}.jsonl")
    if options.list:
        for name, one in sum_up(store.read(), measures).items():
            count = f"{one['passed']:>6,} of {one['cases']:>6,} passed, target {one['target']:>6,}"
            print(f"{name:<24} {count}  {one['title']}")
        return 0

    os.environ["OMP_NUM_THREADS"] = "1"
    work_dir = FOLDER / tree.name
    work_dir.mkdir(parents=True, exist_ok=True)
    chosen = {name: measure for name, measure in measures.items() if name in options.only or not options.only}
    with nullcontext() if options.fresh else keep_ready() as ready_path:
        rig = Rig(options.seed, work_dir, ready_path)
        broken = run_programme(rig, store, chosen, tree, minutes=options.minutes, processes=options.processes)
    lines = store.read()
    sums = sum_up(lines, measures)
    if not lines:
        print("not published: no case has an outcome yet")
    elif fuller := [] if options.publish else find_fuller(sums):
        print(
            f"not published, the table there has more cases of {', '.join(fuller)}; --publish replaces it all the same"
        )
    else:
        write_page(write_results(sums, lines, tree, find_references(work_dir)))
    failed = [
        name
        for name, one in sums.items()
        if one["baseline_of"] is None
        and (one["passed"] < LEAST_SHARES.get(name, 1.0) * one["cases"] or one["failed_before"])
    ]
    missing = [name for name, one in sums.items() if one["cases"] < one["target"]]
    print(f"fewer passed than must: {', '.join(failed) or 'none'}")
    print(f"below their target, the same command goes on: {', '.join(missing) or 'none'}")
    if broken:
        print(f"could not be run: {', '.join(broken)}")
    return 1 if failed or broken else 0


if __name__ == "__main__":
    raise SystemExit(main())
