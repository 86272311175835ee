"""A recipe as the checks of several settings see it: what was typed, and the schema's defaults behind it.

In goes the tree of a recipe; out come values by `section.key`, and faults at the line of the setting to change.
"""

from collections.abc import Mapping
from functools import cache
from typing import Any

from finetune.recipe.catalogue import TRAINER_CONFIGS
from finetune.recipe.faults import Fault, to_line_number
from finetune.recipe.json_schema import build_training_schema
from finetune.recipe.objective_defaults import DEFAULTS_BY_OBJECTIVE, fill_defaults
from finetune.recipe.schema import (
    AdapterSettings,
    ClassificationSettings,
    DataSettings,
    EvaluationSettings,
    ModelSettings,
    Recipe,
    TrainingSettings,
)
from finetune.recipe.section import Section
from finetune.recipe.yaml_lines import Node, to_plain

__all__ = ["SOURCES", "RecipeView", "find_node", "find_objective"]

# Settings that hold one place rows come from, or may.
SOURCES = (
    "data.train", "data.eval", "classification.predict", "evaluation.questions", "evaluation.preferences",
    "evaluation.general_text",
)  # fmt: skip


class RecipeView:
    """What a recipe says, typed or by default."""

    def __init__(self, tree: Node, defaults_filled: bool) -> None:
        self._tree = tree
        self.defaults_filled = defaults_filled
        self.objective = find_objective(tree) or "sft"
        self._filled = _fill(tree)

    def value(self, path: str) -> Any:
        """The value of `section.key`, the default where it is not typed; None where a library has the default."""
        node = find_node(self._tree, path)
        if node is not None:
            return to_plain(node)
        section, _, name = path.partition(".")
        filled = self._filled.get(section)
        return filled[name] if isinstance(filled, Mapping) and name in filled else _defaults(self.objective).get(path)

    def training_value(self, name: str) -> Any:
        """The value of a setting of `training` that the objective's config has, the library's default included."""
        node = find_node(self._tree, f"training.{name}")
        return build_training_schema(self.objective)["properties"][name]["default"] if node is None else to_plain(node)

    def is_typed(self, path: str) -> bool:
        """Whether somebody typed this setting; a default in a resolved recipe was filled in."""
        is_default = self.defaults_filled and self.value(path) == _defaults(self.objective).get(path)
        return find_node(self._tree, path) is not None and not is_default

    def fault(self, path: str, what: str, *advice: str) -> Fault:
        """A fault at the nearest typed setting: this one, else its section, else the file."""
        node = find_node(self._tree, path) or find_node(self._tree, path.split(".")[0]) or self._tree
        return Fault(node.key_place, what, advice, to_line_number(node.key_place))


def find_node(tree: Node, path: str) -> Node | None:
    """The value at `section.key`, in a list `section.0.key`; None where the recipe does not hold it."""
    node: Node | None = tree
    for key in path.split("."):
        value = None if node is None else node.value
        if isinstance(value, list):
            node = value[int(key)] if key.isdecimal() and int(key) < len(value) else None
        else:
            node = value.get(key) if isinstance(value, dict) else None
    return node


def find_objective(tree: Node) -> str | None:
    """The recipe's objective, the default one where none is typed; None where there is no such objective."""
    node = find_node(tree, "objective")
    name = "sft" if node is None else node.value
    return name if isinstance(name, str) and name in TRAINER_CONFIGS else None


def _fill(tree: Node) -> Mapping[str, Any]:
    """What was typed, with the defaults that go by the objective and by other settings."""
    values = to_plain(tree)
    return fill_defaults(values) if isinstance(values, dict) else {}


@cache
def _defaults(objective: str) -> dict[str, Any]:
    sections: dict[str, type[Section]] = {
        "model": ModelSettings,
        "adapter": AdapterSettings,
        "data": DataSettings,
        "classification": ClassificationSettings,
        "evaluation": EvaluationSettings,
        "training": TrainingSettings,
    }
    defaults = {name: field.default for name, field in Recipe.model_fields.items() if name not in sections}
    for section, settings in sections.items():
        defaults |= {f"{section}.{name}": field.default for name, field in settings.model_fields.items()}
    return defaults | dict(DEFAULTS_BY_OBJECTIVE.get(objective, {}))
