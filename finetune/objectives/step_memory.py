"""What a step of a trainer will hold: by the shapes of its base, its adapter and its longest micro-batch.

In go a trainer that is built and what the recipe trains; out come bytes to plan with, before a step has run. None
comes out for a base or a method whose shapes are not known: there the first step is measured.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from datasets import Dataset

from finetune.budget.activations import BatchShape, LayerActivations, estimate_layer, estimate_outside
from finetune.budget.adapter import AdapterShape, build_adapter
from finetune.budget.architecture import Architecture, build_architecture
from finetune.budget.computing import Computing, Loss
from finetune.budget.devices import find_device_by_model
from finetune.budget.layer_options import Recomputing, estimate_layer_work, estimate_options, find_rates
from finetune.budget.lean import is_served
from finetune.budget.optimizer_states import estimate_state_bytes
from finetune.budget.passes import estimate_pass
from finetune.budget.spending import Keeps, LayerWork, Option, Rates
from finetune.errors import RecipeError
from finetune.model.base import BaseModel
from finetune.recipe.schema import AdapterSettings

if TYPE_CHECKING:
    from finetune.objectives.trainer import StepMixin

__all__ = [
    "Shapes",
    "StepMemory",
    "build_shapes",
    "estimate_coming_bytes",
    "estimate_layer_seconds",
    "estimate_step",
    "find_longest",
    "find_longest_shape",
    "to_shape",
]


@dataclass(frozen=True, slots=True)
class Shapes:
    """What is known of a model before a batch has gone through it."""

    architecture: Architecture
    adapter: AdapterShape
    computing: Computing
    rates: Rates


@dataclass(frozen=True, slots=True)
class StepMemory:
    """What a micro-batch is estimated to hold.

    Attributes:
        layer: of one layer.
        outside_bytes: kept outside the layers, for the last norm and the loss.
        step_bytes: at the fullest moment of a step in which every layer is recomputed.
        passing_bytes: of these, what is not saved from the forward pass to the backward one.
        options: what a layer can keep, and what that costs and saves.
    """

    layer: LayerActivations
    outside_bytes: int
    step_bytes: int
    passing_bytes: int
    options: dict[Keeps, Option]

    def sum_saved(self, num_layers: int) -> int:
        """Bytes that a forward pass saves for the backward one where every layer is recomputed."""
        return self.outside_bytes + num_layers * self.layer.input_bytes


def build_shapes(base: BaseModel, settings: AdapterSettings, *, may_be_lean: bool, loss: Loss) -> Shapes | None:
    """Build what is known of a base and what is trained on it; None where its architecture is not.

    Args:
        base: the loaded base.
        settings: the recipe's `adapter` section.
        may_be_lean: whether `model.lean` and `model.lean_elementwise` serve what is their case.
        loss: how the loss reads the logits, as `find_loss` finds it.
    """
    text_config = base.model.config.get_text_config()
    try:
        architecture = build_architecture(text_config.to_dict(), head=base.head)
        adapter = build_adapter(architecture, settings)
    except RecipeError:
        return None
    computing = Computing(
        compute_bytes=base.compute_dtype.itemsize,
        attention=base.attention,
        loss=loss,
        is_lean=may_be_lean and is_served(settings, adapter, architecture),
        is_lean_elementwise=may_be_lean,
        is_quantized=base.quantization != "none",
        on_cpu=base.device.type == "cpu",
    )
    return Shapes(architecture, adapter, computing, _find_rates(base.device))


def _find_rates(device: torch.device) -> Rates:
    if device.type != "cuda":
        return find_rates(None, on_cpu=True)
    return find_rates(find_device_by_model(torch.cuda.get_device_name(device)), on_cpu=False)


# ---- the longest micro-batch


def find_longest(dataset: Dataset, num_rows: int, awaited: Sequence[str]) -> list[dict[str, Any]]:
    """Find the longest rows.

    Args:
        dataset: of the trainer.
        num_rows: of these at most.
        awaited: columns that are put beside the rows later, numbers all; a zero stands in for what is not there yet.
    """
    if "length" in dataset.column_names:
        lengths = dataset["length"][:]
    else:
        column = "seq_lengths" if "seq_lengths" in dataset.column_names else dataset.column_names[0]
        lengths = [sum(row) if column == "seq_lengths" else len(row) for row in dataset[column]]
    longest = sorted(range(len(lengths)), key=lambda place: -lengths[place])[:num_rows]
    stand_ins = dict.fromkeys(awaited, 0.0)
    return [stand_ins | dataset[place] for place in longest]


def find_longest_shape(trainer: "StepMixin") -> BatchShape:
    """Find the sizes of the longest micro-batch that a trainer's rows can make."""
    num_rows = trainer.args.per_device_train_batch_size
    batch = trainer.data_collator(find_longest(trainer.train_dataset, num_rows, trainer.awaited_columns))
    if isinstance(batch, Mapping):
        return to_shape(batch)
    # Prompts: the answers are yet to be sampled.
    answer_tokens = int(trainer.args.max_completion_length)
    longest = max((len(value) for row in batch for value in row.values() if isinstance(value, list)), default=0)
    return BatchShape(num_rows=num_rows, row_tokens=longest + answer_tokens, document_tokens=longest + answer_tokens)


def to_shape(batch: Mapping[str, Any]) -> BatchShape:
    """Turn a batch of a collator into its sizes."""
    num_rows, row_tokens = batch["input_ids"].shape
    num_documents = num_rows
    if "position_ids" in batch:
        num_documents = max(1, int((batch["position_ids"] == 0).sum()))
    return BatchShape(
        num_rows=num_rows,
        row_tokens=row_tokens,
        document_tokens=min(row_tokens, batch["num_real_tokens"] / num_documents),
        is_packed="position_ids" in batch,
    )


# ---- bytes


def estimate_step(shapes: Shapes, batch: BatchShape, recomputing: Recomputing) -> StepMemory:
    """Estimate what a micro-batch holds.

    Args:
        shapes: of the model.
        batch: of the micro-batch.
        recomputing: how a layer is computed a second time.
    """
    facts = (shapes.architecture, shapes.adapter, batch, shapes.computing)
    step = estimate_pass(*facts, num_recomputed=shapes.architecture.num_layers, may_recompute=True)
    return StepMemory(
        layer=estimate_layer(*facts),
        outside_bytes=estimate_outside(*facts).kept_bytes,
        step_bytes=step.peak_bytes,
        passing_bytes=step.peak_bytes - step.saved_bytes,
        options=estimate_options(*facts, shapes.rates, recomputing),
    )


def estimate_layer_seconds(shapes: Shapes, batch: BatchShape, recomputing: Recomputing) -> LayerWork:
    """Estimate what computing a layer of a model a second time takes; for the arguments see `estimate_step`."""
    return estimate_layer_work(shapes.architecture, shapes.adapter, batch, shapes.computing, shapes.rates, recomputing)


def estimate_coming_bytes(trainer: "StepMixin") -> tuple[int, int]:
    """Estimate what training is yet to take beside the activations.

    Returns:
        Bytes of the gradients and of the optimizer's states; 0 for what is there already.
    """
    trained = [value for value in trainer.model.parameters() if value.requires_grad]
    gradients = sum(value.nbytes for value in trained if value.grad is None)
    if trainer.optimizer is not None and trainer.optimizer.state:
        return gradients, 0
    # transformers' names are members of an enumeration of texts.
    return gradients, estimate_state_bytes(str(trainer.args.optim.value), [tuple(value.shape) for value in trained])
