"""Unsloth loads, adapts and runs the model: the only file that imports it.

In go a recipe's `model` section, what `base` has chosen for it, and PEFT's own config; out come the models that `plain`
would have made, with Unsloth's kernels in them where it has some for the device. `backends.start_backend`
imports this file before the libraries that Unsloth changes. What it decides by itself is taken back here (another
repository for a name), or refused (another precision, a larger vocabulary).
"""

import os
import re
from tempfile import TemporaryDirectory

# isort: off
from unsloth import FastLanguageModel  # before everything it changes

# isort: on
import bitsandbytes as bnb
from peft import LoraConfig, PeftModel
from peft.tuners.lora import LoraLayer
from peft.tuners.tuners_utils import check_target_module_exists
from torch import nn
from transformers import AutoModelForCausalLM, PreTrainedModel

from finetune.errors import PlaceError, RecipeError
from finetune.model.access import reaching, refuse_lacking
from finetune.model.backends import Chosen, Loaded, translating
from finetune.model.printing import printed_to_log
from finetune.model.tokenizer import load_tokenizer
from finetune.recipe.backend_limits import OTHERWISE
from finetune.recipe.schema import ModelSettings

__all__ = ["attach", "load", "take_over"]

# Names of bases, one a line, whose embeddings its trainers on a GPU leave as they are; written when it is imported.
_IGNORED = "UNSLOTH_IGNORED_TOKENIZER_NAMES"


def load(settings: ModelSettings, chosen: Chosen) -> Loaded:
    """Load a base as it is named, in NF4 with double quantization or in the compute dtype.

    Raises:
        PlaceError: the files are out of reach or lack a tensor, or Unsloth made something else of them.
    """
    # It loads a tokenizer of its own beside, which nothing here uses: ours, so that none is missing or changed.
    with reaching(chosen.name, settings.revision), TemporaryDirectory() as tokenizer_dir:
        load_tokenizer(settings).save_pretrained(tokenizer_dir)
        if chosen.saved_as == "none":
            _check_complete(settings, chosen)
        with printed_to_log(), translating(f"Unsloth cannot load {chosen.name} here"):
            model, _ = FastLanguageModel.from_pretrained(
                model_name=chosen.name,
                use_exact_model_name=True,  # it has quantized copies of its own for some names
                revision=chosen.revision,
                trust_remote_code=settings.trust_remote_code,
                load_in_4bit=settings.quantization == "nf4",
                dtype=chosen.dtype,
                device_map={"": chosen.device},
                offload_embedding=False,
                max_seq_length=chosen.max_length,  # beyond a model's positions it would stretch them
                attn_implementation=chosen.attention,  # for models that it has no kernels for
                use_gradient_checkpointing=_to_its_word(chosen.checkpointing),
                tokenizer_name=tokenizer_dir,
                fix_tokenizer=False,
            )
    _check_as_asked(model, settings, chosen)
    for module in model.modules():
        if isinstance(module, bnb.nn.Linear4bit):
            module.compute_dtype = chosen.dtype  # a base saved in 4 bits brings that of the machine that saved it
    # Its trainers rewrite rows of the embeddings that they find untrained.
    ignored = os.environ.get(_IGNORED, "").split("\n")
    os.environ[_IGNORED] = "\n".join(dict.fromkeys([*ignored, chosen.name]))
    return Loaded(model)


def attach(model: PreTrainedModel, config: LoraConfig, *, seed: int, checkpointing: bool) -> PeftModel:
    """Attach fresh LoRA matrices.

    Args:
        model: from `load`, changed in place.
        config: PEFT's; the reader of recipes lets none of its fields through that is not handed on here.
        seed: of the matrices' start.
        checkpointing: compute activations a second time instead of keeping them; on a GPU in Unsloth's own way,
            which moves what is kept to the host's memory.

    Raises:
        RecipeError: a pattern of targets that takes in the embeddings or the head.
    """
    targets = config.target_modules
    if isinstance(targets, str) and (name := _find_targeted_embeddings(model, targets)):
        raise RecipeError(
            f"`adapter.target_modules`: the pattern matches {name}, and Unsloth puts no LoRA there.\n  {OTHERWISE}"
        )
    with printed_to_log(), translating("Unsloth cannot attach this adapter"):
        attached = FastLanguageModel.get_peft_model(
            model,
            r=config.r,
            lora_alpha=config.lora_alpha,
            lora_dropout=config.lora_dropout,
            target_modules=targets if isinstance(targets, str) else sorted(targets),
            layers_to_transform=config.layers_to_transform,
            layers_pattern=config.layers_pattern,
            use_rslora=config.use_rslora,
            init_lora_weights=config.init_lora_weights,
            revision=config.revision,
            random_state=seed,
            use_gradient_checkpointing=_to_its_word(checkpointing),
        )
    _check_targets(attached, config)
    # For some architectures it writes a pattern of its own in the place of the names.
    attached.peft_config["default"].target_modules = config.target_modules
    return attached


def take_over(model: PeftModel, *, checkpointing: bool) -> PeftModel:
    """Let Unsloth's kernels run an adapter that PEFT has opened; on a CPU it has none, and PEFT goes on."""
    if not hasattr(FastLanguageModel, "patch_peft_model"):
        return model
    with printed_to_log(), translating("Unsloth cannot run this adapter"):
        return FastLanguageModel.patch_peft_model(model, use_gradient_checkpointing=_to_its_word(checkpointing))


def _find_targeted_embeddings(model: PreTrainedModel, pattern: str) -> str | None:
    """Find an embedding or the head among the modules that a pattern matches."""
    embeddings = (model.get_input_embeddings(), model.get_output_embeddings())
    names = (name for name, module in model.named_modules() if any(module is one for one in embeddings))
    return next((name for name in names if re.fullmatch(pattern, name)), None)


def _to_its_word(checkpointing: bool) -> str | bool:
    return "unsloth" if checkpointing else False


def _check_complete(settings: ModelSettings, chosen: Chosen) -> None:
    """Check that the files hold every tensor, which Unsloth does not tell: on no device, so that none is read."""
    _, compared = AutoModelForCausalLM.from_pretrained(
        chosen.name,
        revision=chosen.revision,
        trust_remote_code=settings.trust_remote_code,
        device_map={"": "meta"},
        output_loading_info=True,
    )
    refuse_lacking(chosen.name, set(compared["missing_keys"]))


def _check_targets(model: PeftModel, config: LoraConfig) -> None:
    """Check that LoRA sits on the layers that PEFT would have put it on."""
    core = model.get_base_model()
    wanted = {
        name.replace(".base_layer", "")
        for name, _ in core.named_modules()
        if check_target_module_exists(config, name.removesuffix(".base_layer"))
    }
    found = {name for name, module in core.named_modules() if isinstance(module, LoraLayer)}
    missing = {name for name in wanted - found if isinstance(core.get_submodule(name), nn.Linear)}
    if missing or not found <= wanted:
        odd = min(missing or found - wanted)
        raise PlaceError(
            f"Unsloth puts LoRA on {len(found)} layers of this model, and `adapter.target_modules` asks for others: "
            f"{odd}.\n  {OTHERWISE}"
        )


def _check_as_asked(model: PreTrainedModel, settings: ModelSettings, chosen: Chosen) -> None:
    """Check precision and vocabulary: where something does not work, Unsloth prints a line and takes another."""
    in_4_bits = any(isinstance(module, bnb.nn.Linear4bit) for module in model.modules())
    embeddings = model.get_input_embeddings()
    fault = None
    if in_4_bits != (settings.quantization == "nf4"):
        fault = f"holds {chosen.name} {'in 4 bits' if in_4_bits else 'unquantized'}, not as `model.quantization` says"
    elif embeddings.weight.dtype != chosen.dtype:
        fault = f"computes in {embeddings.weight.dtype} here, and the recipe in {chosen.dtype}"
    elif embeddings.num_embeddings != chosen.config.get_text_config().vocab_size:
        fault = f"has resized the vocabulary of {chosen.name}"
    if fault is not None:
        raise PlaceError(f"Unsloth {fault}; what it printed stands above.\n  {OTHERWISE}")
