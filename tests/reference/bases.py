"""Bases of two layers with random weights, adapted as the pipeline adapts them: what the tests here stand on."""

import bitsandbytes as bnb
import torch
from torch import Tensor, nn

from finetune.model.adapters import attach_adapter
from finetune.model.base import BaseModel, load_base
from finetune.recipe.schema import AdapterSettings, ModelSettings
from tests.reference.decoder import Shape

TOKENS = torch.arange(24).reshape(2, 12)
HIDDEN, INTERMEDIATE, KEYS, NUM_LAYERS = 64, 128, 32, 2
LINEARS = {
    "q_proj": (HIDDEN, HIDDEN),
    "k_proj": (HIDDEN, KEYS),
    "v_proj": (HIDDEN, KEYS),
    "o_proj": (HIDDEN, HIDDEN),
    "gate_proj": (HIDDEN, INTERMEDIATE),
    "up_proj": (HIDDEN, INTERMEDIATE),
    "down_proj": (INTERMEDIATE, HIDDEN),
}


def load(quantization: str = "none", **changes: object) -> BaseModel:
    """Load a base in float32 whose numbers are wide enough for every change to show; a Qwen2's biases too."""
    config = {
        "model_type": "mistral",
        "vocab_size": 96,
        "hidden_size": HIDDEN,
        "intermediate_size": INTERMEDIATE,
        "num_hidden_layers": NUM_LAYERS,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 64,
        "initializer_range": 0.1,
        "tie_word_embeddings": False,
    }
    settings = ModelSettings(
        weights="random", config=config | changes, quantization=quantization, compute_dtype="float32", device="cpu"
    )
    base = load_base(settings)
    torch.manual_seed(1)
    for name, parameter in base.model.named_parameters():
        if name.endswith("bias"):
            parameter.data.normal_(std=0.5)
    return base


def attach(base: BaseModel, method: str, **fields: object) -> nn.Module:
    """Attach an adapter by the pipeline's own function."""
    return attach_adapter(base, AdapterSettings(method=method, **fields), seed=0)


def weights_of(base: BaseModel) -> dict[str, Tensor]:
    """Read the weights by their names, 4-bit ones as what they stand for; to be called before an adapter is there."""
    return {name: dense(parameter).clone() for name, parameter in base.model.named_parameters()}


def dense(weight: Tensor) -> Tensor:
    """Read a weight as numbers."""
    if isinstance(weight, bnb.nn.Params4bit):
        return bnb.functional.dequantize_4bit(weight.data, weight.quant_state)
    return weight.detach()


def shape_of(base: BaseModel) -> Shape:
    """Read what the weights alone do not say."""
    config = base.model.config
    return Shape(
        num_layers=config.num_hidden_layers,
        num_heads=config.num_attention_heads,
        num_kv_heads=config.num_key_value_heads,
        eps=config.rms_norm_eps,
        rope_theta=config.rope_parameters["rope_theta"],
    )


def random_like(tensor: Tensor, *, around: float = 0.0, seed: int = 0) -> Tensor:
    """Draw numbers of a tensor's shape, far enough from its start for every gradient to be there."""
    return around + 0.3 * torch.randn(tensor.shape, generator=torch.Generator().manual_seed(seed))
