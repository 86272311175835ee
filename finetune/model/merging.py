"""An adapter merged into its base: one whole model in 16 bits, and how far it speaks like the two it came from.

In goes a `Speaker` with an adapter; out comes a folder that any tool opens without PEFT or bitsandbytes.
What is merged into are the weights the adapter saw, the 4-bit ones dequantized, not the base's 16-bit
originals: the adapter learned to mend their rounding too.

Memory: one model in the dtype asked for, beside the quantized one while its layers are taken out of
it, and one layer in float32. On a GPU all of it lies there; where that is too much, the CPU's memory
serves (`--device cpu`).

Measured on a small Mistral and on stories260K (tests/model/test_merging.py, products in float32): merged in
float32, logits differ from adapter + NF4 base by at most 1.6e-5; rounded to bfloat16 by 0.05, with a mean KL
of 3e-5 nats. An int8 base differs by up to 0.1 in any dtype, since bitsandbytes rounds its inputs too.
"""

import shutil
import warnings
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import bitsandbytes as bnb
import torch
from peft import LoraConfig, PeftConfig, PeftModel
from peft.tuners.tuners_utils import BaseTunerLayer
from peft.utils import ModulesToSaveWrapper
from peft.utils.integrations import dequantize_module_weight
from torch import Tensor, nn
from transformers import GenerationConfig, PreTrainedModel

from finetune.errors import PlaceError, RecipeError
from finetune.model.adapters import count_parameters
from finetune.model.base import BaseModel
from finetune.model.bitfit import find_added_biases
from finetune.model.heads import find_builder
from finetune.model.loading import Speaker, attach_saved_adapter, check_adapter_file
from finetune.model.targets import Target
from finetune.recipe.catalogue import PROMPT_METHODS
from finetune.recipe.own_methods import OWN_METHODS

__all__ = [
    "LogitDifference",
    "check_effect",
    "check_mergeable",
    "check_room",
    "compare_logits",
    "describe_difference",
    "merge_adapter",
    "to_logits",
    "write_merged",
]

# Methods whose effect is no change of weights that a linear layer, an embedding or a norm could hold.
_NOT_IN_WEIGHTS = {
    "adaption_prompt": "it adds learned positions inside the attention",
    "bottleneck": "it puts a function that is not linear behind the layers",
    "combined": "its parts stand one around the other, and not each is a change of weights",
    "hypernetwork": "it puts functions that are not linear behind the layers",
    "lily": "PEFT has no merge of it",
    "poly": "it mixes several adapters by task",
    "shadow": "it runs a second, smaller model beside the base",
    "xlora": "it mixes several adapters anew for each token",
}


@dataclass(frozen=True, slots=True)
class LogitDifference:
    """How far two models' predictions lie apart, over every position of some prompts.

    Attributes:
        num_tokens: positions compared.
        max_abs: the largest difference of two logits.
        mean_kl_nats: KL divergence from the first model's distribution to the second's, averaged.
        greedy_agreement_fraction: positions at which both find the same token likeliest.
    """

    num_tokens: int
    max_abs: float
    mean_kl_nats: float
    greedy_agreement_fraction: float


def check_mergeable(target: Target) -> None:
    """Check that there is an adapter and that its method can be a part of weights; reads none.

    Raises:
        RecipeError: there is nothing to merge, or it does not merge, with the reason.
    """
    if target.adapter_dir is None:
        raise RecipeError(
            f"{target.name} is a whole model already: there is no adapter to merge.\n"
            f"  Its folder is what other tools open: {target.base.model_name_or_path}"
        )
    method = str(target.method)
    reason = _NOT_IN_WEIGHTS.get(method)
    if method in PROMPT_METHODS:
        reason = "it puts learned vectors in front of the text, and changes no weight"
    config = PeftConfig.from_pretrained(str(target.adapter_dir))
    if isinstance(config, LoraConfig) and config.alora_invocation_tokens is not None:
        reason = "activated LoRA acts only behind its invocation tokens"
    if reason is not None:
        raise RecipeError(
            f"{target.name}: an adapter of method {method} cannot be merged: {reason}.\n"
            f"  Serve it with {'this package' if method in OWN_METHODS else 'PEFT'} as it is: {target.adapter_dir}"
        )


def check_effect(target: Target) -> None:
    """Check that merging changes the base at all, by the adapter's own numbers.

    Raises:
        PlaceError: they are zero, or not finite.
    """
    assert target.adapter_dir is not None
    check_adapter_file(target.adapter_dir, must_change=True)


def check_room(folder: Path, needed_bytes: int) -> None:
    """Check that a folder to be written is empty or absent, and that the disk has room for it.

    Raises:
        PlaceError: it is in use, or too large, with the ways out.
    """
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise PlaceError(
            f"{folder} is not empty, and a merged model is written into a new folder only.\n"
            f"  Another folder: --merge {folder}_2     Or delete this one first: rm -r {folder}"
        )
    existing = next(place for place in (folder.absolute(), *folder.absolute().parents) if place.exists())
    free_bytes = shutil.disk_usage(existing).free
    if free_bytes < needed_bytes:
        raise PlaceError(
            f"{folder}: the merged model takes {needed_bytes / 2**30:.1f} GiB and the disk has "
            f"{free_bytes / 2**30:.1f} GiB free.\n  A folder on another disk: --merge DIR"
        )


def write_merged(
    speaker: Speaker,
    folder: Path,
    dtype: torch.dtype,
    prompts: Sequence[list[int]],
    *,
    sync: Callable[[Path], None],
) -> LogitDifference:
    """Merge, save, open what was saved, and compare it with what it was made from.

    The folder appears when all of it is there. The speaker's model is used up.

    Args:
        speaker: a base with its adapter.
        folder: absent or empty.
        dtype: of the weights that are saved.
        prompts: token ids at whose every position the two are compared.
        sync: brings all of a folder to the disk, before it gets its name.

    Raises:
        PlaceError: the folder is in use or too small, a merged weight does not fit `dtype`, or the adapter's numbers
            change nothing or are not finite.
        RecipeError: the method does not merge.
    """
    check_mergeable(speaker.target)
    check_effect(speaker.target)
    check_room(folder, count_parameters(speaker.base.model).total * dtype.itemsize)
    if isinstance(speaker.model, PeftModel):
        _check_biases(speaker.model, speaker.target)
    expected = to_logits(speaker.model, prompts)
    device = speaker.base.device
    generation_config = _find_generation_config(speaker) if speaker.base.head == "words" else None
    merged = merge_adapter(speaker, dtype)
    if generation_config is not None:
        merged.generation_config = generation_config
    part = folder.absolute().with_name(f".{folder.name}.part")
    shutil.rmtree(part, ignore_errors=True)
    try:
        merged.save_pretrained(part)
        speaker.tokenizer.save_pretrained(part)
        merged.to("meta")  # its memory goes to the one that is read back
        saved = find_builder(speaker.base.head).from_pretrained(part, dtype=dtype, device_map={"": device}).eval()
        difference = compare_logits(expected, to_logits(saved, prompts))
        sync(part)
        part.replace(folder)
    finally:
        shutil.rmtree(part, ignore_errors=True)
    return difference


def merge_adapter(speaker: Speaker, dtype: torch.dtype) -> PreTrainedModel:
    """Merge a speaker's adapter into its base; its model becomes the merged one.

    Each layer's weight is dequantized to float32, the adapter's change added by PEFT's own merge of
    that method, and the sum rounded once.

    Raises:
        PlaceError: a merged weight is beyond what `dtype` can hold.
        RecipeError: the method does not merge.
    """
    adapter_dir = speaker.target.adapter_dir
    assert isinstance(speaker.model, PeftModel) and adapter_dir is not None
    _check_biases(speaker.model, speaker.target)
    if speaker.base.quantization != "none":
        _forget_quantization(speaker.base.model)
    plain: PreTrainedModel = speaker.model.unload()
    was_tied = bool(getattr(plain.config, "tie_word_embeddings", False))  # some kinds of models have no such mark
    quantized = _dequantize_layers(plain, dtype)
    plain.to(dtype)
    config = PeftConfig.from_pretrained(str(adapter_dir))
    if isinstance(config, LoraConfig):
        # A start that takes a part out of the base (PiSSA, OLoRA) was taken out when the speaker was loaded.
        config.init_lora_weights = True
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Model has `tie_word_embeddings=True`")  # `_merge_layers` sees to it
        model = attach_saved_adapter(plain, adapter_dir, config)
    try:
        _merge_layers(model, quantized, dtype)
    except (NotImplementedError, ValueError) as error:
        # PEFT's words for a method, or a use of one, without a merge.
        reason = " ".join(str(error).split()) or "PEFT has no merge of it"
        raise RecipeError(
            f"{speaker.target.name}: method {speaker.target.method} cannot be merged: {reason}"
        ) from error
    _put_back_whole_modules(model)
    with warnings.catch_warnings():
        # Takes PEFT's layers away; those that are weights of their own (`modules_to_save`) are put in here.
        warnings.filterwarnings("ignore", message="All adapters are already merged")
        # Embeddings that are tied no more, which it also notes in the model's config.
        warnings.filterwarnings("ignore", message="Model with `tie_word_embeddings=True`")
        warnings.filterwarnings("ignore", message="Input and output embeddings are no longer tied")
        merged: PreTrainedModel = model.merge_and_unload().to(dtype)
    if was_tied and not merged.config.tie_word_embeddings:
        _tie_again(merged)
    merged.config.dtype = dtype
    _check_finite(merged, dtype)
    return merged.eval()


def _check_biases(model: PeftModel, target: Target) -> None:
    added = find_added_biases(model)
    if added:
        raise RecipeError(
            f"{target.name}: BitFit has given {len(added)} layers a bias that this kind of model has none for, "
            f"the first {added[0]}: a saved one would be passed over when it is opened.\n"
            f"  Serve it with this package as it is: {target.adapter_dir}"
        )


def _dequantize_layers(model: PreTrainedModel, dtype: torch.dtype) -> dict[str, nn.Module]:
    """Put a plain layer in the place of each quantized one, rounded to `dtype`; gives the quantized ones by name."""
    quantized = {
        name: module
        for name, module in model.named_modules()
        if isinstance(module, bnb.nn.Linear4bit | bnb.nn.Linear8bitLt)
    }
    for name, module in quantized.items():
        with torch.device("meta"):
            layer = nn.Linear(module.in_features, module.out_features, bias=module.bias is not None)
        layer.weight = nn.Parameter(dequantize_module_weight(module).data.to(dtype), requires_grad=False)
        if module.bias is not None:
            layer.bias = nn.Parameter(module.bias.data.to(dtype), requires_grad=False)
        model.set_submodule(name, layer)
    return quantized


def _forget_quantization(model: PreTrainedModel) -> None:
    """Take off the marks by which transformers and PEFT refuse to treat a model as plain."""
    model.hf_quantizer.remove_quantization_config(model)
    model.is_loaded_in_4bit = model.is_loaded_in_8bit = False


def _merge_layers(model: PeftModel, quantized: dict[str, nn.Module], dtype: torch.dtype) -> None:
    """Merge layer by layer, each in float32 on the exact weights that the adapter saw."""
    whole = model.get_base_model()
    _untie_changed(whole)
    for name, layer in whole.named_modules():
        if not isinstance(layer, BaseTunerLayer):
            continue
        held = layer.get_base_layer().to(torch.float32)
        if name in quantized:
            held.weight.data = dequantize_module_weight(quantized.pop(name)).data.to(torch.float32)
        layer.merge(safe_merge=True)
        layer.get_base_layer().to(dtype)


def _untie_changed(model: nn.Module) -> None:
    """Give tied embeddings a weight each where the adapter changes one of them: the change is of that one alone.

    Nothing stays shared then, a bias that BERT ties beside them neither: what is untied is read back part by part.
    """
    owners = Counter(id(parameter) for _, parameter in model.named_parameters(remove_duplicate=False))
    changed = [one.get_base_layer() for one in model.modules() if isinstance(one, BaseTunerLayer)]
    changed += [one.original_module for one in model.modules() if isinstance(one, ModulesToSaveWrapper)]
    if not any(isinstance(one, nn.Linear | nn.Embedding) and owners[id(one.weight)] > 1 for one in changed):
        return
    seen: set[nn.Parameter] = set()
    for module in model.modules():
        for name, parameter in list(module.named_parameters(recurse=False)):
            if parameter in seen and isinstance(module, nn.Linear | nn.Embedding):
                setattr(module, name, nn.Parameter(parameter.data.clone(), requires_grad=False))
            seen.add(parameter)


def _tie_again(model: PreTrainedModel) -> None:
    """Let what was tied share one weight again where all of it came out equal: the adapter changed both alike."""
    pairs = model.all_tied_weights_keys.items()
    held = dict(model.named_parameters(remove_duplicate=False))  # a head that PEFT made for the embeddings has no bias
    if pairs and all({name, source} <= held.keys() and torch.equal(held[name], held[source]) for name, source in pairs):
        for name, source in pairs:
            module, _, kind = name.rpartition(".")
            setattr(model.get_submodule(module), kind, held[source])
        model.config.tie_word_embeddings = True


def _put_back_whole_modules(model: PeftModel) -> None:
    """Put trained modules in the place of their wrappers; PEFT (0.21) ends in an error at one of several parts."""
    whole = model.get_base_model()
    wrapped = [(name, one) for name, one in whole.named_modules() if isinstance(one, ModulesToSaveWrapper)]
    for name, one in wrapped:
        whole.set_submodule(name, one.modules_to_save[one.active_adapter])


def _check_finite(model: PreTrainedModel, dtype: torch.dtype) -> None:
    for name, parameter in model.named_parameters():
        if not torch.isfinite(parameter).all():
            raise PlaceError(
                f"The merged weight {name} is beyond what {str(dtype).removeprefix('torch.')} can hold.\n"
                "  Nothing was kept. Take the wider one: --dtype bfloat16"
            )


def _find_generation_config(speaker: Speaker) -> GenerationConfig:
    folder = speaker.target.saved_dir
    if folder is not None and (folder / "generation_config.json").is_file():
        return GenerationConfig.from_pretrained(folder)
    return speaker.base.model.generation_config


def describe_difference(difference: LogitDifference, base: BaseModel, num_prompts: int) -> str:
    """Say how far a whole model's outputs lie from those of adapter and base, in lines for a console."""
    texts, farthest = f"{num_prompts} prompts", f"{difference.max_abs:.2g} at most"
    if base.labels is not None and base.labels.names is None:
        return f"Beside adapter + base, of {texts}: the numbers differ by {farthest}."
    places = f"at the {difference.num_tokens} tokens of {texts}" if base.head != "labels" else f"of {texts}"
    likeliest = {"words": "next token", "labels": "label"}.get(base.head, "token")
    return (
        f"Beside adapter + base, {places}:\n"
        f"  logits differ by {farthest}; mean KL {difference.mean_kl_nats:.1e} nats;\n"
        f"  the likeliest {likeliest} is the same at {difference.greedy_agreement_fraction:.1%} of them."
    )


@torch.no_grad()
def to_logits(model: PreTrainedModel | PeftModel, prompts: Sequence[list[int]]) -> list[Tensor]:
    """Compute the logits of each prompt's every position, in float32 on the CPU.

    Returns:
        Shapes (T, V), T tokens and V pieces; of a classifier (1, C), C labels.
    """
    rows = [torch.tensor([prompt], device=model.device) for prompt in prompts]
    return [
        model(input_ids=row, attention_mask=torch.ones_like(row)).logits.flatten(0, -2).float().cpu() for row in rows
    ]


def compare_logits(expected: Sequence[Tensor], found: Sequence[Tensor]) -> LogitDifference:
    """Compare two models' logits of the same prompts; `expected` is what the other is measured from."""
    expected_TV, found_TV = torch.cat(list(expected)).double(), torch.cat(list(found)).double()
    log_p_TV, log_q_TV = expected_TV.log_softmax(-1), found_TV.log_softmax(-1)
    kl_T = (log_p_TV.exp() * (log_p_TV - log_q_TV)).sum(-1)
    return LogitDifference(
        num_tokens=len(kl_T),
        max_abs=float((expected_TV - found_TV).abs().max()),
        mean_kl_nats=float(kl_T.mean()),
        greedy_agreement_fraction=float((expected_TV.argmax(-1) == found_TV.argmax(-1)).float().mean()),
    )
