"""What a recipe cannot ask of Unsloth, each with its line: `backend_limits` applied to a recipe that is being read."""

from collections.abc import Iterator

from finetune.recipe.backend_limits import (
    OTHERWISE,
    UNSLOTH_LORA_STARTS,
    UNSLOTH_OBJECTIVES,
    find_embedding_targets,
    find_unserved_base_settings,
    find_unserved_lora_fields,
)
from finetune.recipe.faults import Fault
from finetune.recipe.recipe_view import RecipeView
from finetune.recipe.schema import ModelSettings
from finetune.recipe.suggestions import list_names

__all__ = ["find_backend_conflicts"]

# Other libraries' kernels; each is a setting of some trainer.
_OTHER_KERNELS = ("activation_offloading", "torch_compile", "use_liger_kernel")


def find_backend_conflicts(settings: RecipeView) -> Iterator[Fault]:
    """Find what the chosen backend cannot do with the rest of the recipe."""
    if settings.value("model.backend") != "unsloth":
        return
    for check in (_check_objective, _check_base, _check_method, _check_training):
        yield from check(settings)


def _check_objective(settings: RecipeView) -> Iterator[Fault]:
    if settings.objective not in UNSLOTH_OBJECTIVES:
        what = f"`backend: unsloth` does not train `objective: {settings.objective}`."
        yield settings.fault("model.backend", what, f"It trains {list_names(UNSLOTH_OBJECTIVES)}.", OTHERWISE)
    if settings.objective == "grpo" and settings.value("model.device") == "cuda":
        what = "`backend: unsloth` trains grpo on a GPU with a rewritten trainer, and `objective` is grpo."
        yield settings.fault("model.backend", what, OTHERWISE)


def _check_base(settings: RecipeView) -> Iterator[Fault]:
    model = {name: settings.value(f"model.{name}") for name in ModelSettings.model_fields}
    for unserved in find_unserved_base_settings(model):
        found, instead = _to_yaml(unserved.value), _to_yaml(unserved.instead)
        what = f"`backend: unsloth` {unserved.why}, and `{unserved.name}` is {found}."
        yield settings.fault(f"model.{unserved.name}", what, f"Set {unserved.name}: {instead}.", OTHERWISE)


def _check_method(settings: RecipeView) -> Iterator[Fault]:
    method = settings.value("adapter.method")
    if settings.value("adapter.init_from") is not None:
        return  # that adapter brings its own settings: `model.continuing` reads them
    if method != "lora":
        what = f"`backend: unsloth` trains LoRA alone, and `method` is {method}."
        yield settings.fault("adapter.method", what, "Set method: lora.", OTHERWISE)
        return
    fields = settings.value("adapter")
    for name in find_unserved_lora_fields(fields if isinstance(fields, dict) else {}):
        what = f"`backend: unsloth` has no kernels for `adapter.{name}`."
        yield settings.fault(f"adapter.{name}", what, "Take the line out.", OTHERWISE)
    for name in find_embedding_targets(settings.value("adapter.target_modules")):
        what = f"`backend: unsloth` puts no LoRA on {name}; it would train all of its weights instead."
        yield settings.fault("adapter.target_modules", what, f"Leave out {name}.", OTHERWISE)
    start = settings.value("adapter.init_lora_weights")
    if isinstance(start, str) and start.partition("_niter_")[0] not in UNSLOTH_LORA_STARTS:
        what = f"`backend: unsloth` does not make the start `init_lora_weights: {start}`."
        able = f"It makes true, false, {list_names(UNSLOTH_LORA_STARTS)}."
        yield settings.fault("adapter.init_lora_weights", what, able, OTHERWISE)


def _check_training(settings: RecipeView) -> Iterator[Fault]:
    loss = settings.value("training.loss_type")
    if settings.objective in ("sft", "pretrain") and loss not in (None, "nll"):
        what = f"`backend: unsloth` computes the loss nll itself, and `loss_type` is {loss}."
        yield settings.fault("training.loss_type", what, "Take the line out.", OTHERWISE)
    memory = settings.value("training.memory")
    if memory in ("recompute_all", "recompute_none"):
        what = f"`backend: unsloth` recomputes layers by a rule of its own, and `memory` is {memory}."
        none = " To recompute none: gradient_checkpointing: false." if memory == "recompute_none" else ""
        yield settings.fault("training.memory", what, f"Set memory: auto.{none}", OTHERWISE)
    for name in _OTHER_KERNELS:
        if settings.value(f"training.{name}") is True:
            what = f"`backend: unsloth` brings its own kernels, and `training.{name}` would put others in their place."
            yield settings.fault(f"training.{name}", what, "Take the line out.", OTHERWISE)


def _to_yaml(value: object) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)
