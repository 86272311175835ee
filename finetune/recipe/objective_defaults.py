"""Where a default goes by the objective: the one place, filled in as a recipe is read.

In goes what was typed; out comes the same with these defaults under it, so that the frozen recipe and
`resolved.json` hold the number itself.
"""

import re
from collections.abc import Mapping
from typing import Any

# A path that names one file holds no other rows than those.
_FILE = re.compile(r"\.(tsv|csv|jsonl?|parquet)(\.gz)?$", re.IGNORECASE)

__all__ = ["DEFAULTS_BY_OBJECTIVE", "fill_defaults"]

# For LoRA, which takes about ten times the rate of all weights. dpo: TRL 1.14's example with LoRA (trl/scripts/dpo.py);
# kto: as dpo, for its reward and beta are the same; orpo: TRL's example with LoRA (examples/scripts/orpo.py), higher
# since the loss holds that of sft; reward: TRL's default; rloo and grpo: TRL's guide "LoRA Without Regret".
_LEARNING_RATES = {"dpo": 5e-6, "kto": 5e-6, "orpo": 8e-5, "reward": 1e-4, "rloo": 1e-5, "grpo": 1e-5}
# classify: what LoRA's paper takes for RoBERTa on most of GLUE (its table 9); mlm: RoBERTa's own peak, for all weights.
_LEARNING_RATES |= {"classify": 4e-4, "mlm": 5e-4}

DEFAULTS_BY_OBJECTIVE: Mapping[str, Mapping[str, Any]] = {
    objective: {"data.packing": False, "training.learning_rate": rate} for objective, rate in _LEARNING_RATES.items()
}


def fill_defaults(values: Mapping[str, Any]) -> dict[str, Any]:
    """Put the objective's defaults under what was typed; the values given are left as they are."""
    filled = dict(values)
    for path, default in DEFAULTS_BY_OBJECTIVE.get(str(values.get("objective", "sft")), {}).items():
        section, key = path.split(".")
        typed = filled.get(section, {})
        if isinstance(typed, Mapping):
            filled[section] = {key: default, **typed}
    return _fill_task_rows(filled)


def _fill_task_rows(values: dict[str, Any]) -> dict[str, Any]:
    """Give a task of GLUE its own development rows, beside those to train on, where no others are named."""
    data, settings = values.get("data"), values.get("classification")
    if values.get("objective") != "classify" or not isinstance(data, Mapping) or not isinstance(settings, Mapping):
        return values
    train = data.get("train")
    if settings.get("task") is None or "eval" in data or not isinstance(train, Mapping):
        return values
    path = train.get("path")
    if not isinstance(path, str) or _FILE.search(path):
        return values
    place = {key: train[key] for key in ("path", "subset", "revision") if key in train}
    return values | {"data": {**data, "eval": place}}
