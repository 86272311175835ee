"""BitFit: biases are all that is trained (Ben Zaken et al. 2021, arXiv:2106.10199), as a tuner on PEFT's bases.

In goes a frozen model; out comes the same with a vector `delta` behind each targeted layer, zero at the start:

    y = W x + b + delta,    b' = b + delta

which trains the bias where a layer has one, and one that starts at zero where it has none (every linear layer of
Llama and Mistral). `find_added_biases` tells the latter. `own_methods` makes PEFT know the method.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field
from enum import Enum
from typing import Any

import bitsandbytes as bnb
import torch
from peft import PeftConfig, PeftModel
from peft.tuners.tuners_utils import BaseTunerLayer, _find_minimal_target_modules, check_adapters_to_merge
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from finetune.model.output_tuner import OutputLayer, OutputTuner

__all__ = ["BitFitConfig", "BitFitLayer", "BitFitModel", "BitFitType", "find_added_biases"]


class BitFitType(str, Enum):  # noqa: UP042 - PEFT reads the name behind the dot of str()
    """The method's name where PEFT looks for a member of its own, closed enumeration."""

    BITFIT = "BITFIT"


@dataclass
class BitFitConfig(PeftConfig):
    """Settings of BitFit; it has no size and no strength to choose.

    Attributes:
        target_modules: names, or a pattern for whole names, of linear layers and norms with a bias. `all-linear`:
            every linear layer but the output head. None: those, and every norm that has a bias.
        exclude_modules: names, or a pattern for whole names, of modules left out.
        modules_to_save: names of modules trained and saved whole beside the biases, such as a fresh head.
    """

    target_modules: list[str] | str | None = field(
        default=None, metadata={"help": "Modules whose bias is trained; None: all linear layers and norms with a bias."}
    )
    exclude_modules: list[str] | str | None = field(default=None, metadata={"help": "Modules left out."})
    modules_to_save: list[str] | None = field(
        default=None, metadata={"help": "Modules trained and saved whole beside the biases."}
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        self.peft_type = BitFitType.BITFIT


class _Delta(nn.Module):
    """A vector added to a layer's output, in float32: shape (D,), D the size of the output.

    It is a module with a `bias` for two readers: transformers decays no weight of that name, and TRL copies those
    with the adapter's name in the middle into its frozen reference.
    """

    def __init__(self, size: int) -> None:
        super().__init__()
        self.bias = nn.Parameter(torch.zeros(size, dtype=torch.float32))

    def forward(self, output: Tensor) -> Tensor:
        """Add it in the output's dtype: shape (..., D), as given."""
        return output + self.bias.to(output.dtype)


class BitFitLayer(OutputLayer):
    """A linear layer or a norm, and what is added to its bias, by adapter."""

    adapter_layer_names = ("bitfit_delta",)

    def __init__(self, base_layer: nn.Module, adapter_name: str, config: BitFitConfig) -> None:
        super().__init__()
        self.base_layer = base_layer
        self.bitfit_delta = nn.ModuleDict()
        self.merged_adapters: list[str] = []
        self.adds_bias: bool = self.get_base_layer().bias is None
        self._bias_before: Tensor | None = None
        self._active_adapter = adapter_name
        self.update_layer(adapter_name, config)

    def update_layer(self, adapter_name: str, config: BitFitConfig) -> None:
        """Add an adapter's vector, or start it anew."""
        self.bitfit_delta[adapter_name] = _Delta(_output_size(self.get_base_layer()))
        self._move_adapter_to_device_of_base_layer(adapter_name)
        self.set_adapter(self.active_adapters, inference_mode=config.inference_mode)

    def forward(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """Compute the layer's output, and add the vector of each active adapter."""
        if self.disable_adapters and self.merged:
            self.unmerge()
        output = self.base_layer(x, *args, **kwargs)
        if self.disable_adapters or self.merged:
            return output
        for name in self.active_adapters:
            if name in self.bitfit_delta:
                output = self.bitfit_delta[name](output)
        return output

    def merge(self, safe_merge: bool = False, adapter_names: list[str] | None = None) -> None:
        """Add the vectors to the layer's own bias, which is made where there is none.

        Raises:
            ValueError: the layer is quantized, or, with `safe_merge`, a sum is not finite.
        """
        base = self.get_base_layer()
        _check_takes_bias(base)
        for name in check_adapters_to_merge(self, adapter_names):
            if name not in self.bitfit_delta:
                continue
            delta = self.bitfit_delta.get_parameter(f"{name}.bias").detach()
            bias = delta if base.bias is None else base.bias.data.float() + delta
            if safe_merge and not torch.isfinite(bias).all():
                raise ValueError(f"bitfit: the bias of adapter {name} holds numbers that are not finite")
            if not self.merged:
                self._bias_before = None if base.bias is None else base.bias.data
            base.bias = nn.Parameter(bias.to(base.weight.dtype), requires_grad=False)
            self.merged_adapters.append(name)

    def unmerge(self) -> None:
        """Give the layer back the bias that it had, to the bit."""
        if self.merged:
            before = self._bias_before
            self.get_base_layer().bias = None if before is None else nn.Parameter(before, requires_grad=False)
            self.merged_adapters.clear()


class BitFitModel(OutputTuner):
    """A model whose targeted layers each have a vector added to their output."""

    prefix = "bitfit_"
    tuner_layer_cls = BitFitLayer

    def _prepare_adapter_config(self, peft_config: BitFitConfig, model_config: dict[str, Any]) -> BitFitConfig:
        """Name the layers that None and `all-linear` stand for."""
        if peft_config.target_modules not in (None, "all-linear"):
            return peft_config
        with_norms = peft_config.target_modules is None
        head = self.model.get_output_embeddings() if isinstance(self.model, PreTrainedModel) else None
        saved_whole = set(peft_config.modules_to_save or ())  # such as the score of a reward model
        found: list[str] = []
        others: list[str] = []
        for name, module in _find_layers(self.model):
            is_linear = isinstance(module, nn.Linear | Conv1D) and module is not head and name not in saved_whole
            is_target = is_linear or (with_norms and _is_norm_with_bias(module))
            (found if is_target else others).append(name)
        if not found:
            raise ValueError("bitfit: the model has no linear layer beside its head; name modules in target_modules")
        peft_config.target_modules = sorted(_find_minimal_target_modules(found, others))
        return peft_config

    def _check_target(self, base: nn.Module, name: str) -> None:
        if not isinstance(base, nn.Linear | Conv1D | nn.LayerNorm) and not _is_norm_with_bias(base):
            raise ValueError(
                f"bitfit: `{name}` is a {type(base).__name__}, which takes no bias; linear layers do, and norms "
                "that have one"
            )

    def _check_merge_allowed(self) -> None:
        """Check every layer before the first is changed.

        Raises:
            ValueError: one of them is quantized.
        """
        super()._check_merge_allowed()
        for module in self.model.modules():
            if isinstance(module, BitFitLayer):
                _check_takes_bias(module.get_base_layer())


def find_added_biases(model: PeftModel) -> list[str]:
    """Find the layers that got a bias they do not have: names as in the base, none where the method is another.

    Merged, such a bias is a tensor that the architecture's own class leaves out when it reads the model again.
    """
    return [
        name
        for name, module in model.get_base_model().named_modules()
        if isinstance(module, BitFitLayer) and module.adds_bias
    ]


def _find_layers(model: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """Find the modules of the base by name, through any adapter's layer and not inside it."""
    inside: tuple[str, ...] = ()
    for name, module in model.named_modules():
        if not name or name.startswith(inside):
            continue
        if isinstance(module, BaseTunerLayer):
            inside += (f"{name}.",)
            yield name, module.get_base_layer()
        else:
            yield name, module


def _is_norm_with_bias(module: nn.Module) -> bool:
    """Whether it scales and shifts each feature: any class of norm with a weight and a bias, DeBERTa's own too."""
    shapes = {name: parameter.shape for name, parameter in module.named_parameters(recurse=False)}
    return "norm" in type(module).__name__.lower() and "bias" in shapes and shapes.get("weight") == shapes["bias"]


def _output_size(base: nn.Module) -> int:
    if isinstance(base, nn.Linear):  # bitsandbytes' layers are such
        return base.out_features
    if isinstance(base, Conv1D):
        return int(base.nf)
    assert isinstance(base.weight, Tensor)
    return base.weight.shape[-1]


def _check_takes_bias(base: nn.Module) -> None:
    if isinstance(base, bnb.nn.Linear4bit | bnb.nn.Linear8bitLt):
        raise ValueError("bitfit merges into layers held in full, and this base is quantized: open it unquantized")
