"""Trains the same recipes through transformers and through Unsloth, in turn, and records how the two compare.

    .venv-unsloth/bin/python -m benchmarks.backends [--rounds N] [--device cpu|cuda] [--python PATH] [key=value ...]

A round runs every backend once, each in a process of its own; every second round goes through them backwards, so that
what a machine does over time falls on both. Ratios are taken within a round. Further arguments go to the recipes as
overrides. Writes `results/backends_<machine>.json`, anew after each round.
"""

import argparse
import contextlib
import importlib.util
import multiprocessing
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field, replace
from itertools import pairwise
from pathlib import Path
from statistics import median
from typing import Any

from benchmarks.recording import DATA_DIR, ROOT, run_recipe, write_result
from finetune.run.metrics import read_metrics

MODEL, DATA = Path("models") / "stories260K", Path("instructions") / "alpaca_cleaned_first5000.json"
KEPT = ("eval_loss_before", "eval_loss", "train_loss", "peak_memory_bytes", "trainable_parameters", "adapter_bytes")
COMPARED = (
    "seconds_per_step",
    "tokens_per_second",
    "peak_memory_bytes",
    "seconds_before_training",
    "peak_memory_bytes_before_training",
)
# Unsloth's own switch: how many decoder layers keep their activations while the others compute them twice.
KEEP_LAYERS = "UNSLOTH_GC_KEEP_LAYERS"
# The speeds asked for are of single steps, and none of them is to hold an evaluation or a checkpoint.
EACH_STEP = ("training.logging_steps=1", "training.eval_steps=null", "training.save_steps=1000")


@dataclass(frozen=True, slots=True)
class Contender:
    """A backend as it is run: `model.backend`, and variables of its process."""

    backend: str
    environment: Mapping[str, str] = field(default_factory=dict)

    @property
    def name(self) -> str:
        """Its name in the table and in the file."""
        return " ".join([self.backend, *(f"{key}={value}" for key, value in self.environment.items())])


PAIR = (Contender("transformers"), Contender("unsloth"))


@dataclass(frozen=True, slots=True)
class Case:
    """What the contenders are given to train.

    Attributes:
        name: of the case.
        recipe: file.
        warmup_steps: first steps that are not timed: memory is claimed and kernels are compiled in them.
        settings: overrides.
        places: overrides that name folders of this machine, which the file of results does not hold.
        contenders: the first is what the others are held against.
    """

    name: str
    recipe: str
    warmup_steps: int
    settings: tuple[str, ...]
    places: tuple[str, ...] = ()
    contenders: tuple[Contender, ...] = PAIR


def build_cpu_cases(folder: Path, data_dir: Path) -> list[Case]:
    """List what a CPU can train in minutes; a base of random weights is saved into the folder."""
    cases = [
        Case("tiny base", "recipes/quickstart.yaml", 5, ("training.max_steps=40", "evaluation.questions=null")),
    ]
    if (data_dir / MODEL).exists() and (data_dir / DATA).exists():
        places = (f"model.model_name_or_path={data_dir / MODEL}", f"data.train.path={data_dir / DATA}")
        settings = ("data.max_length=512", "training.learning_rate=1e-3", "training.max_steps=40")
        cases.append(Case("stories260K, Alpaca", "recipes/mistral_alpaca.yaml", 5, settings, places))
    else:
        print(f"{MODEL} and {DATA} are not in {data_dir}: measured without them.")
    cases.append(_build_shape_case("Mistral of 125M", "mistral_125m_shape", 2, folder, "cpu"))
    return cases


def build_gpu_cases(folder: Path) -> list[Case]:
    """List Mistral-7B's true shape with and without gradient checkpointing, packed rows of 2 x 2048 tokens."""
    case = _build_shape_case("Mistral-7B", "mistral_7b_shape", 5, folder, "cuda")
    without = (*case.settings, "training.gradient_checkpointing=false")
    return [
        replace(case, contenders=(*PAIR, Contender("unsloth", {KEEP_LAYERS: "max"}))),
        replace(case, name="Mistral-7B, no gradient checkpointing", settings=without),
    ]


def _build_shape_case(name: str, shape: str, warmup_steps: int, folder: Path, device: str) -> Case:
    """Save a shape's random weights, which Unsloth wants from files, and name them as the base."""
    recipe = f"benchmarks/recipes/{shape}.yaml"
    # In a process of its own: what it takes of the GPU's memory is free again behind it.
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        pool.submit(save_random_base, recipe, folder / shape, device).result()
    # Held-out rows one by one: their logits are not to be what takes the most memory.
    evaluation = ("data.eval.fraction=0.05", "training.per_device_eval_batch_size=1")
    settings = ("model.weights=pretrained", "model.config=null", *evaluation)
    return Case(name, recipe, warmup_steps, settings, (f"model.model_name_or_path={folder / shape}",))


def save_random_base(recipe: str, base_dir: Path, device: str) -> None:
    """Draw a recipe's base of random weights in bfloat16 and save it, if the disk has room."""
    from finetune.model.base import load_base
    from finetune.recipe.reading import read_recipe

    held = ("model.quantization=none", "model.compute_dtype=bfloat16", f"model.device={device}")
    model = load_base(read_recipe(ROOT / recipe, held).model).model
    needed_bytes = int(1.1 * sum(weight.nbytes for weight in model.parameters()))  # runs save adapters beside it
    free_bytes = shutil.disk_usage(base_dir.parent).free
    if free_bytes < needed_bytes:
        raise SystemExit(
            f"{base_dir.parent} has {free_bytes / 2**30:.1f} GiB free, and the base takes {needed_bytes / 2**30:.1f}.\n"
            "  Name a folder on a larger disk: TMPDIR=FOLDER python -m benchmarks.backends"
        )
    model.save_pretrained(base_dir)


def run_round(case: Case, number: int, folder: Path, overrides: list[str]) -> dict[str, Any]:
    """Run each contender once, every second round backwards, and hold each against the first of the case."""
    order = list(case.contenders) if number % 2 == 0 else list(reversed(case.contenders))
    runs = {contender.name: measure(case, contender, folder, overrides) for contender in order}
    baseline, *others = (runs[contender.name] for contender in case.contenders)
    names = [contender.name for contender in case.contenders[1:]]
    both_ran = [(name, run) for name, run in zip(names, others, strict=True) if "lines" in run and "lines" in baseline]
    ratios = {name: compare(run, baseline) for name, run in both_ran}
    kept = {name: {key: value for key, value in run.items() if key != "lines"} for name, run in runs.items()}
    return {"order": [contender.name for contender in order], "runs": kept, "against_transformers": ratios}


def measure(case: Case, contender: Contender, folder: Path, overrides: list[str]) -> dict[str, Any]:
    """Run a contender in a process of its own; in place of figures its exit code where it failed."""
    with tempfile.TemporaryDirectory(dir=folder) as place:
        settings = [*EACH_STEP, *case.settings, *case.places, f"model.backend={contender.backend}", *overrides]
        # A cache of its own: no run finds the tokens that another one has made.
        with _with_environment({**contender.environment, "HF_DATASETS_CACHE": f"{place}/cache"}):
            try:
                run = run_recipe(case.recipe, "run", Path(place), settings)
            except subprocess.CalledProcessError as error:
                return {"exit_code": error.returncode}
        start, *lines = read_metrics(Path(place) / "run" / "metrics.jsonl")
    timed = lines[case.warmup_steps - 1 :]
    seconds = [line["seconds"] - before["seconds"] for before, line in pairwise(timed)]
    return {
        "steps_timed": len(seconds),
        "seconds_per_step": round(median(seconds), 4),
        "tokens_per_second": round((timed[-1]["tokens"] - timed[0]["tokens"]) / sum(seconds), 1),
        # The held-out rows before training: their time, and what memory they and the loading took.
        "seconds_before_training": start["seconds"],
        "peak_memory_bytes_before_training": start["peak_memory_bytes"],
        **{key: run.summary[key] for key in KEPT},
        "process_seconds": run.process_seconds,
        "lines": lines,
    }


def compare(run: dict[str, Any], baseline: dict[str, Any]) -> dict[str, Any]:
    """Hold a run against another one on the same rows: ratios, and how far their losses lie apart."""
    pairs = list(zip(run["lines"], baseline["lines"], strict=True))
    return {
        **{f"{name}_ratio": round(run[name] / baseline[name], 4) for name in COMPARED},
        "largest_loss_difference": max(abs(one["loss"] - other["loss"]) for one, other in pairs),
        "eval_loss_ratio": round(run["eval_loss"] / baseline["eval_loss"], 6),
        "same_tokens_each_step": all(one["tokens"] == other["tokens"] for one, other in pairs),
    }


def sum_up(rounds: list[dict[str, Any]], case: Case) -> dict[str, Any]:
    """Take the median of every figure over the rounds, and of every ratio the range as well."""
    summary: dict[str, Any] = {}
    for name in (contender.name for contender in case.contenders):
        runs = [one["runs"][name] for one in rounds if "exit_code" not in one["runs"][name]]
        if not runs:
            continue
        summary[name] = {key: median(run[key] for run in runs) for key in (*COMPARED, "eval_loss", "process_seconds")}
        compared = [one["against_transformers"][name] for one in rounds if name in one["against_transformers"]]
        for key in (f"{figure}_ratio" for figure in COMPARED) if compared else ():
            values = [one[key] for one in compared]
            summary[name][key] = {"median": round(median(values), 4), "min": min(values), "max": max(values)}
        if compared:
            summary[name]["largest_loss_difference"] = max(one["largest_loss_difference"] for one in compared)
    return summary


def render_table(cases: list[dict[str, Any]]) -> str:
    """Lay the medians out, a line for each backend of a case; behind them the ratios with their range."""
    header = f"{'s/step':>9}{'tokens/s':>10}{'peak MiB':>10}{'held out':>10}"
    lines = [f"{'':<36}{header}  {'time':>18}  {'memory':>18}  {'losses apart':>12}"]
    for case in cases:
        lines.append(case["case"])
        for name in case["contenders"]:
            figures = case["over_rounds"].get(name)
            if figures is None:
                lines.append(f"  {name:<34}{'no run came to its end':>28}")
                continue
            line = (
                f"  {name:<34}{figures['seconds_per_step']:>9.3f}{figures['tokens_per_second']:>10.0f}"
                f"{figures['peak_memory_bytes'] / 2**20:>10.0f}{figures['eval_loss']:>10.4f}"
            )
            if "largest_loss_difference" in figures:
                time, memory = (_to_range(figures[f"{key}_ratio"]) for key in (COMPARED[0], COMPARED[2]))
                line += f"  {time:>18}  {memory:>18}  {figures['largest_loss_difference']:>12.1e}"
            lines.append(line)
    return "\n".join(lines)


def _to_range(ratio: dict[str, float]) -> str:
    return f"{ratio['median']:.3f} ({ratio['min']:.2f}-{ratio['max']:.2f})"


@contextlib.contextmanager
def _with_environment(variables: Mapping[str, str]) -> Iterator[None]:
    before = dict(os.environ)
    os.environ.update(variables)
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(before)


def read_arguments() -> argparse.Namespace:
    """Read the command line; where another interpreter is named, start over in that one."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.backends", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--rounds", type=int, default=3, help="runs of each backend in each case")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--python", help="an interpreter that has Unsloth; without it: the one this is run by")
    parser.add_argument("--data-dir", type=Path, default=DATA_DIR, help=f"holds {MODEL}")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="settings of every recipe")
    arguments = parser.parse_args()
    if arguments.python:
        same = [f"--rounds={arguments.rounds}", f"--device={arguments.device}", f"--data-dir={arguments.data_dir}"]
        command = [arguments.python, "-m", "benchmarks.backends", *same, *arguments.overrides]
        os.execv(arguments.python, command)
    if importlib.util.find_spec("unsloth") is None:
        raise SystemExit(
            f"{sys.executable} has no Unsloth.\n  make test-unsloth fills an environment that has: "
            ".venv-unsloth/bin/python -m benchmarks.backends"
        )
    return arguments


def main() -> None:
    """Run the rounds, and write the results of this machine after each."""
    arguments = read_arguments()
    os.environ.pop(KEEP_LAYERS, None)
    machine = None
    if arguments.device == "cuda":
        import torch

        machine = torch.cuda.get_device_name(0)
    else:
        os.environ.setdefault("OMP_NUM_THREADS", "1")  # as `make quickstart` has it
    overrides = [f"model.device={arguments.device}", *arguments.overrides]
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        data_dir = arguments.data_dir.resolve()
        cases = build_cpu_cases(folder, data_dir) if arguments.device == "cpu" else build_gpu_cases(folder)
        rounds: list[list[dict[str, Any]]] = [[] for _ in cases]
        for number in range(arguments.rounds):
            for case, done in zip(cases, rounds, strict=True):
                done.append(run_round(case, number, folder, overrides))
            results = [
                {
                    "case": case.name,
                    "recipe": case.recipe,
                    "settings": [*EACH_STEP, *case.settings],
                    "warmup_steps": case.warmup_steps,
                    "contenders": [contender.name for contender in case.contenders],
                    "over_rounds": sum_up(done, case),
                    "rounds": done,
                }
                for case, done in zip(cases, rounds, strict=True)
            ]
            print(f"\n{render_table(results)}")
            threads = os.environ.get("OMP_NUM_THREADS")
            figures = {"overrides": overrides, "threads": threads, "num_rounds": number + 1, "cases": results}
            write_result("backends", figures, machine=machine)


if __name__ == "__main__":
    main()
