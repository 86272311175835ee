"""Decoders: the shape of a language model of the kind of Llama, from the fields of its config.json.

In go the fields, defaults filled; out comes an `Architecture`. Names, biases and norms are those of transformers 5.17's
modeling files; tests/budget/test_architecture.py holds each kind against a model that transformers builds.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from finetune.budget.shapes import Architecture, Experts, Linear, Norm
from finetune.recipe.heads import Head

__all__ = ["DECODERS", "build_decoder"]

# By their names in a config, the activations of gated MLPs that `model.lean_elementwise` knows.
_LEAN_ACTIVATIONS = frozenset({"silu", "swish", "gelu_pytorch_tanh"})

# Who says whether a linear has a bias: never, always, or the config's field.
_Bias = Literal["never", "always", "attention_bias", "mlp_bias"]


@dataclass(frozen=True, slots=True)
class _Kind:
    """What sets one kind of decoder apart from Llama.

    Attributes:
        qkv_bias: bias of queries, keys and values.
        o_bias: bias of the attention's output.
        mlp_bias: of the MLP's three.
        norms: of a layer, without those of queries and keys.
        head_norms: norms of queries and keys: none, one width for every head, or over all heads at once.
        is_fused: whether q, k, v are one layer and gate, up another one.
        has_experts: whether a layer chooses some of several MLPs for each token.
        has_lean_norms: whether its norms are in the tables of `model.lean_elementwise`.
        has_lean_mlp: whether its MLP is.
        activation_field: the config's field with the MLP's activation.
    """

    qkv_bias: _Bias = "never"
    o_bias: _Bias = "never"
    mlp_bias: _Bias = "never"
    norms: Sequence[str] = ("input_layernorm", "post_attention_layernorm")
    head_norms: Literal["none", "each", "all"] = "none"
    is_fused: bool = False
    has_experts: bool = False
    has_lean_norms: bool = True
    has_lean_mlp: bool = True
    activation_field: str = "hidden_act"


_FOUR_NORMS = (
    "input_layernorm",
    "post_attention_layernorm",
    "pre_feedforward_layernorm",
    "post_feedforward_layernorm",
)
DECODERS: Mapping[str, _Kind] = {
    "llama": _Kind("attention_bias", "attention_bias", "mlp_bias"),
    "mistral": _Kind(),
    "mixtral": _Kind(has_experts=True, has_lean_mlp=False),
    "qwen2": _Kind(qkv_bias="always"),
    "qwen3": _Kind("attention_bias", "attention_bias", head_norms="each"),
    "gemma": _Kind("attention_bias", "attention_bias"),
    "gemma2": _Kind("attention_bias", "attention_bias", norms=_FOUR_NORMS, activation_field="hidden_activation"),
    "gemma3_text": _Kind(
        "attention_bias",
        "attention_bias",
        norms=_FOUR_NORMS,
        head_norms="each",
        activation_field="hidden_activation",
    ),
    "smollm3": _Kind("attention_bias", "attention_bias", "mlp_bias"),
    "olmo2": _Kind(
        "attention_bias",
        "attention_bias",
        norms=("post_attention_layernorm", "post_feedforward_layernorm"),
        head_norms="all",
    ),
    "granite": _Kind("attention_bias", "attention_bias", "mlp_bias"),
    "phi3": _Kind(is_fused=True),
}


def build_decoder(fields: Mapping[str, Any], *, head: Head, num_outputs: int) -> Architecture:
    """Build the shape of a decoder.

    Args:
        fields: of config.json, with the kind's defaults where it is silent.
        head: what it is to end with.
        num_outputs: labels, where it ends with them.
    """
    kind = DECODERS[fields["model_type"]]
    hidden, inner = int(fields["hidden_size"]), int(fields["intermediate_size"])
    heads = int(fields["num_attention_heads"])
    kv_heads = int(fields.get("num_key_value_heads") or heads)
    head_dim = int(fields.get("head_dim") or hidden // heads)
    vocab = int(fields["vocab_size"])
    ends_in_words = head in ("words", "masked")
    fresh = () if ends_in_words else (Linear("score", hidden, num_outputs, False, "head", "score"),)
    return Architecture(
        model_type=fields["model_type"],
        hidden_size=hidden,
        intermediate_size=inner,
        num_layers=int(fields["num_hidden_layers"]),
        num_heads=heads,
        num_kv_heads=kv_heads,
        head_dim=head_dim,
        vocab_size=vocab,
        ties_embeddings=bool(fields.get("tie_word_embeddings")),
        max_positions=fields.get("max_position_embeddings"),
        linears=(
            *_build_attention(kind, fields, hidden, heads * head_dim, kv_heads * head_dim),
            *(() if kind.has_experts else _build_mlp(kind, fields, hidden, inner)),
        ),
        norms=_build_norms(kind, hidden, heads, kv_heads, head_dim),
        layers_path="model.layers",
        embeddings_path="model.embed_tokens",
        is_gated=True,
        is_encoder=False,
        head=head,
        head_linears=(),
        fresh_linears=fresh,
        output=Linear("lm_head", hidden, vocab, False, "head", "lm_head") if ends_in_words else None,
        outside_norms=(Norm("model.norm", hidden, has_bias=False),),
        experts=_build_experts(fields, hidden, inner) if kind.has_experts else None,
        has_lean_norms=kind.has_lean_norms,
        has_lean_mlp=kind.has_lean_mlp and fields.get(kind.activation_field, "silu") in _LEAN_ACTIVATIONS,
    )


def _build_attention(
    kind: _Kind, fields: Mapping[str, Any], hidden: int, width: int, kv_width: int
) -> tuple[Linear, ...]:
    qkv_bias, o_bias = _has_bias(kind.qkv_bias, fields), _has_bias(kind.o_bias, fields)
    if kind.is_fused:
        parts = [("qkv_proj", hidden, width + 2 * kv_width, qkv_bias)]
    else:
        parts = [
            ("q_proj", hidden, width, qkv_bias),
            ("k_proj", hidden, kv_width, qkv_bias),
            ("v_proj", hidden, kv_width, qkv_bias),
        ]
    parts.append(("o_proj", width, hidden, o_bias))
    return tuple(
        Linear(name, inside, outside, bias, "attention", f"self_attn.{name}") for name, inside, outside, bias in parts
    )


def _build_mlp(kind: _Kind, fields: Mapping[str, Any], hidden: int, inner: int) -> tuple[Linear, ...]:
    bias = _has_bias(kind.mlp_bias, fields)
    first = [("gate_up_proj", 2 * inner)] if kind.is_fused else [("gate_proj", inner), ("up_proj", inner)]
    return (
        *(Linear(name, hidden, width, bias, "mlp", f"mlp.{name}") for name, width in first),
        Linear("down_proj", inner, hidden, bias, "mlp", "mlp.down_proj"),
    )


def _build_experts(fields: Mapping[str, Any], hidden: int, inner: int) -> Experts:
    number, num_active = int(fields["num_local_experts"]), int(fields["num_experts_per_tok"])
    return Experts(number, num_active, hidden, inner)


def _build_norms(kind: _Kind, hidden: int, heads: int, kv_heads: int, head_dim: int) -> tuple[Norm, ...]:
    norms = [Norm(name, hidden, has_bias=False) for name in kind.norms]
    if kind.head_norms != "none":
        widths = (head_dim, head_dim) if kind.head_norms == "each" else (heads * head_dim, kv_heads * head_dim)
        norms += [
            Norm(f"self_attn.{name}", width, has_bias=False)
            for name, width in zip(("q_norm", "k_norm"), widths, strict=True)
        ]
    return tuple(norms)


def _has_bias(rule: _Bias, fields: Mapping[str, Any]) -> bool:
    return rule == "always" or (rule != "never" and bool(fields.get(rule)))
