"""What an optimizer keeps for each tensor that it trains, by its name in transformers.

In go the optimizer's name and the shapes that are trained; out come bytes. The rules are those of torch 2.13,
transformers 5.17 and bitsandbytes 0.50; tests/budget/test_optimizer_states.py holds each against the optimizer itself.
"""

import math
from collections.abc import Callable, Iterable, Mapping

__all__ = ["estimate_state_bytes", "is_counted", "is_in_pages"]

Shape = tuple[int, ...]

_FLOAT32_BYTES = 4
# bitsandbytes: tensors below this number keep 32-bit states; above, a scale for each block of 256 numbers.
_MIN_8BIT_NUMBERS = 4096
_BLOCK_NUMBERS = 256
# bitsandbytes' tables of 8-bit values, one for signed and one for unsigned numbers, shared by all tensors.
_TABLE_BYTES = 256 * _FLOAT32_BYTES
# What another optimizer keeps at most for a number: Adam's two states. `run.disk` takes the same.
_MOST_BYTES = 8


def estimate_state_bytes(optimizer: str, shapes: Iterable[Shape]) -> int:
    """Estimate the bytes of an optimizer's states behind the first step.

    Args:
        optimizer: its name as transformers knows it.
        shapes: of the tensors trained.

    Returns:
        Exact where `is_counted`; else Adam's two states for every number, the most that one of them keeps.
    """
    rule = _RULES.get(_to_plain(optimizer))
    if rule is None:
        return _MOST_BYTES * sum(math.prod(shape) for shape in shapes)
    shapes = list(shapes)
    tables = _NUM_TABLES.get(_to_plain(optimizer), 0) * _TABLE_BYTES
    has_8bit = any(math.prod(shape) >= _MIN_8BIT_NUMBERS for shape in shapes)
    return sum(rule(shape) for shape in shapes) + (tables if has_8bit else 0)


def is_counted(optimizer: str) -> bool:
    """Whether an optimizer's states are counted; else they are an estimate."""
    return _to_plain(optimizer) in _RULES


def is_in_pages(optimizer: str) -> bool:
    """Whether its states lie in memory that the host takes over where the device has none left."""
    return optimizer.startswith("paged_")


def _to_plain(optimizer: str) -> str:
    return optimizer.removeprefix("paged_")


def _keep(num_states: int, *, num_steps: int = 0) -> Callable[[Shape], int]:
    """So many float32 numbers for each number, and for the whole tensor its step."""
    return lambda shape: _FLOAT32_BYTES * (num_states * math.prod(shape) + num_steps)


def _keep_8bit(num_states: int) -> Callable[[Shape], int]:
    """So many bytes for each number, and a float32 scale for each block of each."""

    def count(shape: Shape) -> int:
        numbers = math.prod(shape)
        if numbers < _MIN_8BIT_NUMBERS:
            return num_states * numbers * _FLOAT32_BYTES
        return num_states * (numbers + _FLOAT32_BYTES * math.ceil(numbers / _BLOCK_NUMBERS))

    return count


def _keep_factors(shape: Shape) -> int:
    """Adafactor: of a matrix one number for each row and each column (Shazeer and Stern 2018, arXiv:1804.04235).

    Beside them one for the size of the whole tensor.
    """
    if len(shape) < 2:
        return _FLOAT32_BYTES * (math.prod(shape) + 1)
    return _FLOAT32_BYTES * (math.prod(shape[:-1]) + math.prod((*shape[:-2], shape[-1])) + 1)


_RULES: Mapping[str, Callable[[Shape], int]] = {
    "adamw_torch": _keep(2, num_steps=1),
    "adamw_torch_fused": _keep(2, num_steps=1),
    "adamw_32bit": _keep(2),
    "adamw_8bit": _keep_8bit(2),
    "adamw_bnb_8bit": _keep_8bit(2),
    "lion_32bit": _keep(1),
    "lion_8bit": _keep_8bit(1),
    "rmsprop": _keep(1, num_steps=1),
    "rmsprop_bnb": _keep(1),
    "rmsprop_bnb_8bit": _keep_8bit(1),
    "rmsprop_bnb_32bit": _keep(1),
    "adagrad": _keep(1, num_steps=1),
    "ademamix": _keep(3),
    "ademamix_32bit": _keep(3),
    "ademamix_8bit": _keep_8bit(3),
    "adafactor": _keep_factors,
    "sgd": _keep(0),
}
_NUM_TABLES: Mapping[str, int] = {
    "adamw_8bit": 2, "adamw_bnb_8bit": 2, "ademamix_8bit": 2, "lion_8bit": 1, "rmsprop_bnb_8bit": 1,
}  # fmt: skip
