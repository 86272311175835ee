"""Small models of every kind whose shapes are known: what arithmetic is held against."""

from collections.abc import Mapping
from typing import Any

import bitsandbytes as bnb
import torch
from transformers import CONFIG_MAPPING, PreTrainedModel

from finetune.model.base import BaseModel
from finetune.model.heads import find_builder, find_head_modules
from finetune.recipe.heads import Head

__all__ = ["ENCODERS", "SMALL", "build_base", "build_fields", "build_model", "count_held"]

ENCODERS = frozenset({"bert", "roberta", "xlm-roberta", "distilbert", "modernbert"})

# Sizes that no two of are equal, so that one taken for another shows.
_DECODER = {
    "hidden_size": 48,
    "intermediate_size": 80,
    "num_hidden_layers": 3,
    "num_attention_heads": 6,
    "num_key_value_heads": 2,
    "vocab_size": 100,
    "max_position_embeddings": 64,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
_ENCODER = {
    "hidden_size": 48,
    "intermediate_size": 80,
    "num_hidden_layers": 3,
    "num_attention_heads": 6,
    "vocab_size": 100,
    "max_position_embeddings": 64,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
SMALL: Mapping[str, Mapping[str, Any]] = {
    **dict.fromkeys(("llama", "mistral", "qwen2", "smollm3", "olmo2", "granite", "phi3"), _DECODER),
    "mixtral": {**_DECODER, "num_local_experts": 4, "num_experts_per_tok": 2},
    **{kind: {**_DECODER, "head_dim": 16} for kind in ("qwen3", "gemma", "gemma2", "gemma3_text")},
    **{kind: {**_ENCODER, "type_vocab_size": 3} for kind in ("bert", "roberta", "xlm-roberta")},
    "distilbert": {
        "dim": 48,
        "hidden_dim": 80,
        "n_layers": 3,
        "n_heads": 6,
        "vocab_size": 100,
        "max_position_embeddings": 64,
    },
    "modernbert": {**_ENCODER, "cls_token_id": 1, "sep_token_id": 2},
}


def build_fields(kind: str, **changes: Any) -> dict[str, Any]:
    """The fields of a small config of a kind."""
    return {"model_type": kind, **SMALL[kind], **changes}


def build_model(fields: Mapping[str, Any], *, head: Head = "words", num_outputs: int = 1) -> PreTrainedModel:
    """The model that transformers builds from such fields, without memory."""
    values = dict(fields)
    config = CONFIG_MAPPING[values.pop("model_type")](**values, num_labels=num_outputs)
    with torch.device("meta"):
        model: PreTrainedModel = find_builder(head).from_config(config, dtype=torch.bfloat16)
    return model


def build_base(fields: Mapping[str, Any], *, head: Head = "words", num_outputs: int = 1) -> BaseModel:
    """The same as the part of a run that holds a frozen base."""
    model = build_model(fields, head=head, num_outputs=num_outputs).requires_grad_(False)
    return BaseModel(
        model=model,
        device=torch.device("meta"),
        compute_dtype=torch.bfloat16,
        quantization="none",
        attention="eager",
        commit=None,
        stored_dtype=torch.bfloat16,
        head=head,
        head_modules=find_head_modules(model.config) if head == "labels" else (),
    )


def count_held(model: torch.nn.Module) -> int:
    """Bytes of a model's parameters, and of what bitsandbytes keeps beside them, each storage once."""
    held: dict[int, int] = {}
    for module in model.modules():
        tensors = list(module.parameters(recurse=False))
        tensors += [_ for parameter in tensors for _ in _find_beside(parameter)]
        if isinstance(module, bnb.nn.Linear8bitLt) and module.state.SCB is not None:
            tensors.append(module.state.SCB)
        held |= {tensor.untyped_storage().data_ptr(): tensor.nbytes for tensor in tensors}
    return sum(held.values())


def _find_beside(parameter: torch.nn.Parameter) -> list[torch.Tensor]:
    if isinstance(parameter, bnb.nn.Int8Params):
        return [] if parameter.SCB is None else [parameter.SCB]
    if not isinstance(parameter, bnb.nn.Params4bit):
        return []
    state = parameter.quant_state
    nested = [state.offset, state.state2.absmax, state.state2.code] if state.nested else []
    return [state.absmax, state.code, *nested]
