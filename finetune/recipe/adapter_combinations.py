"""What an adapter's method and settings exclude: of each other, of the base's precision, of the rows' layout."""

from collections.abc import Iterator

from finetune.recipe.catalogue import EMBEDDING_METHODS, PROMPT_METHODS, QUANTIZABLE_METHODS
from finetune.recipe.faults import Fault
from finetune.recipe.json_schema import find_methods
from finetune.recipe.objective_combinations import find_pattern_faults
from finetune.recipe.own_methods import COMBINED, FULL, PART_METHODS, PROMPT_PARTS, WHOLE_METHODS
from finetune.recipe.recipe_view import RecipeView
from finetune.recipe.suggestions import list_names

__all__ = ["STARTS_WANTING_16_BITS", "STARTS_WANTING_DATA", "find_adapter_conflicts"]

# Values of `init_lora_weights` that PEFT makes from a pass over the data, each with a config of its own.
STARTS_WANTING_DATA = ("corda", "eva", "lora_ga")
STARTS_WANTING_16_BITS = ("mica", "orthogonal")
_4_BIT = ("nf4", "fp4")
_QUANTIZED = (*_4_BIT, "int8")


def find_adapter_conflicts(settings: RecipeView) -> Iterator[Fault]:
    """Find what the chosen method cannot do with the rest of the recipe."""
    if settings.value("adapter.method") not in find_methods():
        return
    for check in (_check_quantization, _check_prompt_methods, _check_lora, _check_top_k, _check_parts, _check_patterns):
        yield from check(settings)


def _check_patterns(settings: RecipeView) -> Iterator[Fault]:
    """Check modules given as one text, a pattern to PEFT, which would say what is wrong with it after the download."""
    parts = settings.value("adapter.parts")
    sections = [
        "adapter",
        *(f"adapter.parts.{number}" for number in range(len(parts) if isinstance(parts, list) else 0)),
    ]
    for section in sections:
        for name in ("target_modules", "exclude_modules"):
            yield from find_pattern_faults(settings, f"{section}.{name}")


def _check_quantization(settings: RecipeView) -> Iterator[Fault]:
    method, quantization = settings.value("adapter.method"), settings.value("model.quantization")
    if quantization not in _QUANTIZED:
        return
    if method in WHOLE_METHODS:
        whose = "every weight" if method == FULL else "the base's own weights"
        what = f"`method: {method}` trains {whose}, and those of a base in {quantization} cannot be trained."
        yield settings.fault("adapter.method", what, "Set model.quantization: none, or adapter.method: lora.")
    elif method not in QUANTIZABLE_METHODS | PROMPT_METHODS | EMBEDDING_METHODS:
        what = f"`method: {method}` cannot sit on a base in {quantization}: PEFT has no layers of it for one."
        able = f"Set model.quantization: none, or take one that can: {list_names(sorted(QUANTIZABLE_METHODS))}."
        yield settings.fault("adapter.method", what, able)


def _check_prompt_methods(settings: RecipeView) -> Iterator[Fault]:
    method = settings.value("adapter.method")
    if method in PROMPT_METHODS and settings.value("data.packing") is True:
        path = "data.packing" if settings.is_typed("data.packing") else "adapter.method"
        what = f"`method: {method}` cannot be trained on packed rows: their documents would read each other."
        yield settings.fault(path, what, "Set data.packing: false.")
    if method in ("prefix_tuning", "cartridge") and settings.value("training.gradient_checkpointing") is True:
        path = "training.gradient_checkpointing"
        what = f"`method: {method}` and gradient checkpointing exclude each other in PEFT."
        yield settings.fault(path if settings.is_typed(path) else "adapter.method", what, f"Set {path}: false.")


def _check_lora(settings: RecipeView) -> Iterator[Fault]:
    if settings.value("adapter.method") != "lora":
        return
    quantization = settings.value("model.quantization")
    if settings.value("adapter.kasa_config") is not None:
        what = "`kasa_config`: KaSA cuts singular values out of the base, so its adapter fits no other copy of it."
        yield settings.fault("adapter.kasa_config", what, "Take the line out; pissa starts from singular values too.")
    if settings.value("adapter.use_dora") is True and quantization == "int8":
        what = "`use_dora` reads the base's weights at every step, and after one PEFT 0.21 can no longer read int8."
        yield settings.fault("adapter.use_dora", what, "Hold the base in 4 bits: model.quantization: nf4.")
    targets = settings.value("adapter.target_modules")
    chunked = settings.objective in ("sft", "pretrain") and settings.value("training.loss_type") in (
        None,
        "chunked_nll",
    )
    if isinstance(targets, list) and "lm_head" in targets and chunked and settings.value("model.backend") != "unsloth":
        what = "`target_modules` has lm_head, and the loss chunked_nll computes around an adapter on it."
        yield settings.fault("adapter.target_modules", what, "Set training.loss_type: nll, or leave out lm_head.")
    yield from _check_start(settings)


def _check_top_k(settings: RecipeView) -> Iterator[Fault]:
    if settings.value("adapter.method") != "top_k" or settings.objective in ("reward", "classify"):
        return
    if settings.value("adapter.layers") == 0 and settings.value("adapter.train_head") is False:
        what = "`layers: 0` and `train_head: false` leave nothing to train."
        yield settings.fault("adapter.train_head", what, "Take one of the two lines out.")


def _check_parts(settings: RecipeView) -> Iterator[Fault]:
    """Check that the parts of a combination go with each other, with the base's precision and with the rows."""
    if settings.value("adapter.method") != COMBINED or settings.value("adapter.init_from") is not None:
        return
    parts = settings.value("adapter.parts")
    if parts is not None and not (isinstance(parts, list) and all(isinstance(part, dict) for part in parts)):
        return  # a fault of its own
    methods = [part.get("method") for part in parts or ()]
    if len(methods) < 2:
        what = f"`method: combined` trains several methods together, and `parts` holds {len(methods)}."
        yield settings.fault("adapter.parts", what, "Write parts: [{method: lora, r: 8}, {method: bitfit}].")
    quantization = settings.value("model.quantization")
    for number, method in enumerate(methods):
        path, before = f"adapter.parts.{number}.method", methods[:number]
        if method in before:
            what = f"`parts` holds {method} twice, and a method is a part once."
            yield settings.fault(path, what, "Take one out; one part can name several target_modules.")
        elif method in PROMPT_PARTS and any(other in PROMPT_PARTS for other in before):
            what = f"`parts` holds {list_names(PROMPT_PARTS)}, which both put tokens in front of a row."
            yield settings.fault(path, what, "Take one of them out.")
        if method in PROMPT_PARTS and settings.value("data.packing") is True:
            what = f"`method: {method}` cannot be trained on packed rows: their documents would read each other."
            yield settings.fault(path, what, "Set data.packing: false.")
        takes = QUANTIZABLE_METHODS | EMBEDDING_METHODS | set(PROMPT_PARTS)
        if quantization in _QUANTIZED and method in PART_METHODS and method not in takes:
            what = f"`method: {method}` cannot sit on a base in {quantization}: PEFT has no layers of it for one."
            yield settings.fault(path, what, "Set model.quantization: none, or take the part out.")


def _check_start(settings: RecipeView) -> Iterator[Fault]:
    """Check that the start of LoRA's matrices can be made from what there is."""
    path = "adapter.init_lora_weights"
    start, quantization = settings.value(path), settings.value("model.quantization")
    for name in STARTS_WANTING_DATA:
        if start == name or settings.value(f"adapter.{name}_config") is not None:
            typed = path if start == name else f"adapter.{name}_config"
            what = f"`init_lora_weights: {name}` wants a pass over the data before the first step; none is made."
            yield settings.fault(typed, what, "From the weights alone: pissa, olora, loftq, gaussian, true.")
    if start in STARTS_WANTING_16_BITS and quantization in _QUANTIZED:
        what = f"`init_lora_weights: {start}` reads 16-bit weights, and `model.quantization` is {quantization}."
        yield settings.fault(path, what, "On such a base: pissa, olora, gaussian, true, and loftq in 4 bits.")
    if start == "loftq" and (quantization not in _4_BIT or settings.value("model.weights") == "random"):
        what = (
            "`init_lora_weights: loftq` makes up for what 4-bit rounding takes from pretrained weights; "
            f"`model.quantization` is {quantization}, `model.weights` {settings.value('model.weights')}."
        )
        yield settings.fault(path, what, "On other bases: pissa, olora, gaussian, true.")
