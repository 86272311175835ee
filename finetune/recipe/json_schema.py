"""The whole recipe as JSON Schema: our sections, and in the two open ones the libraries' fields.

The reader checks a recipe against it, editors complete from it (`recipes/recipe.schema.json`), and
the docs list it, so that the three cannot differ.
"""

from functools import cache
from typing import Any

from finetune.recipe.catalogue import UNTRAINABLE_METHODS, read_catalogue
from finetune.recipe.ownership import OWNED_ADAPTER_FIELDS, OWNED_TRAINER_FIELDS
from finetune.recipe.schema import Recipe

__all__ = [
    "FULL",
    "Schema",
    "build_adapter_schema",
    "build_editor_schema",
    "build_schema",
    "find_methods",
    "find_properties",
    "resolve",
]

Schema = dict[str, Any]

LOSS_TYPES = ("nll", "chunked_nll", "dft")
FULL = "full"  # the one value of adapter.method that is no PEFT method: all weights are trained


@cache
def build_schema() -> Schema:
    """Build the schema that a recipe is checked against; `adapter` is checked by method, see `build_adapter_schema`."""
    schema = Recipe.model_json_schema()
    training = schema["$defs"]["TrainingSettings"]
    ours, fields = training["properties"], read_catalogue().trainer
    ours["lr_scheduler_type"]["enum"] = fields["lr_scheduler_type"]["enum"]
    further = {name: field for name, field in fields.items() if name not in ours and name not in OWNED_TRAINER_FIELDS}
    further["loss_type"] = {"enum": [*LOSS_TYPES, None], "default": None}  # a text to TRL, which knows these three
    training["properties"] = ours | further
    training["additionalProperties"] = False
    return schema


@cache
def build_adapter_schema(method: str) -> Schema:
    """Build the schema of `adapter` for one method: `method` and the fields of its config.

    Args:
        method: one of `find_methods`.
    """
    section = build_schema()["$defs"]["AdapterSettings"]
    fields = {} if method == FULL else read_catalogue().methods[method]
    further = {name: field for name, field in fields.items() if name not in OWNED_ADAPTER_FIELDS}
    method_schema = section["properties"]["method"] | {"enum": find_methods()}
    return section | {"properties": {"method": method_schema} | further, "additionalProperties": False}


def find_methods() -> list[str]:
    """Every value of `adapter.method`: the methods that rows can train, and `full`."""
    return [*(method for method in read_catalogue().methods if method not in UNTRAINABLE_METHODS), FULL]


@cache
def find_properties(section: str) -> dict[str, Schema]:
    """The settings of a section by its path: "", "model", "data.train", …; of `adapter` those of every method."""
    if section == "adapter":
        return {
            name: schema
            for method in find_methods()
            for name, schema in build_adapter_schema(method)["properties"].items()
        }
    schema: Schema = build_schema()
    for key in filter(None, section.split(".")):
        schema = _object_of(schema["properties"][key])
    properties: dict[str, Schema] = schema["properties"]
    return properties


def _object_of(schema: Schema) -> Schema:
    """The widest group of settings that a value may be: a source, where it may also be a fraction or a list."""
    alternatives = [resolve(part) for part in resolve(schema).get("anyOf", [schema])]
    groups = [part for part in alternatives if part.get("type") == "object" and "properties" in part]
    return max(groups, key=lambda group: len(group["properties"]))


def resolve(schema: Schema) -> Schema:
    """A schema with its reference into `$defs` filled in."""
    if "$ref" not in schema:
        return schema
    definition: Schema = build_schema()["$defs"][schema["$ref"].removeprefix("#/$defs/")]
    return definition | {key: value for key, value in schema.items() if key != "$ref"}


def build_editor_schema() -> Schema:
    """Build `recipe.schema.json`: as `build_schema`, with the fields of each adapter method behind a condition."""
    schema = build_schema()
    adapter = schema["$defs"]["AdapterSettings"]
    methods = [
        {
            "if": _has_method(method),
            "then": {"properties": build_adapter_schema(method)["properties"], "additionalProperties": False},
        }
        for method in find_methods()
    ]
    defaults = adapter["properties"]["method"] | {"enum": find_methods()}
    editor_adapter = adapter | {"properties": {"method": defaults}, "allOf": methods}
    return {
        "$schema": "http://json-schema.org/draft-07/schema#",
        **schema,
        "$defs": schema["$defs"] | {"AdapterSettings": editor_adapter},
    }


def _has_method(method: str) -> Schema:
    """The condition that a method is chosen; the default one also by leaving `method` out."""
    chosen: Schema = {"properties": {"method": {"const": method}}}
    return chosen if method == "lora" else chosen | {"required": ["method"]}
