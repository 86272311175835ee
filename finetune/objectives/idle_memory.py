"""Memory that would lie idle, spent on speed: layers that recompute nothing, and 4-bit weights that are kept in full.

In goes a trainer that is built. Before its first step it is decided by arithmetic what every layer keeps
(`budget.spending`); that step is measured, in the rehearsal or as the first of the run, and corrects the decision once.
On a GPU the measure is the allocator's peak, on a CPU the bytes that a forward pass saves for its backward pass.
Copies of weights cost what they are long, and come behind the measured step. Where memory runs out in spite of it,
`micro_batches` takes back here before it cuts rows.

Nothing that is trained depends on it: what is kept are the numbers that would be computed again. A checkpoint carries
the decision to the run that goes on from it on the same device; several processes decide alike, by the scarcest.
"""

import logging
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from finetune.budget.activations import BatchShape
from finetune.budget.computing import Loss
from finetune.budget.layer_options import Recomputing
from finetune.budget.spending import (
    Keeps,
    LayerWork,
    Option,
    Spending,
    build_options,
    find_spendable,
    spend,
    take_back,
)
from finetune.model.base import BaseModel
from finetune.model.frozen_weights import find_quantized, keep_first
from finetune.model.recomputation import Recomputation, SavedBytes
from finetune.objectives.free_memory import FreeMemory, find_least, find_share, name_memory
from finetune.objectives.full_memory import is_out_of_memory
from finetune.objectives.memory_decision import Decision, describe, read_decision, write_decision
from finetune.objectives.step_memory import (
    Shapes,
    StepMemory,
    build_shapes,
    estimate_coming_bytes,
    estimate_layer_seconds,
    estimate_step,
    find_longest_shape,
    to_shape,
)
from finetune.recipe.schema import AdapterSettings, MemoryChoice

if TYPE_CHECKING:
    from finetune.objectives.trainer import StepMixin

__all__ = ["IdleMemory"]

log = logging.getLogger("finetune.objectives.idle_memory")

_KINDS: tuple[Keeps, ...] = ("all", "mlp", "attention")
_NOT_OFFERED_BYTES = 2**62


@dataclass(frozen=True, slots=True)
class _Start:
    """What was known when the first decision was taken.

    Attributes:
        free: memory of the device, with nothing spent.
        shape: of the longest micro-batch.
        coming_bytes: that training takes later beside the activations, as far as the step's measure does not show it.
        allocated_bytes: on a GPU, before the step.
        estimate: of the longest micro-batch; None: its base is not known.
    """

    free: FreeMemory
    shape: BatchShape
    coming_bytes: int
    allocated_bytes: int
    estimate: StepMemory | None


class IdleMemory:
    """What a trainer's idle memory is spent on.

    Args:
        trainer: a `StepMixin`.

    Attributes:
        spending: what was decided; None: nothing is decided here.
    """

    def __init__(self, trainer: "StepMixin") -> None:
        self._trainer = trainer
        self._recomputation: Recomputation | None = None
        self._linears: list[Any] = []
        self._shapes: Shapes | None = None
        self._may_recompute = False
        self._start: _Start | None = None
        self._passes: list[SavedBytes] = []
        self._attempt: list[SavedBytes] = []
        self._is_settled = False
        self._max_layers: int | None = None
        self._is_news = False
        self._predicted_bytes: int | None = None
        self._measured_bytes: int | None = None
        self.spending: Spending | None = None

    # ---- how it begins

    def begin(self, choice: MemoryChoice, base: BaseModel, adapter: AdapterSettings, *, loss: Loss) -> None:
        """Take what is decided here into this object's hands; without it nothing is.

        Args:
            choice: the recipe's `training.memory`; only `auto` leaves anything to decide.
            base: the loaded base.
            adapter: the recipe's section.
            loss: how the objective's loss reads the logits, as `find_loss` finds it.
        """
        trainer = self._trainer
        if choice != "auto" or base.backend == "unsloth" or find_share(trainer) is None:
            return
        kwargs = trainer.args.gradient_checkpointing_kwargs or {}
        self._recomputation = Recomputation(trainer.model)
        self._linears = find_quantized(trainer.model)
        self._may_recompute = (
            trainer.args.gradient_checkpointing
            and self._recomputation.num_layers > 0
            and kwargs.get("every_n_layers", 1) == 1  # whoever typed it has chosen the layers
        )
        if trainer.args.gradient_checkpointing and self._recomputation.num_layers == 0:
            log.info(
                "Memory: %s cannot recompute its layers one by one, so all are recomputed; none are with "
                "training.memory=recompute_none, where that fits.",
                type(base.model).__name__,
            )
        self._shapes = build_shapes(base, adapter, may_be_lean=not trainer.args.torch_compile, loss=loss)

    @property
    def _recomputing(self) -> Recomputing:
        """How a layer is computed a second time; the reentrant mode would round parts of it otherwise."""
        is_reentrant = bool((self._trainer.args.gradient_checkpointing_kwargs or {}).get("use_reentrant"))
        has_parts = self._recomputation is not None and self._recomputation.has_parts
        return Recomputing(by_parts=has_parts and not is_reentrant, is_reentrant=is_reentrant)

    # ---- the decision

    @contextmanager
    def watching(self, batch: Any) -> Iterator[None]:
        """Train inside: the first step is decided about before it, and measured; all others go by.

        Args:
            batch: what is trained: in a rehearsal the longest micro-batch.
        """
        if self._recomputation is None or self._is_settled:
            yield
            return
        if self._start is None:
            self._decide(batch)
        with self._recomputation.counting() as self._attempt:
            yield
        self._passes += [one for one in self._attempt if one.total]
        if not self._trainer.is_in_train or self._trainer.accelerator.sync_gradients:
            self._settle()

    def forget_attempt(self) -> None:
        """Forget what was measured of a step that memory ran out in; it is repeated from its first micro-batch."""
        self._attempt.clear()
        self._passes.clear()
        if not self._is_settled and self._start is not None and self._trainer.args.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(self._trainer.args.device)

    def _decide(self, batch: Any) -> None:
        """Decide by arithmetic, from shapes; of a base that is not known, the last layer alone is kept and measured."""
        trainer, recomputation, device = self._trainer, self._recomputation, self._trainer.args.device
        free = find_share(trainer)
        assert recomputation is not None and free is not None
        is_rehearsed = not trainer.is_in_train and isinstance(batch, Mapping)
        shape = to_shape(batch) if is_rehearsed else find_longest_shape(trainer)
        allocated_bytes = 0
        if device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(device)
            allocated_bytes = torch.cuda.memory_allocated(device)
        estimate = None
        if self._shapes is not None:
            estimate = estimate_step(self._shapes, shape, self._recomputing)
        gradients, states = estimate_coming_bytes(trainer)
        later = states + (gradients if device.type == "cpu" else 0)
        self._start = _Start(free, shape, later, allocated_bytes, estimate)
        if not self._may_recompute:
            self._apply(Spending(num_layers=0))
            return
        num_layers = recomputation.num_layers
        if estimate is None:
            self._apply(Spending(num_layers=num_layers, num_kept=1))
            return
        coming = gradients + states + estimate.step_bytes
        spendable = self._agree(find_spendable(free.free_bytes, free.total_bytes, coming))
        self._apply(spend(spendable, num_layers, estimate.options))

    def _settle(self) -> None:
        """Correct the decision by what was measured, once, and keep copies of weights with what is left."""
        start, recomputation, spent = self._start, self._recomputation, self._spent
        assert start is not None and recomputation is not None
        self._is_settled = True
        largest = max(self._passes, key=lambda one: one.total, default=None)
        self._passes = []
        if self._agree(int(largest is not None)) == 0 or largest is None:  # nothing was trained
            return
        num_layers = spent.num_layers
        # A rehearsal's batch is the longest, whole or cut as all others will be.
        scale = max(1.0, start.shape.num_tokens / max(1, largest.tokens)) if self._trainer.is_in_train else 1.0
        options = self._measure_options(largest, scale)
        held = {kind: number for kind, number in zip(_KINDS, spent.num_by_kind, strict=True) if number}
        spent_bytes = sum(number * options[kind].num_bytes for kind, number in held.items())
        saved_bytes, passing_bytes = self._measure_step(largest)
        self._measured_bytes, self._predicted_bytes = round(saved_bytes * scale), self._predict(spent)
        coming = start.coming_bytes + self._measured_bytes + passing_bytes - spent_bytes
        spendable = find_spendable(start.free.free_bytes, start.free.total_bytes, coming)
        if self._max_layers is not None:  # memory ran out on the way: what was taken back stays so
            spendable = min(spendable, spent_bytes)
        spendable = self._agree(spendable)
        options = self._agree_on_options(options)
        residents = [one.weight.quant_state.shape.numel() * one.compute_dtype.itemsize for one in self._linears]
        self._apply(spend(spendable, num_layers, options, residents, max_layers=self._agree_on_layers(num_layers)))
        log.info("Memory: %s.", self.describe())

    @property
    def _spent(self) -> Spending:
        assert self.spending is not None
        return self.spending

    def _measure_options(self, saved: SavedBytes, scale: float) -> dict[Keeps, Option]:
        """Find what the choices of a layer cost in the longest micro-batch, by a step that was measured."""
        start, spent = self._start, self._spent
        assert start is not None
        if not spent.num_layers:
            return {}
        estimated = {} if start.estimate is None else start.estimate.options
        kept = saved.layers[len(saved.layers) - spent.num_kept :]
        if kept:
            place = len(saved.layers) - 1
            recomputing = self._recomputing
            work = LayerWork(whole_seconds=1.0, attention_seconds=0.0, mlp_seconds=1.0)
            if self._shapes is not None:
                work = estimate_layer_seconds(self._shapes, start.shape, recomputing)
            # A part that is recomputed by itself saves its input, which is as long as the layer's.
            return build_options(
                work,
                kept_bytes=sum(kept) // len(kept) + saved.input_bytes,
                input_bytes=saved.input_bytes,
                attention_bytes=saved.attention[place] - saved.input_bytes if recomputing.by_parts else None,
                mlp_bytes=saved.mlp[place] - saved.input_bytes if recomputing.by_parts else None,
                factor=scale,
            )
        parts = saved.layers[spent.num_recomputed :]
        if not parts or not spent.layer_bytes:
            return dict(estimated)
        factor = scale * sum(parts) / spent.layer_bytes
        return {kind: replace(one, num_bytes=round(one.num_bytes * factor)) for kind, one in estimated.items()}

    def _measure_step(self, saved: SavedBytes) -> tuple[int, int]:
        """Bytes that the measured step held, and of the loss or layer that passes by; a CPU's loss by arithmetic."""
        device, start = self._trainer.args.device, self._start
        assert start is not None
        if device.type == "cuda":
            return int(torch.cuda.max_memory_allocated(device)) - start.allocated_bytes, 0
        if start.estimate is not None:
            layers = sum(saved.layers) + len(saved.layers) * saved.input_bytes
            return layers + start.estimate.outside_bytes, start.estimate.passing_bytes
        head = self._trainer.model.get_output_embeddings()
        logits = 0 if head is None else saved.tokens * head.weight.shape[0] * torch.float32.itemsize
        return saved.total + logits, logits + max(saved.layers, default=0)

    def _predict(self, spending: Spending) -> int | None:
        """What the measured step was estimated to hold."""
        start, recomputation = self._start, self._recomputation
        if start is None or start.estimate is None or recomputation is None:
            return None
        saved_bytes = start.estimate.sum_saved(recomputation.num_layers) + spending.layer_bytes
        if not self._may_recompute:
            if self._trainer.args.gradient_checkpointing:  # by somebody else's choice of layers
                return None
            layer = start.estimate.layer
            saved_bytes += recomputation.num_layers * (layer.kept_bytes - layer.input_bytes)
        return saved_bytes + (start.estimate.passing_bytes if self._trainer.args.device.type == "cuda" else 0)

    # ---- several processes

    def _agree(self, num_bytes: int) -> int:
        """The least of a number over all processes."""
        return find_least(self._trainer, num_bytes)

    def _agree_on_options(self, options: Mapping[Keeps, Option]) -> dict[Keeps, Option]:
        """Let what is dearest in any process be the price in all; what one has not got is offered in none.

        Each process asks for the same kinds in the same order, whatever it has itself.
        """
        agreed: dict[Keeps, Option] = {}
        for kind in _KINDS:
            price = -self._agree(-(options[kind].num_bytes if kind in options else _NOT_OFFERED_BYTES))
            if kind in options and price < _NOT_OFFERED_BYTES:
                agreed[kind] = replace(options[kind], num_bytes=price)
        return agreed

    def _agree_on_layers(self, num_layers: int) -> int:
        return self._agree(num_layers if self._max_layers is None else self._max_layers)

    # ---- what follows from it

    def _apply(self, spending: Spending) -> None:
        """Let layers keep, and weights stay, as was decided."""
        self.spending = spending
        if self._may_recompute and self._recomputation is not None:
            self._recomputation.follow(spending.layers)
        try:
            keep_first(self._linears, spending.num_resident)
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
            self.spending = replace(spending, num_resident=0, resident_bytes=0)
            log.info("Memory: the 4-bit weights do not fit in full beside the rest after all; none is kept.")

    def take_back(self, *, copies_alone: bool = False) -> bool:
        """Take back part of what was spent: copies first, then half of the layers that keep anything.

        Args:
            copies_alone: where no layer keeps anything, as in an evaluation.

        Returns:
            Whether there was something; several processes take nothing back on their way, being each on its own.
        """
        trainer = self._trainer
        if self.spending is None or (trainer.args.world_size > 1 and trainer.is_in_train):
            return False
        less = take_back(self.spending)
        if less is None or (copies_alone and not self.spending.num_resident):
            return False
        self._apply(less)
        self._max_layers = sum(less.num_by_kind)
        self._is_news = True
        return True

    def take_news(self) -> dict[str, int]:
        """Name what is left, once after something was taken back, as metrics.jsonl has it."""
        if not self._is_news or self.spending is None:
            return {}
        self._is_news = False
        return {"recomputed_layers": self.spending.num_recomputed, "resident_weights": self.spending.num_resident}

    # ---- what is told and kept

    def describe(self) -> str:
        """Say what was decided, in one line."""
        return describe(
            self._spent,
            num_weights=len(self._linears),
            free_bytes=None if self._start is None else self._start.free.free_bytes,
            measured_bytes=self._measured_bytes,
            predicted_bytes=self._predicted_bytes,
        )

    def to_json(self) -> dict[str, int] | None:
        """The decision as summary.json has it; None where none was taken."""
        if self.spending is None:
            return None
        measured = {"predicted_step_bytes": self._predicted_bytes, "measured_step_bytes": self._measured_bytes}
        return self.spending.to_json() | {name: value for name, value in measured.items() if value is not None}

    def write(self, folder: Path) -> None:
        """Write the decision into a checkpoint, where it stands."""
        if self.spending is not None and self._is_settled:
            device = name_memory(self._trainer.args.device)
            write_decision(folder, Decision(self.spending, self._max_layers, self._is_news, device))

    def read(self, folder: Path) -> None:
        """Take the decision of a checkpoint up, on the same device and where it still fits; else it is taken anew.

        Raises:
            CheckpointError: the file holds something else.
        """
        decision, device = read_decision(folder), self._trainer.args.device
        if self._recomputation is None:
            return
        if self._agree(int(decision is not None)) == 0 or decision is None:  # a disk that not all processes share
            return
        spending = decision.spending
        num_layers = self._recomputation.num_layers if self._may_recompute else 0
        is_same = decision.device == name_memory(device)
        free = find_share(self._trainer)
        fits = free is not None and find_spendable(free.free_bytes, free.total_bytes, spending.num_bytes) >= 0
        is_of_model = spending.num_layers == num_layers and spending.num_resident <= len(self._linears)
        if self._agree(int(is_same and fits and is_of_model)):
            self._max_layers, self._is_news, self._is_settled = decision.max_layers, decision.is_news, True
            self._apply(spending)
            log.info("Memory: %s; as before the stop.", self.describe())
