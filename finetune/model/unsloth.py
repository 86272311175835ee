"""Unsloth loads, adapts and runs the model: the only file that imports it, by its public functions alone.

In go plain values and PEFT's own config; out come the models that `base` and `adapters` would have
made, with Unsloth's kernels in them where it has some for the device. `backends.start_backend`
imports this file before the libraries that Unsloth changes. What it decides by itself is
taken back here (another repository for a name), or refused (a precision that was not asked for).
"""

# isort: off
from unsloth import FastLanguageModel  # before everything it changes

# isort: on
import bitsandbytes as bnb
import torch
from peft import LoraConfig, PeftModel
from transformers import PreTrainedModel

from finetune.errors import PlaceError
from finetune.model.backends import said_to_log

__all__ = ["attach_lora", "load_model", "prepare_for_inference", "take_over"]


def load_model(
    name: str,
    *,
    revision: str | None,
    tokenizer_name: str | None,
    trust_remote_code: bool,
    in_4_bits: bool,
    dtype: torch.dtype,
    device: torch.device,
    max_length: int,
    attention: str | None,
) -> PreTrainedModel:
    """Load a base as it is named, in NF4 with double quantization or in the compute dtype.

    Args:
        name: Hub name or folder; Unsloth would take its own quantized copy of some.
        revision: the commit.
        tokenizer_name: of the tokenizer that it loads beside; nothing here uses it.
        trust_remote_code: run the repository's own Python.
        in_4_bits: NF4, or the weights in `dtype`.
        dtype: of the products and of what is not quantized.
        device: the one device.
        max_length: tokens of a row at most; Unsloth would stretch a model's positions to reach it.
        attention: transformers' name of the kernel, for models that Unsloth has none of its own for.

    Raises:
        PlaceError: it was held in another precision, which Unsloth does where bitsandbytes does not work.
    """
    with said_to_log():
        model, _ = FastLanguageModel.from_pretrained(
            model_name=name,
            revision=revision,
            tokenizer_name=tokenizer_name,
            trust_remote_code=trust_remote_code,
            use_exact_model_name=True,
            fix_tokenizer=False,
            offload_embedding=False,
            load_in_4bit=in_4_bits,
            dtype=dtype,
            device_map={"": device},
            max_seq_length=max_length,
            attn_implementation=attention,
            # Told again where an adapter is attached; a base alone computes nothing twice.
            use_gradient_checkpointing=False,
        )
    _check_precision(model, in_4_bits=in_4_bits, dtype=dtype)
    return model


def attach_lora(model: PreTrainedModel, config: LoraConfig, *, seed: int, checkpointing: bool) -> PeftModel:
    """Attach fresh LoRA matrices.

    Args:
        model: from `load_model`, changed in place.
        config: PEFT's; the reader of recipes lets none of its fields through that is not handed on here.
        seed: of the matrices' start.
        checkpointing: compute activations a second time instead of keeping them; on a GPU Unsloth's own way,
            which moves what is kept to the host's memory.
    """
    with said_to_log():
        return FastLanguageModel.get_peft_model(
            model,
            r=config.r,
            lora_alpha=config.lora_alpha,
            lora_dropout=config.lora_dropout,
            target_modules=config.target_modules
            if isinstance(config.target_modules, str)
            else sorted(config.target_modules),
            layers_to_transform=config.layers_to_transform,
            layers_pattern=config.layers_pattern,
            use_rslora=config.use_rslora,
            init_lora_weights=config.init_lora_weights,
            revision=config.revision,
            random_state=seed,
            use_gradient_checkpointing="unsloth" if checkpointing else False,
        )


def take_over(model: PeftModel, *, checkpointing: bool) -> PeftModel:
    """Let Unsloth's kernels run an adapter that PEFT has opened; without a GPU there are none, and PEFT's stay."""
    patch = getattr(FastLanguageModel, "patch_peft_model", None)
    if patch is None:
        return model
    with said_to_log():
        return patch(model, use_gradient_checkpointing="unsloth" if checkpointing else False)


def prepare_for_inference(model: PreTrainedModel | PeftModel) -> PreTrainedModel | PeftModel:
    """Switch a model that trains no more to Unsloth's way of generating, its saved adapter included."""
    if isinstance(model, PeftModel):
        model = take_over(model, checkpointing=False)
    FastLanguageModel.for_inference(model)
    return model


def _check_precision(model: PreTrainedModel, *, in_4_bits: bool, dtype: torch.dtype) -> None:
    layers = [module for module in model.modules() if isinstance(module, bnb.nn.Linear4bit)]
    if bool(layers) != in_4_bits:
        raise PlaceError(
            f"Unsloth holds {model.name_or_path} {'in 4 bits' if layers else 'unquantized'}, and "
            f"`model.quantization` asks for {'nf4' if in_4_bits else 'none'}; what it said stands above.\n"
            "  Train without it: model.backend=transformers"
        )
    found = model.get_input_embeddings().weight.dtype
    if found != dtype:
        raise PlaceError(
            f"Unsloth computes in {found} here, and the recipe in {dtype}.\n"
            f"  Set model.compute_dtype={str(found).removeprefix('torch.')}, or train without it: "
            "model.backend=transformers"
        )
