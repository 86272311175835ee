"""Each setting checked on its own: known, of the right type, a choice that exists, within its limits.

In goes the tree of a recipe, out come faults. What several settings say together is checked in
`combinations`.
"""

import re
from collections.abc import Sequence
from itertools import chain
from typing import Any

from finetune.recipe.catalogue import TRAINER_CONFIGS, UNTRAINABLE_METHODS
from finetune.recipe.faults import Fault, quote, to_line_number
from finetune.recipe.json_schema import (
    Schema,
    build_adapter_schema,
    build_part_schema,
    build_schema,
    build_training_schema,
    find_methods,
    resolve,
)
from finetune.recipe.nearest import find_nearest
from finetune.recipe.own_methods import FULL, PART_METHODS
from finetune.recipe.recipe_view import SOURCES, find_objective
from finetune.recipe.suggestions import Explanation, explain_key, list_names
from finetune.recipe.yaml_lines import Node

__all__ = ["find_faults"]

# A message shows 14 faults at most; looking for the nearest name takes some milliseconds each.
_MAX_EXPLAINED = 20

# What other tools call LoRA on a base in 4 bits.
_QLORA = "qlora"
_HOW_QLORA = "Write adapter: {method: lora}; model.quantization is nf4 already where a recipe does not say otherwise."

_WANTED = {
    "string": "a text",
    "integer": "a whole number",
    "number": "a number",
    "boolean": "true or false",
    "array": "a list in [ ]",
    "object": "a group of settings",
    "null": "null",
}


def find_faults(tree: Node) -> list[Fault]:
    """Find every setting that is unknown, missing, of another type, no choice, or out of its limits."""
    if not isinstance(tree.value, dict):
        found = "is empty" if tree.value is None else f"holds {_found(tree)} instead of settings"
        return [Fault(tree.place, f"the recipe {found}.", ("It needs at least: name, model, data.",))]
    return _check(tree, build_schema(), "", find_objective(tree) or "")


def _check(node: Node, schema: Schema, path: str, chosen: str) -> list[Fault]:
    """Check a value, and all within it, against its schema.

    Args:
        node: the value.
        schema: what it may be.
        path: of the value, `section.key`.
        chosen: what decides which settings an open section has: within `adapter` the method, elsewhere the
            objective; "" where there is no such objective.
    """
    if path == "adapter" and isinstance(node.value, dict):
        return _check_adapter(node)
    if _is_part(path) and isinstance(node.value, dict):
        return _check_part(node, path)
    if path == "training" and isinstance(node.value, dict):
        # Of an unknown objective the name alone is a fault.
        return _check_group(node, build_training_schema(chosen), path, chosen) if chosen in TRAINER_CONFIGS else []
    schema = resolve(schema)
    alternatives = [resolve(part) for part in schema.get("anyOf", [schema])]
    fitting = [part for part in alternatives if _fits(node, part)]
    if not fitting:
        return [_wrong_type(node, alternatives, schema, path)]
    if isinstance(node.value, dict):
        return _check_group(node, _closest_group(node.value, fitting), path, chosen)
    results = [_check_value(node, part, path, chosen) for part in fitting]
    if not all(results):
        return []
    choices = list(chain.from_iterable(part.get("enum", ()) for part in fitting))
    return [_wrong_choice(node, choices, path)] if choices else results[0]


def _check_adapter(node: Node) -> list[Fault]:
    """Check `adapter` by its method; of an unknown method the name alone is a fault."""
    assert isinstance(node.value, dict)
    typed = node.value.get("method")
    method = "lora" if typed is None else typed.value
    if isinstance(method, str) and method in find_methods():
        return _check_group(node, build_adapter_schema(method), "adapter", method)
    assert typed is not None
    if method == _QLORA:
        return [_fault(typed.place, "`adapter.method` cannot be qlora: that is lora on a base in 4 bits.", _HOW_QLORA)]
    if isinstance(method, str) and method in UNTRAINABLE_METHODS:
        what = f"`method: {method}` cannot be trained from rows alone: {UNTRAINABLE_METHODS[method]}."
        return [_fault(typed.key_place, what, f"Choose one of {list_names(find_methods())}.")]
    if isinstance(method, str):
        return [_wrong_choice(typed, find_methods(), "adapter.method")]
    return [
        _wrong_type(typed, [{"type": "string"}], build_adapter_schema(FULL)["properties"]["method"], "adapter.method")
    ]


def _is_part(path: str) -> bool:
    return re.fullmatch(r"adapter\.parts\[\d+\]", path) is not None


def _check_part(node: Node, path: str) -> list[Fault]:
    """Check a part of a combination by its method; of one that cannot be a part the name alone is a fault."""
    assert isinstance(node.value, dict)
    typed = node.value.get("method")
    if typed is None:
        misspelled = next((key for key in node.value if find_nearest(key, ["method"])), None)
        if misspelled is not None:
            return [_unknown_key(misspelled, node.value[misspelled], path, ["method"], "")]
        return [_fault(node.place, f"`{path}.method` is missing.", f"It is one of {list_names(PART_METHODS)}.")]
    method = typed.value
    if isinstance(method, str) and method in PART_METHODS:
        return _check_group(node, build_part_schema(method), path, method)
    if method in find_methods():
        what = f"`{path}.method` is {method}, which cannot be a part of a combination."
        return [_fault(typed.key_place, what, f"Those that can: {list_names(PART_METHODS)}.")]
    return [_wrong_choice(typed, list(PART_METHODS), f"{path}.method")]


def _check_group(node: Node, schema: Schema, path: str, chosen: str) -> list[Fault]:
    assert isinstance(node.value, dict)
    properties: dict[str, Schema] = schema.get("properties", {})
    others = schema.get("additionalProperties", "properties" not in schema)
    faults = []
    for key, child in node.value.items():
        child_path = f"{path}.{key}".lstrip(".")
        if key in properties:
            faults += _check(child, properties[key], child_path, chosen)
        elif others is False:
            is_explained = len(faults) < _MAX_EXPLAINED
            faults.append(_unknown_key(key, child, path, list(properties) if is_explained else [], chosen))
        else:
            faults += _check(child, others if isinstance(others, dict) else {}, child_path, chosen)
    meant = set(chain.from_iterable(fault.settings for fault in faults))
    for key in schema.get("required", ()):
        setting = f"{path}.{key}".lstrip(".")
        if key not in node.value and not any(name == setting or name.startswith(f"{setting}.") for name in meant):
            advice = resolve(properties[key]).get("description", "")
            faults.append(_fault(node.key_place, f"`{setting}` is missing.", advice))
    return faults


def _check_value(node: Node, schema: Schema, path: str, chosen: str) -> list[Fault]:
    """Check a scalar, or a list and what it holds."""
    if isinstance(node.value, list):
        items = schema.get("items", {})
        if len(node.value) < schema.get("minItems", 0):
            return [_fault(node.place, f"`{path}` is an empty list.", schema.get("description", ""))]
        return list(
            chain.from_iterable(
                _check(item, items, f"{path}[{number}]", chosen) for number, item in enumerate(node.value)
            )
        )
    choices = [schema["const"]] if "const" in schema else schema.get("enum")
    if choices is not None:
        is_choice = any(choice == node.value and type(choice) is type(node.value) for choice in choices)
        return [] if is_choice else [_wrong_choice(node, choices, path)]
    return _check_limits(node, schema, path)


def _check_limits(node: Node, schema: Schema, path: str) -> list[Fault]:
    value: Any = node.value
    limits = (
        ("minimum", "at least", lambda limit: value >= limit),
        ("maximum", "at most", lambda limit: value <= limit),
        ("exclusiveMinimum", "above", lambda limit: value > limit),
        ("exclusiveMaximum", "below", lambda limit: value < limit),
    )
    meaning = schema.get("description", "")
    for name, words, is_kept in limits:
        if name in schema and not is_kept(schema[name]):
            return [_fault(node.place, f"`{path}` is {value}; it must be {words} {schema[name]}.", meaning)]
    if "pattern" in schema and not re.fullmatch(schema["pattern"].strip("^$"), value):
        return [_fault(node.place, f"`{path}` cannot be {quote(value)}.", meaning)]
    if "minLength" in schema and not value:
        return [_fault(node.place, f"`{path}` is an empty text.", meaning, "Leave the line out, or fill it.")]
    return []


def _fits(node: Node, schema: Schema) -> bool:
    """Whether a value is of a schema's type, whatever it holds."""
    types = schema.get("type")
    if types is None:
        values = [schema["const"]] if "const" in schema else schema.get("enum")
        return values is None or any(_kind(value) == _kind(node.value) for value in values)
    wanted = {types} if isinstance(types, str) else set(types)
    return _kind(node.value) in wanted or (_kind(node.value) == "integer" and "number" in wanted)


def _kind(value: object) -> str:
    """The JSON type of a value."""
    if isinstance(value, bool):
        return "boolean"
    kinds = {str: "string", int: "integer", float: "number", list: "array", dict: "object"}
    return next((name for kind, name in kinds.items() if isinstance(value, kind)), "null")


def _closest_group(values: dict[str, Node], groups: Sequence[Schema]) -> Schema:
    """The group that shares most keys with what was typed, or has the nearest ones; of equal ones the larger."""

    def measure(group: Schema) -> tuple[int, bool, int]:
        properties = group.get("properties", {})
        shared = len(values.keys() & properties.keys())
        # Looked for only where it can decide, between a source and a fraction: `{fracton: 0.1}` is no source.
        is_near = not shared and len(groups) > 1 and any(find_nearest(key, properties) for key in [*values][:3])
        return shared, is_near, len(properties)

    return max(groups, key=measure)


def _unknown_key(key: str, node: Node, path: str, known: Sequence[str], chosen: str) -> Fault:
    section = "adapter" if _is_part(path) else re.sub(r"\[\d+\]", "", path)
    if section == "data.eval" and key == "fraction":
        what = "`data.eval` is either a fraction of the training rows or a source of its own, not both."
        return _fault(node.key_place, what, "Keep `fraction`, or `path` and what belongs to it.")
    if chosen == FULL:
        what = f"`adapter` has no setting {quote(key)} with method full, which trains every weight."
        return _fault(node.key_place, what, "Take the line out, or choose a method: lora.")
    explanation = explain_key(key, section, known, chosen) if known else Explanation(())
    owner = f"`{path}` has" if path else "a recipe has"
    what = f"{owner} no setting {quote(key)}."
    return Fault(node.key_place, what, explanation.advice, to_line_number(node.key_place), explanation.settings)


def _wrong_choice(node: Node, choices: Sequence[Any], path: str) -> Fault:
    names = [_to_yaml(choice) for choice in choices]
    near = find_nearest(str(node.value), names)
    meant = f"Did you mean {' or '.join(f'`{name}`' for name in near)}? " if near else ""
    return _fault(node.place, f"`{path}` cannot be {_found(node)}.", f"{meant}Choices: {list_names(names)}.")


def _wrong_type(node: Node, alternatives: Sequence[Schema], schema: Schema, path: str) -> Fault:
    choices = list(chain.from_iterable(part.get("enum", ()) for part in alternatives))
    if choices and not isinstance(node.value, list | dict) and node.value is not None:
        return _wrong_choice(node, choices, path)
    wanted = (
        f"one of {list_names(_to_yaml(choice) for choice in choices)}" if choices else _describe_types(alternatives)
    )
    what = f"`{path}` wants {wanted}; found {_found(node)}."
    return _fault(node.place, what, _how_to_write(node, alternatives, path), schema.get("description", ""))


def _types_of(alternatives: Sequence[Schema]) -> list[str]:
    types = [part.get("type", []) for part in alternatives]
    return list(chain.from_iterable([name] if isinstance(name, str) else name for name in types))


def _describe_types(alternatives: Sequence[Schema]) -> str:
    return " or ".join(dict.fromkeys(_WANTED[name] for name in _types_of(alternatives)))


def _how_to_write(node: Node, alternatives: Sequence[Schema], path: str) -> str:
    """What to type instead, where the value shows what was meant."""
    value = node.value
    types = set(_types_of(alternatives))
    if value is None:
        return "Leave the line out, or fill it."
    if path == "adapter" and isinstance(value, str):  # as Axolotl's recipes name it
        return _HOW_QLORA if value == _QLORA else f"Write {{method: {value}}}." if _is_short(value) else ""
    if "object" in types and isinstance(value, str) and path in SOURCES:
        return f"Write {{path: {value}}}." if _is_short(value) else "Write {path: …}."
    if "array" in types and isinstance(value, str):
        return f"Write [{value}]." if _is_short(value) else "Write it in [ ]."
    if "string" in types and isinstance(value, bool | int | float):
        return f'In quotes it is a text: "{_to_yaml(value)}".'
    if "boolean" in types and isinstance(value, str) and value.lower() in ("yes", "on", "no", "off", "true", "false"):
        return f"Write {'true' if value.lower() in ('yes', 'on', 'true') else 'false'}."
    if "integer" in types and isinstance(value, float) and value.is_integer():
        return f"Write {int(value)}."
    if types & {"integer", "number"} and isinstance(value, str):
        return _how_to_write_number(value, node.quoted)
    return ""


def _is_short(text: str) -> bool:
    return len(text) < 60 and text.isprintable()


def _how_to_write_number(text: str, quoted: bool) -> str:
    if re.fullmatch(r"0o[0-7]{1,9}", text):
        return f"Write {int(text, 8)}."
    if re.fullmatch(r"[-+]?[0-9][0-9_]{0,20}(\.[0-9]+)?", text):
        return (
            f"Without the quotes {text} is a number."
            if quoted and "_" not in text
            else f"Write {text.replace('_', '')}."
        )
    return "Without the quotes it is a number." if quoted and re.fullmatch(r"[-+.0-9eE]+", text) else ""


def _found(node: Node) -> str:
    value = node.value
    if value is None:
        return "nothing (null)"
    if isinstance(value, dict):
        return "a group of settings"
    if isinstance(value, list):
        return "a list"
    return f"the text {quote(value)}" if isinstance(value, str) else quote(_to_yaml(value))


def _to_yaml(value: object) -> str:
    written = {True: "true", False: "false", None: "null"}
    return written[value] if value is None or isinstance(value, bool) else str(value)


def _fault(place: str, what: str, *advice: str) -> Fault:
    return Fault(place, what, tuple(line for line in advice if line), to_line_number(place))
