"""The libraries' own settings: every field of TRL's trainer configs and of each PEFT method's config.

In goes `catalogue.json`, which is committed, so that any of these settings is checked at once:
importing the libraries takes six seconds. Out come JSON Schemas, one a field, with the library's
default. `python -m finetune.recipe.catalogue` writes the file from the installed libraries; a test
does the same and fails when the two differ.
"""

import json
import warnings
from collections.abc import Mapping
from dataclasses import MISSING, Field, dataclass, fields, is_dataclass
from enum import Enum
from functools import cache
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

__all__ = [
    "EMBEDDING_METHODS",
    "PROMPT_METHODS",
    "QUANTIZABLE_METHODS",
    "TRAINER_CONFIGS",
    "UNTRAINABLE_METHODS",
    "Catalogue",
    "build_catalogue",
    "describe_fields",
    "read_catalogue",
    "render_catalogue",
]

CATALOGUE_PATH = Path(__file__).with_name("catalogue.json")

# The config of TRL that each objective's trainer takes.
TRAINER_CONFIGS = {
    "sft": "SFTConfig",
    "pretrain": "SFTConfig",
    "dpo": "DPOConfig",
    "kto": "KTOConfig",
    "orpo": "ORPOConfig",
    "reward": "RewardConfig",
    "rloo": "RLOOConfig",
    "grpo": "GRPOConfig",
    "mlm": "TrainingArguments",
    "classify": "TrainingArguments",
}

# Methods of PEFT 0.21.2 whose layers take a bitsandbytes base: those with layers of their own for it (lora, adalora,
# ia3, hira, pvera, randlora, road, vera), those on PEFT's QuantizationBackend (boft, miss, oft, shira), those that act
# on what a layer gives or beside it (adaption_prompt, beft, shadow), and ours.
QUANTIZABLE_METHODS = frozenset(
    {"adalora", "boft", "hira", "ia3", "lora", "miss", "oft", "pvera", "randlora", "road", "shira", "vera"}
    | {"adaption_prompt", "beft", "shadow"}
    | {"bitfit", "bottleneck", "combined", "hypernetwork"}
)
# Virtual tokens in front of the row. PEFT drops the position ids that keep packed documents apart.
PROMPT_METHODS = frozenset(
    {"cartridge", "cpt", "multitask_prompt_tuning", "p_tuning", "prefix_tuning", "prompt_tuning"}
)
# These touch embeddings or norms, which bitsandbytes leaves in 16 bits.
EMBEDDING_METHODS = frozenset({"ln_tuning", "trainable_tokens"})
# Methods that a row of text alone cannot train, and why.
UNTRAINABLE_METHODS = {
    "cpt": "it wants a mask of its own kind with each row",
    "multitask_prompt_tuning": "it wants a task's number with each row",
    "poly": "it wants a task's number with each row",
    "xlora": "it mixes adapters that are already trained",
}

# Values that a library accepts and its annotation leaves out or writes in words.
_PATTERN_OF_WORDS = {"pissa_niter_[number of iters]": r"^pissa_niter_[0-9]+$"}
_FURTHER_CHOICES = {"init_lora_weights": ["lora_ga"]}

_TYPE_NAMES = {bool: "boolean", int: "integer", float: "number", str: "string", NoneType: "null"}


@dataclass(frozen=True, slots=True)
class Catalogue:
    """The libraries' settings as JSON Schemas by name.

    Attributes:
        made_from: version of each library it was made from.
        trainer: field that all of TRL's configs have alike -> its schema.
        configs: TRL's config -> field that is its own, or differs in type or default -> its schema.
        methods: PEFT method in lower case -> field of its config -> its schema.
    """

    made_from: dict[str, str]
    trainer: dict[str, dict[str, Any]]
    configs: dict[str, dict[str, dict[str, Any]]]
    methods: dict[str, dict[str, dict[str, Any]]]

    def find_trainer_fields(self, objective: str) -> dict[str, dict[str, Any]]:
        """Every field of the config that an objective's trainer takes."""
        return self.trainer | self.configs[TRAINER_CONFIGS[objective]]

    def find_trainer_value(self, objective: str, typed: Mapping[str, Any], name: str) -> Any:
        """Find the value of a field of that config: as typed, else the library's default; None where it has none.

        Args:
            objective: whose trainer.
            typed: `TrainingSettings.fields`.
            name: the config's own.
        """
        return typed[name] if name in typed else self.find_trainer_fields(objective).get(name, {}).get("default")


@cache
def read_catalogue() -> Catalogue:
    """Read the committed catalogue."""
    return Catalogue(**json.loads(CATALOGUE_PATH.read_text(encoding="utf-8")))


def build_catalogue() -> Catalogue:
    """Build the catalogue from the installed libraries; imports them."""
    from importlib.metadata import version

    from peft import PeftType
    from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING

    configs = {name: describe_fields(config) for name, config in _import_trainer_configs().items()}
    first, *others = configs.values()
    shared = {name: schema for name, schema in first.items() if all(other.get(name) == schema for other in others)}
    return Catalogue(
        made_from={library: version(library) for library in ("peft", "transformers", "trl")},
        trainer=shared,
        configs={
            config: {name: schema for name, schema in schemas.items() if name not in shared}
            for config, schemas in configs.items()
        },
        methods={
            method.value.lower(): describe_fields(config)
            for method, config in sorted(PEFT_TYPE_TO_CONFIG_MAPPING.items())
            if isinstance(method, PeftType)  # others are of our own: `model.own_methods`
        },
    )


def _import_trainer_configs() -> dict[str, type]:
    """Import TRL's configs and transformers' own; the one of ORPO comes from an experimental part, which says so."""
    import transformers
    import trl
    from trl.import_utils import TRLExperimentalWarning

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", TRLExperimentalWarning)
        from trl.experimental.orpo import ORPOConfig
    elsewhere = {"ORPOConfig": ORPOConfig, "TrainingArguments": transformers.TrainingArguments}
    return {name: elsewhere.get(name) or getattr(trl, name) for name in dict.fromkeys(TRAINER_CONFIGS.values())}


def render_catalogue(catalogue: Catalogue) -> str:
    """Render a catalogue as JSON with one field a line, so that a diff reads."""
    return (
        "{\n"
        f' "made_from": {_json(catalogue.made_from)},\n'
        f' "trainer": {_render_fields(catalogue.trainer, 2)},\n'
        f' "configs": {_render_groups(catalogue.configs)},\n'
        f' "methods": {_render_groups(catalogue.methods)}\n'
        "}\n"
    )


def _render_groups(groups: Mapping[str, Mapping[str, Any]]) -> str:
    return "{\n" + ",\n".join(f"  {_json(name)}: {_render_fields(group, 3)}" for name, group in groups.items()) + "\n }"


def _render_fields(schemas: Mapping[str, Any], indent: int) -> str:
    lines = ",\n".join(f"{' ' * indent}{_json(name)}: {_json(schema)}" for name, schema in schemas.items())
    return "{\n" + lines + "\n" + " " * (indent - 1) + "}"


def _json(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False)


def describe_fields(config: type) -> dict[str, dict[str, Any]]:
    """Describe the fields of a library's config: name -> JSON Schema."""
    hints = get_type_hints(config)
    return {field.name: _describe_field(field, hints[field.name]) for field in fields(config) if field.init}


def _describe_field(field: Field[Any], annotation: Any) -> dict[str, Any]:
    schema = to_json_schema(annotation)
    choices = [choice for choice in field.metadata.get("choices", ()) if schema.get("type") != "array"]
    if choices:
        allows_null = "null" in schema.get("type", ())
        schema = {"enum": [*choices, None] if allows_null else choices}
    further = _FURTHER_CHOICES.get(field.name)
    if further:
        schema = {"anyOf": [*schema["anyOf"], {"enum": further}]}
    default = _default_of(field)
    # PEFT writes None into several fields that it annotates as plain numbers: "taken from the model".
    if default is None and not accepts_null(schema):
        schema = {"anyOf": [schema, {"type": "null"}]}
    return schema if default is MISSING else schema | {"default": default}


def _default_of(field: Field[Any]) -> Any:
    default = field.default if field.default_factory is MISSING else field.default_factory()
    if isinstance(default, Enum):
        return default.value
    return {} if is_dataclass(default) else default


def accepts_null(schema: Mapping[str, Any]) -> bool:
    """Whether a field may be left empty."""
    if "anyOf" in schema:
        return any(accepts_null(alternative) for alternative in schema["anyOf"])
    if "enum" in schema:
        return None in schema["enum"]
    return "type" not in schema or "null" in schema["type"]


def to_json_schema(annotation: Any) -> dict[str, Any]:
    """Convert a type annotation of a library's config into JSON Schema; an empty one accepts anything."""
    origin, arguments = get_origin(annotation), get_args(annotation)
    if annotation in _TYPE_NAMES:
        return {"type": _TYPE_NAMES[annotation]}
    if origin in (Union, UnionType):
        return _join(arguments)
    if origin is Literal:
        return _describe_choices(list(arguments))
    if annotation is list or origin is list or origin is tuple:
        return {"type": "array"} | ({"items": to_json_schema(arguments[0])} if arguments else {})
    if annotation is dict or origin is dict:
        values = to_json_schema(arguments[1]) if arguments else {}
        return {"type": "object"} | ({"additionalProperties": values} if values else {})
    if isinstance(annotation, type) and issubclass(annotation, Enum):
        return {"enum": [member.value for member in annotation]}
    if is_dataclass(annotation) and isinstance(annotation, type):
        return {"type": "object", "properties": describe_fields(annotation), "additionalProperties": False}
    return {}


def _to_order(schema: dict[str, Any]) -> tuple[bool, str]:
    return schema == {"type": "null"}, json.dumps(schema)  # null last


def _describe_choices(choices: list[Any]) -> dict[str, Any]:
    named = [choice for choice in choices if choice not in _PATTERN_OF_WORDS]
    patterns = [{"type": "string", "pattern": _PATTERN_OF_WORDS[c]} for c in choices if c in _PATTERN_OF_WORDS]
    return {"anyOf": [{"enum": named}, *patterns]} if patterns else {"enum": named}


def _join(alternatives: tuple[Any, ...]) -> dict[str, Any]:
    schemas = [to_json_schema(alternative) for alternative in alternatives]
    if {} in schemas:
        return {}
    # "one of these names, or str" is how the libraries write a closed list that they parse from text, and "this
    # dataclass, or dict" one that they build from a mapping: the narrower of the two says what is accepted.
    if any(isinstance(choice, str) for schema in schemas for choice in schema.get("enum", ())):
        schemas = [schema for schema in schemas if schema != {"type": "string"}]
    if any("properties" in schema for schema in schemas):
        schemas = [schema for schema in schemas if schema != {"type": "object"}]
    # In an order of its own: Python keeps one object for unions that differ in order alone, whichever came first.
    flat = sorted((part for schema in schemas for part in schema.get("anyOf", [schema])), key=_to_order)
    if len(flat) == 1:
        return flat[0]
    if all(set(schema) == {"type"} for schema in flat):
        return {"type": [schema["type"] for schema in flat]}
    return {"anyOf": flat}


if __name__ == "__main__":
    CATALOGUE_PATH.write_text(render_catalogue(build_catalogue()), encoding="utf-8")
