"""What is made from the schema: the editor's completion file and the page that lists every setting.

`python -m finetune.recipe.documents` writes `recipes/recipe.schema.json` and `docs/recipe.md`; a test
renders both again and fails when they differ from the files.
"""

import json
from collections.abc import Iterable, Iterator, Mapping
from itertools import chain
from pathlib import Path
from typing import Any

from finetune.recipe.adapter_combinations import STARTS_WANTING_16_BITS, STARTS_WANTING_DATA
from finetune.recipe.catalogue import (
    EMBEDDING_METHODS,
    PROMPT_METHODS,
    QUANTIZABLE_METHODS,
    TRAINER_CONFIGS,
    UNTRAINABLE_METHODS,
    read_catalogue,
)
from finetune.recipe.json_schema import (
    Schema,
    build_adapter_schema,
    build_editor_schema,
    build_training_schema,
    find_methods,
    find_properties,
    resolve,
)
from finetune.recipe.objective_defaults import DEFAULTS_BY_OBJECTIVE
from finetune.recipe.ownership import OTHER_TOOLS, OWNED_BY_OBJECTIVE, OWNED_TRAINER_FIELDS, Instead
from finetune.recipe.schema import AdapterSettings, TrainingSettings
from finetune.recipe.section import ONE_LINE

__all__ = ["render_editor_schema", "render_manual"]

ROOT = Path(__file__).parents[2]
EDITOR_SCHEMA_PATH = ROOT / "recipes" / "recipe.schema.json"
MANUAL_PATH = ROOT / "docs" / "recipe.md"

_INTRODUCTION = """\
# The recipe: every setting

<!-- Written by `python -m finetune.recipe.documents` from finetune/recipe/; edit there. -->

One YAML file is one run: `python -m finetune.sft RECIPE [section.key=value ...]`. Every setting is listed here with its
type, its default and its meaning. Settings on the command line use the same names and YAML rules, and override the
file: `training.learning_rate=1e-4`, `name=another`. What holds spaces or brackets is quoted for the shell:
`'data.eval={fraction: 0.1}'`.

The reader is strict. Numbers are YAML 1.2's (`2e-4` is a number; `no` and `off` are text); an unknown or repeated key,
a value of another type, a choice that does not exist and two settings that exclude each other are all reported at once,
with file and line, before anything is loaded. Tags, aliases and several documents in a file are not taken.

Overriding a source's `path` with a local file or folder drops that source's `revision`, `split` and `subset`, and with
the training rows' `path` also `data.assumed`; the command says so. To plan such rows, count them first:
`python -m finetune.preview RECIPE data.train.path=rows.jsonl --rows 0`, then `plan` with the same settings.

An editor with a YAML language server completes the settings of a recipe whose first line is
`# yaml-language-server: $schema=recipe.schema.json`.
"""

_METHODS = "a PEFT method, one of ours, full, top_k"
_SECTIONS = {
    "": "The run",
    "model": "`model`",
    "adapter": "`adapter`",
    "data": "`data`",
    "data.train": "A source: `data.train`, `data.eval`, `evaluation.questions`, `evaluation.preferences`",
    "data.findings": "`data.findings`",
    "classification": "`classification`",
    "rewards": "A part of `rewards`",
    "evaluation": "`evaluation`",
    "training": "`training`",
}


def render_editor_schema() -> str:
    """Render `recipes/recipe.schema.json`."""
    return _render_json(build_editor_schema(), levels=4) + "\n"


def _render_json(value: object, levels: int, indent: str = "") -> str:
    """Render JSON with its outer levels on lines of their own, so that a diff reads and the file stays short."""
    if not isinstance(value, dict) or not value or levels == 0:
        return json.dumps(value, ensure_ascii=False)
    inner = indent + " "
    lines = [f"{inner}{json.dumps(key)}: {_render_json(child, levels - 1, inner)}" for key, child in value.items()]
    return "{\n" + ",\n".join(lines) + f"\n{indent}}}"


def render_manual() -> str:
    """Render `docs/recipe.md`."""
    parts = (_render_sections, _render_defaults, _render_methods, _render_trainer, _render_owned, _render_names)
    return "\n".join([_INTRODUCTION, *chain.from_iterable(part() for part in parts)])


def _render_sections() -> Iterator[str]:
    for section, title in _SECTIONS.items():
        settings = find_properties(section)
        if section == "":
            settings = {name: schema for name, schema in settings.items() if "$ref" not in schema}
        if section == "adapter":
            settings = {name: settings[name] for name in AdapterSettings.model_fields}
        if section == "training":
            settings = {name: settings[name] for name in TrainingSettings.model_fields}
        required = _required(section)
        yield f"## {title}\n\n| setting | takes | default | meaning |\n|---|---|---|---|"
        for name, schema in settings.items():
            default = "required" if name in required else f"`{_to_yaml(schema.get('default'))}`"
            if isinstance(schema.get("default"), dict) and schema["default"]:
                default = "each setting's own"
            takes = _METHODS if (section, name) == ("adapter", "method") else _describe(schema)
            yield f"| `{name}` | {takes} | {default} | {_escape(schema.get('description', ''))} |"
        yield ""


def _required(section: str) -> set[str]:
    required: dict[str, set[str]] = {"": {"name"}, "data": {"train"}, "data.train": {"path"}, "rewards": {"function"}}
    return required.get(section, set())


def _render_methods() -> Iterator[str]:
    yield (
        "## The methods of `adapter`\n\n"
        f"Each takes the fields of its config in PEFT {read_catalogue().made_from['peft']}, by PEFT's names and with "
        "PEFT's defaults; PEFT's own documentation explains them. *4-bit* says whether the method works on "
        "a quantized base; the others need `quantization: none`. `bitfit`, `bottleneck`, `hypernetwork` and "
        "`combined` are of our own, on PEFT's bases (docs/model.md). Methods of virtual tokens need `packing: false`, "
        "and `prefix_tuning` also `gradient_checkpointing: false`.\n\n"
        "| method | 4-bit | its settings |\n|---|---|---|"
    )
    for method in find_methods():
        settings = build_adapter_schema(method)["properties"]
        names = [name for name in settings if name not in AdapterSettings.model_fields]
        listed = _backticked(names) if names else "none: all weights are trained"
        yield f"| `{method}` | {_can_be_quantized(method)} | {listed} |"
    refused = "; ".join(f"`{method}` ({reason})" for method, reason in UNTRAINABLE_METHODS.items())
    wanting_data, wanting_16_bits = ", ".join(STARTS_WANTING_DATA), " and ".join(STARTS_WANTING_16_BITS)
    yield (
        f"\nPEFT's other methods cannot be trained from rows alone and are refused: {refused}.\n\n"
        f"Of `lora`, the `init_lora_weights` {wanting_data} are refused, since no pass over the data is made before "
        "the first step, and `kasa_config`, since it changes the base. On a quantized base "
        f"{wanting_16_bits} are refused too, `loftq` on any but nf4 and fp4, `use_dora` on int8.\n"
    )


def _can_be_quantized(method: str) -> str:
    if method in PROMPT_METHODS:
        return "yes, without packing"
    return "yes" if method in QUANTIZABLE_METHODS | EMBEDDING_METHODS else "no"


def _render_defaults() -> Iterator[str]:
    yield (
        "## Defaults by objective\n\nThese depend on the objective; a run's `resolved.json` holds the value taken.\n\n"
        f"| setting | {' | '.join(TRAINER_CONFIGS)} |\n|---|{'---|' * len(TRAINER_CONFIGS)}"
    )
    for setting in dict.fromkeys(chain.from_iterable(DEFAULTS_BY_OBJECTIVE.values())):
        section, name = setting.split(".")
        usual = find_properties(section)[name]["default"]
        values = [DEFAULTS_BY_OBJECTIVE.get(objective, {}).get(setting, usual) for objective in TRAINER_CONFIGS]
        yield f"| `{setting}` | {' | '.join(f'`{_to_yaml(value)}`' for value in values)} |"
    yield ""


def _render_trainer() -> Iterator[str]:
    trl = f"TRL {read_catalogue().made_from['trl']}"
    takers = {
        config: [name for name, its in TRAINER_CONFIGS.items() if its == config] for config in TRAINER_CONFIGS.values()
    }
    configs = ", ".join(f"{config} ({', '.join(objectives)})" for config, objectives in takers.items())
    shared, own = _split_training()
    yield (
        f"## Further settings of `training`\n\nThe other fields of the objective's config in {trl}, by its names, with "
        f"its defaults: {configs}. Those that all objectives take:\n\n| setting | takes | default |\n|---|---|---|"
    )
    for name, schema in shared.items():
        yield f"| `{name}` | {_describe(schema)} | `{_to_yaml(schema.get('default'))}` |"
    yield "\nThose of some objectives:\n\n| setting | objectives | takes | default |\n|---|---|---|---|"
    for name, objectives, schema in own:
        default = _to_yaml(schema.get("default"))
        yield f"| `{name}` | {', '.join(objectives)} | {_describe(schema)} | `{default}` |"
    yield ""


def _split_training() -> tuple[dict[str, Schema], list[tuple[str, list[str], Schema]]]:
    """Split the libraries' settings into those that every objective has alike, and the rest with their objectives."""
    by_objective = {objective: build_training_schema(objective)["properties"] for objective in TRAINER_CONFIGS}
    shared: dict[str, Schema] = {}
    own: list[tuple[str, list[str], Schema]] = []
    for name in find_properties("training"):
        found: dict[str, list[str]] = {}
        for objective, settings in by_objective.items():
            if name in settings and name not in TrainingSettings.model_fields:
                found.setdefault(json.dumps(settings[name]), []).append(objective)
        for text, objectives in found.items():
            if len(objectives) == len(TRAINER_CONFIGS):
                shared[name] = json.loads(text)
            else:
                own.append((name, objectives, json.loads(text)))
    return shared, own


def _render_owned() -> Iterator[str]:
    yield (
        "## Fields of TRL that are decided elsewhere\n\nUnder `training` each of these stops the run with the text "
        "given here.\n\n| field | instead | |\n|---|---|---|"
    )
    for name, instead in OWNED_TRAINER_FIELDS.items():
        yield f"| `{name}` | {_render_instead(instead)} |"
    for objective, fields in OWNED_BY_OBJECTIVE.items():
        for name, instead in fields.items():
            yield f"| `{name}`, under {objective} | {_render_instead(instead)} |"
    yield ""


def _render_instead(instead: Instead) -> str:
    return f"{f'`{instead.setting}`' if instead.setting else '–'} | {_escape(instead.hint)}"


def _render_names() -> Iterator[str]:
    yield (
        "## Names of other tools\n\nA recipe that uses one of these stops with a message that names ours.\n\n"
        "| ours | elsewhere |\n|---|---|"
    )
    names: dict[str, list[str]] = {}
    for name, instead in OTHER_TOOLS.items():
        names.setdefault(str(instead.setting), []).append(name)
    for ours, theirs in names.items():
        yield f"| `{ours}` | {_backticked(theirs)} |"
    yield ""


def _describe(schema: Schema) -> str:
    """What a setting takes, in a few words."""
    parts = [resolve(part) for part in schema.get("anyOf", [schema])]
    return " or ".join(dict.fromkeys(_escape(_describe_part(part)) for part in parts))


def _describe_part(schema: Mapping[str, Any]) -> str:
    if "enum" in schema or "const" in schema:
        return ", ".join(_to_yaml(choice) for choice in schema.get("enum", [schema.get("const")]))
    if "format" in schema.get("properties", {}):
        return "a source"
    if "properties" in schema:
        return "{" + ", ".join(schema["properties"]) + "}"
    if schema.get("pattern") == ONE_LINE:
        return "text"
    if "pattern" in schema and "description" not in schema:
        return schema["pattern"].strip("^$").replace("[0-9]+", "N")
    if "items" in schema:
        return f"list of {_describe_part(resolve(schema['items']))}"
    types = schema.get("type", "anything")
    words = {"string": "text", "integer": "whole number", "boolean": "true, false", "object": "{…}", "array": "list"}
    return " or ".join(words.get(name, name) for name in ([types] if isinstance(types, str) else types))


def _to_yaml(value: object) -> str:
    return value if isinstance(value, str) and value else json.dumps(value, ensure_ascii=False)


def _backticked(names: Iterable[str]) -> str:
    return " ".join(f"`{name}`" for name in names)


def _escape(text: str) -> str:
    return text.replace("|", "\\|").replace("<", "&lt;")


if __name__ == "__main__":
    EDITOR_SCHEMA_PATH.write_text(render_editor_schema(), encoding="utf-8")
    MANUAL_PATH.write_text(render_manual(), encoding="utf-8")
