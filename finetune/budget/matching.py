"""Which layers an adapter sits on: PEFT's rules for names, applied to the names that a shape gives.

In go the fields of an adapter's settings and the layers of an `Architecture`; out come the layers chosen, by full
name. The rules are those of `check_target_module_exists` in peft 0.21 (`tuners/tuners_utils.py`) and of
`model.adapters`; tests/budget/test_adapter.py compares the outcome with adapters that are really attached.
"""

import re
from collections.abc import Iterable, Mapping
from typing import Any

from finetune.budget.shapes import Architecture, Linear
from finetune.errors import RecipeError

__all__ = ["find_pattern", "find_targets", "is_named"]


def find_targets(architecture: Architecture, fields: Mapping[str, Any]) -> list[tuple[str, Linear]]:
    """Find the linear layers that an adapter sits on, by full name, in the order they run.

    Args:
        architecture: the base.
        fields: `target_modules` (null: all linear layers), `exclude_modules`, `modules_to_save`,
            `layers_to_transform` and `layers_pattern`, by PEFT's names.

    Raises:
        RecipeError: no layer of that name.
    """
    targets = fields.get("target_modules") or "all-linear"
    candidates = list(architecture.find_linears())
    if targets == "all-linear":
        # As the run does it: the last part of every linear layer's name.
        targets = sorted({name.rpartition(".")[2] for name, _ in candidates})
    if architecture.output is not None:
        candidates.append((architecture.output.path, architecture.output))
    found = [
        (name, linear)
        for name, linear in candidates
        if is_named(name, targets) and not _is_left_out(name, fields) and _is_in_layers(name, fields)
    ]
    if not found:
        named = targets if isinstance(targets, str) else ", ".join(targets)
        known = ", ".join(sorted({name.rpartition(".")[2] for name, _ in candidates}))
        raise RecipeError(f"`adapter.target_modules`: no linear layer is called {named}.\n  There are: {known}")
    return found


def is_named(name: str, wanted: str | Iterable[str]) -> bool:
    """Whether a full name is wanted: a text is a pattern for the whole name, a list names ends."""
    if isinstance(wanted, str):
        return re.fullmatch(wanted, name) is not None
    return any(name == one or name.endswith(f".{one}") for one in wanted)


def find_pattern(patterns: Mapping[str, int] | None, name: str) -> int | None:
    """Find the value that `rank_pattern` or its like has for a layer; None where no pattern is the layer's."""
    for pattern, value in (patterns or {}).items():
        if re.match(rf"(.*\.)?({pattern})$", name):
            return value
    return None


def _is_left_out(name: str, fields: Mapping[str, Any]) -> bool:
    excluded = fields.get("exclude_modules")
    if excluded and is_named(name, excluded):
        return True
    return any(re.match(rf"(^|.*\.){one}($|\..*)", name) for one in fields.get("modules_to_save") or ())


def _is_in_layers(name: str, fields: Mapping[str, Any]) -> bool:
    wanted = fields.get("layers_to_transform")
    if wanted is None or wanted == [] or isinstance(fields.get("target_modules"), str):
        return True
    patterns = fields.get("layers_pattern") or r"[^.]*"
    for pattern in [patterns] if isinstance(patterns, str) else patterns:
        found = re.match(rf"(?:^|.*?\.){pattern}\.(\d+)\.", name)
        if found:
            return int(found[1]) in ([wanted] if isinstance(wanted, int) else wanted)
    return False
