"""Every single-edit typo of every key of a recipe, and whether the reader names the key that was meant.

In goes nothing but the schema: `list_keys` walks it to every key at every depth, `misspell` makes all typos of one
edit, `judge` writes a recipe with one of them into a file and reads it as the command line does. The typos know
nothing of how the nearest name is found.
"""

import random
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import yaml

from finetune.errors import FinetuneError
from finetune.recipe.catalogue import TRAINER_CONFIGS
from finetune.recipe.json_schema import (
    Schema,
    build_adapter_schema,
    build_part_schema,
    build_schema,
    build_training_schema,
    find_methods,
    resolve,
)
from finetune.recipe.own_methods import FULL, PART_METHODS
from finetune.recipe.ownership import OTHER_TOOLS, OWNED_ADAPTER_FIELDS, find_owned_fields
from finetune.recipe.reading import read_recipe

__all__ = ["KINDS", "Key", "Typo", "judge", "list_keys", "list_typos", "misspell"]

KINDS = ("deletion", "insertion", "replacement", "transposition")
LETTERS = "abcdefghijklmnopqrstuvwxyz_"
_MARK = "planted"  # the value beside the typo, by which its line is found


@dataclass(frozen=True, slots=True)
class Key:
    """A key of the recipe.

    Attributes:
        path: of its section; numbers stand for places in a list.
        name: the key.
        siblings: every key of the same section.
        decides: settings that make the section one that has this key: the objective, the adapter's method.
    """

    path: tuple[str | int, ...]
    name: str
    siblings: frozenset[str]
    decides: tuple[tuple[str, str], ...] = ()


@dataclass(frozen=True, slots=True)
class Typo:
    """A key and how it was typed."""

    key: Key
    kind: str
    typed: str


@cache
def list_keys() -> tuple[Key, ...]:
    """Every key of the schema, each once: our sections at all depths, every method's fields, every objective's."""
    top = build_schema()
    keys = list(_walk((), {**top, "properties": dict(top["properties"])}, ()))
    keys = [key for key in keys if key.path[:1] not in (("adapter",), ("training",))]
    for method in find_methods():
        if method != FULL:
            keys += _walk(("adapter",), build_adapter_schema(method), (("adapter.method", method),))
    for method in PART_METHODS:
        decides = (("adapter.method", "combined"), ("adapter.parts.0.method", method))
        keys += _walk(("adapter", "parts", 0), build_part_schema(method), decides)
    for objective in TRAINER_CONFIGS:
        keys += _walk(("training",), build_training_schema(objective), (("objective", objective),))
    found: dict[tuple[Any, ...], Key] = {}
    for key in keys:
        found.setdefault((key.path, key.name), key)
    return tuple(found.values())


def _walk(path: tuple[str | int, ...], schema: Schema, decides: tuple[tuple[str, str], ...]) -> Iterator[Key]:
    """Walk a group of settings and the groups within it."""
    properties: dict[str, Schema] = schema.get("properties", {})
    for name, child in properties.items():
        yield Key(path, name, frozenset(properties), decides)
        for place, group in _find_groups(child):
            yield from _walk((*path, name, *place), group, decides)


def _find_groups(schema: Schema) -> Iterator[tuple[tuple[int, ...], Schema]]:
    """The groups of settings that a value may be, or be a list of."""
    schema = resolve(schema)
    for part in map(resolve, schema.get("anyOf", [schema])):
        if "properties" in part and "method" not in part["properties"]:
            yield (), part
        items = resolve(part.get("items", {}))
        if "properties" in items and "method" not in items["properties"]:
            yield (0,), items


def misspell(name: str, dice: random.Random, letters_each: int | None) -> Iterator[tuple[str, str]]:
    """Every word one edit away, with the kind of edit.

    Args:
        name: the key.
        dice: draws the letters.
        letters_each: so many drawn letters at each place; None: all of them.
    """
    for at in range(len(name)):
        yield "deletion", name[:at] + name[at + 1 :]
    for at in range(len(name) - 1):
        yield "transposition", name[:at] + name[at + 1] + name[at] + name[at + 2 :]
    for at in range(len(name)):
        for letter in _draw(dice, letters_each):
            yield "replacement", name[:at] + letter + name[at + 1 :]
    for at in range(len(name) + 1):
        for letter in _draw(dice, letters_each):
            yield "insertion", name[:at] + letter + name[at:]


def _draw(dice: random.Random, letters_each: int | None) -> Sequence[str]:
    return LETTERS if letters_each is None else dice.sample(LETTERS, letters_each)


def list_typos(seed: int, letters_each: int | None = 2) -> list[Typo]:
    """Every typo of every key that is no known name itself, in an order of the seed's."""
    dice = random.Random(f"typos {seed}")
    typos = []
    for key in list_keys():
        known = key.siblings | _find_answered(key)
        kinds: dict[str, str] = {}
        for kind, typed in misspell(key.name, dice, letters_each):
            if typed and typed not in known:
                kinds.setdefault(typed, kind)
        typos += [Typo(key, kind, typed) for typed, kind in kinds.items()]
    dice.shuffle(typos)
    return typos


def _find_answered(key: Key) -> set[str]:
    """Names that are no typos, since they mean something else: other sections' settings, other tools' and fields."""
    decides = dict(key.decides)
    owned = {*OWNED_ADAPTER_FIELDS} if key.path == ("adapter",) else set()
    if key.path == ("training",):
        owned |= {*find_owned_fields(decides["objective"])}
    return owned | {*OTHER_TOOLS} | {other.name for other in list_keys()}


def judge(typo: Typo, folder: Path) -> tuple[bool, str]:
    """Read a recipe with the typo; passed where it is refused at its line with the right name as the first one.

    Args:
        typo: what is planted.
        folder: an empty one to write the recipe into.

    Returns:
        Whether it was answered right, and what was said where not.
    """
    text = _render(typo)
    path = folder / "recipe.yaml"
    path.write_text(text, encoding="utf-8")
    line = next(number for number, line in enumerate(text.splitlines(), 1) if line.endswith(f": {_MARK}"))
    setting = f"{'.'.join(map(str, typo.key.path))}.{typo.key.name}".lstrip(".")
    what = f"{setting} typed {typo.typed}"
    try:
        read_recipe(path)
    except FinetuneError as error:
        message, code = str(error), error.exit_code
    else:
        return False, f"{what}: accepted"
    if code != 2:
        return False, f"{what}: exit {code}"
    said = message.splitlines()
    place = f"{path}:{line}: "
    found = next((at for at, one in enumerate(said) if one.startswith(place) and f"`{typo.typed}`" in one), None)
    if found is None:
        return False, f"{what}: {said[0].removeprefix(str(folder))} instead of line {line}"
    # The advice stands below the fault or, where there are many faults, behind it.
    advice = said[found].partition(f"`{typo.typed}`")[2] + " ".join(said[found + 1 : found + 2])
    named = re.search(r"`([^`]+)`", advice)
    if named is None or named[1].rpartition(".")[2] != typo.key.name:
        return False, f"{what}: {advice.strip('. ') or 'no advice'}"
    return True, ""


def _render(typo: Typo) -> str:
    """A recipe whose one fault is the typo, as far as the key allows."""
    values: dict[str, Any] = {"name": "typo", "model": {"model_name_or_path": "a/b"}, "data": {"train": {"path": "r"}}}
    for path, value in typo.key.decides:
        _put(values, [int(part) if part.isdecimal() else part for part in path.split(".")], value)
    _put(values, [*typo.key.path, typo.typed], _MARK, instead_of=typo.key.name)
    return yaml.safe_dump(values, sort_keys=False)


def _put(values: Any, path: Sequence[str | int], value: str, instead_of: str = "") -> None:
    *sections, name = path
    for number, part in enumerate(sections):
        after = sections[number + 1] if number + 1 < len(sections) else name
        empty: Any = [] if isinstance(after, int) else {}
        if isinstance(values, list):
            values.extend([empty] if not values else [])
        elif not isinstance(values.get(part), type(empty)):
            values[part] = empty
        values = values[part]
    values.pop(instead_of, None)
    values[name] = value
