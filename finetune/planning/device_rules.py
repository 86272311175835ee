"""What a run does on a device: its precision, its attention kernel, and what the device refuses it.

In go a recipe and a `Device`; the rules are those by which a run itself chooses (`model.devices`, `model.attention`),
told by the device's own words in place of torch's.
"""

from finetune.budget.devices import Device
from finetune.errors import PlaceError, RecipeError
from finetune.recipe.heads import HEAD_OF_OBJECTIVE
from finetune.recipe.schema import Recipe
from finetune.recipe.served_models import SERVED_MODEL_TYPES

__all__ = ["check_device", "find_attention", "find_compute_bytes", "is_refused"]

_COMPUTE_BYTES = {"bfloat16": 2, "float16": 2, "float32": 4}


def find_compute_bytes(recipe: Recipe, device: Device) -> int:
    """Find the bytes of a number in which the run computes on a device."""
    in_16_bits = 4 if device.is_cpu and not device.has_bfloat16 else 2  # of `auto`
    return _COMPUTE_BYTES.get(recipe.model.compute_dtype, in_16_bits)


def find_attention(recipe: Recipe, model_type: str, device: Device) -> str:
    """Find the kernel; `auto` comes to what it does without flash-attn: documents by themselves where that is quick.

    Args:
        recipe: read for the kernel's name, the backend and the objective.
        model_type: of the base.
        device: to run on.
    """
    if recipe.model.attention != "auto":
        return recipe.model.attention
    is_quick = device.is_cpu or device.has_bfloat16
    may_be_packed = HEAD_OF_OBJECTIVE[recipe.objective] == "words" and recipe.model.backend == "transformers"
    return "documents" if may_be_packed and is_quick and model_type in SERVED_MODEL_TYPES else "sdpa"


def is_refused(recipe: Recipe, device: Device) -> bool:
    """Whether a run of the recipe ends on a device before it has begun."""
    try:
        check_device(recipe, device)
    except (PlaceError, RecipeError):
        return True
    return False


def check_device(recipe: Recipe, device: Device) -> None:
    """Check that a device has the precision and the kernel that a recipe names.

    Raises:
        PlaceError: it has not; a run says the same.
        RecipeError: a kernel that does not compute in the precision.
    """
    dtype, attention = recipe.model.compute_dtype, recipe.model.attention
    if dtype == "float16" and device.is_cpu:
        raise PlaceError(
            "`model.compute_dtype: float16` needs a GPU: on a CPU it is neither fast nor safe from overflow.\n"
            "  Let the device decide: model.compute_dtype=auto"
        )
    is_old = not device.is_cpu and not device.has_bfloat16
    if dtype == "bfloat16" and is_old:
        raise PlaceError(
            f"`model.compute_dtype: bfloat16` needs compute capability 8.0; {device.label} has less.\n"
            "  Let the device decide: model.compute_dtype=auto (float16 there)"
        )
    if attention != "flash_attention_2":
        return
    ways_out = "\n  Let the device decide: model.attention=auto     Or torch's own kernel: model.attention=sdpa"
    if device.is_cpu:
        raise PlaceError(f"`model.attention: flash_attention_2` needs a GPU; this run is on the cpu.{ways_out}")
    if is_old:
        raise PlaceError(
            f"`model.attention: flash_attention_2` needs compute capability 8.0; {device.label} has less.{ways_out}"
        )
    if dtype == "float32":
        raise RecipeError(
            f"`model.attention: flash_attention_2` computes in 16 bits; `model.compute_dtype` is float32.{ways_out}"
        )
