"""Trains the true 7B shapes (random weights, NF4) for 20 steps through the verb, and records speed and memory.

    python benchmarks/true_shapes.py [key=value ...]

Further arguments go to the recipes as overrides. Writes `results/true_shapes_<device>.json`.
"""

import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch

HERE = Path(__file__).parent
SHAPES = ("mistral_7b_shape", "llama2_7b_shape")
KEPT = (
    "steps",
    "tokens_per_second",
    "peak_memory_bytes",
    "seconds",
    "trainable_parameters",
    "adapter_bytes",
    "train_loss",
)


def measure(shape: str, overrides: list[str]) -> dict[str, Any]:
    """Run one shape in a process of its own and return what its summary says."""
    with tempfile.TemporaryDirectory() as folder:
        recipe = HERE / "recipes" / f"{shape}.yaml"
        command = [sys.executable, "-m", "finetune.sft", str(recipe), f"output_dir={folder}", *overrides]
        subprocess.run(command, check=True, cwd=HERE.parent)
        run = Path(folder) / shape
        summary = json.loads((run / "summary.json").read_text())
        environment = json.loads((run / "environment.json").read_text())
    return {"shape": shape, "overrides": overrides, **{key: summary[key] for key in KEPT}, "environment": environment}


def main() -> None:
    """Measure every shape and write the results of this machine."""
    if not torch.cuda.is_available():
        raise SystemExit("The true shapes need a CUDA device; this machine has none.")
    device = torch.cuda.get_device_name(0)
    results = [measure(shape, sys.argv[1:]) for shape in SHAPES]
    path = HERE / "results" / f"true_shapes_{device.replace(' ', '_').lower()}.json"
    path.write_text(json.dumps({"device": device, "results": results}, indent=2) + "\n")
    for result in results:
        print(
            f"{device}  {result['shape']}: {result['tokens_per_second']:.0f} tokens/s, "
            f"{result['peak_memory_bytes'] / 2**30:.1f} GiB at its peak"
        )


if __name__ == "__main__":
    main()
