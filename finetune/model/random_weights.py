"""A model of the true shape without its weights: for benchmarks, or a base of one's own.

In goes a config; out comes a model as `from_pretrained` would give it, its numbers drawn from the
seed. It is laid out on `meta` and filled and quantized layer by layer on its device, so that a 70B
shape takes its 4-bit size and one layer more, never its 16-bit size.
"""

from typing import Any

import bitsandbytes as bnb
import torch
from torch import nn
from transformers import (
    CONFIG_MAPPING,
    AutoConfig,
    BitsAndBytesConfig,
    PreTrainedConfig,
    PreTrainedModel,
)
from transformers.quantizers import AutoHfQuantizer

from finetune.errors import RecipeError
from finetune.model.heads import find_builder, put_score_head
from finetune.recipe.heads import Head

__all__ = ["build_config", "build_random_model"]


def build_config(fields: dict[str, Any]) -> PreTrainedConfig:
    """Build a config from its fields.

    Raises:
        RecipeError: fields without a known `model_type`, or fields that this architecture has not got.
    """
    fields = dict(fields)
    model_type = fields.pop("model_type", None)
    if model_type not in CONFIG_MAPPING:
        raise RecipeError(
            f"`model.config`: `model_type` is {model_type!r}, and transformers has no such architecture.\n"
            "  Its name as in a config.json: model_type: mistral"
        )
    known = CONFIG_MAPPING[model_type]()
    unknown = sorted(set(fields) - set(known.to_dict()) - set(known.attribute_map))
    if unknown:
        raise RecipeError(
            f"`model.config`: {model_type} has no {', '.join(f'`{name}`' for name in unknown)}.\n"
            f"  Its fields are those of a {type(known).__name__}."
        )
    return AutoConfig.for_model(model_type, **fields)


def build_random_model(
    config: PreTrainedConfig,
    *,
    seed: int,
    device: torch.device,
    dtype: torch.dtype,
    quantization: BitsAndBytesConfig | None,
    attention: str | None,
    head: Head = "words",
    trust_remote_code: bool = False,
) -> PreTrainedModel:
    """Build the model, each layer drawn by its own architecture's rule (its `initializer_range`).

    The body has the same numbers whatever it ends with.
    """
    with torch.device("meta"):
        model = find_builder(head).from_config(
            config, dtype=dtype, attn_implementation=attention, trust_remote_code=trust_remote_code
        )
    quantizer = None
    if quantization is not None:
        quantizer = AutoHfQuantizer.from_config(quantization, pre_quantized=False)
        quantizer.preprocess_model(model, dtype=dtype, device_map={"": device})
    tied = set(model.all_tied_weights_keys)
    devices = [device] if device.type == "cuda" else []
    with torch.random.fork_rng(devices), torch.no_grad():
        torch.manual_seed(seed)
        for name, module in list(model.named_modules()):
            own = [f"{name}.{part}" for part, _ in module.named_parameters(recurse=False)]
            # Of a tied weight the other owner is filled; ModernBERT's head has a bias of its own beside one.
            if not own or not tied.issuperset(own):
                _fill(module, model, device, dtype)
    model.tie_weights()
    if head == "score":
        put_score_head(model, seed=seed)
    if quantizer is not None:
        model.hf_quantizer = quantizer
        quantizer.postprocess_model(model)
    return model.eval()


def _fill(module: nn.Module, model: PreTrainedModel, device: torch.device, dtype: torch.dtype) -> None:
    """Give a layer's own tensors memory and numbers; a layer that is to be quantized, at once."""
    if isinstance(module, bnb.nn.Linear4bit | bnb.nn.Linear8bitLt):
        plain = nn.utils.skip_init(
            nn.Linear, module.in_features, module.out_features, module.bias is not None, device=device, dtype=dtype
        )
        model._init_weights(plain)
        if plain.bias is not None:
            module.bias = nn.Parameter(plain.bias.data, requires_grad=False)
        module.weight = _quantize(module, plain.weight.data, device)
    elif any(True for _ in module.parameters(recurse=False)) or any(True for _ in module.buffers(recurse=False)):
        module.to_empty(device=device, recurse=False)
        model._init_weights(module)


def _quantize(
    module: bnb.nn.Linear4bit | bnb.nn.Linear8bitLt, weight: torch.Tensor, device: torch.device
) -> nn.Parameter:
    # Both classes quantize when they are moved; the 8-bit one only on its way from the CPU.
    if isinstance(module, bnb.nn.Linear4bit):
        return bnb.nn.Params4bit(weight, requires_grad=False, **module.weight.__dict__).to(device)
    return bnb.nn.Int8Params(weight.cpu(), requires_grad=False, has_fp16_weights=False).to(device)
