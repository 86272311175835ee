"""Whether the tensors of an adapter can be used: every number finite, not all of them zero, and an effect.

In go tensors by name; out comes what is wrong. One NaN makes every answer empty or noise, and zeros answer as the base
does while they look like a result.
"""

import logging
from collections.abc import Iterable
from pathlib import Path

import torch
from bitsandbytes.nn import Params4bit
from safetensors import safe_open

from finetune.errors import PlaceError

__all__ = ["changes_nothing", "check_sound", "find_not_finite", "find_not_finite_weight", "is_all_zero"]

log = logging.getLogger("finetune.model.sound_weights")

# By PEFT's names the factors of LoRA's product that begin at zero: its output side, and AdaLoRA's singular values.
_FACTORS_FROM_ZERO = {
    "the output side is": {"lora_B", "lora_embedding_B"},
    "the vector of singular values is": {"lora_E"},
}
# What may stand beside them. DoRA's magnitudes begin as the base's own and leave that together with the output side.
_BESIDE = {"lora_A", "lora_embedding_A", "lora_magnitude_vector"}


def find_not_finite(tensors: Iterable[tuple[str, torch.Tensor]]) -> str | None:
    """Find the name of a tensor that holds a number which is not finite; None where there is none.

    The device is waited for once.
    """
    held = [(name, tensor) for name, tensor in tensors if tensor.is_floating_point()]
    if not held:
        return None
    flags = torch.stack([torch.isfinite(tensor).all().to(held[0][1].device) for _, tensor in held]).tolist()
    return next((name for (name, _), is_finite in zip(held, flags, strict=True) if not is_finite), None)


def find_not_finite_weight(model: torch.nn.Module) -> str | None:
    """Find a weight that holds a number which is not finite; None where there is none.

    Of 4-bit weights the scales of their blocks are looked at: only those can be not finite.
    """
    for name, parameter in model.named_parameters():
        held = parameter.data
        if isinstance(parameter, Params4bit) and parameter.quant_state is not None:
            state = parameter.quant_state
            held = state.absmax if state.state2 is None else state.state2.absmax
        if held.is_floating_point() and not bool(torch.isfinite(held).all()):
            return name
    return None


def is_all_zero(tensors: Iterable[tuple[str, torch.Tensor]]) -> bool:
    """Whether there are tensors and every number of them is zero."""
    held = list(tensors)
    return bool(held) and not any(bool(tensor.any()) for _, tensor in held)


def changes_nothing(tensors: Iterable[tuple[str, torch.Tensor]]) -> bool:
    """Whether this is LoRA, DoRA or AdaLoRA, nothing beside it, whose product is zero in every layer.

    Of other methods only `is_all_zero` can be told by the numbers alone.
    """
    return _find_zero_factor(tensors) is not None


def _find_zero_factor(tensors: Iterable[tuple[str, torch.Tensor]]) -> tuple[str, str] | None:
    """Find the factor that is zero in every layer: in words, and the name of its first tensor."""
    held = [(name, set(name.split(".")), tensor) for name, tensor in tensors]
    known = _BESIDE.union(*_FACTORS_FROM_ZERO.values())
    if not all(parts & known for _, parts, _ in held):
        return None
    for words, factor in _FACTORS_FROM_ZERO.items():
        found = [(name, tensor) for name, parts, tensor in held if parts & factor]
        if is_all_zero(found):
            return words, found[0][0]
    return None


def check_sound(path: Path, *, must_change: bool = False) -> None:
    """Check every tensor of an adapter's file, before a model is loaded for it.

    Args:
        path: a safetensors file.
        must_change: refuse one that changes nothing; else a word in the log is enough.

    Raises:
        PlaceError: a number that is not finite, with its tensor's name; nothing but zeros.
    """
    with safe_open(path, framework="pt") as file:
        tensors = [(name, file.get_tensor(name)) for name in file.keys()]  # noqa: SIM118 - a safetensors file is no dict
    name = find_not_finite(tensors)
    if name is not None:
        raise PlaceError(
            f"{path}: {name} holds numbers that are not finite.\n"
            "  The run diverged or the file is damaged. Train again, with a lower learning rate if it diverged."
        )
    if is_all_zero(tensors):
        raise PlaceError(
            f"{path}: every number is zero, from {tensors[0][0]} on.\n"
            "  It was never trained or the file is damaged: fetch or copy it again, or train it."
        )
    zero = _find_zero_factor(tensors)
    if zero is not None:
        words, side = zero
        if must_change:
            raise PlaceError(
                f"{path}: {words} all zeros, {side} and the others: the adapter changes nothing.\n"
                "  Merged it would be its base again. Train it first, or take the base itself."
            )
        log.warning("%s: %s all zeros (%s …): the adapter changes nothing.", path, words, side)
