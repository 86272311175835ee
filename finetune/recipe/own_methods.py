"""Values of `adapter.method` that PEFT has not got: methods that `model.own_methods` adds to it, and the base itself.

Their settings as JSON Schemas, kept by hand, since recipes are read without importing PEFT; a test holds them to the
configs.
"""

from typing import Any

__all__ = ["FULL", "OWN_METHODS", "WHOLE_METHODS"]

_NAMES = {"anyOf": [{"type": "array", "items": {"type": "string"}}, {"type": ["string", "null"]}], "default": None}
_LIST = {"anyOf": [{"type": "array", "items": {"type": "string"}}, {"type": "null"}], "default": None}
_WHERE: dict[str, dict[str, Any]] = {"target_modules": _NAMES, "exclude_modules": _NAMES, "modules_to_save": _LIST}

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
}

FULL = "full"
# These train weights of the base itself; the result is a whole model.
WHOLE_METHODS: dict[str, dict[str, dict[str, Any]]] = {
    FULL: {},
    "top_k": {
        "layers": {"type": "integer", "default": 2, "minimum": 0},
        "train_head": {"type": "boolean", "default": True},
    },
}
