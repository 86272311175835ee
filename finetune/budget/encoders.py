"""Encoders: the shape of a model of the kind of BERT or ModernBERT, from the fields of its config.json.

In go the fields, defaults filled, and what the model ends with; out comes an `Architecture`. Names, biases and norms
are those of transformers 5.17's modeling files; tests/budget/test_architecture.py holds each kind against a model that
transformers builds.
"""

from collections.abc import Mapping
from typing import Any

from finetune.budget.shapes import Architecture, Linear, Norm
from finetune.recipe.heads import Head

__all__ = ["ENCODERS", "build_encoder"]

# Where each of BERT's kind keeps its layers.
_PREFIXES: Mapping[str, str] = {"bert": "bert", "roberta": "roberta", "xlm-roberta": "roberta"}
ENCODERS = frozenset({*_PREFIXES, "distilbert", "modernbert"})


def build_encoder(fields: Mapping[str, Any], *, head: Head, num_outputs: int) -> Architecture:
    """Build the shape of an encoder.

    Args:
        fields: of config.json, with the kind's defaults where it is silent.
        head: what it is to end with; an encoder has no words to go on with and no reward's score.
        num_outputs: labels, where it ends with them.
    """
    if fields["model_type"] == "modernbert":
        return _build_modernbert(fields, head, num_outputs)
    return _build_bert(fields, head, num_outputs)


def _build_bert(fields: Mapping[str, Any], head: Head, num_outputs: int) -> Architecture:
    """BERT, RoBERTa, XLM-RoBERTa and DistilBERT: biases everywhere, positions as vectors, norms with a bias."""
    kind, vocab, positions = fields["model_type"], int(fields["vocab_size"]), int(fields["max_position_embeddings"])
    is_distilled = kind == "distilbert"
    hidden = int(fields["dim" if is_distilled else "hidden_size"])
    inner = int(fields["hidden_dim" if is_distilled else "intermediate_size"])
    heads = int(fields["n_heads" if is_distilled else "num_attention_heads"])
    prefix = kind if is_distilled else _PREFIXES[kind]
    if is_distilled:
        attention, mlp = tuple(f"attention.{name}_lin" for name in ("q", "k", "v", "out")), ("ffn.lin1", "ffn.lin2")
        norm_paths = ("sa_layer_norm", "output_layer_norm")
    else:
        attention = (*(f"attention.self.{name}" for name in ("query", "key", "value")), "attention.output.dense")
        mlp = ("intermediate.dense", "output.dense")
        norm_paths = ("attention.output.LayerNorm", "output.LayerNorm")
    taught, fresh, head_norms, output = _build_bert_head(kind, hidden, vocab, head, num_outputs)
    return Architecture(
        model_type=kind,
        hidden_size=hidden,
        intermediate_size=inner,
        num_layers=int(fields["n_layers" if is_distilled else "num_hidden_layers"]),
        num_heads=heads,
        num_kv_heads=heads,
        head_dim=hidden // heads,
        vocab_size=vocab,
        ties_embeddings=bool(fields.get("tie_word_embeddings", True)),
        max_positions=positions,
        linears=(
            *(_linear(path, hidden, hidden, "attention") for path in attention),
            _linear(mlp[0], hidden, inner, "mlp"),
            _linear(mlp[1], inner, hidden, "mlp"),
        ),
        norms=tuple(Norm(path, hidden, has_bias=True) for path in norm_paths),
        layers_path=f"{prefix}.{'transformer' if is_distilled else 'encoder'}.layer",
        embeddings_path=f"{prefix}.embeddings.word_embeddings",
        is_gated=False,
        is_encoder=True,
        head=head,
        head_linears=taught,
        fresh_linears=fresh,
        output=output,
        outside_norms=(Norm(f"{prefix}.embeddings.LayerNorm", hidden, has_bias=True), *head_norms),
        position_rows=(positions,) if is_distilled else (positions, int(fields["type_vocab_size"])),
    )


def _build_bert_head(
    kind: str, hidden: int, vocab: int, head: Head, num_outputs: int
) -> tuple[tuple[Linear, ...], tuple[Linear, ...], tuple[Norm, ...], Linear | None]:
    """What stands behind the last layer: linears taught, linears fresh, norms, the layer that gives words."""
    if head != "labels":
        dense, norm, words = {
            "bert": ("transform.dense", "transform.LayerNorm", "decoder"),
            "distilbert": ("vocab_transform", "vocab_layer_norm", "vocab_projector"),
        }.get(kind, ("dense", "layer_norm", "decoder"))
        prefix = {"bert": "cls.predictions.", "distilbert": ""}.get(kind, "lm_head.")
        taught = (_linear(f"{prefix}{dense}", hidden, hidden, "head"),)
        norms = (Norm(f"{prefix}{norm}", hidden, has_bias=True),)
        return taught, (), norms, _linear(f"{prefix}{words}", hidden, vocab, "head")
    dense, last = {
        "bert": ("bert.pooler.dense", "classifier"),
        "distilbert": ("pre_classifier", "classifier"),
    }.get(kind, ("classifier.dense", "classifier.out_proj"))
    fresh = (_linear(dense, hidden, hidden, "head"), _linear(last, hidden, num_outputs, "head"))
    return (), fresh, (), None


def _build_modernbert(fields: Mapping[str, Any], head: Head, num_outputs: int) -> Architecture:
    """ModernBERT: q, k, v in one layer, gate and up in another one, rotary positions, biases by the config."""
    hidden, inner = int(fields["hidden_size"]), int(fields["intermediate_size"])
    heads, vocab = int(fields["num_attention_heads"]), int(fields["vocab_size"])
    attention_bias, mlp_bias = bool(fields["attention_bias"]), bool(fields["mlp_bias"])
    norm_bias = bool(fields["norm_bias"])
    attention_norm = Norm("attn_norm", hidden, norm_bias)
    gives_words = head != "labels"
    return Architecture(
        model_type="modernbert",
        hidden_size=hidden,
        intermediate_size=inner,
        num_layers=int(fields["num_hidden_layers"]),
        num_heads=heads,
        num_kv_heads=heads,
        head_dim=hidden // heads,
        vocab_size=vocab,
        ties_embeddings=bool(fields.get("tie_word_embeddings", True)),
        max_positions=int(fields["max_position_embeddings"]),
        linears=(
            _linear("attn.Wqkv", hidden, 3 * hidden, "attention", attention_bias),
            _linear("attn.Wo", hidden, hidden, "attention", attention_bias),
            _linear("mlp.Wi", hidden, 2 * inner, "mlp", mlp_bias),
            _linear("mlp.Wo", inner, hidden, "mlp", mlp_bias),
        ),
        norms=(attention_norm, Norm("mlp_norm", hidden, norm_bias)),
        layers_path="model.layers",
        embeddings_path="model.embeddings.tok_embeddings",
        is_gated=True,
        is_encoder=True,
        head=head,
        head_linears=(_linear("head.dense", hidden, hidden, "head", bool(fields["classifier_bias"])),),
        fresh_linears=() if gives_words else (_linear("classifier", hidden, num_outputs, "head"),),
        output=_linear("decoder", hidden, vocab, "head", bool(fields["decoder_bias"])) if gives_words else None,
        outside_norms=tuple(
            Norm(path, hidden, norm_bias) for path in ("model.embeddings.norm", "model.final_norm", "head.norm")
        ),
        num_absent_parameters=attention_norm.num_parameters,
    )


def _linear(path: str, inside: int, outside: int, part: Any, has_bias: bool = True) -> Linear:
    # Several of a layer are called `dense` or `Wo`: only the whole path tells them apart.
    return Linear(path, inside, outside, has_bias, part, path)
