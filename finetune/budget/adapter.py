"""What is trained, by its shapes: the tensors of an adapter on a base, before either is there.

In go an `Architecture` and the recipe's `adapter` section; out comes an `AdapterShape` with every tensor of a method
whose shapes follow from the base's (see `adapter_tensors`). Of another method (it reads the weights, or cuts them by a
rule of its own) the number is an estimate, and the shape says so.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from finetune.budget.adapter_tensors import TENSORS_OF, AdapterTensor, build_saved_modules, count_halves
from finetune.budget.shapes import Architecture, Linear
from finetune.errors import RecipeError
from finetune.recipe.own_methods import COMBINED, FULL, WHOLE_METHODS
from finetune.recipe.schema import AdapterSettings

__all__ = ["STAND_IN_RANK", "AdapterShape", "build_adapter", "find_rank"]

# What stands in for a method that cannot be counted: more than each of them trains by its defaults. `model.sizes`
# takes the same for the room on the disk.
STAND_IN_RANK = 64
# LoRA and what is built like it, by the field that holds the rank and PEFT 0.21's default of it.
_RANK_FIELDS: Mapping[str, tuple[str, int]] = {
    "lora": ("r", 8),
    "adalora": ("init_r", 12),
    "vera": ("r", 256),
    "loha": ("r", 8),
    "hra": ("r", 8),
}
_DROPOUT_FIELDS: Mapping[str, str] = {"vera": "vera_dropout", "bottleneck": "dropout"}


@dataclass(frozen=True, slots=True)
class AdapterShape:
    """What is trained.

    Attributes:
        method: the recipe's name of it.
        r: rank; 0 for a method without one.
        targets: `Linear.name` of the layer's linears that it sits on, in any layer.
        dropout: share of its input that is dropped in training.
        num_parameters: numbers trained, a fresh head among them.
        is_exact: whether they are counted; else they are those of LoRA with a rank that few methods exceed.
        num_layers: layers of the base that it sits on.
        is_whole: whether weights of the base itself are trained.
        is_weight_decomposed: whether LoRA's norms are trained apart (DoRA).
        num_virtual_tokens: learned vectors before a row.
        trains_output: whether the weights of the layer that gives words are among what is trained.
        trains_embeddings: whether those of the input embeddings are.
        tensors: what is held and saved; empty where weights of the base are trained, or where `is_exact` is not.
    """

    method: str
    r: int
    targets: frozenset[str]
    dropout: float
    num_parameters: int
    is_exact: bool
    num_layers: int
    is_whole: bool = False
    is_weight_decomposed: bool = False
    num_virtual_tokens: int = 0
    trains_output: bool = False
    trains_embeddings: bool = False
    tensors: tuple[AdapterTensor, ...] = ()

    @property
    def num_frozen(self) -> int:
        """Numbers that it holds and does not train, such as VeRA's shared matrices."""
        return sum(tensor.num_numbers for tensor in self.tensors if not tensor.is_trained)

    @property
    def trains_norms(self) -> bool:
        """Whether the weights of norms are trained."""
        return self.is_whole or self.method == "ln_tuning"

    def adapts(self, linear: Linear) -> bool:
        """Whether it sits on a linear layer of a layer."""
        return linear.name in self.targets


def build_adapter(architecture: Architecture, settings: AdapterSettings) -> AdapterShape:
    """Build what a recipe trains on a base.

    Args:
        architecture: the base.
        settings: the recipe's section; `init_from` is not followed here.

    Raises:
        RecipeError: no layer of a name that the recipe gives.
    """
    method, fields = settings.method, settings.fields
    if method in WHOLE_METHODS:
        return _build_whole(architecture, method, fields)
    parts = [dict(part) for part in fields.get("parts") or ()] if method == COMBINED else [{**fields, "method": method}]
    tensors: list[AdapterTensor] = []
    targets: set[str] = set()
    is_exact = True
    for part in parts:
        build = TENSORS_OF.get(str(part["method"]))
        built = None if build is None else build(architecture, part)
        if built is None:
            is_exact = False
            built = TENSORS_OF["lora"](architecture, _to_stand_in(part))
            assert built is not None
        tensors += built.tensors
        targets |= built.targets
    saved = build_saved_modules(architecture, fields.get("modules_to_save") or ())
    # On the linears of a tower for images an adapter may sit too.
    is_exact = is_exact and saved is not None and not architecture.num_other_parameters
    tensors += saved or ()
    first = parts[0]
    return AdapterShape(
        method=method,
        r=max((find_rank(part) for part in parts), default=0),
        targets=frozenset(targets),
        dropout=max((_find_dropout(part) for part in parts), default=0.0),
        num_parameters=sum(tensor.num_numbers for tensor in tensors if tensor.is_trained),
        is_exact=is_exact,
        num_layers=_count_layers(architecture, tensors),
        is_weight_decomposed=bool(first.get("use_dora")),
        num_virtual_tokens=settings.virtual_tokens,
        trains_output=architecture.output is not None and _is_copied(saved, architecture.output.path),
        trains_embeddings=_is_copied(saved, architecture.embeddings_path),
        tensors=tuple(tensors) if is_exact else (),
    )


def find_rank(fields: Mapping[str, Any]) -> int:
    """Find the rank that a method's fields name, PEFT's default where they name none; 0 for a method without one.

    Args:
        fields: as in the recipe, with `method`.
    """
    name, default = _RANK_FIELDS.get(str(fields["method"]), ("r", 0))
    rank = fields.get(name, default)
    return rank * count_halves(fields) if isinstance(rank, int) else 0


def _build_whole(architecture: Architecture, method: str, fields: Mapping[str, Any]) -> AdapterShape:
    """All weights of the base, or what stands above its first layers."""
    num_trained, num_layers = architecture.num_parameters, architecture.num_layers
    trains_output = architecture.output is not None
    if method != FULL:
        settings = {name: schema["default"] for name, schema in WHOLE_METHODS[method].items()} | dict(fields)
        num_layers = int(settings["layers"])
        if num_layers > architecture.num_layers:
            raise RecipeError(f"`adapter.layers` is {num_layers}, and the model has {architecture.num_layers}.")
        num_trained = num_layers * architecture.num_layer_parameters + architecture.num_fresh_parameters
        if num_layers == architecture.num_layers:
            num_trained -= architecture.num_absent_parameters
        if settings["train_head"]:
            num_trained += _count_above(architecture)
        trains_output = trains_output and bool(settings["train_head"]) and not architecture.ties_embeddings
    return AdapterShape(
        method=method,
        r=0,
        targets=frozenset(linear.name for linear in architecture.linears),
        dropout=0.0,
        num_parameters=num_trained,
        is_exact=True,
        num_layers=num_layers,
        is_whole=True,
        trains_output=trains_output,
        trains_embeddings=method == FULL,
    )


def _count_above(architecture: Architecture) -> int:
    """Numbers of the norm behind the last layer, and of the output layer where it is not the embeddings."""
    beside = architecture.layers_path.rpartition(".")[0]
    norms = sum(
        norm.num_parameters
        for norm in architecture.outside_norms
        if norm.path.rpartition(".")[0] == beside and "emb" not in norm.path.rpartition(".")[2]
    )
    if architecture.output is None or architecture.ties_embeddings:
        return norms
    return norms + architecture.output.num_parameters


def _to_stand_in(part: Mapping[str, Any]) -> dict[str, Any]:
    kept = {name: part[name] for name in ("target_modules", "exclude_modules") if part.get(name) is not None}
    return {"method": "lora", "r": max(STAND_IN_RANK, find_rank(part)), **kept}


def _find_dropout(fields: Mapping[str, Any]) -> float:
    return float(fields.get(_DROPOUT_FIELDS.get(str(fields["method"]), "lora_dropout")) or 0.0)


def _is_copied(saved: Iterable[AdapterTensor] | None, path: str) -> bool:
    """Whether a module of the base is trained whole beside the adapter."""
    return any(tensor.name.endswith(f".{path}.weight") for tensor in saved or ())


def _count_layers(architecture: Architecture, tensors: list[AdapterTensor]) -> int:
    prefix = f"{architecture.layers_path}."
    found = {tensor.name.partition(prefix)[2].partition(".")[0] for tensor in tensors if prefix in tensor.name}
    return len(found) if found else architecture.num_layers
