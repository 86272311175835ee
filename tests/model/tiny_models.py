"""A Mistral of two layers, small enough to be checked by eye, as the tests of `model/` want it."""

from pathlib import Path

from transformers import MistralConfig, MistralForCausalLM, set_seed

from finetune.model.base import BaseModel, load_base
from finetune.recipe.schema import ModelSettings

SHAPE = {
    "model_type": "mistral",
    "vocab_size": 128,
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 96,
}
# Embeddings and head; q and o, k and v; gate, up and down; two norms a layer and one at the end.
NUM_PARAMETERS = 2 * 128 * 64 + 2 * (2 * 64 * 64 + 2 * 64 * 32 + 3 * 64 * 128 + 2 * 64) + 64


def write_tiny_model(folder: Path) -> Path:
    """Write a tiny Mistral, whose numbers are wide enough for rounding to show."""
    set_seed(0)
    fields = {name: value for name, value in SHAPE.items() if name != "model_type"}
    MistralForCausalLM(MistralConfig(**fields, initializer_range=0.2)).save_pretrained(folder)
    return folder


def load_tiny(folder: Path, quantization: str = "none", **settings: object) -> BaseModel:
    """Load it in float32, so that what is compared differs by the thing tested alone."""
    fields = {"compute_dtype": "float32", "device": "cpu"} | settings
    return load_base(ModelSettings(model_name_or_path=str(folder), quantization=quantization, **fields))
