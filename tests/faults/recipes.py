"""The recipes of the fault programme: a Mistral of two layers and random weights on rows of the tiny world, 30 steps.

Goes in: a kind and a folder. Comes out: the YAML file that the verb is given. Dropout is on, so that a random state
that is not taken up shows; an epoch ends in the middle of a step's micro-batches, and there is more than one.
"""

from copy import deepcopy
from pathlib import Path
from typing import Any

import yaml

__all__ = [
    "KEPT",
    "KINDS",
    "ROOT",
    "RUN_NAME",
    "SAVE_STEPS",
    "SHAPE",
    "STEPS",
    "TINY",
    "build_values",
    "find_verb",
    "write_recipe",
]

STEPS = 30
SAVE_STEPS = 5
KEPT = 2  # checkpoints
RUN_NAME = "run"
ROOT = Path(__file__).resolve().parents[2]
TINY = ROOT / "data" / "tiny_base"
WORLD = ROOT / "data" / "tiny_world"

SHAPE: dict[str, Any] = {
    "model_type": "mistral",
    "vocab_size": 4096,  # of the tokenizer
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 256,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 3,
}

BASE: dict[str, Any] = {
    "name": RUN_NAME,
    "objective": "sft",
    "seed": 3,
    "model": {
        "weights": "random",
        "config": SHAPE,
        "tokenizer_name_or_path": str(TINY),
        "quantization": "none",
        "device": "cpu",
        "compute_dtype": "float32",
    },
    "adapter": {"method": "lora", "r": 4, "lora_alpha": 8, "lora_dropout": 0.1, "target_modules": "all-linear"},
    # 77 rows are 39 micro-batches of two: 19 steps of two micro-batches each, and one micro-batch over.
    "data": {
        "train": {"path": str(WORLD / "train.json"), "limit": 77},
        "template": "alpaca",
        "max_length": 96,
        "packing": False,
    },
    "training": {
        "max_steps": STEPS,
        "save_steps": SAVE_STEPS,
        "save_total_limit": KEPT,
        "logging_steps": 1,
        "per_device_train_batch_size": 2,
        "gradient_accumulation_steps": 2,
        "gradient_checkpointing": False,
        "learning_rate": 1e-2,
        "warmup_steps": 3,
    },
}
# What each kind puts over it.
KINDS: dict[str, dict[str, Any]] = {
    "sft": {},
    "nf4": {"model": {"quantization": "nf4"}},
    "dpo": {
        "objective": "dpo",
        "data": {"train": {"path": str(WORLD / "preferences.jsonl"), "limit": 77}},
        "adapter": BASE["adapter"] | {"lora_dropout": 0.0},  # a policy has to begin as its reference does
        "training": {"learning_rate": 1e-3},
    },
    "packed": {"data": {"train": {"path": str(WORLD / "train.json"), "limit": 256}, "packing": True}},
    "evaluated": {
        "data": {"train": {"path": str(WORLD / "train.json"), "limit": 140}, "eval": {"fraction": 0.4}},
        "training": {"eval_steps": 4},
    },
}


def find_verb(kind: str) -> str:
    """Find the verb that trains a kind, as in `python -m finetune.VERB`."""
    return "dpo" if kind == "dpo" else "sft"


def build_values(kind: str, output_dir: Path) -> dict[str, Any]:
    """Build a kind's recipe, its run in `output_dir/run`."""
    return _put_over(deepcopy(BASE), KINDS[kind]) | {"output_dir": str(output_dir)}


def write_recipe(path: Path, kind: str, output_dir: Path) -> Path:
    """Write a kind's recipe as YAML."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(yaml.safe_dump(build_values(kind, output_dir), sort_keys=False), encoding="utf-8")
    return path


def _put_over(values: dict[str, Any], changes: dict[str, Any]) -> dict[str, Any]:
    for key, value in changes.items():
        # A source is replaced whole: it is another one.
        values[key] = _put_over(values[key], value) if key in ("model", "data", "training") else value
    return values
