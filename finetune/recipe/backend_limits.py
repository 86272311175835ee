"""What Unsloth cannot do that transformers and PEFT can: one list, for recipes as they are read and for what is loaded.

In go settings by name; out come those that it does not serve, with its reason.
"""

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from finetune.recipe.catalogue import read_catalogue

__all__ = [
    "OTHERWISE",
    "UNSLOTH_LORA_FIELDS",
    "UNSLOTH_LORA_STARTS",
    "UNSLOTH_OBJECTIVES",
    "Unserved",
    "find_embedding_targets",
    "find_unserved_base_settings",
    "find_unserved_lora_fields",
]

OTHERWISE = "Or take the other backend: transformers."
UNSLOTH_OBJECTIVES = ("sft", "pretrain", "dpo", "kto", "orpo", "grpo")
# What an adapter is attached with: `model.unsloth.attach` hands each on, but for LoftQ's config, whose start is ours.
UNSLOTH_LORA_FIELDS = (
    "r",
    "lora_alpha",
    "lora_dropout",
    "target_modules",
    "layers_to_transform",
    "layers_pattern",
    "use_rslora",
    "init_lora_weights",
    "loftq_config",
)
# Starts of LoRA's matrices, beside true and false. The first is PEFT's; the others are made on PEFT's layers by us.
UNSLOTH_LORA_STARTS = ("gaussian", "loftq", "olora", "pissa")
# Of an adapter's config, not of the method: where it comes from.
_ORIGIN = frozenset({"base_model_name_or_path", "inference_mode", "peft_type", "peft_version", "revision", "task_type"})


# By their names in transformers, and where they stand in a model.
_EMBEDDINGS = {"embed_tokens": "model.embed_tokens", "lm_head": "lm_head"}


@dataclass(frozen=True, slots=True)
class Unserved:
    """A setting of `model` with a value that is not served.

    Attributes:
        name: of the setting.
        value: found.
        why: what Unsloth does instead.
        instead: a value that is served.
    """

    name: str
    value: object
    why: str
    instead: object


def find_unserved_base_settings(model: Mapping[str, Any]) -> Iterator[Unserved]:
    """Find settings of `model` that Unsloth has no way to follow."""
    served: dict[str, tuple[tuple[object, ...], str]] = {
        "quantization": (("nf4", "none"), "holds a base in nf4 or not quantized"),
        "weights": (("pretrained",), "loads weights from files"),
        "attention": (("auto",), "attends with kernels of its own choice"),
    }
    if model["quantization"] == "nf4":
        served["double_quantization"] = ((True,), "always quantizes the 4-bit blocks' own scales")
    for name, (values, why) in served.items():
        if model[name] not in values:
            yield Unserved(name, model[name], why, values[0])


def find_embedding_targets(targets: object) -> list[str]:
    """Find the embeddings and the head among LoRA's targets, names or a pattern: Unsloth has no LoRA for them."""
    if isinstance(targets, str):
        try:
            return [name for name, path in _EMBEDDINGS.items() if re.fullmatch(targets, path)]
        except re.error:
            return []  # a fault of its own: `adapter_combinations`
    names = targets if isinstance(targets, list | tuple | set) else ()
    return [name for name in _EMBEDDINGS if any(str(target).rpartition(".")[2] == name for target in names)]


def find_unserved_lora_fields(fields: Mapping[str, Any]) -> list[str]:
    """Find fields of a LoRA config, typed or saved, that Unsloth is not given and that ask for more than plain LoRA."""
    defaults = read_catalogue().methods["lora"]
    return sorted(
        name
        for name, value in fields.items()
        if name in defaults.keys() - _ORIGIN - set(UNSLOTH_LORA_FIELDS)
        and value not in (None, False, "none", {}, [], defaults[name].get("default"))
    )
