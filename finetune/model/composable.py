"""Whether adapters of one base can be made into one, and in which manner: known from their configs alone.

In go targets and a `Manner`; out comes nothing, or the adapter or value at fault and what would do. What is refused
here PEFT would refuse less clearly, or add up to something else without a word.
"""

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from finetune.errors import RecipeError
from finetune.model.several import check_same_base, find_base_change
from finetune.model.targets import Target
from finetune.recipe.catalogue import read_catalogue
from finetune.recipe.composing import How, MajoritySign

__all__ = ["Manner", "check_composable"]

# Fields in which LoRA adapters may differ, or that do not matter once they are trained; any other one that is not at
# its default makes more of an adapter than two matrices a layer. The second list has to be alike in all of them.
_FREE_FIELDS = frozenset(
    {"r", "lora_alpha", "lora_dropout", "target_modules", "rank_pattern", "alpha_pattern", "use_rslora"}
    | {"init_lora_weights", "loftq_config", "eva_config", "runtime_config", "init_ia3_weights", "feedforward_modules"}
    | {"task_type", "peft_type", "auto_mapping", "peft_version", "base_model_name_or_path", "revision"}
    | {"inference_mode", "megatron_core", "qalora_group_size"}
)
_SHARED_FIELDS = ("layers_to_transform", "layers_pattern", "exclude_modules", "fan_in_fan_out")


@dataclass(frozen=True, slots=True)
class Manner:
    """How adapters are made into one.

    Attributes:
        how: the way; an IA3 adapter takes linear alone.
        weights: one an adapter, of any sign for LoRA; for IA3 they sum to 1.
        density: share of the numbers that are kept, above 0 and below 1; None where nothing is pruned.
        majority_sign: how TIES votes on a number's sign: by the sum of the numbers, or by counting them.
        rank: of the result of a way ending in svd; None takes the largest of the adapters'.
        seed: of what DARE drops.
    """

    how: How
    weights: tuple[float, ...]
    density: float | None = None
    majority_sign: MajoritySign = "total"
    rank: int | None = None
    seed: int = 42


def check_composable(targets: Sequence[Target], manner: Manner) -> None:
    """Check that adapters can be made into one in this manner; reads their configs and no weight.

    Raises:
        RecipeError: with the adapter or the value at fault, and what would do.
    """
    if len(targets) < 2:
        raise RecipeError("compose wants two adapters or more.\n  E.g. outputs/one outputs/two --to outputs/both")
    _check_manner(manner, len(targets))
    for target in targets:
        if target.adapter_dir is None:
            raise RecipeError(f"{target.name} is a whole model, not an adapter: nothing of it can be added to another.")
        if target.base.weights == "random":
            raise RecipeError(
                f"{target.name} stands on random weights that its own recipe draws; a composed adapter could not "
                "name them.\n  Save that base first: objective pretrain leaves a whole model."
            )
    check_same_base(targets, same_precision=False)
    methods = {str(target.method) for target in targets}
    if len(methods) > 1 or not methods <= {"lora", "ia3"}:
        found = ", ".join(f"{target.name} is {target.method}" for target in targets)
        raise RecipeError(
            f"compose adds LoRA to LoRA, or IA3 to IA3: {found}.\n"
            "  Hold adapters of any methods side by side: python -m finetune.chat RUN --adapter NAME=RUN2"
        )
    _check_fields(targets)
    if methods == {"ia3"}:
        _check_ia3(targets, manner)
    else:
        _check_ranks(targets, manner)


def _check_manner(manner: Manner, num_adapters: int) -> None:
    how, prunes = manner.how, manner.how.startswith(("ties", "dare", "magnitude"))
    if len(manner.weights) != num_adapters:
        raise RecipeError(
            f"--weights has {len(manner.weights)} numbers for {num_adapters} adapters.\n"
            f"  One each: --weights {','.join(['1'] * num_adapters)}"
        )
    odd = [weight for weight in manner.weights if not math.isfinite(weight)]
    if odd:
        raise RecipeError(
            f"--weights: {odd[0]} is not a usable weight: everything it multiplies would be lost.\n  E.g. 0.5 or -1"
        )
    if any(weight == 0 for weight in manner.weights):
        raise RecipeError("--weights: an adapter with weight 0 is left out.\n  Leave it out of the command.")
    if prunes and (manner.density is None or not 0 < manner.density < 1):
        whole = "svd" if how.endswith("svd") else "linear"
        raise RecipeError(
            f"--how {how} keeps a share of each adapter's numbers: --density, above 0 and below 1; found "
            f"{manner.density}.\n  E.g. --density 0.5     All of them: --how {whole}"
        )
    if not prunes and manner.density is not None:
        raise RecipeError(f"--density: --how {how} keeps every number.\n  Take --how ties, dare_linear or their like.")
    if manner.rank is not None and not how.endswith("svd"):
        raise RecipeError(f"--rank: the rank of --how {how} follows from the adapters'.\n  Take --how svd.")


def _check_fields(targets: Sequence[Target]) -> None:
    fields = [_read_config(target) for target in targets]
    method = str(targets[0].method)
    defaults = read_catalogue().methods[method]
    for target, held in zip(targets, fields, strict=True):
        assert target.adapter_dir is not None
        change = find_base_change(target.adapter_dir)
        if change is not None:
            raise RecipeError(
                f"{target.name}: its {change} changes the base, so it cannot be added to another adapter."
            )
        for name, value in held.items():
            known = name in _FREE_FIELDS or name in _SHARED_FIELDS or name not in defaults
            if not known and value not in (None, False, {}, [], "none", defaults[name].get("default")):
                raise RecipeError(
                    f"{target.name} is more than plain {method}: its `{name}` is {json.dumps(value)}, without a sum."
                    "\n  Hold the adapters side by side: python -m finetune.chat RUN --adapter NAME=RUN2"
                )
    for name in (*_SHARED_FIELDS, "task_type"):
        first, *others = (json.dumps(held.get(name), sort_keys=True) for held in fields)
        for target, value in zip(targets[1:], others, strict=True):
            if value != first:
                raise RecipeError(
                    f"`{name}` of {targets[0].name} is {first}, of {target.name} {value}: the result has one for all.\n"
                    "  Only adapters that have it alike can be made into one."
                )
    if len({isinstance(held["target_modules"], str) for held in fields}) > 1:
        raise RecipeError(
            "`target_modules` is a pattern in one of these adapters and a list of names in another.\n"
            "  Write it as a list into adapter_config.json of the one with the pattern."
        )


def _check_ranks(targets: Sequence[Target], manner: Manner) -> None:
    if manner.how == "cat" or manner.how.endswith("svd"):
        return
    ranks = {target.name: _read_config(target)["r"] for target in targets}
    patterned = [target.name for target in targets if _read_config(target).get("rank_pattern")]
    if len(set(ranks.values())) > 1 or patterned:
        found = ", ".join(f"{name} has {rank}" for name, rank in ranks.items())
        further = f", and {patterned[0]} further ones in its `rank_pattern`" if patterned else ""
        instead = "svd" if manner.how == "linear" else f"{manner.how}_svd"
        raise RecipeError(
            f"--how {manner.how} wants adapters of one rank: {found}{further}.\n"
            f"  With any ranks: --how cat, which is exact, or --how {instead}."
        )


def _check_ia3(targets: Sequence[Target], manner: Manner) -> None:
    if manner.how != "linear":
        raise RecipeError(f"--how {manner.how} is for LoRA: IA3 has one vector a layer.\n  Take --how linear.")
    if abs(sum(manner.weights) - 1) > 1e-6:
        raise RecipeError(
            f"--weights of IA3 sum to 1, since its vectors multiply what the base computes; found "
            f"{sum(manner.weights)}.\n  E.g. --weights {','.join([f'{1 / len(targets):.4g}'] * len(targets))}"
        )
    for name in ("target_modules", "feedforward_modules"):
        first, *others = (sorted(_read_config(target)[name]) for target in targets)
        for target, value in zip(targets[1:], others, strict=True):
            if value != first:
                raise RecipeError(
                    f"`{name}` of {targets[0].name} and {target.name} differ: where one has no vector it would count "
                    "as 0, and silence the layer.\n  Only IA3 adapters of the same layers can be made into one."
                )


def _read_config(target: Target) -> dict[str, Any]:
    assert target.adapter_dir is not None
    config: dict[str, Any] = json.loads((target.adapter_dir / "adapter_config.json").read_text("utf-8"))
    return config
