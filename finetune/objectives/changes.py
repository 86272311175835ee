"""Settings that a library changes behind our back: TRL's defaults put back, and every other change told."""

import inspect
import logging
from collections.abc import Mapping
from enum import Enum
from typing import Any

from transformers import TrainingArguments

from finetune.recipe.catalogue import read_catalogue

__all__ = ["find_moved_defaults", "warn_of_changes"]

log = logging.getLogger("finetune.objectives.changes")


def find_moved_defaults(config_class: type[TrainingArguments]) -> dict[str, Any]:
    """Find TRL's own defaults where the class has others: on a GPU Unsloth puts its own there, for `optim` too."""
    catalogue = read_catalogue()
    stock = catalogue.trainer | catalogue.configs[config_class.__name__]
    parameters = inspect.signature(config_class).parameters
    return {
        name: schema["default"]
        for name, schema in stock.items()
        if name in parameters and "default" in schema and not _is_default(parameters[name].default, schema["default"])
    }


def warn_of_changes(asked: Mapping[str, Any], config: TrainingArguments) -> None:
    """Warn of settings that a library has replaced by others; what was left to it (None) is its own to choose."""
    for name, value in asked.items():
        found = getattr(config, name)
        if value is not None and found != value:
            log.warning(
                "`training.%s`: asked for was %s, the library takes %s.", name, _to_word(value), _to_word(found)
            )


def _is_default(default: Any, stock: Any) -> bool:
    """Whether a parameter's default is TRL's; one that is built anew for each config shows as a factory."""
    return default == stock or repr(default) == "<factory>"


def _to_word(value: Any) -> Any:
    return value.value if isinstance(value, Enum) else value
