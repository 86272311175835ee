"""From the fields of a config.json to the shape of a base.

In go the fields of a file, of a recipe's `model.config`, or of the small list of `known_models.json`; out comes an
`Architecture`. What a config leaves out has the default of its kind in transformers 5.17.
"""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from finetune.budget.decoders import DECODERS, build_decoder
from finetune.budget.encoders import ENCODERS, build_encoder
from finetune.budget.shapes import Architecture
from finetune.errors import RecipeError
from finetune.recipe.heads import Head

__all__ = ["Architecture", "build_architecture"]

_OF_BERT = {
    "hidden_size": 768,
    "intermediate_size": 3072,
    "num_hidden_layers": 12,
    "num_attention_heads": 12,
    "vocab_size": 30522,
    "max_position_embeddings": 512,
    "type_vocab_size": 2,
    "tie_word_embeddings": True,
}
_OF_7B = {"hidden_size": 4096, "num_hidden_layers": 32, "num_attention_heads": 32}
# SigLIP So400m, the tower for images of Gemma 3, whose configs leave some of it out.
_OF_TOWER = {"hidden_size": 1152, "intermediate_size": 4304, "num_hidden_layers": 27}
_OF_GEMMA = {"head_dim": 256, "tie_word_embeddings": True}
# Fields that are sizes, by the names of every kind.
_SIZES = (
    "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads", "head_dim",
    "vocab_size", "dim", "hidden_dim", "n_layers", "n_heads", "num_local_experts", "num_experts_per_tok",
)  # fmt: skip
# The defaults of transformers' own config classes; a test compares them with the installed ones.
_DEFAULTS: Mapping[str, Mapping[str, Any]] = {
    "llama": {**_OF_7B, "intermediate_size": 11008, "vocab_size": 32000, "max_position_embeddings": 2048},
    "mistral": {
        **_OF_7B,
        "intermediate_size": 14336,
        "vocab_size": 32000,
        "num_key_value_heads": 8,
        "max_position_embeddings": 131072,
    },
    "mixtral": {
        **_OF_7B,
        "intermediate_size": 14336,
        "vocab_size": 32000,
        "num_key_value_heads": 8,
        "num_local_experts": 8,
        "num_experts_per_tok": 2,
        "max_position_embeddings": 131072,
    },
    "qwen2": {
        **_OF_7B,
        "intermediate_size": 22016,
        "vocab_size": 151936,
        "num_key_value_heads": 32,
        "max_position_embeddings": 32768,
    },
    "qwen3": {
        **_OF_7B,
        "intermediate_size": 22016,
        "vocab_size": 151936,
        "num_key_value_heads": 32,
        "head_dim": 128,
        "max_position_embeddings": 32768,
    },
    "gemma": {
        **_OF_GEMMA,
        "hidden_size": 3072,
        "intermediate_size": 24576,
        "num_hidden_layers": 28,
        "num_attention_heads": 16,
        "num_key_value_heads": 16,
        "vocab_size": 256000,
        "max_position_embeddings": 8192,
    },
    "gemma2": {
        **_OF_GEMMA,
        "hidden_size": 2304,
        "intermediate_size": 9216,
        "num_hidden_layers": 26,
        "num_attention_heads": 8,
        "num_key_value_heads": 4,
        "vocab_size": 256000,
        "max_position_embeddings": 8192,
    },
    "gemma3_text": {
        **_OF_GEMMA,
        "hidden_size": 2304,
        "intermediate_size": 9216,
        "num_hidden_layers": 26,
        "num_attention_heads": 8,
        "num_key_value_heads": 4,
        "vocab_size": 262208,
        "max_position_embeddings": 131072,
    },
    "smollm3": {
        "hidden_size": 2048,
        "intermediate_size": 11008,
        "num_hidden_layers": 36,
        "num_attention_heads": 16,
        "num_key_value_heads": 4,
        "vocab_size": 128256,
        "tie_word_embeddings": True,
        "max_position_embeddings": 32768,
    },
    "olmo2": {**_OF_7B, "intermediate_size": 11008, "vocab_size": 50304, "max_position_embeddings": 2048},
    "granite": {**_OF_7B, "intermediate_size": 11008, "vocab_size": 32000, "max_position_embeddings": 2048},
    "phi3": {
        "hidden_size": 3072,
        "intermediate_size": 8192,
        "num_hidden_layers": 32,
        "num_attention_heads": 32,
        "vocab_size": 32064,
        "max_position_embeddings": 4096,
    },
    "bert": _OF_BERT,
    "roberta": {**_OF_BERT, "vocab_size": 50265},
    "xlm-roberta": _OF_BERT,
    "distilbert": {
        "dim": 768,
        "hidden_dim": 3072,
        "n_layers": 6,
        "n_heads": 12,
        "vocab_size": 30522,
        "max_position_embeddings": 512,
        "tie_word_embeddings": True,
    },
    "modernbert": {
        "hidden_size": 768,
        "intermediate_size": 1152,
        "num_hidden_layers": 22,
        "num_attention_heads": 12,
        "vocab_size": 50368,
        "max_position_embeddings": 8192,
        "attention_bias": False,
        "mlp_bias": False,
        "norm_bias": False,
        "classifier_bias": False,
        "decoder_bias": True,
        "tie_word_embeddings": True,
    },
}


def build_architecture(config: Mapping[str, Any], *, head: Head = "words", num_outputs: int = 1) -> Architecture:
    """Build the shape of a base.

    Args:
        config: fields of a config.json; `model_type` says of which kind it is. Of a model of text and images they hold
            those of its language model in `text_config`, whose shape it is then; the rest is estimated.
        head: what the base is to end with.
        num_outputs: labels, where it ends with them.

    Raises:
        RecipeError: no kind whose shapes are known here, or a size that is no number.
    """
    if isinstance(config.get("text_config"), Mapping):
        return _build_with_images(config, head=head, num_outputs=num_outputs)
    kind = config.get("model_type")
    if kind is None:
        raise RecipeError(
            "The base's config names no `model_type`, so its shapes are not known and nothing can be planned for it.\n"
            '  Its config.json has to say of which kind it is, e.g. `"model_type": "mistral"`.'
        )
    defaults = _DEFAULTS.get(str(kind))
    if defaults is None:
        raise RecipeError(
            f"The shapes of a `{kind}` model are not known here, so nothing can be planned for it.\n"
            f"  Known: {', '.join(sorted(_DEFAULTS))}. It may train all the same; the run measures what it needs."
        )
    # A field of null is the class's own choice, except where null says something.
    given = {name: value for name, value in config.items() if value is not None or name == "num_key_value_heads"}
    fields = {**defaults, **given}
    for name in _SIZES:
        size = fields.get(name)
        if isinstance(size, int | float) and (isinstance(size, bool) or size != int(size) or size < 1):
            raise RecipeError(
                f"The config of this `{kind}` model has a size that cannot be used: `{name}` is {size}, and a size is "
                "a whole number from 1 on."
            )
    build = build_decoder if kind in DECODERS else build_encoder
    try:
        return build(fields, head=head, num_outputs=num_outputs)
    except (TypeError, ValueError, KeyError, ZeroDivisionError) as error:
        raise RecipeError(f"The config of this `{kind}` model has a size that cannot be used: {error}.") from error


def _build_with_images(config: Mapping[str, Any], *, head: Head, num_outputs: int) -> Architecture:
    """The language model of a model of text and images, as the run's own `get_text_config()` has it.

    Its tower for images is loaded with it: layers of attention and MLP, whose numbers are estimated by their sizes.
    """
    own = {name: value for name, value in config["text_config"].items() if value is not None}
    fields = {"model_type": f"{config.get('model_type')}_text", **own}
    if "tie_word_embeddings" in config:  # of the whole model
        fields["tie_word_embeddings"] = config["tie_word_embeddings"]
    base = build_architecture(fields, head=head, num_outputs=num_outputs)
    tower = {**_OF_TOWER, **(config.get("vision_config") or {})}
    try:
        hidden, inner, num_layers = (
            int(tower[name]) for name in ("hidden_size", "intermediate_size", "num_hidden_layers")
        )
    except (TypeError, ValueError) as error:
        raise RecipeError(f"The config's `vision_config` has a size that cannot be used: {error}.") from error
    num_tower = num_layers * (4 * hidden * hidden + 2 * hidden * inner)
    return replace(
        base,
        layers_path="model.language_model.layers",
        embeddings_path="model.language_model.embed_tokens",
        outside_norms=tuple(replace(one, path="model.language_model.norm") for one in base.outside_norms),
        num_other_parameters=num_tower,
    )


assert frozenset(_DEFAULTS) == frozenset(DECODERS) | ENCODERS
