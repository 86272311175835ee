"""Where a default goes by the objective: the one place, filled in as a recipe is read.

In goes what was typed; out comes the same with these defaults under it, so that the frozen recipe and
`resolved.json` hold the number itself.
"""

from collections.abc import Mapping
from typing import Any

from finetune.recipe.places import names_file

__all__ = ["DEFAULTS_BY_OBJECTIVE", "fill_defaults", "find_notice"]

# For LoRA, which takes about ten times the rate of all weights. dpo: TRL 1.14's example with LoRA (trl/scripts/dpo.py);
# kto: as dpo, for its reward and beta are the same; orpo: TRL's example with LoRA (examples/scripts/orpo.py), higher
# since the loss holds that of sft; reward: TRL's default; rloo and grpo: TRL's guide "LoRA Without Regret"; classify:
# what LoRA's paper takes for RoBERTa on most of GLUE (its table 9); mlm: near RoBERTa's own peak, for all weights.
_LEARNING_RATES = {
    "dpo": 5e-6, "kto": 5e-6, "orpo": 8e-5, "reward": 1e-4, "rloo": 1e-5, "grpo": 1e-5, "classify": 4e-4, "mlm": 5e-4,
}  # fmt: skip
# PEFT's learned keys and values and recomputed activations exclude each other.
_WITHOUT_CHECKPOINTING = ("prefix_tuning", "cartridge")

DEFAULTS_BY_OBJECTIVE: Mapping[str, Mapping[str, Any]] = {
    objective: {"data.packing": False, "training.learning_rate": rate}
    # The positions of BERT and RoBERTa.
    | ({"data.max_length": 512} if objective in ("classify", "mlm") else {})
    for objective, rate in _LEARNING_RATES.items()
}


def fill_defaults(values: Mapping[str, Any]) -> dict[str, Any]:
    """Put the objective's defaults under what was typed; the values given are left as they are."""
    filled = dict(values)
    for path, default in DEFAULTS_BY_OBJECTIVE.get(str(values.get("objective", "sft")), {}).items():
        section, key = path.split(".")
        typed = filled.get(section, {})
        if isinstance(typed, Mapping):
            filled[section] = {key: default, **typed}
    return _fill_checkpointing(_fill_task_rows(filled))


def find_notice(values: Mapping[str, Any]) -> str | None:
    """Find what is to be said of a default that another setting has moved; None where none is."""
    if not _moves_checkpointing(values):
        return None
    method = values["adapter"]["method"]
    return f"`method: {method}` goes without gradient checkpointing: training.gradient_checkpointing is false here."


def _moves_checkpointing(values: Mapping[str, Any]) -> bool:
    adapter, training = values.get("adapter"), values.get("training", {})
    is_without = isinstance(adapter, Mapping) and adapter.get("method") in _WITHOUT_CHECKPOINTING
    return is_without and isinstance(training, Mapping) and "gradient_checkpointing" not in training


def _fill_checkpointing(values: dict[str, Any]) -> dict[str, Any]:
    """Switch checkpointing off where the method excludes it and nobody asked for it."""
    if not _moves_checkpointing(values):
        return values
    return values | {"training": {**values.get("training", {}), "gradient_checkpointing": False}}


def _fill_task_rows(values: dict[str, Any]) -> dict[str, Any]:
    """Give a task of GLUE its own development rows, beside those to train on, where no others are named."""
    data, settings = values.get("data"), values.get("classification")
    if values.get("objective") != "classify" or not isinstance(data, Mapping) or not isinstance(settings, Mapping):
        return values
    train = data.get("train")
    if settings.get("task") is None or "eval" in data or not isinstance(train, Mapping):
        return values
    path = train.get("path")
    if not isinstance(path, str) or names_file(path):  # one file holds no other rows than those
        return values
    place = {key: train[key] for key in ("path", "subset", "revision", "columns") if key in train}
    return values | {"data": {**data, "eval": place}}
