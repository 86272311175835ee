"""The bases of the speed benchmark as folders: those that are there, and random ones of a true shape, saved once.

In go a shape and the folder to save into; out comes the folder that ours and every rival load.
"""

import hashlib
import json
import multiprocessing
import shutil
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

from benchmarks.backends import save_random_base
from benchmarks.recording import ROOT
from benchmarks.speed_grid import Shape, find_base, is_drawn

__all__ = ["TINY_TOKENIZER", "prepare_base", "read_config"]

TINY_TOKENIZER = ROOT / "data" / "tiny_base"  # of the shapes whose weights are drawn


def prepare_base(shape: Shape, *, data_dir: Path, bases_dir: Path, device: str) -> Path | None:
    """Find a shape's base, or draw and save it; None where it is neither here nor to be drawn."""
    found = find_base(shape, data_dir, ROOT)
    if found is not None or not is_drawn(shape, ROOT):
        return found
    recipe = ROOT / "benchmarks" / "recipes" / f"{shape.base}.yaml"
    mark = hashlib.sha256(recipe.read_bytes()).hexdigest()[:8]
    folder = bases_dir / f"{shape.base}_{shape.saved_as}_{mark}"
    if (folder / "whole").exists():
        return folder
    shutil.rmtree(folder, ignore_errors=True)
    folder.parent.mkdir(parents=True, exist_ok=True)
    save = save_quantized_base if shape.saved_as == "nf4" else save_random_base
    # In a process of its own: what it takes of the GPU's memory is free again behind it.
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        pool.submit(save, f"benchmarks/recipes/{shape.base}.yaml", folder, device).result()
    (folder / "whole").touch()
    return folder


def save_quantized_base(recipe: str, base_dir: Path, device: str) -> None:
    """Draw a recipe's base of random weights in NF4 and save it so: a quarter of the disk, and as quickly loaded."""
    from finetune.model.base import load_base
    from finetune.recipe.reading import read_recipe

    settings = read_recipe(ROOT / recipe, (f"model.device={device}",)).model
    load_base(settings).model.save_pretrained(base_dir)


def read_config(base: Path) -> dict[str, Any]:
    """Read a base's config.json."""
    config: dict[str, Any] = json.loads((base / "config.json").read_text(encoding="utf-8"))
    return config
