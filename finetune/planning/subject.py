"""What is planned: a recipe with its base, its adapter and its rows; and what a device makes of it.

In go the parts that were found; out come the schedule and the `Setup` on a device, and the same subject with settings
of its recipe changed.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from finetune.budget.architecture import Architecture
from finetune.budget.computing import Computing, find_loss
from finetune.budget.devices import Device
from finetune.budget.lean import is_served
from finetune.budget.memory import Setup
from finetune.budget.weights import Holding, is_quantized
from finetune.planning.adapter import FoundAdapter, find_adapter
from finetune.planning.device_rules import find_attention, find_compute_bytes
from finetune.planning.rows import Rows
from finetune.planning.schedule import Schedule, build_schedule, find_setting
from finetune.recipe.reading import build_recipe, to_resolved
from finetune.recipe.schema import Recipe

__all__ = ["Subject", "build_setup", "change", "find_schedule"]


@dataclass(frozen=True, slots=True)
class Subject:
    """A recipe with all that does not hang on the device.

    Attributes:
        recipe: the run.
        architecture: of its base.
        adapter: what is trained.
        rows: to train on.
        num_processes: that train at once.
    """

    recipe: Recipe
    architecture: Architecture
    adapter: FoundAdapter
    rows: Rows
    num_processes: int


def find_schedule(subject: Subject, device: Device) -> Schedule:
    """Find steps and micro-batches on a device, whose kernels decide how rows lie in memory."""
    recipe = subject.recipe
    return build_schedule(
        recipe,
        subject.rows,
        attention=find_attention(recipe, subject.architecture.model_type, device),
        by_unsloth=recipe.model.backend == "unsloth" and not device.is_cpu,
        num_processes=subject.num_processes,
    )


def build_setup(subject: Subject, device: Device) -> Setup:
    """Build what takes memory on a device."""
    recipe, training = subject.recipe, subject.recipe.training
    compute_bytes = find_compute_bytes(recipe, device)
    holding = Holding(recipe.model.quantization, recipe.model.double_quantization, compute_bytes)
    return Setup(
        architecture=subject.architecture,
        adapter=subject.adapter.shape,
        holding=holding,
        batch=find_schedule(subject, device).largest,
        computing=_build_computing(subject, device, holding),
        optimizer=str(find_setting(recipe, "optim")),
        may_recompute=training.gradient_checkpointing and training.memory != "recompute_none",
        has_copy=subject.adapter.has_copy,
    )


def change(subject: Subject, settings: Mapping[str, Any]) -> Subject:
    """The same with settings of the recipe changed.

    Args:
        subject: as it stands.
        settings: keys of the recipe and their new values.

    Raises:
        RecipeError: the reader of recipes refuses them.
    """
    values = to_resolved(subject.recipe)
    for path, value in settings.items():
        section, key = path.split(".")
        values[section][key] = value
    recipe = build_recipe(values)
    max_length, rows, adapter = recipe.data.max_length, subject.rows, subject.adapter
    if max_length < subject.recipe.data.max_length:
        rows = _cut(rows, max_length)
    if recipe.data.tokens_per_batch != subject.recipe.data.tokens_per_batch:
        rows = replace(rows, num_packed=None)
    if any(path.startswith("adapter.") for path in settings):
        adapter = find_adapter(recipe, subject.architecture, None)
    return Subject(recipe, subject.architecture, adapter, rows, subject.num_processes)


def _build_computing(subject: Subject, device: Device, holding: Holding) -> Computing:
    recipe, shape = subject.recipe, subject.adapter.shape
    # Compiled as a whole, a model runs the libraries' own forward.
    may_be_lean = recipe.model.backend == "transformers" and not find_setting(recipe, "torch_compile")
    return Computing(
        compute_bytes=holding.compute_bytes,
        attention=find_attention(recipe, subject.architecture.model_type, device),
        loss=find_loss(recipe.objective, recipe.training.fields.get("loss_type")),
        is_lean=may_be_lean and is_served(recipe.adapter, shape, subject.architecture),
        is_lean_elementwise=may_be_lean,
        is_quantized=is_quantized(holding),
        on_cpu=device.is_cpu,
    )


def _cut(rows: Rows, max_length: int) -> Rows:
    """Rows of at most so many tokens, longer ones cut; how many would be dropped is not known."""
    longest = min(rows.longest_tokens, max_length)
    attended = min(rows.attended_tokens, float(max_length))
    return replace(rows, longest_tokens=longest, attended_tokens=attended, num_packed=None)
