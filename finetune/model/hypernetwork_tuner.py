"""The adapters whose weights a hypernetwork makes, as a tuner on PEFT's bases.

In goes a frozen model; out comes the same with an adapter behind each targeted layer, where `bottleneck` puts them,
before the residual addition, and one hypernetwork beside the layers, which makes the weights of all of them anew at
each call. `pass_task_ids` tells it which row is of which task.

What is added is no change of weights: these adapters do not merge. `own_methods` makes PEFT know the method.
"""

import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
from accelerate import init_empty_weights
from peft import PeftConfig, PeftModel
from torch import Tensor, nn
from torch.nn import functional
from transformers.pytorch_utils import Conv1D

from finetune.model.bottleneck import BottleneckModel
from finetune.model.hypernetwork import Hypernetwork, HypernetworkConfig, Weights
from finetune.model.output_tuner import OutputLayer

__all__ = ["HypernetworkLinear", "HypernetworkModel", "pass_task_ids"]

_FUNCTIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "relu": functional.relu,
    "gelu": functional.gelu,
    "silu": functional.silu,
    "tanh": torch.tanh,
}
_NO_MERGE = "a hypernetwork's adapters do not merge: they are not linear, so no weight of the base could hold them"
# PEFT's own models take `task_ids` and keep it from every method but Poly; under this name they let it pass.
_TASK_IDS = "hypernetwork_task_ids"


class _Hypernetworks(nn.ModuleDict):
    """The hypernetworks by adapter, and the task of each row of the last batch.

    They stay until the next batch, since activations that are computed twice are so in the backward pass.
    """

    task_ids_B: Tensor | None = None

    def __getitem__(self, key: str) -> Hypernetwork:
        network = super().__getitem__(key)
        assert isinstance(network, Hypernetwork)
        return network


class HypernetworkLinear(OutputLayer):
    """A linear layer and the adapters behind it, whose weights are made anew at each call.

    PEFT's `all-linear` knows a linear layer that has adapters by the word in its class's name.
    """

    adapter_layer_names = ("hypernetwork_shared",)
    other_param_names = ("hypernetwork_position", "hypernetwork_function", "hypernetwork_dropout")

    def __init__(
        self, base_layer: nn.Module, adapter_name: str, config: HypernetworkConfig, shared: _Hypernetworks
    ) -> None:
        super().__init__()
        self.base_layer = base_layer
        # In a tuple they are no part of this layer for torch: saved and moved once, with the model.
        self._shared = (shared,)
        # By adapter the layer's number and its place's in the layer, counted from 0.
        self.hypernetwork_position: dict[str, tuple[int, int]] = {}
        self.hypernetwork_function: dict[str, Callable[[Tensor], Tensor]] = {}
        self.hypernetwork_dropout = nn.ModuleDict()
        self.merged_adapters: list[str] = []
        self._active_adapter = adapter_name
        self.update_layer(adapter_name, config)

    @property
    def hypernetwork_shared(self) -> _Hypernetworks:
        """The hypernetworks of the whole model."""
        return self._shared[0]

    @property
    def features(self) -> int:
        """Numbers that the layer puts out for each token."""
        base = self.get_base_layer()
        return int(base.nf if isinstance(base, Conv1D) else base.out_features)

    def update_layer(self, adapter_name: str, config: HypernetworkConfig) -> None:
        """Add an adapter; the model numbers its layers when it has them all."""
        self.hypernetwork_position[adapter_name] = (0, 0)
        self.hypernetwork_function[adapter_name] = _FUNCTIONS[config.activation]
        self.hypernetwork_dropout[adapter_name] = nn.Dropout(config.dropout)
        self.set_adapter(self.active_adapters, inference_mode=config.inference_mode)

    def forward(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """Compute the layer's output, and pass it through the active adapters in their order.

        Raises:
            ValueError: the rows are not those that tasks were given for.
        """
        output = self.base_layer(x, *args, **kwargs)
        if self.disable_adapters:
            return output
        for name in self.active_adapters:
            if name not in self.hypernetwork_position:
                continue
            added = self._adapt(name, self._cast_input_dtype(output, torch.float32))
            # Added before it is rounded to the output's dtype, as PEFT's LoRA does.
            output = (output + self.hypernetwork_dropout[name](added)).to(output.dtype)
        return output

    def _adapt(self, name: str, h: Tensor) -> Tensor:
        """Compute what an adapter adds to h, whose rows (B, ...) or flattened (B T, D) are of the tasks given."""
        network, task_ids_B = self.hypernetwork_shared[name], self.hypernetwork_shared.task_ids_B
        function, position = self.hypernetwork_function[name], self.hypernetwork_position[name]
        where = network.task.weight.device
        if task_ids_B is None:
            first = torch.zeros(1, dtype=torch.long, device=where)
            made = Weights(*(weight[0].to(h.device) for weight in network(first, *position)))
            return functional.linear(function(functional.linear(h, made.down, made.down_bias)), made.up, made.up_bias)
        # Beams and flattened tokens: several rows here of one row there, one behind the other.
        repeats, rest = divmod(len(h), len(task_ids_B))
        if rest or not repeats:
            raise ValueError(f"task_ids has {len(task_ids_B)} numbers, and there are {len(h)} rows")
        tasks, task_of_row = task_ids_B.to(where).unique(return_inverse=True)
        task_of_row = task_of_row.repeat_interleave(repeats)
        made = Weights(*(weight[task_of_row].to(h.device) for weight in network(tasks, *position)))
        rows = h.reshape(len(h), -1, self.features)
        hidden = function(torch.baddbmm(made.down_bias[:, None], rows, made.down.mT))
        return torch.baddbmm(made.up_bias[:, None], hidden, made.up.mT).view(h.shape)

    def merge(self, safe_merge: bool = False, adapter_names: list[str] | None = None) -> None:
        """Refuse.

        Raises:
            ValueError: always, with the reason.
        """
        raise ValueError(_NO_MERGE)

    def unmerge(self) -> None:
        """Do nothing, since nothing is ever merged."""


class HypernetworkModel(BottleneckModel):
    """A model with such adapters behind its targeted layers, the places of `bottleneck` where none are named."""

    prefix = "hypernetwork_"
    tuner_layer_cls: type[OutputLayer] = HypernetworkLinear
    uses_shared_state = True
    passes_task_ids = False

    def _pre_injection_hook(self, model: nn.Module, config: PeftConfig, adapter_name: str) -> None:
        self.hypernetwork_shared = _Hypernetworks()

    def _build_layer(self, target: nn.Module, adapter_name: str, peft_config: HypernetworkConfig) -> HypernetworkLinear:
        return HypernetworkLinear(target, adapter_name, peft_config, self.hypernetwork_shared)

    def inject_adapter(
        self, model: nn.Module, adapter_name: str, *args: Any, low_cpu_mem_usage: bool = False, **kwargs: Any
    ) -> None:
        """Put the layers in, as PEFT does, and make the hypernetwork for as many as they are.

        Raises:
            ValueError: they differ in the number of their outputs.
        """
        trained_before = [(parameter, parameter.requires_grad) for parameter in self.hypernetwork_shared.parameters()]
        super().inject_adapter(model, adapter_name, *args, low_cpu_mem_usage=low_cpu_mem_usage, **kwargs)
        # PEFT keeps what is trained of the adapters that it finds inside the base.
        for parameter, is_trained in trained_before:
            parameter.requires_grad_(is_trained)
        config = self.peft_config[adapter_name]
        layers = {
            name: module
            for name, module in model.named_modules()
            if isinstance(module, HypernetworkLinear) and adapter_name in module.hypernetwork_position
        }
        num_layers, num_places = _number(adapter_name, layers)
        sizes = sorted({layer.features for layer in layers.values()})
        if len(sizes) > 1:
            raise ValueError(
                f"hypernetwork: one generator makes the weights of all adapters, and these layers put out "
                f"{' and '.join(map(str, sizes))} numbers; name some of one size in target_modules"
            )
        with init_empty_weights() if low_cpu_mem_usage else nullcontext():
            network = Hypernetwork(config, num_layers, num_places, sizes[0])
        self.hypernetwork_shared[adapter_name] = network
        first = next(iter(layers.values()))
        first._move_adapter_to_device_of_base_layer(adapter_name)
        network.requires_grad_(adapter_name in self.active_adapters and not config.inference_mode)

    @classmethod
    def _remove_adapter_name_from_key(cls, key: str, adapter_name: str) -> str:
        """PEFT looks for the name one step from the end, and here whole networks lie behind it."""
        head, found, tail = key.partition(f"hypernetwork_shared.{adapter_name}.")
        return (
            f"{head}hypernetwork_shared.{tail}" if found else super()._remove_adapter_name_from_key(key, adapter_name)
        )

    @contextmanager
    def _enable_peft_forward_hooks(self, *args: Any, **kwargs: Any) -> Iterator[None]:
        """Take the tasks of a batch's rows: PEFT's models call this around each of theirs.

        Raises:
            ValueError: there is no such task, or there are several and the model does not pass their numbers on.
        """
        task_ids = kwargs.get(_TASK_IDS, kwargs.get("task_ids"))
        networks = [self.hypernetwork_shared[name] for name in self.active_adapters if name in self.hypernetwork_shared]
        num_tasks = min((network.num_tasks for network in networks), default=1)
        if num_tasks > 1 and not self.passes_task_ids:
            raise ValueError(
                f"hypernetwork: the adapter knows {num_tasks} tasks, and PEFT drops their numbers on the way here; "
                "call hypernetwork_tuner.pass_task_ids(model) once, which has them passed on"
            )
        if task_ids is not None:
            task_ids = torch.as_tensor(task_ids)
            if task_ids.dim() != 1 or not 0 <= int(task_ids.min()) <= int(task_ids.max()) < num_tasks:
                raise ValueError(
                    f"task_ids is {task_ids.tolist()}; there is one number a row, from 0 to {num_tasks - 1}"
                )
        self.hypernetwork_shared.task_ids_B = task_ids
        yield


def pass_task_ids(model: PeftModel) -> None:
    """Have a model take `task_ids`, the number of each row's task, in its calls and in `generate`.

    PEFT's models drop them for every method but its own Poly. Without them every row is of task 0. Those of a batch
    hold until the next one: where activations are computed twice, its backward pass comes first.

    Args:
        model: with adapters of a hypernetwork; changed in place.
    """
    if model.base_model.passes_task_ids:
        return
    model.base_model.passes_task_ids = True
    model.special_peft_forward_args |= {"task_ids", _TASK_IDS}
    model.register_forward_pre_hook(_rename_task_ids, with_kwargs=True)


def _rename_task_ids(
    model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    return args, {_TASK_IDS if name == "task_ids" else name: value for name, value in kwargs.items()}


def _number(adapter_name: str, layers: dict[str, HypernetworkLinear]) -> tuple[int, int]:
    """Tell each layer the number of its block and of its place in it; gives how many there are of either."""
    blocks: dict[str, int] = {}
    places: dict[str, int] = {}
    for name, layer in layers.items():
        found = re.match(r"(.*?\.\d+\.)?(.*?)(\.base_layer)*$", name)
        assert found is not None
        block, place = found[1] or "", found[2]
        layer.hypernetwork_position[adapter_name] = (
            blocks.setdefault(block, len(blocks)),
            places.setdefault(place, len(places)),
        )
    return len(blocks), len(places)
