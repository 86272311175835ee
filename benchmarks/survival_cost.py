"""Measures what checkpoints and the checks for finite numbers cost: training with them and without, in turn.

    python -m benchmarks.survival_cost [--pairs N] [--steps N] [--save-steps N]

One process trains the quickstart's recipe on the tiny base again and again: in one arm as it is, with a checkpoint
every 50 steps; in the other without a checkpoint and without any look at losses and gradients. Every second pair begins
with the other arm, and the first pair only warms up. Timed is the trainer's loop alone, and of it the seconds spent in
saves (files, sync, hashes, record, rotation) and in checks: a small share is lost in the noise of a busy machine.
Writes `results/survival_cost_<machine>.json`.
"""

import argparse
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from statistics import median
from typing import Any
from unittest.mock import patch

from transformers import Trainer
from transformers.trainer_callback import CallbackHandler

from benchmarks.recording import ROOT, write_result
from finetune.objectives.finite import FiniteCheck
from finetune.objectives.trainer import StepMixin
from finetune.recipe.reading import read_recipe
from finetune.recipe.schema import Recipe
from finetune.train import train

RECIPE = ROOT / "recipes" / "quickstart.yaml"


class Stopwatch:
    """Seconds spent in functions, by the name each is counted under."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = defaultdict(float)

    def time(self, name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        """Build the function that is timed."""

        def timed(*args: Any, **kwargs: Any) -> Any:
            start = time.perf_counter()
            try:
                return function(*args, **kwargs)
            finally:
                self.seconds[name] += time.perf_counter() - start

        return timed


@contextmanager
def timing(watch: Stopwatch) -> Iterator[None]:
    """Time the trainer's loop, its saves and its checks."""
    with (
        patch.object(StepMixin, "train", watch.time("loop", StepMixin.train)),
        patch.object(StepMixin, "_save_checkpoint", watch.time("saves", StepMixin._save_checkpoint)),
        patch.object(CallbackHandler, "on_save", watch.time("saves", CallbackHandler.on_save)),
        patch.object(FiniteCheck, "note", watch.time("checks", FiniteCheck.note)),
        patch.object(FiniteCheck, "check", watch.time("checks", FiniteCheck.check)),
    ):
        yield


@contextmanager
def unprotected(watch: Stopwatch) -> Iterator[None]:
    """Time the trainer's loop without a save and without a check."""
    nothing = lambda *args, **kwargs: None  # noqa: E731
    unchanged = lambda handler, args, state, control: control  # noqa: E731
    with (
        patch.object(StepMixin, "train", watch.time("loop", StepMixin.train)),
        patch.object(StepMixin, "_save_checkpoint", nothing),
        patch.object(CallbackHandler, "on_save", unchanged),
        patch.object(FiniteCheck, "note", nothing),
        patch.object(StepMixin, "_get_grad_norm", Trainer._get_grad_norm),
    ):
        yield


def build_recipe(output_dir: str, num_steps: int, save_steps: int) -> Recipe:
    """Build the quickstart's recipe for so many steps, without questions and held-out rows."""
    overrides = (
        f"output_dir={output_dir}", f"training.max_steps={num_steps}", f"training.save_steps={save_steps}",
        "evaluation.questions=null", "evaluation.num_samples=0", "data.eval=null", "training.eval_steps=null",
    )  # fmt: skip
    return read_recipe(RECIPE, overrides)


def run_arm(arm: Callable[[Stopwatch], Any], recipe: Recipe) -> dict[str, float]:
    """Train once and return the seconds by what they were spent on."""
    watch = Stopwatch()
    with arm(watch):
        train(recipe, recipe_text="# survival_cost\n", overwrite=True)
    return {name: round(seconds, 4) for name, seconds in watch.seconds.items()}


def main() -> None:
    """Measure the pairs and write the results of this machine."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", type=int, default=9)
    parser.add_argument("--steps", type=int, default=100)
    parser.add_argument("--save-steps", type=int, default=50)
    given = parser.parse_args()
    pairs: list[dict[str, dict[str, float]]] = []
    with tempfile.TemporaryDirectory() as folder:
        recipe = build_recipe(folder, given.steps, given.save_steps)
        for number in range(given.pairs + 1):
            arms = {"protected": timing, "unprotected": unprotected}
            order = arms if number % 2 else dict(reversed(arms.items()))
            pairs.append({name: run_arm(arm, recipe) for name, arm in order.items()})
    pairs = pairs[1:]
    ratios = [round(pair["protected"]["loop"] / pair["unprotected"]["loop"] - 1, 4) for pair in pairs]
    shares = [
        round((pair["protected"]["saves"] + pair["protected"]["checks"]) / pair["unprotected"]["loop"], 4)
        for pair in pairs
    ]
    saves = given.steps // given.save_steps
    figures = {
        "steps": given.steps,
        "save_steps": given.save_steps,
        "step_seconds": round(median(pair["unprotected"]["loop"] for pair in pairs) / given.steps, 5),
        "save_seconds": round(median(pair["protected"]["saves"] for pair in pairs) / saves, 5),
        "check_seconds_a_step": round(median(pair["protected"]["checks"] for pair in pairs) / given.steps, 7),
        "median_share_of_saves_and_checks": median(shares),
        "median_ratio_of_pairs_less_1": median(ratios),
        "ratios_of_pairs_less_1": ratios,
        "pairs": pairs,
    }
    print({name: value for name, value in figures.items() if name != "pairs"})
    write_result("survival_cost", figures)


if __name__ == "__main__":
    main()
