"""The whole recipe as JSON Schema: our sections, and in the two open ones the libraries' fields.

The reader checks a recipe against it, editors complete from it (`recipes/recipe.schema.json`), and
the docs list it, so that the three cannot differ.
"""

from collections.abc import Iterable
from functools import cache
from typing import Any

from finetune.recipe.catalogue import TRAINER_CONFIGS, UNTRAINABLE_METHODS, read_catalogue
from finetune.recipe.objective_defaults import DEFAULTS_BY_OBJECTIVE
from finetune.recipe.own_methods import OWN_METHODS, PART_METHODS, WHOLE_METHODS
from finetune.recipe.ownership import OWNED_ADAPTER_FIELDS, find_owned_fields
from finetune.recipe.schema import AdapterSettings, Recipe
from finetune.recipe.trainer_choices import narrow

__all__ = [
    "Schema",
    "build_adapter_schema",
    "build_editor_schema",
    "build_part_schema",
    "build_schema",
    "build_training_schema",
    "find_methods",
    "find_properties",
    "resolve",
]

Schema = dict[str, Any]


@cache
def build_schema() -> Schema:
    """Build the schema that a recipe is checked against, less what the libraries add to its two open sections.

    `adapter` is checked by its method, see `build_adapter_schema`, `training` by the objective, see
    `build_training_schema`.
    """
    schema = Recipe.model_json_schema()
    training = schema["$defs"]["TrainingSettings"]
    training["properties"]["lr_scheduler_type"]["enum"] = read_catalogue().trainer["lr_scheduler_type"]["enum"]
    training["additionalProperties"] = False
    return schema


@cache
def build_adapter_schema(method: str) -> Schema:
    """Build the schema of `adapter` for one method: our settings and the fields of its config.

    Args:
        method: one of `find_methods`.
    """
    section = build_schema()["$defs"]["AdapterSettings"]
    fields = (WHOLE_METHODS | OWN_METHODS | read_catalogue().methods)[method]
    further = {name: field for name, field in fields.items() if name not in OWNED_ADAPTER_FIELDS}
    ours = {name: section["properties"][name] for name in AdapterSettings.model_fields}
    ours["method"] = ours["method"] | {"enum": find_methods()}
    return section | {"properties": ours | further, "additionalProperties": False}


@cache
def build_part_schema(method: str) -> Schema:
    """Build the schema of a part of a combination: its method and the fields of that method's config.

    Args:
        method: one of `PART_METHODS`.
    """
    schema = build_adapter_schema(method)
    # Where a part is trained on from, and what is saved whole beside it, the combination says.
    shared = (*AdapterSettings.model_fields, "modules_to_save")
    fields = {name: field for name, field in schema["properties"].items() if name not in shared}
    return schema | {"properties": {"method": {"enum": list(PART_METHODS)}} | fields}


@cache
def build_training_schema(objective: str) -> Schema:
    """Build the schema of `training` for one objective: our settings and the fields of its trainer's config.

    Args:
        objective: one of `TRAINER_CONFIGS`.
    """
    section = build_schema()["$defs"]["TrainingSettings"]
    config, owned = TRAINER_CONFIGS[objective], find_owned_fields(objective)
    defaults = DEFAULTS_BY_OBJECTIVE.get(objective, {})
    ours = {
        name: schema | {"default": defaults.get(f"training.{name}", schema["default"])}
        for name, schema in section["properties"].items()
    }
    further = {
        name: narrow(config, name, schema)
        for name, schema in read_catalogue().find_trainer_fields(objective).items()
        if name not in ours and name not in owned
    }
    return section | {"properties": ours | further}


def find_methods() -> list[str]:
    """Every value of `adapter.method`: PEFT's methods that rows can train, those of our own, and the base's weights."""
    return [
        *(method for method in read_catalogue().methods if method not in UNTRAINABLE_METHODS),
        *OWN_METHODS,
        *WHOLE_METHODS,
    ]


@cache
def find_properties(section: str) -> dict[str, Schema]:
    """The settings of a section by its path: "", "model", "data.train".

    Of `adapter` those of every method, of `training` those of every objective; of a setting that differs the first.
    """
    if section == "adapter":
        return _join_properties(build_adapter_schema(method) for method in find_methods())
    if section == "training":
        return _join_properties(build_training_schema(objective) for objective in TRAINER_CONFIGS)
    schema: Schema = build_schema()
    for key in filter(None, section.split(".")):
        schema = _object_of(schema["properties"][key])
    properties: dict[str, Schema] = schema["properties"]
    return properties


def _join_properties(variants: Iterable[Schema]) -> dict[str, Schema]:
    joined: dict[str, Schema] = {}
    for variant in variants:
        for name, schema in variant["properties"].items():
            joined.setdefault(name, schema)
    return joined


def _object_of(schema: Schema) -> Schema:
    """The widest group of settings that a value may be, or a list of: a source, where it may also be a fraction."""
    alternatives = [resolve(part) for part in resolve(schema).get("anyOf", [schema])]
    alternatives += [resolve(part["items"]) for part in alternatives if "items" in part]
    groups = [part for part in alternatives if part.get("type") == "object" and "properties" in part]
    return max(groups, key=lambda group: len(group["properties"]))


def resolve(schema: Schema) -> Schema:
    """A schema with its reference into `$defs` filled in."""
    if "$ref" not in schema:
        return schema
    definition: Schema = build_schema()["$defs"][schema["$ref"].removeprefix("#/$defs/")]
    return definition | {key: value for key, value in schema.items() if key != "$ref"}


def build_editor_schema() -> Schema:
    """Build `recipe.schema.json`: as `build_schema`, with what a method or an objective adds behind conditions."""
    schema = build_schema()
    adapter = schema["$defs"]["AdapterSettings"]
    methods = [
        {
            "if": _has("method", method, default="lora"),
            "then": {"properties": build_adapter_schema(method)["properties"], "additionalProperties": False},
        }
        for method in find_methods()
    ]
    defaults = adapter["properties"]["method"] | {"enum": find_methods()}
    editor_adapter = adapter | {"properties": {"method": defaults}, "allOf": methods}
    shared = _find_shared_training()
    training = schema["$defs"]["TrainingSettings"] | {"properties": shared}
    objectives = [
        {
            "if": _has("objective", objective, default="sft"),
            "then": {"properties": {"training": {"properties": _find_own_training(objective)}}},
        }
        for objective in TRAINER_CONFIGS
    ]
    return {
        "$schema": "http://json-schema.org/draft-07/schema#",
        **schema,
        "allOf": objectives,
        "$defs": schema["$defs"] | {"AdapterSettings": editor_adapter, "TrainingSettings": training},
    }


def _find_shared_training() -> dict[str, Schema | bool]:
    """Every setting of `training`, with its schema where all objectives have it alike."""
    variants = [build_training_schema(objective)["properties"] for objective in TRAINER_CONFIGS]
    return {
        name: schema if all(variant.get(name) == schema for variant in variants) else True
        for name, schema in find_properties("training").items()
    }


def _find_own_training(objective: str) -> dict[str, Schema | bool]:
    """What an objective adds to the settings that all share; False for one that it does not have."""
    own = build_training_schema(objective)["properties"]
    return {name: own.get(name, False) for name, schema in _find_shared_training().items() if schema is True}


def _has(setting: str, choice: str, *, default: str) -> Schema:
    """The condition that a setting is of this choice; the default one also by leaving it out."""
    chosen: Schema = {"properties": {setting: {"const": choice}}}
    return chosen if choice == default else chosen | {"required": [setting]}
