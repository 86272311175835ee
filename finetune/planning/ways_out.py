"""What to change in a recipe where its run does not fit on a device: the smallest changes, each planned again.

In go a `Subject` and a `Device`; out come `Change`s, as `budget.fitting` finds them.
"""

from collections.abc import Mapping
from typing import Any

from finetune.budget.devices import Device
from finetune.budget.fitting import Change, Estimated, Knobs, find_changes
from finetune.errors import RecipeError
from finetune.planning.on_device import plan_on
from finetune.planning.schedule import find_setting, name_rows, packs_rows
from finetune.planning.subject import Subject, change

__all__ = ["find_ways_out"]


def find_ways_out(subject: Subject, device: Device) -> list[Change]:
    """Find the smallest changes with which a run fits on a device, its margin included; the reader takes each."""

    def estimate(settings: Mapping[str, Any]) -> Estimated | None:
        try:
            changed = change(subject, settings)
        except RecipeError:
            return None
        planned = plan_on(changed, device)
        return Estimated(planned.memory.peak_bytes, fits=planned.verdict == "fits")

    return find_changes(estimate, _build_knobs(subject))


def _build_knobs(subject: Subject) -> Knobs:
    recipe, training, shape = subject.recipe, subject.recipe.training, subject.adapter.shape
    starts_fresh, is_packed = recipe.adapter.init_from is None, packs_rows(recipe)
    return Knobs(
        batch_size=training.per_device_train_batch_size,
        accumulation=training.gradient_accumulation_steps,
        recomputes=training.gradient_checkpointing and training.memory != "recompute_none",
        quantization=None if shape.is_whole else recipe.model.quantization,
        max_length=recipe.data.max_length,
        tokens_per_batch=recipe.data.tokens_per_batch,
        optimizer=str(find_setting(recipe, "optim")),
        r=shape.r if shape.method == "lora" and starts_fresh else None,
        is_packed=is_packed,
        trains_base=shape.is_whole and starts_fresh,
        num_processes=subject.num_processes,
        row_name=name_rows(recipe.objective, is_packed=is_packed),
    )
