"""Which attention kernel a model runs on a device.

In go the recipe's word, the device, the precision and the model's class; out comes the name
transformers knows the kernel by. `documents` is our own (`document_attention`).
"""

import sys

import torch
from transformers import PreTrainedModel
from transformers.utils import is_flash_attn_2_available

from finetune.errors import PlaceError, RecipeError
from finetune.model.document_attention import DOCUMENTS, SERVED_MODEL_TYPES

__all__ = ["check_attention", "choose_attention"]

_FLASH_CAPABILITY = (8, 0)
_FLASH_DTYPES = (torch.bfloat16, torch.float16)


def check_attention(name: str, device: torch.device, dtype: torch.dtype) -> None:
    """Check that the device and the installation have the kernel that is asked for.

    Raises:
        PlaceError: flash_attention_2 where it cannot run.
        RecipeError: flash_attention_2 with float32, which it does not compute.
    """
    if name != "flash_attention_2":
        return
    ways_out = "\n  Let the device decide: model.attention=auto     Or torch's own kernel: model.attention=sdpa"
    if device.type != "cuda":
        raise PlaceError(
            f"`model.attention: flash_attention_2` needs a GPU; this run is on the {device.type}.{ways_out}"
        )
    major, minor = torch.cuda.get_device_capability(device)
    if (major, minor) < _FLASH_CAPABILITY:
        raise PlaceError(
            f"`model.attention: flash_attention_2` needs compute capability 8.0; "
            f"{torch.cuda.get_device_name(device)} has {major}.{minor}.{ways_out}"
        )
    if not is_flash_attn_2_available():
        raise PlaceError(
            f"`model.attention: flash_attention_2` needs the package flash-attn, which is not installed.{ways_out}\n"
            f"  Install it: {sys.executable} -m pip install flash-attn --no-build-isolation"
        )
    if dtype not in _FLASH_DTYPES:
        raise RecipeError(
            f"`model.attention: flash_attention_2` computes in 16 bits; `model.compute_dtype` is float32.{ways_out}"
        )


def choose_attention(
    name: str,
    device: torch.device,
    dtype: torch.dtype,
    model_class: type[PreTrainedModel] | None,
    *,
    may_be_packed: bool = False,
) -> str | None:
    """Choose the kernel.

    Args:
        name: `auto` or a kernel's name, checked by `check_attention`.
        device: where the model runs.
        dtype: what it computes in.
        model_class: None for a repository's own code, whose class is known only when it is built.
        may_be_packed: whether rows of several documents may come, which `auto` then attends one by one where no
            flash-attn does.

    Returns:
        The kernel's name; None leaves it to transformers.

    Raises:
        RecipeError: the architecture has not got the kernel.
    """
    if model_class is None:
        if name == DOCUMENTS:
            raise RecipeError(
                f"`model.attention`: a repository's own code may attend in ways that `{DOCUMENTS}` does not know.\n"
                "  Let it decide: model.attention=auto"
            )
        return None if name == "auto" else name
    keeps_apart = model_class._supports_sdpa and model_class.config_class.model_type in SERVED_MODEL_TYPES
    supported = {
        DOCUMENTS: keeps_apart,
        "flash_attention_2": model_class._supports_flash_attn,
        "sdpa": model_class._supports_sdpa,
        "eager": True,
    }
    if name != "auto":
        if not supported[name]:
            names = ", ".join(kernel for kernel, has_it in supported.items() if has_it)
            raise RecipeError(f"`model.attention`: {model_class.__name__} has no `{name}`; it has {names}.")
        return name
    if supported["flash_attention_2"] and _has_flash(device) and dtype in _FLASH_DTYPES:
        return "flash_attention_2"
    if may_be_packed and keeps_apart and _is_quick_by_document(device):
        return DOCUMENTS
    return "sdpa" if supported["sdpa"] else "eager"


def _is_quick_by_document(device: torch.device) -> bool:
    """Whether documents are attended apart in less time than under a mask; below, a T4 has no kernel for it."""
    return device.type == "cpu" or torch.cuda.get_device_capability(device) >= _FLASH_CAPABILITY


def _has_flash(device: torch.device) -> bool:
    return (
        device.type == "cuda"
        and torch.cuda.get_device_capability(device) >= _FLASH_CAPABILITY
        and is_flash_attn_2_available()
    )
