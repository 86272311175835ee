"""What a recipe cannot ask of Unsloth: methods, precisions, starts and objectives that it has not got, or not alike."""

from collections.abc import Iterator

from finetune.recipe.faults import Fault
from finetune.recipe.recipe_view import RecipeView
from finetune.recipe.suggestions import list_names

__all__ = ["UNSLOTH_LORA_FIELDS", "UNSLOTH_LORA_STARTS", "UNSLOTH_OBJECTIVES", "find_backend_conflicts"]

UNSLOTH_OBJECTIVES = ("sft", "pretrain", "dpo", "kto", "orpo", "grpo")
# What its attaching of an adapter is given by name; `model.unsloth.attach_lora` hands on each of them.
UNSLOTH_LORA_FIELDS = (
    "r",
    "lora_alpha",
    "lora_dropout",
    "target_modules",
    "layers_to_transform",
    "layers_pattern",
    "use_rslora",
    "init_lora_weights",
    "loftq_config",
)
# Starts of LoRA's matrices: its own are drawn as PEFT draws them, the others made by this pipeline on its layers.
UNSLOTH_LORA_STARTS = ("gaussian", "loftq", "olora", "pissa")
_OTHERWISE = "Or take the other library: model.backend: transformers."


def find_backend_conflicts(settings: RecipeView) -> Iterator[Fault]:
    """Find what the chosen backend cannot do with the rest of the recipe."""
    if settings.value("model.backend") != "unsloth":
        return
    for check in (_check_objective, _check_base, _check_method, _check_training):
        yield from check(settings)


def _check_objective(settings: RecipeView) -> Iterator[Fault]:
    if settings.objective not in UNSLOTH_OBJECTIVES:
        what = f"`backend: unsloth` does not train `objective: {settings.objective}`."
        able = f"It trains {list_names(UNSLOTH_OBJECTIVES)}."
        yield settings.fault("model.backend", what, able, _OTHERWISE)


def _check_base(settings: RecipeView) -> Iterator[Fault]:
    quantization = settings.value("model.quantization")
    if quantization not in ("nf4", "none"):
        what = f"`backend: unsloth` holds a base in nf4 or not quantized, and `quantization` is {quantization}."
        yield settings.fault("model.quantization", what, "Set quantization: nf4.", _OTHERWISE)
    if quantization == "nf4" and settings.value("model.double_quantization") is False:
        what = "`backend: unsloth` quantizes the 4-bit blocks' scales too, and `double_quantization` is false."
        yield settings.fault("model.double_quantization", what, "Set double_quantization: true.", _OTHERWISE)
    if settings.value("model.weights") == "random":
        what = "`backend: unsloth` loads weights from files, and `weights: random` has none."
        yield settings.fault("model.weights", what, "Name a base: model.model_name_or_path.", _OTHERWISE)
    attention = settings.value("model.attention")
    if attention != "auto":
        what = f"`backend: unsloth` attends with kernels of its own choice, and `attention` is {attention}."
        yield settings.fault("model.attention", what, "Set attention: auto.", _OTHERWISE)


def _check_method(settings: RecipeView) -> Iterator[Fault]:
    method = settings.value("adapter.method")
    if settings.value("adapter.init_from") is not None:
        return  # the adapter brings its own settings; `model.continuing` reads them
    if method != "lora":
        what = f"`backend: unsloth` trains LoRA alone, and `method` is {method}."
        yield settings.fault("adapter.method", what, "Set method: lora.", _OTHERWISE)
        return
    for name in sorted(set(settings.value("adapter") or {}) - {"method", "init_from", *UNSLOTH_LORA_FIELDS}):
        value = settings.value(f"adapter.{name}")
        if value in (None, False, "none") or value in ({}, []):
            continue  # what LoRA is without it
        what = f"`backend: unsloth` has no kernels for `adapter.{name}`."
        yield settings.fault(f"adapter.{name}", what, "Take the line out.", _OTHERWISE)
    start = settings.value("adapter.init_lora_weights")
    if isinstance(start, str) and start.partition("_niter_")[0] not in UNSLOTH_LORA_STARTS:
        what = f"`backend: unsloth` does not make the start `init_lora_weights: {start}`."
        able = f"It makes true, false, {list_names(UNSLOTH_LORA_STARTS)}."
        yield settings.fault("adapter.init_lora_weights", what, able, _OTHERWISE)


def _check_training(settings: RecipeView) -> Iterator[Fault]:
    loss = settings.value("training.loss_type")
    if settings.objective in ("sft", "pretrain") and loss not in (None, "nll"):
        what = f"`backend: unsloth` computes the loss nll itself, and `loss_type` is {loss}."
        yield settings.fault("training.loss_type", what, "Take the line out.", _OTHERWISE)
    for name in ("use_liger_kernel", "torch_compile", "activation_offloading", "use_vllm"):
        if settings.value(f"training.{name}") is True:
            what = (
                f"`backend: unsloth` brings kernels of its own, and `training.{name}` would put others in their place."
            )
            yield settings.fault(f"training.{name}", what, "Take the line out.", _OTHERWISE)
