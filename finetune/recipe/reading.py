"""A recipe read: YAML and `section.key=value` in, a frozen Recipe or one RecipeError with every fault out.

Nothing is guessed, changed after parsing, or taken from the environment.
"""

import os.path
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from finetune.errors import RecipeError
from finetune.recipe.checks import find_faults
from finetune.recipe.combinations import find_conflicts
from finetune.recipe.faults import Fault, quote, to_error, to_line_number
from finetune.recipe.nearest import find_nearest
from finetune.recipe.objective_defaults import find_notice
from finetune.recipe.overrides import apply_overrides, drop_hub_settings
from finetune.recipe.recipe_view import find_node
from finetune.recipe.schema import Recipe
from finetune.recipe.secret_patterns import find_secret_faults, find_typed_secrets
from finetune.recipe.yaml_lines import Node, read_yaml, to_plain, to_tree

__all__ = ["RecipeReading", "build_recipe", "flatten", "read_recipe", "read_recipe_with_notices", "to_resolved"]

_MAX_BYTES = 32 * 1024  # a recipe is a page or two; a larger file is something else


@dataclass(frozen=True, slots=True)
class RecipeReading:
    """A recipe, the text it was read from, and what its reader has to say.

    Attributes:
        recipe: the settings.
        text: the file as typed, without the overrides.
        notices: lines about settings that an override dropped, or a method moved.
    """

    recipe: Recipe
    text: str
    notices: tuple[str, ...] = ()


def read_recipe(path: Path, overrides: Sequence[str] = ()) -> Recipe:
    """Read a recipe and put the overrides over it.

    Args:
        path: the YAML file.
        overrides: `section.key=value`, the later ones over the earlier.

    Raises:
        RecipeError: with all faults of the file and of the overrides, each with its place.
    """
    return read_recipe_with_notices(path, overrides).recipe


def read_recipe_with_notices(path: Path, overrides: Sequence[str] = ()) -> RecipeReading:
    """Read a recipe as `read_recipe` does, and say what an override dropped."""
    text = _read_text(path)
    if secrets := find_typed_secrets(text, str(path), overrides):
        raise to_error(secrets)  # alone: another fault's message could repeat the line
    tree, faults = read_yaml(text, str(path))
    if isinstance(tree.value, dict):
        faults += apply_overrides(tree, overrides)
    notices = drop_hub_settings(tree, overrides)
    recipe = _build(tree, faults)
    moved = find_notice(to_plain(tree))
    return RecipeReading(recipe, text, (*notices, *([moved] if moved else [])))


def build_recipe(values: dict[str, Any], overrides: Sequence[str] = ()) -> Recipe:
    """Build a recipe from plain values, such as those of a run's `resolved.json`, and put the overrides over it.

    Raises:
        RecipeError: with all faults.
    """
    tree = to_tree(values, "the recipe")
    faults = apply_overrides(tree, overrides)
    drop_hub_settings(tree, overrides)
    return _build(tree, faults, defaults_filled=True)


def to_resolved(recipe: Recipe) -> dict[str, Any]:
    """The recipe as plain values for `resolved.json`: what was typed, and the schema's default for the rest."""
    return recipe.model_dump(mode="json")


def flatten(resolved: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """The values of a resolved recipe by `section.key`; an empty section is a value."""
    flat: dict[str, Any] = {}
    for key, inner in resolved.items():
        if isinstance(inner, dict) and inner:
            flat |= flatten(inner, f"{prefix}{key}.")
        else:
            flat[f"{prefix}{key}"] = inner
    return flat


def _build(tree: Node, faults: list[Fault], *, defaults_filled: bool = False) -> Recipe:
    if secrets := find_secret_faults(tree):
        raise to_error(secrets)
    found = [*faults, *find_faults(tree)]
    if isinstance(tree.value, dict):
        found += find_conflicts(tree, defaults_filled=defaults_filled)
    if found:
        raise to_error(list(dict.fromkeys(found)))
    try:
        return Recipe.model_validate(to_plain(tree))
    except ValidationError as error:
        # What the checks let through and the sections do not: found by no test, and told all the same.
        raise to_error([_to_fault(tree, details) for details in error.errors()]) from error


def _to_fault(tree: Node, details: Any) -> Fault:
    path = ".".join(str(part) for part in details["loc"])
    place = (find_node(tree, path) or tree).place
    return Fault(place, f"`{path}`: {details['msg']}.", line=to_line_number(place))


def _read_text(path: Path) -> str:
    """Read the file, or say why it is no recipe."""
    # Path.is_file raises on a name that is too long for the file system; os.path says that it is not there.
    if not os.path.isfile(path):  # noqa: PTH113
        raise _not_a_file(path)
    try:
        with path.open("rb") as file:
            content = file.read(_MAX_BYTES + 1)
    except PermissionError as error:
        raise to_error([Fault(str(path), "this file may not be read.", ("Its permissions exclude you.",))]) from error
    if len(content) > _MAX_BYTES:
        what = f"this file is larger than {_MAX_BYTES // 1024} KiB; a recipe is a page or two."
        raise to_error([Fault(str(path), what, ("Rows go into a data file that `data.train` names.",))])
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        what = f"the byte 0x{content[error.start]:02X} is not UTF-8 text."
        raise to_error([Fault(f"{path}:{line}", what, ("A recipe is a YAML file, saved as UTF-8.",))]) from error


def _not_a_file(path: Path) -> RecipeError:
    is_folder = os.path.isdir(path)  # noqa: PTH112
    what = "this is a folder, not a recipe." if is_folder else f"there is no recipe {quote(path.name)}."
    folders = [folder for folder in (path.parent, Path("recipes")) if os.path.isdir(folder)]  # noqa: PTH112
    there = {file.stem: file for folder in folders for file in sorted(folder.glob("*.yaml"))}
    near = find_nearest(path.stem, there)
    advice = f"Did you mean {there[near[0]]}?" if near else "Recipes that come with this: recipes/*.yaml."
    return to_error([Fault(str(path), what, (advice,))])
