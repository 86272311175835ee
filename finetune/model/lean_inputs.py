"""What an adapter keeps of its linear's input: the input, or what it was made from where that is kept anyway.

In goes a tensor with what it was made from; a linear of `model.lean` that reads it saves those tensors in its place and
makes the input once more for the gradient of `lora_A`. A reader of any other kind saves what it always did.

Maker and reader have to run in one piece: a tensor that comes back from a checkpoint in between is another object.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import Tensor
from torch.utils.weak import WeakTensorKeyDictionary

__all__ = ["Origin", "find_origin", "note_origin"]


@dataclass(frozen=True, slots=True, eq=False)
class Origin:
    """What a linear's input was made from.

    Attributes:
        parts: the tensors to save.
        remake: from these to the input, to the bit.
        version: how often the input had been written to when it was made.
    """

    parts: tuple[Tensor, ...]
    remake: Callable[..., Tensor]
    version: int


# Of inputs that are alive; the parts of one go with it.
_origins: Any = WeakTensorKeyDictionary()


def note_origin(made: Tensor, parts: tuple[Tensor, ...], remake: Callable[..., Tensor]) -> None:
    """Note what a tensor was made from, for the linear that reads it; see `Origin`."""
    _origins[made] = Origin(parts, remake, made._version)


def find_origin(inputs: Tensor) -> Origin:
    """Find what a linear's input was made from; the input itself where that is not known, or it was written to."""
    origin: Origin | None = _origins.get(inputs)
    if origin is None or origin.version != inputs._version:
        return Origin((inputs,), _take, 0)
    return origin


def _take(inputs: Tensor) -> Tensor:
    return inputs
