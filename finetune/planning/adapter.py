"""What a recipe trains, found without torch: by its own section, or by the adapter that it goes on with.

In go a recipe, its path and the base's shape; out comes an `AdapterShape`, whether a frozen copy lies beside it, and in
words where that is from. An adapter's file is read by its header alone.
"""

import contextlib
import json
import math
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from finetune.budget.adapter import AdapterShape, build_adapter
from finetune.budget.adapter_tensors import AdapterTensor
from finetune.budget.shapes import Architecture
from finetune.errors import RecipeError
from finetune.planning.base import find_cached_file
from finetune.planning.schedule import find_setting
from finetune.recipe.places import expand, is_here
from finetune.recipe.reading import read_recipe
from finetune.recipe.row_kinds import SAMPLED
from finetune.recipe.schema import AdapterSettings, Recipe

__all__ = ["FoundAdapter", "estimate_file_bytes", "find_adapter"]

_NOTED = "finetune_base"  # `model.same_base` writes it
_MAX_HEADER_BYTES = 100_000_000  # safetensors takes no longer one
_CONFIG, _WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
# What is taken for an adapter that is not there yet and that no recipe beside this one makes.
_STAND_IN = {"method": "lora", "r": 16}
# Objectives that compare with the model as it was when training began unless that is computed once before; those that
# sample do where their `beta` asks for it.
_COMPARES = frozenset({"dpo", "kto"})


@dataclass(frozen=True, slots=True)
class FoundAdapter:
    """What is trained.

    Attributes:
        shape: its numbers.
        has_copy: whether a frozen copy of it lies beside, the reference of a run that goes on with it.
        note: what the shape stands on where it is not the recipe's own section; None: it is.
    """

    shape: AdapterShape
    has_copy: bool = False
    note: str | None = None


def find_adapter(recipe: Recipe, architecture: Architecture, recipe_path: Path | None) -> FoundAdapter:
    """Find what a recipe trains.

    Args:
        recipe: the run.
        architecture: of its base.
        recipe_path: where it was read from: a recipe beside it may make the adapter that it goes on with.

    Raises:
        RecipeError: no layer of a name that the recipe gives.
    """
    start = recipe.adapter.init_from
    if start is None:
        return FoundAdapter(build_adapter(architecture, recipe.adapter))
    has_copy = _reads_start(recipe)
    folder = _find_folder(start)
    settings = None if folder is None else _read_settings(folder)
    if folder is not None and settings is not None:
        shape = build_adapter(architecture, settings)
        if not shape.is_exact and (folder / _WEIGHTS).is_file():
            shape = _count_file(folder / _WEIGHTS, shape)
        return FoundAdapter(shape, has_copy, f"the adapter in {folder}")
    maker = _find_maker(start, recipe_path)
    if maker is not None:
        path, settings = maker
        return FoundAdapter(
            build_adapter(architecture, settings), has_copy, f"{start} is not there yet: as {path} will make it"
        )
    settings = AdapterSettings.model_validate(_STAND_IN)
    note = f"{start} is not there yet: taken as LoRA with r=16 on all linear layers"
    return FoundAdapter(build_adapter(architecture, settings), has_copy, note)


def estimate_file_bytes(tensors: tuple[AdapterTensor, ...], *, names_base: bool) -> int:
    """Estimate an adapter's file to the byte: its tensors in float32, and safetensors' header in front of them.

    Args:
        tensors: of the adapter.
        names_base: whether a hash of the base's weights stands in it, as `model.same_base` notes it.
    """
    noted = {_NOTED: "0" * 64} if names_base else {}
    entries: dict[str, Any] = {"__metadata__": {**noted, "format": "pt"}}
    end = 0
    for tensor in sorted((one for one in tensors if one.is_saved), key=lambda one: one.name):
        begin, end = end, end + 4 * tensor.num_numbers
        entries[tensor.name] = {"dtype": "F32", "shape": list(tensor.shape), "data_offsets": [begin, end]}
    header = len(json.dumps(entries, separators=(",", ":"), ensure_ascii=False).encode())
    return 8 + math.ceil(header / 8) * 8 + end


def _reads_start(recipe: Recipe) -> bool:
    """Whether the run compares with the model as it was when training began, as `objectives` asks the trainer's config.

    The library's default of `beta` is 0 for GRPO and 0.05 for RLOO (TRL 1.14).
    """
    if recipe.objective in SAMPLED:
        return float(find_setting(recipe, "beta") or 0.0) > 0
    return recipe.objective in _COMPARES and not find_setting(recipe, "precompute_ref_log_probs")


def _find_folder(start: str) -> Path | None:
    """Find the folder of an adapter: its own, a run's, or the one in the Hub's cache."""
    if is_here(start):
        place = Path(expand(start))
        return next((one for one in (place, place / "adapter") if (one / _CONFIG).is_file()), None)
    cached = find_cached_file(start, _CONFIG)
    return None if cached is None else cached.parent


def _read_settings(folder: Path) -> AdapterSettings | None:
    """Read an adapter's config as the section that would make it; None where it is none, which the run will tell."""
    try:
        return _to_settings(json.loads((folder / _CONFIG).read_text("utf-8")))
    except (OSError, ValueError, KeyError, AttributeError, TypeError):
        return None


def _to_settings(config: Mapping[str, Any]) -> AdapterSettings:
    fields = {name: value for name, value in config.items() if value is not None and name != "peft_type"}
    for name in ("init_lora_weights", "task_type"):  # a start that doubles the rank is done with
        fields.pop(name, None)
    return AdapterSettings.model_validate({**fields, "method": str(config["peft_type"]).lower()})


def _count_file(path: Path, shape: AdapterShape) -> AdapterShape:
    """Count an adapter's numbers by its file's header, where its method's shapes do not follow from the base's.

    Of a file that cannot be read the estimate stays; the run says what is wrong with it.
    """
    try:
        with path.open("rb") as file:
            (length,) = struct.unpack("<Q", file.read(8))
            header = json.loads(file.read(min(length, _MAX_HEADER_BYTES)))
        found = [entry["shape"] for name, entry in header.items() if name != "__metadata__"]
        num_parameters = sum(math.prod(one) for one in found)
    except (OSError, ValueError, struct.error, KeyError, AttributeError, TypeError):
        return shape
    if not num_parameters:
        return shape
    return AdapterShape(
        method=shape.method,
        r=shape.r,
        targets=shape.targets,
        dropout=shape.dropout,
        num_parameters=num_parameters,
        is_exact=False,
        num_layers=shape.num_layers,
    )


def _find_maker(start: str, recipe_path: Path | None) -> tuple[Path, AdapterSettings] | None:
    """Find the recipe beside this one whose run an adapter will come from, by its name and its output folder."""
    if recipe_path is None:
        return None
    for path in sorted(recipe_path.parent.glob("*.yaml")):
        try:
            values = yaml.safe_load(path.read_text("utf-8"))
        except (OSError, yaml.YAMLError):
            continue
        if not isinstance(values, dict) or not isinstance(values.get("adapter", {}), dict):
            continue
        made = Path(str(values.get("output_dir", "outputs"))) / str(values.get("name"))
        if made != Path(start) or "init_from" in values.get("adapter", {}):
            continue
        with contextlib.suppress(RecipeError):  # one with a fault makes no adapter
            return path, read_recipe(path).adapter
    return None
