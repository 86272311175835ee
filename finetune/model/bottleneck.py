"""Bottleneck adapters: a small network behind a sublayer's output projection, as a tuner on PEFT's bases.

In goes a frozen model; out comes the same with, behind each targeted layer and before the residual addition,

    h <- h + W_up f(W_down h + b_down) + b_up

where h has the D features of the layer's output, W_down is (M, D), W_up is (D, M), and M is the adapter's size:
2 M D + D + M parameters each. Houlsby et al. 2019 (arXiv:1902.00751, section 2.1) put one behind attention and one
behind the feed-forward of every layer, Pfeiffer et al. 2020 (arXiv:2005.00247) the latter alone. Two differences: the
layer norms, which the former train too, stay frozen, and an encoder's own dropout comes behind the adapter, not before.

What is added is no change of weights, since f is not linear: these adapters do not merge. `own_methods` makes PEFT
know the method.
"""

import re
from dataclasses import dataclass, field
from enum import Enum
from typing import Any, Literal, get_args

import torch
from peft import PeftConfig
from peft.tuners.tuners_utils import _find_minimal_target_modules
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from finetune.model.output_tuner import OutputLayer, OutputTuner

__all__ = ["BottleneckConfig", "BottleneckLinear", "BottleneckModel", "BottleneckType", "check_adapter_values"]

Variant = Literal["houlsby", "pfeiffer"]
Activation = Literal["relu", "gelu", "silu", "tanh"]

_ACTIVATIONS: dict[str, type[nn.Module]] = {"relu": nn.ReLU, "gelu": nn.GELU, "silu": nn.SiLU, "tanh": nn.Tanh}
_NO_MERGE = "a bottleneck adapter does not merge: it is not linear, so no weight of the base could hold it"

# How the names of output projections end in transformers 5.17, read from the models of the families beside them.
_ATTENTION_OUTPUTS = (
    "attn.o_proj",  # Llama, Mistral, Qwen, Gemma, Phi-3, OLMo, Cohere, StableLM, Starcoder 2
    "attn.out_proj",  # OPT, BART, GPT-J, MPT, LFM2, Whisper
    "attention.out_proj",  # GPT-Neo
    "attn.dense",  # Phi
    "attn.c_proj",  # GPT-2, GPT-BigCode
    "attention.c_proj",  # GPT-2's cross-attention
    "attention.dense",  # GPT-NeoX, Falcon, BLOOM, ALBERT
    "attention.output.dense",  # BERT, RoBERTa, ELECTRA, DeBERTa
    "attention.out_lin",  # DistilBERT
    "attention.o_proj",  # ViT
    "attn.o",  # MPNet
    "attn.Wo",  # ModernBERT
    "Attention.o",  # T5
)
_FEED_FORWARD_OUTPUTS = (
    "mlp.down_proj",  # Llama, Mistral, Qwen, Gemma, Phi-3, OLMo, Cohere, StableLM
    "ffn.down_proj",  # MPT
    "mlp.c_proj",  # GPT-2, GPT-Neo, GPT-BigCode, Starcoder 2
    "mlp.fc_out",  # GPT-J, CodeGen
    "mlp.dense_4h_to_h",  # GPT-NeoX, Falcon, BLOOM
    ".fc2",  # OPT, BART, Phi, ViT, Whisper
    ".output.dense",  # BERT, RoBERTa, ELECTRA, DeBERTa, MPNet
    ".lin2",  # DistilBERT
    ".ffn_output",  # ALBERT
    "mlp.Wo",  # ModernBERT
    "DenseReluDense.wo",  # T5
    "feed_forward.w2",  # LFM2
)


class BottleneckType(str, Enum):  # noqa: UP042 - PEFT reads the name behind the dot of str()
    """The method's name where PEFT looks for a member of its own, closed enumeration."""

    BOTTLENECK = "BOTTLENECK"


def check_adapter_values(variant: str, activation: str, init_std: float, dropout: float) -> None:
    """Check what adapters behind a layer have in common, whether trained or made by a network.

    Raises:
        ValueError: a name that is none, a start without a gradient, or no fraction.
    """
    for name, value, choices in (("variant", variant, Variant), ("activation", activation, Activation)):
        if value not in get_args(choices):
            raise ValueError(f"there is no {name} `{value}`; there are {', '.join(get_args(choices))}")
    if init_std <= 0:
        raise ValueError(f"init_std is {init_std}, and from zero on both sides no adapter would learn")
    if not 0 <= dropout < 1:
        raise ValueError(f"dropout is {dropout}, and what is dropped is a fraction from 0 to below 1")


@dataclass
class BottleneckConfig(PeftConfig):
    """Settings of bottleneck adapters.

    Both matrices start from a normal distribution cut at two standard deviations, both biases at zero, as Houlsby
    et al. do (section 3.6; the default of their code is 1e-3). An output of root mean square s is changed by about
    0.77 init_std^2 sqrt(M D / 2) s under relu: 1 % at D = 768 and 3 % at D = 4096 with the defaults. Starting W_up
    at zero would be the identity itself and leave W_down without a gradient in the first step.

    Attributes:
        size: features M of the bottleneck, at least 1.
        variant: where adapters are put: `houlsby` behind attention and feed-forward, `pfeiffer` behind the latter.
        activation: the function f. The paper leaves it open, its code takes gelu, AdapterHub's Pfeiffer relu.
        init_std: standard deviation of both matrices at the start before the cut, above 0.
        dropout: fraction of what is added that is dropped in training, 0 to below 1.
        target_modules: names, or a pattern for whole names, of the linear layers to put adapters behind, in place
            of the variant's.
        exclude_modules: names, or a pattern for whole names, of modules left out.
        modules_to_save: names of modules trained and saved whole beside the adapters, such as a fresh head.

    Raises:
        ValueError: a setting outside of these.
    """

    size: int = field(default=64, metadata={"help": "Features of the bottleneck."})
    variant: Variant = field(default="houlsby", metadata={"help": "Behind attention and feed-forward, or the latter."})
    activation: Activation = field(default="relu", metadata={"help": "The function inside."})
    init_std: float = field(default=1e-2, metadata={"help": "Standard deviation of both matrices at the start."})
    dropout: float = field(default=0.0, metadata={"help": "Fraction of what is added that is dropped in training."})
    target_modules: list[str] | str | None = field(
        default=None, metadata={"help": "Linear layers to put adapters behind; None: the variant's."}
    )
    exclude_modules: list[str] | str | None = field(default=None, metadata={"help": "Modules left out."})
    modules_to_save: list[str] | None = field(
        default=None, metadata={"help": "Modules trained and saved whole beside the adapters."}
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        self.peft_type = BottleneckType.BOTTLENECK
        if self.size < 1:
            raise ValueError(f"size is {self.size}, and a bottleneck has at least 1 feature")
        check_adapter_values(self.variant, self.activation, self.init_std, self.dropout)


class BottleneckLinear(OutputLayer):
    """A linear layer and the adapters behind it; the weights are float32.

    PEFT's `all-linear` knows a linear layer that has adapters by the word in its class's name.
    """

    adapter_layer_names = ("bottleneck_down", "bottleneck_up")
    other_param_names = ("bottleneck_activation", "bottleneck_dropout")

    def __init__(self, base_layer: nn.Module, adapter_name: str, config: BottleneckConfig) -> None:
        super().__init__()
        self.base_layer = base_layer
        self.bottleneck_down = nn.ModuleDict()
        self.bottleneck_up = nn.ModuleDict()
        self.bottleneck_activation = nn.ModuleDict()
        self.bottleneck_dropout = nn.ModuleDict()
        self.merged_adapters: list[str] = []
        self._active_adapter = adapter_name
        self.update_layer(adapter_name, config)

    def update_layer(self, adapter_name: str, config: BottleneckConfig) -> None:
        """Add an adapter, or start it anew."""
        base = self.get_base_layer()
        features = base.nf if isinstance(base, Conv1D) else base.out_features
        self.bottleneck_down[adapter_name] = _draw_linear(features, config.size, config.init_std)
        self.bottleneck_up[adapter_name] = _draw_linear(config.size, features, config.init_std)
        self.bottleneck_activation[adapter_name] = _ACTIVATIONS[config.activation]()
        self.bottleneck_dropout[adapter_name] = nn.Dropout(config.dropout)
        self._move_adapter_to_device_of_base_layer(adapter_name)
        self.set_adapter(self.active_adapters, inference_mode=config.inference_mode)

    def forward(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """Compute the layer's output, and pass it through the active adapters in their order."""
        output = self.base_layer(x, *args, **kwargs)
        if self.disable_adapters:
            return output
        for name in self.active_adapters:
            if name not in self.bottleneck_down:
                continue
            down, up = self.bottleneck_down[name], self.bottleneck_up[name]
            hidden = self.bottleneck_activation[name](down(self._cast_input_dtype(output, down.weight.dtype)))
            # Added before it is rounded to the output's dtype, as PEFT's LoRA does.
            output = (output + self.bottleneck_dropout[name](up(hidden))).to(output.dtype)
        return output

    def merge(self, safe_merge: bool = False, adapter_names: list[str] | None = None) -> None:
        """Refuse.

        Raises:
            ValueError: always, with the reason.
        """
        raise ValueError(_NO_MERGE)

    def unmerge(self) -> None:
        """Do nothing, since nothing is ever merged."""


class BottleneckModel(OutputTuner):
    """A model with bottleneck adapters behind its targeted layers."""

    prefix = "bottleneck_"
    tuner_layer_cls = BottleneckLinear

    def _prepare_adapter_config(self, peft_config: BottleneckConfig, model_config: dict[str, Any]) -> BottleneckConfig:
        """Name the layers that the variant stands for."""
        if peft_config.target_modules is None:
            names = [re.sub(r"(\.base_layer)+$", "", name) for name, _ in self.model.named_modules()]
            places = _find_places(self.model, peft_config.variant)
            others = set(names) - set(places) - {""}
            peft_config.target_modules = sorted(_find_minimal_target_modules(places, others))
        return peft_config

    def _check_target(self, base: nn.Module, name: str) -> None:
        if not isinstance(base, nn.Linear | Conv1D):
            raise ValueError(
                f"bottleneck: `{name}` is a {type(base).__name__}, and adapters stand behind linear layers"
            )


def _draw_linear(in_features: int, out_features: int, std: float) -> nn.Linear:
    """Draw a linear layer's weight from a normal distribution cut at two standard deviations; its bias is zero."""
    layer = nn.Linear(in_features, out_features, dtype=torch.float32)
    nn.init.trunc_normal_(layer.weight, std=std, a=-2 * std, b=2 * std)
    nn.init.zeros_(layer.bias)
    return layer


def _find_places(model: nn.Module, variant: str) -> list[str]:
    """Find the output projections that a variant's adapters stand behind.

    Raises:
        ValueError: a layer's feed-forward, or all attention, has none under a known name.
    """
    linears = [
        re.sub(r"(\.base_layer)+$", "", name)
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear | Conv1D)
    ]
    numbered = [name for name in linears if _layer_of(name)]
    attention = [name for name in numbered if name.endswith(_ATTENTION_OUTPUTS)]
    feed_forward = [name for name in numbered if name.endswith(_FEED_FORWARD_OUTPUTS) and name not in attention]
    lacking = "attention" if variant == "houlsby" and not attention else None
    if not feed_forward or {_layer_of(name) for name in attention} - {_layer_of(name) for name in feed_forward}:
        lacking = "feed-forward"  # fused experts, or an architecture with names of its own
    if lacking is not None:
        short = sorted({name.rpartition(".")[2] for name in linears})
        raise ValueError(
            f"bottleneck: no linear layer is known by its name to end the {lacking} of every layer of this model; name "
            f"those in target_modules, out of {', '.join(short)}"
        )
    return feed_forward if variant == "pfeiffer" else attention + feed_forward


def _layer_of(name: str) -> str | None:
    """Give a module's name up to its layer's number; None outside of the layers."""
    found = re.match(r".*?\.\d+(?=\.)", name)
    return found and found[0]
