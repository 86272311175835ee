"""Values of `adapter.method` that PEFT has not got: methods that `model.own_methods` adds to it, and the base itself.

Their settings as JSON Schemas, kept by hand, since recipes are read without importing PEFT; a test holds them to the
configs.
"""

from typing import Any

__all__ = ["COMBINED", "FULL", "OWN_METHODS", "OWN_TARGETS", "PART_METHODS", "PROMPT_PARTS", "WHOLE_METHODS"]

# Methods, PEFT's too, that choose their modules by a rule of their own, or sit on something else than linear layers.
# The others take `all-linear` where the recipe names none.
OWN_TARGETS = frozenset(
    {"adaption_prompt", "bitfit", "bottleneck", "hypernetwork", "ia3", "ln_tuning", "shadow", "trainable_tokens"}
)

# Methods that put virtual tokens in front of a row as a part of a combination.
PROMPT_PARTS = ("prompt_tuning", "p_tuning")
# Methods that can be a part of a combination, from the one closest to the base's layers to the one furthest out.
PART_METHODS = (
    "ln_tuning",
    "lora",
    "loha",
    "lokr",
    "ia3",
    "bitfit",
    "bottleneck",
    "hypernetwork",
    *PROMPT_PARTS,
)

_NAMES = {"anyOf": [{"type": "array", "items": {"type": "string"}}, {"type": ["string", "null"]}], "default": None}
_LIST = {"anyOf": [{"type": "array", "items": {"type": "string"}}, {"type": "null"}], "default": None}
_WHERE: dict[str, dict[str, Any]] = {"target_modules": _NAMES, "exclude_modules": _NAMES, "modules_to_save": _LIST}
_COUNT: dict[str, Any] = {"type": "integer", "minimum": 1}

OWN_METHODS: dict[str, dict[str, dict[str, Any]]] = {
    "bitfit": _WHERE,
    "bottleneck": {
        "size": {"type": "integer", "default": 64, "minimum": 1},
        "variant": {"enum": ["houlsby", "pfeiffer"], "default": "houlsby"},
        "activation": {"enum": ["relu", "gelu", "silu", "tanh"], "default": "relu"},
        "init_std": {"type": "number", "default": 0.01, "exclusiveMinimum": 0},
        "dropout": {"type": "number", "default": 0.0, "minimum": 0, "exclusiveMaximum": 1},
        **_WHERE,
    },
    "hypernetwork": {
        "size": _COUNT | {"default": 24},
        "task_embedding_size": _COUNT | {"default": 64},
        "projector_hidden_size": _COUNT | {"default": 128},
        "projected_size": _COUNT | {"default": 64},
        # Rows carry no number of a task: with more, all but the first would stay as they were drawn.
        "num_tasks": _COUNT | {"default": 1, "maximum": 1, "description": "The rows of a recipe are of one task."},
        "variant": {"enum": ["houlsby", "pfeiffer"], "default": "houlsby"},
        "activation": {"enum": ["relu", "gelu", "silu", "tanh"], "default": "gelu"},
        "init_std": {"type": "number", "default": 0.01, "exclusiveMinimum": 0},
        "dropout": {"type": "number", "default": 0.0, "minimum": 0, "exclusiveMaximum": 1},
        **_WHERE,
    },
    # Each part is held against the schema of its own method, see `json_schema`.
    "combined": {
        "parts": {
            "type": "array",
            "items": {"type": "object", "properties": {"method": {"enum": list(PART_METHODS)}}, "required": ["method"]},
            "default": [],
            "description": "Two methods or more, each with its settings: [{method: lora, r: 8}, {method: bitfit}].",
        },
        "modules_to_save": _LIST,
    },
}

COMBINED = "combined"
FULL = "full"
# These train weights of the base itself; the result is a whole model.
WHOLE_METHODS: dict[str, dict[str, dict[str, Any]]] = {
    FULL: {},
    "top_k": {
        "layers": {"type": "integer", "default": 2, "minimum": 0},
        "train_head": {"type": "boolean", "default": True},
    },
}
