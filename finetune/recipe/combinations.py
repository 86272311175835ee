"""Settings checked together: what cannot be had at once, and what needs another setting beside it.

In goes the tree of a recipe, with the schema's defaults behind it, so that these faults are found
along with those of single settings; out come faults at the line of the setting to change.
"""

import re
from collections.abc import Iterator

from finetune.recipe.adapter_combinations import find_adapter_conflicts
from finetune.recipe.backend_combinations import find_backend_conflicts
from finetune.recipe.encoder_combinations import find_encoder_conflicts
from finetune.recipe.faults import Fault, quote
from finetune.recipe.objective_combinations import find_objective_conflicts
from finetune.recipe.preference_combinations import find_preference_conflicts
from finetune.recipe.recipe_view import SOURCES, RecipeView
from finetune.recipe.reference_combinations import find_reference_conflicts
from finetune.recipe.reinforcement_combinations import find_reinforcement_conflicts
from finetune.recipe.training_combinations import find_training_conflicts
from finetune.recipe.yaml_lines import Node

__all__ = ["find_conflicts"]


def find_conflicts(tree: Node, *, defaults_filled: bool = False) -> list[Fault]:
    """Find settings that exclude each other, or that need another one.

    Args:
        tree: the recipe.
        defaults_filled: a resolved recipe, whose defaults nobody typed.
    """
    settings = RecipeView(tree, defaults_filled)
    checks = (
        _check_weights,
        _check_remote_code,
        find_adapter_conflicts,
        find_backend_conflicts,
        _check_shares,
        find_objective_conflicts,
        find_encoder_conflicts,
        find_training_conflicts,
        find_reference_conflicts,
        find_preference_conflicts,
        find_reinforcement_conflicts,
    )
    return [fault for check in checks for fault in check(settings)]


def _check_weights(settings: RecipeView) -> Iterator[Fault]:
    has_name = settings.value("model.model_name_or_path") is not None
    if not isinstance(settings.value("model"), dict):
        return
    if settings.value("model.weights") != "random":
        if not has_name:
            advice = "A Hub name such as mistralai/Mistral-7B-v0.1, or a local folder."
            yield settings.fault("model.model_name_or_path", "`model.model_name_or_path` is missing.", advice)
        if settings.value("model.config") is not None:
            what = "`model.config` is read with `weights: random` alone; pretrained weights bring their own."
            yield settings.fault("model.config", what, "Take the line out, or set weights: random.")
    elif not has_name and settings.value("model.config") is None:
        what = "`weights: random` needs a shape to fill."
        yield settings.fault(
            "model.weights", what, "Set model.config, or model.model_name_or_path to take its config.json."
        )


def _check_remote_code(settings: RecipeView) -> Iterator[Fault]:
    revision = settings.value("model.revision")
    if settings.value("model.trust_remote_code") is True and not re.fullmatch(r"[0-9a-f]{40}", str(revision)):
        what = f"`trust_remote_code` needs `revision` pinned to a commit; found {quote(str(revision))}."
        advice = "It runs the repository's own Python, so pin the 40-digit commit you have read."
        yield settings.fault("model.trust_remote_code", what, advice)


def _check_shares(settings: RecipeView) -> Iterator[Fault]:
    """Check that only sources of a mix have a share in it."""
    for source in SOURCES:
        weight = settings.value(f"{source}.weight")
        if weight is not None and not (settings.defaults_filled and weight == 1):
            what = f"`{source}.weight` is a share in a mix, and this is the only source."
            yield settings.fault(f"{source}.weight", what, "Take the line out; a mix is a list under `data.train`.")
