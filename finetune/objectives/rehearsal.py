"""A rehearsal before the first step: what does not fit is found in the first minute, and nothing is changed by it.

In goes a trainer that is about to start; the longest rows it holds go through a step, an evaluation and a checkpoint
that is deleted again. Memory that runs out in it halves the rows at once as it does later (`micro_batches`); a folder
that cannot be written stops the run. Weights, buffers, random states and whatever the trainer had noted are put back,
so that a run with a rehearsal is the run without one, to the last bit.

Not rehearsed: the answers that rloo and grpo sample, of which the optimizer's states and the checkpoint alone are, nor
those to the questions; nor an update whose undoing the host has no memory for. With several processes each rehearses
by itself, on the model as it is before it is wrapped: gradients are not shared.
"""

import logging
import resource
import shutil
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError

from finetune.budget.optimizer_states import is_in_pages
from finetune.errors import PlaceError
from finetune.objectives.free_memory import read_available_bytes
from finetune.objectives.full_memory import first_line, is_out_of_memory
from finetune.objectives.step_memory import find_longest
from finetune.objectives.trainer import StepMixin
from finetune.objectives.training_state import build_random_state, put_random_state_back

__all__ = ["rehearse"]

log = logging.getLogger("finetune.objectives.rehearsal")

# A name that a run's folder may be left with by a kill.
_FOLDER = ".rehearsal.part"
# Of what is trained, in the host's memory: the weights to be put back, and Adam's two states for the checkpoint.
_HOST_COPIES = 3


def rehearse(trainer: StepMixin, folder: Path) -> None:
    """Train, evaluate and save once with the longest rows, and undo it.

    Args:
        trainer: built, and not started.
        folder: of the run; a checkpoint is written into it and deleted.

    Raises:
        PlaceError: memory does not hold a single row, or the optimizer's states; the folder does not take a checkpoint.
        RecipeError: no checkpoint holds what the optimizer keeps.
    """
    began_seconds = time.monotonic()
    rows = find_longest(trainer.train_dataset, trainer.args.per_device_train_batch_size, trainer.awaited_columns)
    batch = trainer.data_collator(rows)
    samples = not isinstance(batch, Mapping)  # prompts, whose answers are yet to be sampled
    updates = _may_update(trainer)
    with _undone(trainer, updates=updates), _checkpointing(trainer):
        if updates:
            _make_optimizer(trainer)
        if not samples:
            _train(trainer, dict(batch))
            if trainer.eval_dataset is not None:
                _evaluate(trainer)
        _save(trainer, folder / _FOLDER, with_optimizer=updates)
    if samples:
        fits = "a checkpoint fits, and the optimizer's states" if updates else "a checkpoint fits"
    else:
        fits = f"the longest batch ({len(rows)} rows, {batch['num_real_tokens']:,} tokens) fits"
    log.info(
        "Rehearsal: %s: peak %.1f GiB, %.1f s",
        fits, _read_peak_bytes(trainer.args.device) / 2**30, time.monotonic() - began_seconds,
    )  # fmt: skip


# ---- the parts of a run


def _may_update(trainer: StepMixin) -> bool:
    """Whether an update can be undone: nothing of the optimizer stays behind, and the host holds the weights twice."""
    # bitsandbytes (0.50) lists the buffers of optimizers in pages for ever: a second optimizer would double them.
    if is_in_pages(trainer.args.optim):
        return False
    trained = (value for value in trainer.model.parameters() if value.requires_grad)
    needed_bytes = _HOST_COPIES * sum(value.numel() * value.element_size() for value in trained)
    available_bytes = read_available_bytes()
    if available_bytes is None or needed_bytes <= available_bytes:
        return True
    log.info(
        "Rehearsal: without an update, which would take %.1f GiB of the host's memory to be undone, and %.1f GiB are "
        "available: whether the optimizer's states fit shows at the first step.",
        needed_bytes / 2**30, available_bytes / 2**30,
    )  # fmt: skip
    return False


def _make_optimizer(trainer: StepMixin) -> None:
    """Let an optimizer take its states, which lie beside everything else at the peak of a step."""
    try:
        for parameter in trainer.model.parameters():
            if parameter.requires_grad:
                parameter.grad = torch.zeros_like(parameter)
        optimizer = trainer.create_optimizer()
        if "schedule_free" in trainer.args.optim:
            optimizer.train()
        optimizer.step()
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        raise PlaceError(
            f"Before the first step: there is not enough memory for the gradients and the optimizer's states "
            f"({first_line(error)}).\n"
            "  Less trained: adapter.r, adapter.target_modules     Smaller states: training.optim=adamw_8bit\n"
            "  A smaller base: model.quantization=nf4"
        ) from error
    if trainer.args.gradient_accumulation_steps == 1:  # else a micro-batch finds the gradients of the one before
        trainer.model.zero_grad()


def _train(trainer: StepMixin, batch: dict[str, Any]) -> None:
    """Train on a batch, with the numbers of the training loop."""
    trainer.current_gradient_accumulation_steps = trainer.args.gradient_accumulation_steps
    trainer._tokens_not_noted = 1  # the first loss is checked when it comes
    num_items = trainer._get_num_items_in_batch([batch], trainer.args.device)
    with trainer.as_in_training(), torch.enable_grad(), trainer.idle_memory.watching(batch):
        trainer.micro_batches.train(trainer.model, batch, num_items, super(StepMixin, trainer).training_step)
    trainer.model.zero_grad()


def _evaluate(trainer: StepMixin) -> None:
    rows = find_longest(trainer.eval_dataset, trainer.args.per_device_eval_batch_size, trainer.awaited_columns)
    with trainer.as_in_training():
        trainer.prediction_step(trainer.model, trainer.data_collator(rows), trainer.compute_metrics is None)


def _save(trainer: StepMixin, folder: Path, *, with_optimizer: bool) -> None:
    """Write what fills the disk in a checkpoint: weights and optimizer states; of several processes the first alone."""
    if not trainer.args.should_save:
        return  # nor clear away what the first is writing
    shutil.rmtree(folder, ignore_errors=True)
    try:
        folder.mkdir()
        trainer._save(str(folder))
        if with_optimizer:
            trainer.create_scheduler(num_training_steps=1)
            trainer._save_optimizer_and_scheduler(str(folder))
    except (OSError, SafetensorError) as error:
        raise PlaceError(
            f"Before the first step: a checkpoint cannot be written ({first_line(error)}).\n"
            f"  Make room in {folder.parent}, or choose another place: output_dir=…"
        ) from error
    finally:
        shutil.rmtree(folder, ignore_errors=True)


# ---- nothing is left


@contextmanager
def _undone(trainer: StepMixin, *, updates: bool) -> Iterator[None]:
    """Put weights, buffers, random states and the trainer back as they were; limits of memory that were found stay."""
    model = trainer.model
    held = list(model.buffers())
    if updates:  # nothing else moves a weight
        held += [value for value in model.parameters() if value.requires_grad]
    kept = [value.detach().to("cpu", copy=True) for value in held]
    all_gpus = trainer.args.world_size > 1
    random = build_random_state(all_gpus=all_gpus)
    own: dict[str, Any] = trainer.__dict__
    attributes = dict(own)
    figures = {mode: {name: list(values) for name, values in noted.items()} for mode, noted in trainer.figures.items()}
    try:
        yield
    finally:
        model.zero_grad()
        with torch.no_grad():
            for value, before in zip(held, kept, strict=True):
                value.copy_(before)
        own.clear()
        own.update(attributes)
        held_figures = trainer.figures
        for mode in held_figures.keys() - figures.keys():
            del held_figures[mode]
        for mode, noted in figures.items():
            held_figures[mode].clear()
            held_figures[mode].update(noted)
        put_random_state_back(random, all_gpus=all_gpus)


@contextmanager
def _checkpointing(trainer: StepMixin) -> Iterator[None]:
    """Recompute activations where the recipe says so: the trainer switches it on when it starts (transformers 5.17)."""
    model: Any = trainer.model
    if not trainer.args.gradient_checkpointing or model.is_gradient_checkpointing:
        yield
        return
    kwargs = dict(trainer.args.gradient_checkpointing_kwargs or {})
    own = {name: kwargs.pop(name) for name in ("every_n_layers", "offload") if name in kwargs}
    model.gradient_checkpointing_enable(gradient_checkpointing_kwargs=kwargs or None, **own)
    try:
        yield
    finally:
        model.gradient_checkpointing_disable()


def _read_peak_bytes(device: torch.device) -> int:
    """Most bytes held so far: tensors on the GPU, or on a CPU the whole process."""
    if device.type == "cuda":
        return int(torch.cuda.max_memory_allocated(device))
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024
