"""The part that is trained: a PEFT method on the frozen base, or all of its weights.

In go a `BaseModel` and the recipe's `adapter` section; out comes the model with exactly the adapter
trainable. Each method keeps PEFT's own fields, defaults and file format.
"""

import dataclasses
import inspect
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import bitsandbytes as bnb
from peft import PeftConfig, PeftModel, PeftType, TaskType
from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING
from torch import nn
from transformers import PreTrainedModel, set_seed
from transformers.pytorch_utils import Conv1D

from finetune.errors import PlaceError, RecipeError
from finetune.model.adapter_starts import apply_start, choose_start
from finetune.model.backends import find_backend
from finetune.model.base import BaseModel
from finetune.model.heads import ScoreHead, find_class
from finetune.model.norms import find_norm_names
from finetune.model.own_methods import OWN_METHODS
from finetune.model.whole import free_weights
from finetune.recipe.catalogue import PROMPT_METHODS
from finetune.recipe.heads import Head
from finetune.recipe.own_methods import OWN_TARGETS, WHOLE_METHODS
from finetune.recipe.schema import AdapterSettings

__all__ = [
    "REFERENCE",
    "ParameterCount",
    "adapter_bytes",
    "attach_adapter",
    "check_adapter",
    "count_parameters",
    "find_method",
]

# The name under which TRL's trainers look for a frozen copy of the adapter that training started from.
REFERENCE = "ref"

_TASK_TYPES = {"words": TaskType.CAUSAL_LM, "masked": None, "labels": TaskType.SEQ_CLS, "score": TaskType.SEQ_CLS}
# These put their learned vectors before the keys and values of each layer, the other prompt methods before the text.
_BEFORE_KEYS = frozenset({"prefix_tuning", "cartridge"})
# Methods whose PEFT config has no `modules_to_save`, where a head would be trained and then left behind.
_SAVE_NO_HEAD = frozenset({"adaption_prompt", "trainable_tokens", "xlora"})


@dataclass(frozen=True, slots=True)
class ParameterCount:
    """Numbers of parameters, each weight counted once and at its true shape."""

    trainable: int
    total: int


def check_adapter(adapter: AdapterSettings, *, head: Head = "words") -> None:
    """Check the adapter's values against PEFT's own rules, before a weight is loaded.

    Args:
        adapter: the recipe's section.
        head: what the base ends with.

    Raises:
        RecipeError: PEFT refuses a value, or asks for one that is not there (`total_step` of AdaLoRA), or the method
            does not go with the head.
        PlaceError: the method needs a package that is not installed.
    """
    if adapter.method not in WHOLE_METHODS:
        _choose_config(adapter, head)


def attach_adapter(
    base: BaseModel, adapter: AdapterSettings, seed: int, *, checkpointing: bool = False
) -> PreTrainedModel | PeftModel:
    """Attach the adapter and leave exactly it trainable; a score or a classifier's head is trained and saved with it.

    Args:
        base: the frozen model; it is changed in place.
        adapter: the recipe's section; the reader of recipes has held it against the base's precision.
        seed: of the adapter's start; sets Python's, numpy's and torch's generators.
        checkpointing: whether activations are computed twice instead of kept: Unsloth wants to know it here, the
            trainer tells it to other models.

    Raises:
        RecipeError: PEFT refuses a value, or the base has no such target.
        PlaceError: the method needs a package that is not installed.
    """
    set_seed(seed)
    if adapter.method in WHOLE_METHODS:
        return free_weights(base.model, adapter, base.head_modules)
    _check_takes_vectors(base.model, adapter.method, base.head)
    config, start = _choose_config(adapter, base.head, base.head_modules)
    _name_targets(base.model, config, base.head_modules)
    # Whoever opens the adapter gets the base it was trained on.
    config.revision = config.revision or base.commit
    with _translating(adapter.method):
        model = find_backend(base.backend).attach(base.model, config, seed=seed, checkpointing=checkpointing)
    if start is not None:
        apply_start(model, start, base.commit)
    return model


def count_parameters(model: nn.Module) -> ParameterCount:
    """Count parameters; two 4-bit weights packed into one byte are two, a frozen copy of the adapter none."""
    counts = [
        (_true_number(parameter), parameter.requires_grad)
        for name, parameter in model.named_parameters()
        if REFERENCE not in name.split(".")
    ]
    return ParameterCount(
        trainable=sum(number for number, trainable in counts if trainable),
        total=sum(number for number, _ in counts),
    )


def find_method(model: nn.Module) -> str | None:
    """Find the method of a model's adapter, which one that was trained before brings along; None without an adapter."""
    return model.peft_config["default"].peft_type.value.lower() if isinstance(model, PeftModel) else None


def adapter_bytes(folder: Path) -> int:
    """Size of the weights in a saved adapter's folder."""
    return sum(path.stat().st_size for path in folder.glob("*.safetensors"))


def _choose_config(
    adapter: AdapterSettings, head: Head, head_modules: Sequence[str] = ()
) -> tuple[PeftConfig, str | None]:
    """Choose PEFT's config, and the start of LoRA's matrices that is made here in place of PEFT's."""
    _check_goes_with_head(adapter.method, head)
    fields, start = adapter.fields, None
    if head_modules:
        # PEFT knows the two usual names alone, and BERT's pooler is none of them.
        fields = fields | {"modules_to_save": [*(fields.get("modules_to_save") or []), *head_modules]}
    if adapter.method == "lora":
        fields, start = choose_start(fields)
    return _build_config(adapter.method, fields, head), start


def _check_goes_with_head(method: str, head: Head) -> None:
    what = {"score": "a reward model", "labels": "a classifier", "masked": "masked-language modelling"}.get(head)
    reason = None
    if what is None:
        return
    if method == "shadow" and head == "labels":
        reason = "it looks for the layers of a language model"
    elif method in PROMPT_METHODS and head == "score":
        reason = "behind its learned vectors the last token of a row is no longer found"
    elif method in PROMPT_METHODS and head == "masked":
        reason = "its learned vectors move the places that are masked"
    elif method in _SAVE_NO_HEAD and head != "masked":
        reason = f"PEFT saves no {'score' if head == 'score' else 'head'} beside it"
    if reason is not None:
        raise RecipeError(
            f"`adapter.method: {method}` does not go with {what}: {reason}.\n  The usual one: adapter.method=lora"
        )


def _check_takes_vectors(model: PreTrainedModel, method: str, head: Head) -> None:
    """Check that a model has a place for learned vectors: before the text, or before each layer's keys and values."""
    if method in PROMPT_METHODS - _BEFORE_KEYS and head == "labels" and find_class(model.config, "masked") is None:
        raise RecipeError(
            f"`adapter.method: {method}` puts learned vectors before the text, and behind them a "
            f"{model.config.model_type} model no longer finds a row's last token, where it reads the label.\n"
            "  On its keys and values: adapter.method=prefix_tuning     The usual one: adapter.method=lora"
        )
    if method not in _BEFORE_KEYS:
        return
    takers = (model, model.base_model)
    if not any("past_key_values" in inspect.signature(taker.forward).parameters for taker in takers):
        raise RecipeError(
            f"`adapter.method: {method}` puts learned keys and values before each layer's own, and a "
            f"{model.config.model_type} model takes none.\n  Learned vectors before the text: adapter.method=p_tuning"
        )


def _build_config(method: str, fields: dict[str, Any], head: Head) -> PeftConfig:
    """Build PEFT's config of a method from the recipe's fields.

    Raises:
        RecipeError: PEFT refuses a value.
        PlaceError: the method needs a package that is not installed.
    """
    config_class = PEFT_TYPE_TO_CONFIG_MAPPING[method.upper()]
    names = {field.name for field in dataclasses.fields(config_class)}
    if "target_modules" in names and method not in OWN_TARGETS and fields.get("target_modules") is None:
        fields = fields | {"target_modules": "all-linear"}
    if fields.get("modules_to_save") is not None:
        # PEFT adds the score to the very list it was given, which is the recipe's.
        fields = fields | {"modules_to_save": list(fields["modules_to_save"])}
    with _translating(method):
        return config_class(**fields | {"task_type": _TASK_TYPES[head]})


def _name_targets(model: PreTrainedModel, config: PeftConfig, head_modules: Sequence[str]) -> None:
    """Give `all-linear` its layers' short names, and check the names that were typed.

    PEFT would write the full name of every layer into adapter_config.json, and it passes over names that
    match nothing as long as one matches.
    """
    if "target_modules" not in {field.name for field in dataclasses.fields(config)}:
        return
    targets = config.target_modules
    if targets is None and config.peft_type == PeftType.LN_TUNING:
        targets = config.target_modules = find_norm_names(model, head_modules)
    if targets is None or (config.peft_type.value.lower() in OWN_TARGETS and targets == "all-linear"):
        return
    names = [name for name, _ in model.named_modules()]
    linear_names = _find_linear_names(model, head_modules)
    if targets == "all-linear":
        config.target_modules = set(linear_names)
        return
    if isinstance(targets, str):
        missing = [] if any(re.fullmatch(targets, name) for name in names) else [targets]
        hint = " (a string is a pattern for whole names; several names are a list)"
    else:
        missing = sorted(t for t in targets if not any(n == t or n.endswith(f".{t}") for n in names))
        hint = ""
    if missing:
        raise RecipeError(
            f"`adapter.target_modules`: the model has no module {', '.join(f'`{name}`' for name in missing)}{hint}.\n"
            f"  Its linear layers: {', '.join(linear_names)}     All of them: all-linear"
        )


def _find_linear_names(model: PreTrainedModel, head_modules: Sequence[str]) -> list[str]:
    head = model.get_output_embeddings()
    return sorted(
        {
            name.rpartition(".")[2]
            for name, module in model.named_modules()
            if isinstance(module, nn.Linear | Conv1D)
            and module is not head
            and not isinstance(module, ScoreHead)
            and not name.startswith(tuple(f"{one}." for one in head_modules))
            and name not in head_modules
        }
    )


def _true_number(parameter: nn.Parameter) -> int:
    if isinstance(parameter, bnb.nn.Params4bit) and parameter.quant_state is not None:
        return int(parameter.quant_state.shape.numel())
    return parameter.numel()


@contextmanager
def _translating(method: str) -> Iterator[None]:
    """Translate PEFT's own refusal of a setting."""
    try:
        yield
    except (ValueError, TypeError) as error:
        reason = str(error).strip().splitlines()[0]
        told = reason if method in OWN_METHODS else f"PEFT refuses {method} so: {reason}"
        raise RecipeError(f"`adapter`: {told}") from error
    except ImportError as error:
        raise PlaceError(f"`adapter.method: {method}` needs a package: {str(error).splitlines()[0]}") from error
