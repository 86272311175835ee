"""Unknown names explained: what was meant, and where it belongs.

The order of explanation: a field that another section decides; a name another tool uses; a setting
of another section; the nearest name by edits, in the same section first.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cache

from finetune.recipe.catalogue import TRAINER_CONFIGS
from finetune.recipe.json_schema import (
    build_adapter_schema,
    build_training_schema,
    find_methods,
    find_properties,
)
from finetune.recipe.nearest import find_nearest
from finetune.recipe.own_methods import FULL
from finetune.recipe.ownership import OTHER_TOOLS, OWNED_ADAPTER_FIELDS, Instead, find_owned_fields

__all__ = ["Explanation", "explain_key", "list_names"]

# Searched in this order for a setting that stands in the wrong place.
_SECTIONS = ("", "model", "data", "training", "evaluation", "data.train", "adapter", "data.eval", "rewards")
_MAX_LISTED_LENGTH = 100


@dataclass(frozen=True, slots=True)
class Explanation:
    """Advice about an unknown key, and the settings it names in full."""

    advice: tuple[str, ...]
    settings: tuple[str, ...] = ()


def explain_key(key: str, section: str, known: Sequence[str], chosen: str = "") -> Explanation:
    """Explain a key that its section does not have.

    Args:
        key: as typed.
        section: where it stands: "", "adapter", "data.train", …
        known: the section's own settings.
        chosen: what decides which settings the section has: under `adapter` the method, under `training` the
            objective.
    """
    owned = {"adapter": OWNED_ADAPTER_FIELDS, "training": find_owned_fields(chosen)}.get(section, {})
    if key in owned:
        return _explain_instead(owned[key])
    if section == "adapter" and (methods := _methods_with(key)):
        return Explanation(
            (f"It is a setting of {list_names(methods)}; the method here is {chosen}.", _settings(known))
        )
    if section == "training" and (objectives := _objectives_with(key)):
        return Explanation((f"It is a setting of {list_names(objectives)}; the objective here is {chosen}.",))
    name = key.lower().replace("-", "_")
    if name != key and name in known:
        return _explain_nearest([name], section, known)
    if name in OTHER_TOOLS:
        return _explain_instead(OTHER_TOOLS[name])
    if elsewhere := _sections_with(name):
        return _explain_place(name, elsewhere)
    if near := find_nearest(key, known):
        return _explain_nearest(near, section, known)
    if near := find_nearest(key, _all_names()):
        return _explain_far(near[0])
    return Explanation((_settings(known),))


def _explain_instead(instead: Instead) -> Explanation:
    if instead.setting is None:
        return Explanation((instead.hint,))
    where = "" if "." in instead.setting else ", at the top of the recipe"
    advice = f"Here it is `{instead.setting}`{where}. {instead.hint}".strip()
    return Explanation((advice,), (instead.setting,))


def _explain_place(name: str, sections: Sequence[str]) -> Explanation:
    first = sections[0]
    setting = f"{first}.{name}".lstrip(".")
    where = f"under `{first}`" if first else "at the top of the recipe, not in a section"
    return Explanation((f"It belongs {where}: `{setting}`.",), (setting,))


def _explain_nearest(near: Sequence[str], section: str, known: Sequence[str]) -> Explanation:
    names = " or ".join(f"`{name}`" for name in near)
    return Explanation(
        (f"Did you mean {names}? {_settings(known)}",), tuple(f"{section}.{name}".lstrip(".") for name in near)
    )


def _explain_far(name: str) -> Explanation:
    if name in OTHER_TOOLS:
        return _explain_instead(OTHER_TOOLS[name])
    where = _explain_place(name, _sections_with(name))
    return Explanation((f"Did you mean `{name}`? {where.advice[0]}",), where.settings)


def _settings(known: Sequence[str]) -> str:
    return f"Its settings: {list_names(known)}."


def list_names(names: Iterable[str]) -> str:
    """Names with commas between, as many as fit on a line."""
    listed, waiting = "", list(names)
    while waiting and len(listed) + len(waiting[0]) <= _MAX_LISTED_LENGTH:
        listed += f", {waiting.pop(0)}" if listed else waiting.pop(0)
    return f"{listed} and {len(waiting)} more" if waiting else listed


@cache
def _names_by_section() -> dict[str, frozenset[str]]:
    return {section: frozenset(find_properties(section)) for section in _SECTIONS}


@cache
def _all_names() -> tuple[str, ...]:
    ours = [name for section in _SECTIONS for name in sorted(_names_by_section()[section])]
    return tuple(dict.fromkeys([*ours, *OTHER_TOOLS]))


def _sections_with(name: str) -> list[str]:
    return [section for section in _SECTIONS if name in _names_by_section()[section]]


def _methods_with(name: str) -> list[str]:
    return [
        method for method in find_methods() if method != FULL and name in build_adapter_schema(method)["properties"]
    ]


def _objectives_with(name: str) -> list[str]:
    return [objective for objective in TRAINER_CONFIGS if name in build_training_schema(objective)["properties"]]
