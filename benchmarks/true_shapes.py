"""Trains the true 7B shapes (random weights, NF4) for 20 steps through the verb, and records speed and memory.

    python -m benchmarks.true_shapes [key=value ...]

Further arguments go to the recipes as overrides. Writes `results/true_shapes_<device>.json`.
"""

import sys
import tempfile
from pathlib import Path
from typing import Any

import torch

from benchmarks.recording import run_recipe, write_result

# Each recipe of benchmarks/recipes with the verb that trains it and the settings it is varied by.
SHAPES: tuple[tuple[str, str, tuple[str, ...]], ...] = (
    ("mistral_7b_shape", "sft", ()),
    ("llama2_7b_shape", "sft", ()),
    ("mistral_7b_dpo_shape", "dpo", ()),
    ("mistral_7b_dpo_shape", "dpo", ("training.precompute_ref_log_probs=true",)),
)
KEPT = (
    "steps",
    "tokens_per_second",
    "peak_memory_bytes",
    "seconds",
    "trainable_parameters",
    "adapter_bytes",
    "train_loss",
)


def measure(shape: str, verb: str, overrides: list[str]) -> dict[str, Any]:
    """Run one shape in a process of its own and return what its summary says."""
    with tempfile.TemporaryDirectory() as folder:
        run = run_recipe(f"benchmarks/recipes/{shape}.yaml", shape, Path(folder), overrides, verb=verb)
    return {"shape": shape, "verb": verb, "overrides": overrides, **{key: run.summary[key] for key in KEPT}}


def main() -> None:
    """Measure every shape and write the results of this machine."""
    if not torch.cuda.is_available():
        raise SystemExit("The true shapes need a CUDA device; this machine has none.")
    device = torch.cuda.get_device_name(0)
    results = [measure(shape, verb, [*settings, *sys.argv[1:]]) for shape, verb, settings in SHAPES]
    for result in results:
        what = " ".join([result["shape"], *result["overrides"]])
        print(
            f"{device}  {what}: {result['tokens_per_second']:.0f} tokens/s, "
            f"{result['peak_memory_bytes'] / 2**30:.1f} GiB at its peak"
        )
    write_result("true_shapes", {"results": results}, machine=device)


if __name__ == "__main__":
    main()
