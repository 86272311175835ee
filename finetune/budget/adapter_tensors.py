"""The tensors of each adapter method that follow from a base's shapes, by the names PEFT 0.21 saves them under.

In go an `Architecture` and a method's fields as typed; out come shapes, no memory. A method that `TENSORS_OF` has not
got, or a setting answered with None, cannot be counted so. tests/budget/test_adapter.py compares every one
with an adapter that is really attached.
"""

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from finetune.budget.matching import find_pattern, find_targets, is_named
from finetune.budget.shapes import Architecture, Linear

__all__ = ["TENSORS_OF", "AdapterTensor", "Built", "build_saved_modules", "count_halves"]

_PREFIX = "base_model.model."
_Fields = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class AdapterTensor:
    """One tensor of an adapter, in float32 but for a copy of a base's own module.

    Attributes:
        name: as it stands in the adapter's file.
        shape: of it.
        is_trained: whether it gets a gradient.
        is_saved: whether it stands in the adapter's file; a prompt's network does not, the vectors it makes do.
        is_copy: whether it is a copy of a module of the base, in the base's own precision.
    """

    name: str
    shape: tuple[int, ...]
    is_trained: bool = True
    is_saved: bool = True
    is_copy: bool = False

    @property
    def num_numbers(self) -> int:
        """How many numbers it holds."""
        return math.prod(self.shape)


@dataclass(slots=True)
class Built:
    """What a method puts on a base: its tensors, and `Linear.name` of the layers it sits on."""

    tensors: list[AdapterTensor] = field(default_factory=list)
    targets: set[str] = field(default_factory=set)

    def add(self, owner: str, ending: str, *shape: int, is_trained: bool = True, is_copy: bool = False) -> None:
        """Add a tensor of a module by the module's full name."""
        self.tensors.append(AdapterTensor(f"{_PREFIX}{owner}.{ending}", shape, is_trained, is_copy=is_copy))


def build_saved_modules(architecture: Architecture, names: Iterable[str]) -> list[AdapterTensor] | None:
    """The modules trained whole beside an adapter: a fresh head always, and those that the recipe names.

    Returns:
        Their tensors; None where a name is none of embeddings, output layer or fresh head.
    """
    built = Built()
    for linear in architecture.fresh_linears:
        _add_linear(built, linear)
    for name in names:
        output = architecture.output
        if is_named(architecture.embeddings_path, [name]):
            built.add(
                architecture.embeddings_path, "weight", architecture.vocab_size, architecture.hidden_size, is_copy=True
            )
        elif output is not None and is_named(output.path, [name]):
            _add_linear(built, output)
        elif not any(
            linear.path == name or linear.path.startswith(f"{name}.") for linear in architecture.fresh_linears
        ):
            return None
    return built.tensors


def _add_linear(built: Built, linear: Linear) -> None:
    built.add(linear.path, "weight", linear.out_features, linear.in_features, is_copy=True)
    if linear.has_bias:
        built.add(linear.path, "bias", linear.out_features, is_copy=True)


def _build_lora(architecture: Architecture, fields: _Fields) -> Built | None:
    """LoRA: A is (r, in), B is (out, r); DoRA adds a length for each output (Hu et al. 2021, arXiv:2106.09685)."""
    if any(fields.get(name) for name in ("layer_replication", "target_parameters", "trainable_token_indices")):
        return None
    built, halves = Built(), count_halves(fields)
    for name, linear in find_targets(architecture, fields):
        rank = find_pattern(fields.get("rank_pattern"), name) or fields.get("r", 8)
        built.targets.add(linear.name)
        built.add(name, "lora_A.weight", rank * halves, linear.in_features)
        built.add(name, "lora_B.weight", linear.out_features, rank * halves)
        if fields.get("lora_bias"):
            built.add(name, "lora_B.bias", linear.out_features)
        if fields.get("use_dora"):
            built.add(name, "lora_magnitude_vector", linear.out_features)
    _add_biases(built, architecture, fields)
    return built


def count_halves(fields: _Fields) -> int:
    """Count what LoRA is kept at: PiSSA and OLoRA have a second half beside the base, see `model.adapter_starts`."""
    start = fields.get("init_lora_weights")
    return 2 if isinstance(start, str) and start.partition("_niter_")[0] in ("pissa", "olora") else 1


def _add_biases(built: Built, architecture: Architecture, fields: _Fields) -> None:
    """The base's own biases, where LoRA's `bias` trains them: those of its linears, or all."""
    which, adapted = fields.get("bias", "none"), {name for name, _ in find_targets(architecture, fields)}
    if which == "none":
        return
    output = () if architecture.output is None else ((architecture.output.path, architecture.output),)
    for name, linear in (*architecture.find_linears(), *output):
        if linear.has_bias and (which == "all" or name in adapted):
            built.add(name, "base_layer.bias" if name in adapted else "bias", linear.out_features)
    if which == "all":
        for name, norm in architecture.find_norms():
            if norm.has_bias:
                built.add(name, "bias", norm.size)


def _build_adalora(architecture: Architecture, fields: _Fields) -> Built | None:
    """AdaLoRA: LoRA's two and a value for each direction, at the rank it starts with (arXiv:2303.10512)."""
    if fields.get("bias", "none") != "none" or fields.get("rank_pattern"):
        return None
    rank, built = int(fields.get("init_r", 12)), Built()
    for name, linear in find_targets(architecture, fields):
        built.targets.add(linear.name)
        built.add(name, "lora_A", rank, linear.in_features)
        built.add(name, "lora_B", linear.out_features, rank)
        built.add(name, "lora_E", rank, 1)
        built.tensors.append(AdapterTensor(f"{_PREFIX}{name}.ranknum", (1,), is_saved=False))
    return built


def _build_vera(architecture: Architecture, fields: _Fields) -> Built | None:
    """VeRA: two vectors a layer between two matrices that all layers share and nobody trains (arXiv:2310.11454)."""
    if fields.get("bias", "none") != "none":
        return None
    rank, built = int(fields.get("r", 256)), Built()
    found = find_targets(architecture, fields)
    for name, linear in found:
        built.targets.add(linear.name)
        built.add(name, "vera_lambda_b", linear.out_features)
        built.add(name, "vera_lambda_d", rank)
    is_saved = bool(fields.get("save_projection", True))
    for ending, shape in (
        ("vera_A", (rank, max(linear.in_features for _, linear in found))),
        ("vera_B", (max(linear.out_features for _, linear in found), rank)),
    ):
        built.tensors.append(AdapterTensor(f"base_model.{ending}", shape, is_trained=False, is_saved=is_saved))
    return built


def _build_loha(architecture: Architecture, fields: _Fields) -> Built | None:
    """LoHa: the product of two low-rank matrices, number by number: twice LoRA's (arXiv:2108.06098)."""
    built = Built()
    for name, linear in find_targets(architecture, fields):
        rank = find_pattern(fields.get("rank_pattern"), name) or int(fields.get("r", 8))
        built.targets.add(linear.name)
        for half in ("hada_w1", "hada_w2"):
            built.add(name, f"{half}_a", linear.out_features, rank)
            built.add(name, f"{half}_b", rank, linear.in_features)
    return built


def _build_hra(architecture: Architecture, fields: _Fields) -> Built | None:
    """HRA: the input turned over by r mirrors, each a vector of the input's width (arXiv:2405.17484)."""
    if fields.get("bias", "none") != "none":
        return None
    rank, built = int(fields.get("r", 8)), Built()
    for name, linear in find_targets(architecture, fields):
        built.targets.add(linear.name)
        built.add(name, "hra_u", linear.in_features, rank)
    return built


_TWO_NORMS = ["input_layernorm", "post_attention_layernorm", "norm"]
_FOUR_NORMS = [*_TWO_NORMS, "pre_feedforward_layernorm", "post_feedforward_layernorm"]
# PEFT's own choice of norms by kind (`peft/utils/constants.py`); of other kinds the run takes all.
_LN_TARGETS: Mapping[str, list[str]] = {
    **dict.fromkeys(("llama", "mistral", "gemma"), _TWO_NORMS),
    **dict.fromkeys(("gemma2", "gemma3_text"), _FOUR_NORMS),
    **dict.fromkeys(("qwen2", "qwen3"), _TWO_NORMS[1:2]),
}
_BERT_IA3 = (["key", "value", "output.dense"], ["output.dense"])
_Q_IA3 = (["q_proj", "v_proj", "down_proj"], ["down_proj"])
_K_IA3 = (["k_proj", "v_proj", "down_proj"], ["down_proj"])
# PEFT's own choice by kind: what is scaled, and what of it at its input (`peft/utils/constants.py`).
_IA3_TARGETS: Mapping[str, tuple[list[str], list[str]]] = {
    "roberta": _BERT_IA3,
    "bert": _BERT_IA3,
    "llama": _K_IA3,
    "mistral": _K_IA3,
    **dict.fromkeys(("gemma", "gemma2", "gemma3_text", "qwen2", "qwen3"), _Q_IA3),
}


def _build_ia3(architecture: Architecture, fields: _Fields) -> Built | None:
    """(IA)3: one factor for each output, or for each input of a feed-forward's second layer (arXiv:2205.05638)."""
    own = _IA3_TARGETS.get(architecture.model_type)
    targets, inner = fields.get("target_modules"), fields.get("feedforward_modules")
    if targets is None:
        if own is None:
            return None
        targets, inner = own[0], own[1] if inner is None else inner
    if inner is None:
        inner = [] if own is None else own[1]
    built = Built()
    for name, linear in find_targets(architecture, {**fields, "target_modules": targets}):
        built.targets.add(linear.name)
        shape = (1, linear.in_features) if is_named(name, inner) else (linear.out_features, 1)
        built.add(name, "ia3_l", *shape)
    return built


def _build_bitfit(architecture: Architecture, fields: _Fields) -> Built | None:
    """BitFit: one number for each output of a linear layer, and of a norm that has a bias (arXiv:2106.10199)."""
    built, targets = Built(), fields.get("target_modules")
    if targets not in (None, "all-linear"):
        return None  # names may be norms' too
    for name, linear in find_targets(architecture, {**fields, "target_modules": None}):
        built.targets.add(linear.name)
        built.add(name, "bitfit_delta.bias", linear.out_features)
    if targets is None:
        for name, norm in architecture.find_norms():
            if norm.has_bias:
                built.add(name, "bitfit_delta.bias", norm.size)
    return built


def _build_ln_tuning(architecture: Architecture, fields: _Fields) -> Built | None:
    """Copies of the norms: those PEFT lists for the kind, every norm of a kind that it has no list for."""
    targets, built = fields.get("target_modules"), Built()
    if targets is None:
        targets = _LN_TARGETS.get(architecture.model_type)
    for name, norm in architecture.find_norms():
        if targets is None or is_named(name, targets):
            built.add(name, "ln_tuning_layers.weight", norm.size)
            if norm.has_bias:
                built.add(name, "ln_tuning_layers.bias", norm.size)
    return built


def _build_bottleneck(architecture: Architecture, fields: _Fields) -> Built | None:
    """A network of two layers behind attention and feed-forward of each layer, see `model.bottleneck`."""
    if fields.get("target_modules") is not None or fields.get("exclude_modules"):
        return None
    size, built = int(fields.get("size", 64)), Built()
    outputs = [[one for one in architecture.linears if one.part == part][-1] for part in ("attention", "mlp")]
    chosen = outputs[1:] if fields.get("variant") == "pfeiffer" else outputs
    for layer in range(architecture.num_layers):
        for linear in chosen:
            name, width = f"{architecture.layers_path}.{layer}.{linear.path}", linear.out_features
            built.targets.add(linear.name)
            built.add(name, "bottleneck_down.weight", size, width)
            built.add(name, "bottleneck_down.bias", size)
            built.add(name, "bottleneck_up.weight", width, size)
            built.add(name, "bottleneck_up.bias", width)
    return built


def _build_prompt_tuning(architecture: Architecture, fields: _Fields) -> Built | None:
    """Prompt tuning: learned vectors before the text (Lester et al. 2021, arXiv:2104.08691)."""
    num_tokens = int(fields.get("num_virtual_tokens") or 0)
    return Built([AdapterTensor("prompt_embeddings", (num_tokens, architecture.hidden_size))])


def _build_p_tuning(architecture: Architecture, fields: _Fields) -> Built | None:
    """P-tuning: such vectors behind a network of three layers, whose outcome alone is saved (arXiv:2103.10385)."""
    if str(fields.get("encoder_reparameterization_type", "MLP")) != "MLP":
        return None
    num_tokens, width = int(fields.get("num_virtual_tokens") or 0), architecture.hidden_size
    inner = int(fields.get("encoder_hidden_size") or width)
    shapes = [(num_tokens, width), (inner, width), (inner,), (inner, inner), (inner,), (width, inner), (width,)]
    network = [AdapterTensor(f"prompt_encoder.{place}", shape, is_saved=False) for place, shape in enumerate(shapes)]
    return Built([*network, AdapterTensor("prompt_embeddings", (num_tokens, width), is_trained=False)])


def _build_prefix_tuning(architecture: Architecture, fields: _Fields) -> Built | None:
    """Prefix tuning: learned keys and values before each layer's own (Li and Liang 2021, arXiv:2101.00190)."""
    num_tokens = int(fields.get("num_virtual_tokens") or 0)
    width = architecture.num_kv_heads * architecture.head_dim
    whole = (num_tokens, 2 * architecture.num_layers * width)
    if not fields.get("prefix_projection"):
        return Built([AdapterTensor("prompt_embeddings", whole)])
    inner = int(fields.get("encoder_hidden_size") or width)
    shapes = [(num_tokens, width), (inner, width), (inner,), (whole[1], inner), (whole[1],)]
    network = [AdapterTensor(f"prompt_encoder.{place}", shape, is_saved=False) for place, shape in enumerate(shapes)]
    return Built([*network, AdapterTensor("prompt_embeddings", whole, is_trained=False)])


TENSORS_OF: Mapping[str, Callable[[Architecture, _Fields], Built | None]] = {
    "lora": _build_lora,
    "adalora": _build_adalora,
    "vera": _build_vera,
    "loha": _build_loha,
    "hra": _build_hra,
    "ia3": _build_ia3,
    "bitfit": _build_bitfit,
    "ln_tuning": _build_ln_tuning,
    "bottleneck": _build_bottleneck,
    "prompt_tuning": _build_prompt_tuning,
    "p_tuning": _build_p_tuning,
    "prefix_tuning": _build_prefix_tuning,
}
