"""Whatever can be talked to, opened for answers.

In goes a name as typed (`targets` says what it may stand for); out comes a `Speaker`: the model with
its adapter, the tokenizer that was saved with it, and what was found. Pickles are never opened, and
an adapter with a number that is not finite, or that does not fit its base, is refused by name.
"""

import json
import warnings
from dataclasses import dataclass, replace
from pathlib import Path

from peft import PeftConfig, PeftModel, get_peft_model_state_dict
from safetensors import safe_open
from torch import OutOfMemoryError
from transformers import GenerationConfig, PreTrainedModel, PreTrainedTokenizerBase

import finetune.model.own_methods  # noqa: F401 - from here on PEFT knows the methods that are ours
from finetune.errors import PlaceError, RecipeError
from finetune.model.backends import find_backend
from finetune.model.base import BaseModel, load_base
from finetune.model.same_base import check_base_weights
from finetune.model.sound_weights import check_sound
from finetune.model.targets import ADAPTER_WEIGHTS, DeviceName, Target, find_target
from finetune.model.tokenizer import find_pad_id, load_tokenizer
from finetune.recipe.backend_limits import OTHERWISE, find_embedding_targets, find_unserved_lora_fields
from finetune.recipe.heads import Head
from finetune.recipe.schema import BackendName

__all__ = [
    "Speaker",
    "attach_saved_adapter",
    "check_adapter_file",
    "check_served",
    "check_target_base",
    "find_saved_eos_ids",
    "load_for_inference",
    "load_saved_tokenizer",
    "load_target",
]

_NAME_ITS_BASE = "  The base it was trained on stands in adapter_config.json: `base_model_name_or_path`."


@dataclass(frozen=True, slots=True)
class Speaker:
    """A model that answers.

    Attributes:
        model: in evaluation mode; a PeftModel where there is an adapter.
        tokenizer: with the chat template that was saved, if any.
        base: the loaded base, for its device, dtype and quantization.
        target: what was asked for.
        eos_ids: tokens that end an answer by the saved generation config.
        description: one line to show a person.
    """

    model: PreTrainedModel | PeftModel
    tokenizer: PreTrainedTokenizerBase
    base: BaseModel
    target: Target
    eos_ids: list[int]
    description: str


def load_for_inference(
    target: str,
    *,
    base_only: bool = False,
    quantization: str | None = None,
    device: DeviceName = "auto",
    backend: BackendName = "transformers",
    any_base: bool = False,
) -> Speaker:
    """Load what a name stands for, ready to answer.

    Args:
        target: a run folder, an adapter folder, a model folder, or a Hub name of either.
        base_only: leave the adapter off; tokenizer and template stay those saved with it.
        quantization: nf4, fp4, int8 or none; None takes what the run was trained with, else nf4 on a GPU
            and none on a CPU.
        device: auto, cuda or cpu.
        backend: what runs the model, no matter what it was trained with; started already.
        any_base: take the base that lies there, also where it has other weights than those the adapter was trained on.

    Raises:
        PlaceError: something is missing, unfinished, damaged, or out of reach.
        RecipeError: a base of other weights, a quantization that does not go with the base, a reward model, which
            gives no answers, or an adapter that the backend does not run.
    """
    found = find_target(target, quantization=quantization, device=device)
    if backend != "transformers":
        check_served(found, backend)
        # A kernel that the run asked for is not one of Unsloth's to choose from.
        found = replace(found, base=found.base.model_copy(update={"backend": backend, "attention": "auto"}))
    return load_target(found, base_only=base_only, any_base=any_base)


def check_served(target: Target, backend: BackendName) -> None:
    """Check that a backend runs the adapter of a target.

    Raises:
        RecipeError: it is not LoRA, or more than plain LoRA, and Unsloth has no kernels for it.
    """
    if backend != "unsloth" or target.adapter_dir is None:
        return
    fields = json.loads((target.adapter_dir / "adapter_config.json").read_text("utf-8"))
    extras = find_unserved_lora_fields(fields) if target.method == "lora" else []
    extras += find_embedding_targets(fields.get("target_modules"))
    if target.method != "lora" or extras:
        what = f"with {', '.join(f'`{name}`' for name in extras)}" if extras else f"of {target.method}"
        raise RecipeError(
            f"{target.name} is an adapter {what}, and `backend: unsloth` runs plain LoRA alone.\n  {OTHERWISE}"
        )


def load_target(target: Target, *, base_only: bool = False, talks: bool = True, any_base: bool = False) -> Speaker:
    """Load the weights of a target; see `load_for_inference`.

    Args:
        target: what was found.
        base_only: leave the adapter off.
        talks: refuse what gives no answers; else a classifier is loaded too, with the head that it was trained with.
        any_base: take the base also where its weights are not those that the adapter was trained on.
    """
    is_base_of_score = base_only and target.adapter_dir is not None and target.ends_with == "score"
    if target.ends_with != "words" and (talks or target.ends_with == "score") and not is_base_of_score:
        raise RecipeError(_say_gives_no_answers(target))
    if target.adapter_dir is not None and not base_only:
        check_adapter_file(target.adapter_dir)
        check_target_base(target, any_base=any_base)
    # The tokenizer first: what is wrong with it is known in a second.
    tokenizer = load_saved_tokenizer(target)
    head: Head = "words" if target.ends_with == "score" else target.ends_with
    base = load_base(
        target.base, seed=target.seed, head=head, labels=target.labels, fresh_head=target.adapter_dir is not None
    )
    if head == "labels":  # a decoder finds the last token of a row by it
        base.model.config.get_text_config().pad_token_id = find_pad_id(tokenizer)
    model: PreTrainedModel | PeftModel = base.model
    if target.adapter_dir is not None and not base_only:
        opened = attach_saved_adapter(base.model, target.adapter_dir)
        model = find_backend(base.backend).take_over(opened, checkpointing=False)
    model.eval()
    return Speaker(model, tokenizer, base, target, _find_eos_ids(base, target), _describe(target, base, base_only))


def check_target_base(target: Target, *, any_base: bool = False, how_to_force: str | None = "--any-base") -> None:
    """Check that the base of a target has the weights its adapter was trained on; see `same_base`.

    Raises:
        RecipeError: it has others, and `any_base` was not asked for.
    """
    if target.adapter_dir is not None:
        check_base_weights(
            target.adapter_dir, target.base, name=target.name, forced=any_base, how_to_force=how_to_force
        )


def _say_gives_no_answers(target: Target) -> str:
    match target.ends_with:
        case "labels":
            return (
                f"{target.name} is a classifier: it gives labels and no answers.\n"
                "  How to label texts with it: docs/classification.md"
            )
        case "masked":
            return (
                f"{target.name} is an encoder: it restores masked tokens and gives no answers.\n"
                "  Train a classifier on it: python -m finetune.classify RECIPE"
            )
    talk = "     Talk to its base: --base" if target.adapter_dir is not None else ""
    return (
        f"{target.name} is a reward model: it scores answers and gives none.\n"
        f"  How to score with it: docs/reward.md{talk}"
    )


def load_saved_tokenizer(target: Target) -> PreTrainedTokenizerBase:
    """Load the tokenizer that was saved with a target, else its base's."""
    is_saved = target.saved_dir is not None and any(target.saved_dir.glob("tokenizer*"))
    where = str(target.saved_dir) if is_saved else target.base.tokenizer_name_or_path
    ends_answers = target.ends_with in ("words", "score")
    return load_tokenizer(target.base.model_copy(update={"tokenizer_name_or_path": where}), ends_answers=ends_answers)


def attach_saved_adapter(
    model: PreTrainedModel, folder: Path, config: PeftConfig | None = None, *, is_trainable: bool = False
) -> PeftModel:
    """Attach a saved adapter, all of it, to the base it was made for; its weights stay in float32.

    Args:
        model: the base, changed in place.
        folder: PEFT's, with safetensors.
        config: in place of the one in the folder.
        is_trainable: leave exactly the adapter with gradients.

    Raises:
        PlaceError: its tensors are not those this base has room for.
    """
    with warnings.catch_warnings():
        # PEFT fills what is missing with its start values and only warns; below that is an error.
        warnings.filterwarnings("ignore", message="Found missing adapter keys")
        try:
            attached = PeftModel.from_pretrained(model, str(folder), config=config, is_trainable=is_trainable)
        except OutOfMemoryError:  # a RuntimeError too, and no fault of the adapter
            raise
        except (KeyError, RuntimeError, ValueError) as error:
            # torch's words for a tensor of another size, PEFT's for modules that the base has not got.
            reason = " ".join(str(error).split())[:300]
            raise PlaceError(f"{_say_unfit(folder, model)}: {reason}\n{_NAME_ITS_BASE}") from error
    wanted = set(get_peft_model_state_dict(attached, save_embedding_layers=False))
    with safe_open(folder / ADAPTER_WEIGHTS, framework="pt") as tensors:
        saved = set(tensors.keys())
    # Embeddings that were saved beside an adapter belong to the base and are loaded with it.
    unknown = {name for name in saved - wanted if not name.endswith(("embed_tokens.weight", "lm_head.weight"))}
    odd = sorted(wanted - saved) or sorted(unknown)
    if odd:
        lack = "is not in the file" if wanted - saved else "has no place in the model"
        raise PlaceError(f"{_say_unfit(folder, model)}: {odd[0]} {lack}.\n{_NAME_ITS_BASE}")
    return attached


def _say_unfit(folder: Path, model: PreTrainedModel) -> str:
    return f"The adapter in {folder} does not fit {model.name_or_path or 'its base'}"


def check_adapter_file(folder: Path, *, must_change: bool = False) -> None:
    """Check every tensor before a model is loaded for it: see `sound_weights.check_sound`.

    Raises:
        PlaceError: a number that is not finite, with its tensor's name, or nothing but zeros.
    """
    check_sound(folder / ADAPTER_WEIGHTS, must_change=must_change)


def find_saved_eos_ids(target: Target) -> list[int] | None:
    """Find the tokens that end an answer by the generation config saved with a target; None where there is none."""
    if target.saved_dir is None or not (target.saved_dir / "generation_config.json").is_file():
        return None
    return _to_ids(GenerationConfig.from_pretrained(target.saved_dir).eos_token_id)


def _find_eos_ids(base: BaseModel, target: Target) -> list[int]:
    if base.head != "words":
        return []
    saved = find_saved_eos_ids(target)
    return _to_ids(base.model.generation_config.eos_token_id) if saved is None else saved


def _to_ids(ids: int | list[int] | None) -> list[int]:
    return [] if ids is None else [ids] if isinstance(ids, int) else list(ids)


def _describe(target: Target, base: BaseModel, base_only: bool) -> str:
    name = target.base.model_name_or_path or "a base of random weights"
    held = f"{name}, {base.quantization if base.quantization != 'none' else 'not quantized'}"
    what = held if target.adapter_dir is None or base_only else f"{target.name}: {target.method} on {held}"
    how = " through Unsloth" if base.backend == "unsloth" else ""
    return f"{what}, {str(base.compute_dtype).removeprefix('torch.')} on {base.device}{how}"
