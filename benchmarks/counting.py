"""What a training step really holds: tensors saved for the backward pass, and the fullest moment of both passes.

In goes a recipe's values and rows of drawn tokens; out come bytes of one micro-batch of the real trainer, through the
pipeline's own base, adapter, collator and loss. `plan_error` and tests compare them with the plan's arithmetic.
"""

import tempfile
import weakref
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from datasets import Dataset
from torch import Tensor
from torch.profiler import ProfilerActivity, profile

from benchmarks.recording import ROOT
from finetune.data.tokens import TokenRows
from finetune.model.base import BaseModel
from finetune.model.recomputation import find_layers
from finetune.model.tokenizer import load_tokenizer
from finetune.prepare import Prepared, build_arguments
from finetune.recipe.reading import build_recipe
from finetune.recipe.schema import Recipe
from finetune.train import attach, build_bare_trainer, load_frozen_base

__all__ = ["Counted", "build_values", "count_step"]


@dataclass(frozen=True, slots=True)
class Counted:
    """What one micro-batch held.

    Attributes:
        batch: its tensors and numbers, as the collator built them.
        base: the model that is trained on.
        saved_bytes: storages that autograd keeps when the backward pass begins; of parameters and of the batch none.
        peak_bytes: at the fullest moment of both passes, beside what was there before; None: not asked for.
    """

    batch: Mapping[str, Any]
    base: BaseModel
    saved_bytes: int
    peak_bytes: int | None


def build_values(config: Mapping[str, Any], adapter: Mapping[str, Any], **settings: Any) -> dict[str, Any]:
    """Build a recipe's values on a base of drawn weights; `training__max_steps=3` stands for `training.max_steps`."""
    values: dict[str, Any] = {
        "name": "counted",
        "model": {
            "weights": "random",
            "config": dict(config),
            "tokenizer_name_or_path": str(ROOT / "data" / "tiny_base"),
            "device": "cpu",
        },
        "adapter": dict(adapter),
        "data": {"train": {"path": str(ROOT / "data" / "tiny_world" / "train.json")}, "template": "alpaca"},
        "training": {"gradient_accumulation_steps": 1, "warmup_steps": 0},
    }
    for path, value in settings.items():
        section, _, key = path.partition("__")
        if key:
            values[section][key] = value
        else:
            values[section] = value
    return values


def count_step(
    values: Mapping[str, Any],
    lengths: Sequence[Sequence[int]],
    *,
    trained_fraction: float = 0.5,
    num_recomputed: int | None = None,
    with_peak: bool = False,
) -> Counted:
    """Train a few steps on rows of drawn tokens, and count in the last ones.

    Args:
        values: of the recipe, see `build_values`.
        lengths: of the documents of each row; as many rows as a micro-batch has. A pair's two answers are as long.
        trained_fraction: of each document, its end.
        num_recomputed: layers from the first on that are recomputed, where the recipe allows it; None: all of them.
        with_peak: measure the fullest moment as well.
    """
    with tempfile.TemporaryDirectory() as folder:
        steps = {"max_steps": 2 + with_peak, "per_device_train_batch_size": len(lengths)}
        recipe = build_recipe({**values, "output_dir": folder, "training": {**values["training"], **steps}})
        trainer, base = _build_trainer(recipe, lengths, trained_fraction)
        counter = _Counter(trainer, base, num_recomputed)
        trainer.training_step = counter.step
        trainer.train()
    assert counter.batch is not None
    return Counted(counter.batch, base, counter.saved_bytes, counter.peak_bytes if with_peak else None)


def _build_trainer(recipe: Recipe, lengths: Sequence[Sequence[int]], trained_fraction: float) -> tuple[Any, BaseModel]:
    arguments = build_arguments(recipe)
    arguments.save_strategy, arguments.logging_steps = "no", 10**6
    rows = _draw_rows(recipe, lengths, trained_fraction, arguments.max_steps)
    tokenizer = load_tokenizer(recipe.model, ends_answers=True)
    prepared = Prepared(tokenizer, None, rows, None, [], [], None, {})
    base = load_frozen_base(recipe, arguments, prepared)
    return build_bare_trainer(recipe, arguments, prepared, base, attach(recipe, base, arguments, None)), base


def _draw_rows(
    recipe: Recipe, lengths: Sequence[Sequence[int]], trained_fraction: float, num_batches: int
) -> TokenRows:
    """Draw the rows of as many equal micro-batches as there are steps."""
    generator = torch.Generator().manual_seed(recipe.seed)
    config = recipe.model.config
    assert isinstance(config, dict)
    vocabulary = min(int(config["vocab_size"]), 4096)  # of the tokenizer

    def draw(documents: Sequence[int]) -> tuple[list[int], list[int]]:
        ids, labels = [], []
        for length in documents:
            drawn = torch.randint(5, vocabulary, (length,), generator=generator).tolist()
            first = length - round(length * trained_fraction)
            ids += drawn
            labels += [-100] * first + drawn[first:]
        return ids, labels

    rows = []
    for documents in list(lengths) * num_batches:
        ids, labels = draw(documents)
        if recipe.objective == "sft":
            packed = {"seq_lengths": list(documents)} if recipe.data.packing else {"length": len(ids)}
            rows.append({"input_ids": ids, "labels": labels, **packed})
        else:
            other, other_labels = draw(documents)
            chosen = {"chosen_ids": ids, "chosen_labels": labels}
            rows.append({**chosen, "rejected_ids": other, "rejected_labels": other_labels, "length": 2 * len(ids)})
    dataset = Dataset.from_list(rows)
    return TokenRows(dataset=dataset, account=dataset, report={}, fingerprint="drawn")


class _Counter:
    """Stands in for a trainer's `training_step`: the first one plain, the second counted, the third profiled."""

    def __init__(self, trainer: Any, base: BaseModel, num_recomputed: int | None) -> None:
        self.saved_bytes = self.peak_bytes = 0
        self.batch: dict[str, Any] | None = None
        self._trainer, self._plain_step = trainer, trainer.training_step
        self._layers = [layer for _, layer in find_layers(base.model)]
        self._num_recomputed = num_recomputed
        self._num_steps = 0

    def step(self, model: Any, inputs: dict[str, Any], num_items_in_batch: Any = None) -> Tensor:
        """Train on a micro-batch."""
        self._num_steps += 1
        if self._num_recomputed is not None:
            for place, layer in enumerate(self._layers):
                layer.gradient_checkpointing = place < self._num_recomputed
        if self._num_steps == 1:
            return self._plain_step(model, inputs, num_items_in_batch)
        # The rows as they were asked for: the trainer has put those of like length together.
        trainer = self._trainer
        rows = [trainer.train_dataset[place] for place in range(trainer.args.per_device_train_batch_size)]
        inputs = trainer.data_collator(rows)
        self.batch = dict(inputs)
        if self._num_steps == 2:
            with self._counting(inputs):
                return self._plain_step(model, inputs, num_items_in_batch)
        for parameter in model.parameters():  # gradients are no activations
            if parameter.requires_grad:
                parameter.grad = torch.zeros_like(parameter)
        with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
            loss = self._plain_step(model, inputs, num_items_in_batch)
        self.peak_bytes = _find_peak(profiler)
        return loss

    @contextmanager
    def _counting(self, inputs: Mapping[str, Any]) -> Iterator[None]:
        """Count what is saved when the backward pass begins: what was let go before it is not."""
        saved: weakref.WeakSet[_Saved] = weakref.WeakSet()
        accelerator = self._trainer.accelerator
        backward: Callable[..., None] = accelerator.backward
        model = self._trainer.model
        known = {_find_address(one) for one in (*model.parameters(), *model.buffers(), *inputs.values())}

        def pack(tensor: Tensor) -> _Saved:
            kept = _Saved(tensor)
            saved.add(kept)
            return kept

        def count_first(*args: Any, **kwargs: Any) -> None:
            storages = {_find_address(one.tensor): one.tensor.untyped_storage().nbytes() for one in list(saved)}
            self.saved_bytes = sum(size for address, size in storages.items() if address not in known)
            backward(*args, **kwargs)

        accelerator.backward = count_first
        try:
            with torch.autograd.graph.saved_tensors_hooks(pack, lambda kept: kept.tensor):
                yield
        finally:
            accelerator.backward = backward


class _Saved:
    """A tensor that autograd keeps, for as long as it does."""

    def __init__(self, tensor: Tensor) -> None:
        self.tensor = tensor


def _find_address(value: Any) -> int | None:
    return value.untyped_storage().data_ptr() if isinstance(value, Tensor) else None


def _find_peak(profiler: Any) -> int:
    """Find the most that was allocated at once, by the allocator's own account."""
    events = [event for event in profiler.profiler.kineto_results.events() if event.name() == "[memory]"]
    allocated = peak = 0
    for event in sorted(events, key=lambda event: event.start_ns()):
        allocated += event.nbytes()
        peak = max(peak, allocated)
    return peak
