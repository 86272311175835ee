"""An adapter that was trained before, trained on: found, held against the recipe's base, attached.

In goes `adapter.init_from`, a run's folder or an adapter's; out comes the model with that adapter
trainable, and, where an objective compares with the start, a frozen copy of it beside.
"""

import logging
from pathlib import Path

from peft import PeftModel
from transformers import PreTrainedTokenizerBase, set_seed

from finetune.errors import PlaceError, RecipeError
from finetune.model.adapters import REFERENCE
from finetune.model.backends import find_backend
from finetune.model.base import BaseModel
from finetune.model.loading import attach_saved_adapter, check_adapter_file, check_served
from finetune.model.same_base import check_base_weights, find_base_difference
from finetune.model.targets import find_target
from finetune.recipe.schema import ModelSettings

__all__ = ["add_reference", "attach_trained_adapter", "check_same_template", "find_trained_adapter"]

log = logging.getLogger("finetune.model.continuing")

_TAKE_ANY_BASE = "adapter.any_base=true"


def find_trained_adapter(init_from: str, model: ModelSettings, seed: int, *, any_base: bool = False) -> Path:
    """Find the folder of the adapter to go on with; reads no weights.

    Args:
        init_from: a run's folder or an adapter's, here or on the Hub.
        model: the recipe's base, which has to be the adapter's.
        seed: of the recipe: it draws a base of random weights.
        any_base: a base that is not the adapter's is told in a warning, and not refused.

    Raises:
        PlaceError: there is nothing of that name, or it is unfinished.
        RecipeError: it is a whole model, or stands on another base.
    """
    try:
        target = find_target(init_from, device=model.device)
    except PlaceError as error:
        # The way out names the setting of a base.
        ways_out = str(error).replace("model.model_name_or_path=", "adapter.init_from=")
        raise PlaceError(f"`adapter.init_from`: {ways_out}") from error
    if target.adapter_dir is None:
        raise RecipeError(
            f"`adapter.init_from`: {init_from} is a whole model, not an adapter.\n"
            f"  Start a fresh adapter on it: model.model_name_or_path={init_from}"
        )
    if target.is_reward_model:
        raise RecipeError(
            f"`adapter.init_from`: {init_from} is a reward model: it scores answers instead of giving any.\n"
            "  Name an adapter of sft or dpo. What it rewards: rewards: [{function: reward_model, path: …}] under grpo"
        )
    if target.ends_with != "words":
        what = "a classifier" if target.ends_with == "labels" else "an encoder's adapter"
        raise RecipeError(
            f"`adapter.init_from`: {init_from} is {what}: it gives no answers.\n  Name an adapter of sft or dpo."
        )
    check_served(target, model.backend)
    difference = find_base_difference(target.base, target.seed, model, seed)
    if difference is not None and not difference.may_be_a_copy and not any_base:
        raise RecipeError(
            f"`adapter.init_from`: {init_from} stands on another base than this recipe's.\n"
            f"  The adapter's: {difference.one}     The recipe's: {difference.other}\n"
            f"  Set model.model_name_or_path={target.base.model_name_or_path}     Or take this one: {_TAKE_ANY_BASE}"
        )
    if difference is not None:
        log.warning("%s names %s as its base; taken to be %s.", init_from, difference.one, difference.other)
    check_base_weights(
        target.adapter_dir,
        model,
        name=f"`adapter.init_from`: {init_from}",
        forced=any_base,
        how_to_force=_TAKE_ANY_BASE,
    )
    return target.adapter_dir


def check_same_template(folder: Path, tokenizer: PreTrainedTokenizerBase) -> None:
    """Check that rows are rendered as those were that the adapter was trained on, where it says so.

    Raises:
        RecipeError: they are not: what it has learned to answer would be asked in another form.
    """
    path = folder / "chat_template.jinja"
    if path.is_file() and path.read_text(encoding="utf-8") != tokenizer.chat_template:
        raise RecipeError(
            f"`data.template`: the adapter in {folder} was trained with another prompt template than this recipe's.\n"
            f"  Take the same one; it lies there: data.template={path}"
        )


def attach_trained_adapter(base: BaseModel, folder: Path, seed: int, *, checkpointing: bool = False) -> PeftModel:
    """Attach a saved adapter to its base and leave exactly it trainable, in float32.

    Args:
        base: the frozen model; it is changed in place.
        folder: from `find_trained_adapter`.
        seed: of dropout from here on; sets Python's, numpy's and torch's generators.
        checkpointing: whether activations are computed twice instead of kept; Unsloth wants to know it here.

    Raises:
        PlaceError: its tensors are not those this base has room for, or not all finite.
    """
    set_seed(seed)
    check_adapter_file(folder)
    model = attach_saved_adapter(base.model, folder, is_trainable=True)
    return find_backend(base.backend).take_over(model, checkpointing=checkpointing)


def add_reference(model: PeftModel, folder: Path) -> None:
    """Put a frozen copy of the saved adapter beside the one being trained, under the name TRL looks for.

    The base is shared: the copy costs the adapter's bytes once more. TRL would make the copy itself from the
    adapter's config, whose start (PiSSA's, OLoRA's) would then change the base.
    """
    model.load_adapter(str(folder), adapter_name=REFERENCE, is_trainable=False)
    model.set_adapter("default")
    for name, parameter in model.named_parameters():
        if REFERENCE in name.split("."):
            parameter.requires_grad_(False)
            parameter.data = parameter.data.float()
