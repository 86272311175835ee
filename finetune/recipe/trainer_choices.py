"""What a field of TRL's configs takes beyond its type: the names of a closed list, and limits.

TRL annotates these fields as plain texts and numbers, and refuses a value once the weights are loaded
or at the first step. In goes a field's schema from the catalogue, out comes the narrower one; a test
holds the names to TRL's source.
"""

from collections.abc import Mapping
from typing import Any

__all__ = ["CLOSED_LISTS", "DPO_LOSSES", "narrow"]

DPO_LOSSES = (
    "sigmoid",
    "hinge",
    "ipo",
    "exo_pair",
    "nca_pair",
    "robust",
    "bco_pair",
    "sppo_hard",
    "aot",
    "aot_unpaired",
    "apo_zero",
    "apo_down",
    "discopop",
    "sft",
    "sigmoid_norm",
)

# TRL 1.14; None where the field may be left to the library. KTO's losses are closed in its config already.
CLOSED_LISTS: Mapping[str, Mapping[str, tuple[str | None, ...]]] = {
    "SFTConfig": {"loss_type": ("nll", "chunked_nll", "dft", None)},
    "DPOConfig": {
        "loss_type": DPO_LOSSES,
        "f_divergence_type": ("reverse_kl", "forward_kl", "js_divergence", "alpha_divergence"),
    },
    "GRPOConfig": {
        "loss_type": ("dapo", "grpo", "dr_grpo", "bnpo", "cispo", "sapo", "luspo", "vespo"),
        "importance_sampling_level": ("token", "sequence"),
        "multi_objective_aggregation": ("sum_then_normalize", "normalize_then_sum"),
        "scale_rewards": ("group", "batch", "none"),
    },
}

_FRACTION: dict[str, float] = {"minimum": 0, "maximum": 1}
_NOT_NEGATIVE: dict[str, float] = {"minimum": 0}
_POSITIVE: dict[str, float] = {"exclusiveMinimum": 0}
_AT_LEAST_1: dict[str, float] = {"minimum": 1}

_LIMITS: Mapping[str, dict[str, float]] = {
    "beta": _NOT_NEGATIVE,
    "ld_alpha": _FRACTION,
    "label_smoothing": {"minimum": 0, "exclusiveMaximum": 1},
    "discopop_tau": _POSITIVE,
    "precompute_ref_batch_size": _AT_LEAST_1,
    "desirable_weight": _NOT_NEGATIVE,
    "undesirable_weight": _NOT_NEGATIVE,
    "center_rewards_coefficient": _NOT_NEGATIVE,
    "num_generations": {"minimum": 2},
    "generation_batch_size": _AT_LEAST_1,
    "steps_per_generation": _AT_LEAST_1,
    "max_completion_length": _AT_LEAST_1,
    "num_iterations": _AT_LEAST_1,
    "temperature": _POSITIVE,
    "top_p": {"exclusiveMinimum": 0, "maximum": 1},
    "top_k": _NOT_NEGATIVE,
    "min_p": _FRACTION,
    "repetition_penalty": _POSITIVE,
    "epsilon": _POSITIVE,
    "epsilon_high": _POSITIVE,
    "delta": _POSITIVE,
    "sapo_temperature_neg": _POSITIVE,
    "sapo_temperature_pos": _POSITIVE,
    "top_entropy_quantile": _FRACTION,
    "off_policy_mask_threshold": _POSITIVE,
}
# Where a config's field of the same name takes less: these losses measure in units of beta.
_LIMITS_OF_CONFIG: Mapping[tuple[str, str], dict[str, float]] = {
    ("DPOConfig", "beta"): _POSITIVE,
    ("KTOConfig", "beta"): _POSITIVE,
}
# Annotated as if they could be null, which TRL then computes with.
_NEVER_NULL = ("num_generations", "max_completion_length")


def narrow(config: str, name: str, schema: dict[str, Any]) -> dict[str, Any]:
    """Narrow a field's schema to what TRL takes.

    Args:
        config: TRL's, of the objective.
        name: of the field.
        schema: as the catalogue has it.
    """
    names = CLOSED_LISTS.get(config, {}).get(name)
    if names is not None:
        one = {"enum": list(names)}
        several = {"type": "array", "items": one, "minItems": 1}
        is_list = schema.get("type") == "array"  # TRL takes a single name too
        return ({"anyOf": [one, several]} if is_list else one) | {"default": schema["default"]}
    limits = _LIMITS_OF_CONFIG.get((config, name), _LIMITS.get(name))
    if limits is None:
        return schema
    types = [schema["type"]] if isinstance(schema["type"], str) else schema["type"]
    limited: dict[str, Any] = {"type": next(kind for kind in types if kind != "null")} | limits
    if "null" not in types or name in _NEVER_NULL:
        return limited | {"default": schema["default"]}
    return {"anyOf": [limited, {"type": "null"}], "default": schema["default"]}
