"""What the objective asks of the adapter: a reference to compare with, answers in their places, one source of settings.

The reference of dpo, kto and of rloo's and grpo's KL term is the same model with its adapter switched
off, or the adapter it started from; no second model is held.
"""

from collections.abc import Iterator

from finetune.recipe.catalogue import PROMPT_METHODS
from finetune.recipe.faults import Fault
from finetune.recipe.own_methods import WHOLE_METHODS
from finetune.recipe.recipe_view import RecipeView
from finetune.recipe.row_kinds import SAMPLED
from finetune.recipe.schema import AdapterSettings
from finetune.recipe.suggestions import list_names

__all__ = ["find_reference_conflicts"]

# Starts of LoRA's matrices that take away from the base what they put into the adapter.
_STARTS_CHANGING_THE_BASE = ("pissa", "olora", "loftq")


def find_reference_conflicts(settings: RecipeView) -> Iterator[Fault]:
    """Find settings of `adapter` that the objective, or the adapter it continues, excludes."""
    for check in (_check_continued, _check_virtual_tokens, _check_reference, _check_dropout):
        yield from check(settings)


def _check_continued(settings: RecipeView) -> Iterator[Fault]:
    """Check that an adapter which is trained on is not given other settings."""
    if settings.value("adapter.init_from") is None:
        if settings.value("adapter.any_base"):
            what = "`adapter.any_base` is about the adapter that `adapter.init_from` names, and none is named."
            yield settings.fault("adapter.any_base", what, "Take the line out, or name one.")
        return
    if settings.objective == "reward":
        what = "`adapter.init_from` continues an adapter that gives answers, and a reward model scores them."
        yield settings.fault("adapter.init_from", what, "Take the line out: head and adapter begin fresh.")
    method = settings.value("adapter.method")
    if isinstance(method, str) and method in WHOLE_METHODS:
        what = f"`adapter.init_from` continues an adapter, and `method: {method}` trains none."
        yield settings.fault("adapter.method", what, "Take one of the two lines out.")
    adapter = settings.value("adapter")
    further = [name for name in adapter if name not in AdapterSettings.model_fields]
    if further:
        what = f"`adapter.init_from` brings its own settings; found {list_names(further)} beside it."
        yield settings.fault(f"adapter.{further[0]}", what, "Take these lines out, or init_from for a fresh adapter.")


def _check_virtual_tokens(settings: RecipeView) -> Iterator[Fault]:
    method, objective = settings.value("adapter.method"), settings.objective
    if objective not in ("sft", "pretrain", "classify") and method in tuple(PROMPT_METHODS):
        what = (
            f"`method: {method}` puts tokens before the row, which shifts the answers `objective: {objective}` reads."
        )
        yield settings.fault("adapter.method", what, "Take a method that works on the layers, such as lora.")


def _check_reference(settings: RecipeView) -> Iterator[Fault]:
    """Check that the model without its adapter is the base as it was, or that nothing is compared with it."""
    objective = settings.objective
    if objective in ("dpo", "kto"):
        is_compared = settings.value("training.precompute_ref_log_probs") is not True
        way_out = "Set training.precompute_ref_log_probs: true; then the reference is computed before the first step."
    elif objective in SAMPLED:
        is_compared = settings.training_value("beta") not in (0, None)
        way_out = "Set training.beta: 0, which needs no reference."
    else:
        return
    if not is_compared:
        return
    method = settings.value("adapter.method")
    if isinstance(method, str) and method in WHOLE_METHODS:
        what = f"`objective: {objective}` compares with the model without its adapter, and `method: {method}` has none."
        yield settings.fault("adapter.method", what, way_out)
    start = settings.value("adapter.init_lora_weights")
    if isinstance(start, str) and start.startswith(_STARTS_CHANGING_THE_BASE):
        what = f"`init_lora_weights: {start}` changes the base, which `objective: {objective}` then compares with."
        yield settings.fault("adapter.init_lora_weights", what, way_out, "Or start from gaussian or true.")
    bias = settings.value("adapter.bias")
    if isinstance(bias, str) and bias != "none":
        what = f"`bias: {bias}` trains the base's own biases, which `objective: {objective}` then compares with."
        yield settings.fault("adapter.bias", what, way_out)


def _check_dropout(settings: RecipeView) -> Iterator[Fault]:
    """Check that dropout is not asked for where it is off, or where the policy has to begin as its reference."""
    adapter, objective = settings.value("adapter"), settings.objective
    if objective in ("sft", "pretrain", "mlm", "classify") or not isinstance(adapter, dict):
        return
    for name, value in adapter.items():
        if not name.endswith("dropout") or not isinstance(value, int | float) or value <= 0:
            continue
        if settings.training_value("disable_dropout") is True:
            what = f"`adapter.{name}` has no effect: `disable_dropout` is true under `objective: {objective}`."
            way_out = "" if objective in ("dpo", "kto") else ", or set training.disable_dropout: false"
            yield settings.fault(f"adapter.{name}", what, f"Take the line out{way_out}.")
        elif objective in ("dpo", "kto"):
            what = f"`adapter.{name}` works on the policy alone, which has to begin as its reference does."
            yield settings.fault(f"adapter.{name}", what, "Take the line out.")
