"""Trains recipes through one backend in this process, and writes down every batch that reaches a loss.

`python -m tests.unsloth.watched_run BACKEND FOLDER RECIPE.yaml ...`: the backend is started as the command line starts
it, before the libraries that it changes. In FOLDER each recipe leaves its run, `NAME.batches.jsonl` with a line for
each micro-batch, and `NAME.error.txt` where it failed; `process.json` says what the process was.
"""

import hashlib
import json
import logging
import os
import sys
import traceback
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from finetune.model.backends import start_backend
from finetune.recipe.reading import read_recipe


def main(arguments: list[str]) -> None:
    backend, folder, *recipes = arguments
    handlers = len(logging.getLogger().handlers)
    start_backend(backend)
    brought = len(logging.getLogger().handlers) - handlers
    train_each(backend, Path(folder), [Path(recipe) for recipe in recipes])
    to_say = {"handlers_brought": brought, "statistics_switch": os.environ.get("UNSLOTH_DISABLE_STATISTICS")}
    write_process(Path(folder), to_say)


def train_each(backend: str, folder: Path, recipes: list[Path]) -> None:
    """Train each recipe and go on after one that fails; the backend has been started."""
    from finetune.train import train

    for path in recipes:
        try:
            # Unsloth attends by it on a CPU; by `documents` packed rows would lie behind each other.
            kernel = ["model.attention=sdpa"] if backend == "transformers" else []
            recipe = read_recipe(path, [f"model.backend={backend}", f"output_dir={folder}", *kernel])
            with watching(folder / f"{path.stem}.batches.jsonl"):
                train(recipe, recipe_text=path.read_text(encoding="utf-8"))
        except Exception:
            (folder / f"{path.stem}.error.txt").write_text(traceback.format_exc(), encoding="utf-8")


@contextmanager
def watching(path: Path) -> Iterator[None]:
    """Write a line for every micro-batch that a trainer is about to take the loss of, to train on it or to evaluate."""
    from finetune.objectives.trainer import StepMixin

    compute_loss, prediction_step = StepMixin.compute_loss, StepMixin.prediction_step
    with path.open("w", encoding="utf-8") as lines:

        def note(where: str, inputs: dict[str, Any]) -> None:
            lines.write(json.dumps({"in": where, **describe(inputs)}) + "\n")

        def watched_loss(self: Any, model: Any, inputs: dict[str, Any], *args: Any, **kwargs: Any) -> Any:
            if self.model.training:
                note("training", inputs)
            return compute_loss(self, model, inputs, *args, **kwargs)

        def watched_prediction(self: Any, model: Any, inputs: dict[str, Any], *args: Any, **kwargs: Any) -> Any:
            note("evaluation", inputs)  # ORPO evaluates past `compute_loss`
            return prediction_step(self, model, inputs, *args, **kwargs)

        StepMixin.compute_loss, StepMixin.prediction_step = watched_loss, watched_prediction
        try:
            yield
        finally:
            StepMixin.compute_loss, StepMixin.prediction_step = compute_loss, prediction_step


def describe(inputs: Mapping[str, Any]) -> dict[str, Any]:
    """Name a batch's whole-number tensors (ids, labels, masks, positions) and hash names, shapes and numbers."""
    import torch

    digest = hashlib.sha256()
    shapes = {}
    for name, value in sorted(inputs.items()):
        if isinstance(value, torch.Tensor) and not value.is_floating_point():
            shapes[name] = list(value.shape)
            digest.update(f"{name} {value.dtype} {shapes[name]}".encode())
            digest.update(value.cpu().contiguous().numpy().tobytes())
    return {"shapes": shapes, "sha256": digest.hexdigest()}


def write_process(folder: Path, said: dict[str, Any]) -> None:
    """Write what the process was: whose trainer it used, and whether Unsloth was in it."""
    import trl

    found = {"unsloth": "unsloth" in sys.modules, "trainer": trl.SFTTrainer.__module__}
    (folder / "process.json").write_text(json.dumps(found | said), encoding="utf-8")


if __name__ == "__main__":
    main(sys.argv[1:])
