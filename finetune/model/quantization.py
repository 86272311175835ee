"""How bitsandbytes holds a frozen base: asked for by the recipe, found in a config, made safe on a CPU.

In go the recipe's `quantization` and a model's config; out come the library's configuration and
the name of what was found (`nf4`, `fp4`, `int8`, `none`).
"""

from collections.abc import Sequence
from typing import Any

import bitsandbytes as bnb
import torch
from bitsandbytes import cextension
from transformers import BitsAndBytesConfig, PreTrainedConfig, PreTrainedModel

from finetune.errors import PlaceError
from finetune.recipe.saved_quantization import agree_on_saved_quantization, find_saved_quantization
from finetune.recipe.schema import ModelSettings

__all__ = [
    "agree_on_quantization",
    "build_bnb_config",
    "check_quantization",
    "close_cpu_gradient_trap",
    "find_quantization",
    "leave_unquantized",
    "set_saved_compute_dtype",
]


def check_quantization(quantization: str, device: torch.device) -> None:
    """Check that the library can hold a base so on the device.

    Without a build of its own for the GPU's CUDA it imports all the same, and answers at the first product. On a CPU
    it computes without one, in torch.

    Raises:
        PlaceError: it has none.
    """
    lib = cextension.lib
    if quantization == "none" or device.type != "cuda":
        return
    if isinstance(lib, cextension.ErrorHandlerMockBNBNativeLibrary):
        raise PlaceError(
            f"`model.quantization: {quantization}` needs bitsandbytes' library for this GPU, and it has none: "
            f"{lib.error_msg.splitlines()[0]}.\n"
            f"  See what it looked for: python -m bitsandbytes     Or hold the base in full: model.quantization=none"
        )


def find_quantization(config: PreTrainedConfig) -> str:
    """Find how a base's saved weights are held: `none`, `nf4`, `fp4`, `int8`, or another library's name."""
    return find_saved_quantization(config.to_dict())


def agree_on_quantization(config: PreTrainedConfig, settings: ModelSettings, name: str) -> str:
    """Hold a base's own quantization against the recipe's.

    Returns:
        How the saved weights are held; `none` where the recipe alone decides.

    Raises:
        RecipeError: the two differ, or another library quantized the base.
    """
    return agree_on_saved_quantization(config.to_dict(), settings, name)


def build_bnb_config(
    quantization: str, double_quantization: bool, compute_dtype: torch.dtype, *, in_full: Sequence[str] = ()
) -> BitsAndBytesConfig | None:
    """Build the library's configuration; None for an unquantized base.

    The library's own defaults are fp4, float32 products and no double quantization: all are set here.

    Args:
        quantization: nf4, fp4, int8 or none.
        double_quantization: whether the blocks' scales are quantized too.
        compute_dtype: of the products.
        in_full: modules that stay as they are; none named: transformers spares the last layer.
    """
    spared = list(in_full) or None
    if quantization == "none":
        return None
    if quantization == "int8":
        return BitsAndBytesConfig(load_in_8bit=True, llm_int8_skip_modules=spared)
    return BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type=quantization,
        bnb_4bit_use_double_quant=double_quantization,
        bnb_4bit_compute_dtype=compute_dtype,
        llm_int8_skip_modules=spared,
    )


def set_saved_compute_dtype(config: PreTrainedConfig, compute_dtype: torch.dtype) -> None:
    """Let this device decide in what a base saved in 4 bits computes, not the one that saved it."""
    saved = _read_saved(config)
    saved["bnb_4bit_compute_dtype"] = str(compute_dtype).removeprefix("torch.")
    config.quantization_config = saved


def leave_unquantized(config: PreTrainedConfig, modules: Sequence[str]) -> None:
    """Keep modules that a saved base has not got from being built in the base's own precision."""
    saved = _read_saved(config)
    if modules:  # without a list of its own transformers spares the last layer alone
        saved["llm_int8_skip_modules"] = [*(saved.get("llm_int8_skip_modules") or ()), *modules]
        config.quantization_config = saved


def close_cpu_gradient_trap(model: PreTrainedModel) -> None:
    """Keep every 4-bit layer on the path that has a gradient.

    On a CPU with AVX512-BF16 bitsandbytes 0.50 repacks a weight in place at the first call in eval
    mode and from then on runs an operator without autograd: the layer's input gets no gradient, and
    training stalls without a word. tests/model/test_nf4_gradients.py compares gradients.
    """
    for module in model.modules():
        if isinstance(module, bnb.nn.Linear4bit):
            module.support_avx512bf16_for_cpu = False


def _read_saved(config: PreTrainedConfig) -> dict[str, Any]:
    return dict(config.to_dict().get("quantization_config") or {})
