"""Which decoder layers compute their activations twice, each layer by itself, and what the others hold for it.

In goes a model of transformers whose layers are `GradientCheckpointingLayer`s, and what each of them is to keep; the
trainer's own switch stays what it is. A kept layer computes the same numbers in the same order, and recomputing puts
the random states back first: losses and gradients do not depend on what is kept.
"""

import functools
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn
from transformers.modeling_layers import GradientCheckpointingLayer

__all__ = ["Keeps", "Recomputation", "SavedBytes", "find_layers"]

# What a layer keeps for the backward pass, as `budget.spending` has it.
Keeps = Literal["nothing", "attention", "mlp", "all"]

# The module of a layer that is recomputed where the other part alone is kept.
_RECOMPUTED_PART: dict[Keeps, str] = {"attention": "mlp", "mlp": "self_attn"}


def find_layers(model: nn.Module) -> list[tuple[nn.Module, GradientCheckpointingLayer]]:
    """Find the layers that can be recomputed one by one, in their order, each with the module that calls it.

    An architecture without layers of this kind has none: of it all is recomputed, or nothing.
    """
    found: list[tuple[nn.Module, GradientCheckpointingLayer]] = []
    names: list[str] = []
    for name, module in model.named_modules():
        is_inside = any(name.startswith(f"{outer}.") for outer in names)
        parent, _, list_name = name.rpartition(".")[0].rpartition(".")
        if isinstance(module, GradientCheckpointingLayer) and list_name and not is_inside:
            found.append((model.get_submodule(parent), module))
            names.append(name)
    return found


@dataclass(slots=True)
class SavedBytes:
    """What one forward pass saved for its backward pass, tensors counted once, weights and buffers not at all.

    Attributes:
        layers: bytes that each layer saved beyond what it was given; 0 of one that is recomputed.
        attention: of these, what would not be saved if the attention alone were recomputed.
        mlp: the same of the MLP.
        input_bytes: of what goes into a layer, which is saved in any case.
        tokens: that went through the layers at once, padding included.
        total: bytes of the whole decoder.
    """

    layers: list[int]
    attention: list[int]
    mlp: list[int]
    input_bytes: int = 0
    tokens: int = 0
    total: int = 0


class Recomputation:
    """Lets each layer of a model keep what it is told to.

    Transformers, TRL and the rehearsal switch all layers on and off together, some of them in the middle of a step;
    right before each pass those that keep something are switched off again. Until `follow` is called, nothing is.

    Args:
        model: with layers that `find_layers` finds.
    """

    def __init__(self, model: nn.Module) -> None:
        found = find_layers(model)
        self._model = model
        self._layers = [layer for _, layer in found]
        self._callers = list({id(caller): caller for caller, _ in found}.values())
        self._keeps: list[Keeps] | None = None
        self._undo: list[Callable[[], None]] = []
        self._is_on = False
        for caller in self._callers:
            caller.register_forward_pre_hook(self._before_pass)

    @property
    def num_layers(self) -> int:
        """Layers that can be told to."""
        return len(self._layers)

    @property
    def layers(self) -> list[GradientCheckpointingLayer]:
        """The layers, from the first to the last."""
        return list(self._layers)

    @property
    def has_parts(self) -> bool:
        """Whether each layer has an attention and an MLP that can be recomputed by themselves."""
        return all({"self_attn", "mlp"} <= dict(layer.named_children()).keys() for layer in self._layers)

    def follow(self, keeps: Sequence[Keeps]) -> None:
        """Let the layers, from the first to the last, keep what is said from the next pass on.

        Parts are for the mode that is not reentrant: within the other one a part's input is a leaf, which autocast
        casts once for all products, and its gradient is summed up in 16 bits.
        """
        for undo in self._undo:
            undo()
        self._keeps = list(keeps)
        parts = [(layer, _RECOMPUTED_PART.get(kept)) for layer, kept in zip(self._layers, keeps, strict=True)]
        self._undo = [_recompute_part(layer, name) for layer, name in parts if name is not None]
        if self._is_on:
            self._switch()

    def _before_pass(self, *_: Any) -> None:
        if self._keeps is not None and any(layer.gradient_checkpointing for layer in self._layers):
            self._is_on = True
            self._switch()

    def _switch(self) -> None:
        for layer, kept in zip(self._layers, self._keeps or (), strict=True):
            layer.gradient_checkpointing = kept == "nothing"

    @contextmanager
    def counting(self) -> Iterator[list[SavedBytes]]:
        """Count what the decoder saves for the backward pass inside: one entry for each forward pass.

        Head and loss are left out: losses by `torch.func`, such as Liger's of preferences, bear no such hooks.
        """
        count = _Count(self._model)
        first = self._callers[0] if self._callers else self._model
        handles = [
            first.register_forward_pre_hook(count.begin),
            first.register_forward_hook(count.end, always_call=True),
        ]
        for place, layer in enumerate(self._layers):
            handles += _watch(count, layer, place)
        try:
            yield count.passes
        finally:
            for handle in handles:
                handle.remove()


def _recompute_part(layer: GradientCheckpointingLayer, name: str) -> Callable[[], None]:
    """Let one module of a layer be recomputed by itself; how to undo it."""
    part = layer.get_submodule(name)
    plain, own = part.forward, vars(part).get("forward")  # a library may have put its own in the class's place

    @functools.wraps(plain)
    def recomputed(*args: Any, **kwargs: Any) -> Any:
        checkpoint = vars(layer).get("_gradient_checkpointing_func")
        if checkpoint is None or not part.training or not torch.is_grad_enabled():
            return plain(*args, **kwargs)
        # A cache would be written to twice.
        inputs = args or (kwargs.pop("hidden_states"),)
        if "past_key_values" in kwargs:
            kwargs["past_key_values"] = None
        return checkpoint(functools.partial(plain, **kwargs), *inputs)

    part.forward = recomputed

    def undo() -> None:
        if own is None:
            del part.forward
        else:
            part.forward = own

    return undo


# ---- counting


class _Count:
    """A count that is under way.

    Attributes:
        passes: what was counted; the last entry is under way.
        layer: the place of the layer that the pass is in.
        part: the name of the part of it.
        part_input: address of what went into the part, which is saved where the part is recomputed too.
    """

    def __init__(self, model: nn.Module) -> None:
        tensors = [*model.parameters(), *model.buffers()]
        self._weights = {tensor.untyped_storage().data_ptr() for tensor in tensors}
        self._seen: set[int] = set()
        self._hooks: Any = None
        self.num_layers = 0
        self.passes: list[SavedBytes] = []
        self.layer: int | None = None
        self.part: str | None = None
        self.part_input: int | None = None

    def begin(self, *_: Any) -> None:
        """Begin with the next pass."""
        self._hooks = torch.autograd.graph.saved_tensors_hooks(self.note, lambda tensor: tensor)
        self._hooks.__enter__()
        number = self.num_layers
        self.passes.append(SavedBytes([0] * number, [0] * number, [0] * number))
        self._seen = set()
        self.layer = self.part = self.part_input = None

    def end(self, *_: Any) -> None:
        """End the pass that is under way, also where it did not come to its end."""
        if self._hooks is not None:
            self._hooks.__exit__()
            self._hooks = None

    def enter_layer(self, place: int, hidden: Tensor) -> None:
        """Note what goes into a layer."""
        self.note(hidden)
        self.layer = place
        self.passes[-1].input_bytes = hidden.nbytes
        self.passes[-1].tokens = hidden.numel() // hidden.shape[-1]

    def note(self, tensor: Tensor) -> Tensor:
        """Count a tensor that is saved; what the backward pass computes again is saved for a moment alone."""
        storage = tensor.untyped_storage()
        address = storage.data_ptr()
        if not self.passes or address in self._seen or address in self._weights or is_in_backward():
            return tensor
        self._seen.add(address)
        saved, num_bytes = self.passes[-1], storage.nbytes()
        saved.total += num_bytes
        if self.layer is not None:
            saved.layers[self.layer] += num_bytes
            if self.part is not None and address != self.part_input:
                (saved.mlp if self.part == "mlp" else saved.attention)[self.layer] += num_bytes
        return tensor


def _watch(count: _Count, layer: nn.Module, place: int) -> list[Any]:
    """Let a count know when the pass is in a layer, and in which part of it."""
    count.num_layers = max(count.num_layers, place + 1)

    def enter(_: nn.Module, args: tuple[Any, ...]) -> None:
        if count.passes and not is_in_backward():
            count.enter_layer(place, args[0])

    def leave(*_: Any) -> None:
        count.layer = None

    handles = [layer.register_forward_pre_hook(enter), layer.register_forward_hook(leave)]
    for name, part in layer.named_children():
        if name in _RECOMPUTED_PART.values():
            handles += _watch_part(count, part, name)
    return handles


def _watch_part(count: _Count, part: nn.Module, name: str) -> list[Any]:
    def enter(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        hidden = args[0] if args else kwargs["hidden_states"]
        count.part, count.part_input = name, hidden.untyped_storage().data_ptr()

    def leave(*_: Any) -> None:
        count.part = None

    return [part.register_forward_pre_hook(enter, with_kwargs=True), part.register_forward_hook(leave)]


def is_in_backward() -> bool:
    """Whether a backward pass is computing, as torch.utils.checkpoint itself asks (torch 2.13)."""
    return bool(torch._C._current_graph_task_id() != -1)
