"""How a base's own files hold its weights, held against what the recipe says: by the fields of its config.json.

In go those fields and the recipe's `model` section; out comes `nf4`, `fp4`, `int8`, `none` or another library's name.
Loading and planning ask the same rule.
"""

from collections.abc import Mapping
from typing import Any

from finetune.errors import RecipeError
from finetune.recipe.schema import ModelSettings

__all__ = ["agree_on_saved_quantization", "find_saved_quantization"]


def find_saved_quantization(fields: Mapping[str, Any]) -> str:
    """Find how a base's saved weights are held: `none`, `nf4`, `fp4`, `int8`, or another library's name."""
    saved = _read_saved(fields)
    if not saved:
        return "none"
    if saved.get("load_in_4bit") or saved.get("_load_in_4bit"):
        return str(saved.get("bnb_4bit_quant_type", "fp4"))  # the library's default
    if saved.get("load_in_8bit") or saved.get("_load_in_8bit"):
        return "int8"
    return str(saved.get("quant_method", "an unnamed format"))


def agree_on_saved_quantization(fields: Mapping[str, Any], settings: ModelSettings, name: str) -> str:
    """Hold a base's own quantization against the recipe's.

    Args:
        fields: of the base's config.json.
        settings: read for `quantization` and `double_quantization`.
        name: of the base, for the message.

    Returns:
        How the saved weights are held; `none` where the recipe alone decides.

    Raises:
        RecipeError: the two differ, or another library quantized the base.
    """
    found = find_saved_quantization(fields)
    if found not in ("none", "nf4", "fp4", "int8"):
        raise RecipeError(
            f"{name} is held in {found.upper()}, and this pipeline trains on bitsandbytes' nf4, fp4 and int8 alone.\n"
            "  Its weights were rounded for another library's kernels, and an adapter learns to mend just that.\n"
            "  Name the 16-bit model that it was made from: model.model_name_or_path=…"
        )
    if found == "none":
        return found
    if found != settings.quantization:
        raise RecipeError(
            f"{name} is already held in {found}, and `model.quantization` is {settings.quantization}.\n"
            f"  Take it as it is: model.quantization={found}     Or name the 16-bit model that it was made from"
        )
    doubled = bool(_read_saved(fields).get("bnb_4bit_use_double_quant"))
    if found != "int8" and doubled != settings.double_quantization:
        raise RecipeError(
            f"{name} is already held in {found} {'with' if doubled else 'without'} double quantization.\n"
            f"  Take it as it is: model.double_quantization={str(doubled).lower()}"
        )
    return found


def _read_saved(fields: Mapping[str, Any]) -> Mapping[str, Any]:
    saved = fields.get("quantization_config")
    return saved if isinstance(saved, Mapping) else {}
