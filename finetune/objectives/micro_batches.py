"""Memory that runs out in a step or an evaluation: fewer rows at once, and the same mathematics.

In go the batches as the collators build them. Where one does not fit, what idle memory was spent on is taken back
first (`idle_memory`); then the batch is cut into parts of half as many rows. Either way the whole optimizer step is
repeated from its first micro-batch: gradients away, random states as they were, figures that were noted forgotten. The
rows of a step, its loss and its gradients stay what they were but for rounding and the draws of dropout, and but for
nothing where no row was cut. The decision holds for the rest of the run; checkpoints carry it, so that a resumed run
is cut alike, unless it goes on on another device, whose memory is asked anew.

Several processes would have to halve together and ask each other at every step whether to: there the run stops with
what would help, and so it does where a batch is more than the sum of its rows (the trainer's `find_why_whole`).
"""

import gc
import json
import logging
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeVar

import torch
from torch import Tensor

from finetune.data.batches import Collator
from finetune.errors import PlaceError
from finetune.model.lean import forget_shared_weights
from finetune.objectives.batch_parts import Batch, Part, count_rows, cut, measure_longest, regularized, weigh
from finetune.objectives.free_memory import name_memory
from finetune.objectives.full_memory import first_line, is_out_of_memory
from finetune.objectives.training_state import refused_as_state

if TYPE_CHECKING:
    from finetune.objectives.trainer import StepMixin

__all__ = ["MicroBatches", "restore_random", "save_random"]

Result = TypeVar("Result")

log = logging.getLogger("finetune.objectives.micro_batches")

MEMORY_NAME = "training_memory.json"


# ---- what a repeated step begins from


def save_random(device: torch.device) -> tuple[Tensor, Tensor | None]:
    """Save the states of torch's generators: the host's, and the device's where it is a GPU."""
    return torch.get_rng_state(), torch.cuda.get_rng_state(device) if device.type == "cuda" else None


def restore_random(states: tuple[Tensor, Tensor | None], device: torch.device) -> None:
    """Put the states of `save_random` back."""
    torch.set_rng_state(states[0])
    if states[1] is not None:
        torch.cuda.set_rng_state(states[1], device)


# Figures that are no means, by how TRL begins their names.
_EXTREMES: dict[str, Callable[[list[float]], float]] = {"min": min, "max": max}


class _Figures:
    """What a trainer notes of every batch, to be forgotten or put together again."""

    def __init__(self, trainer: "StepMixin", mode: Literal["train", "eval"]) -> None:
        self._store = trainer.figures[mode]
        self._trainer = trainer
        self._lengths = {name: len(values) for name, values in self._store.items()}
        self._counts = {name: trainer.__dict__[name] for name in trainer.counts}

    def forget(self) -> None:
        """Forget what was noted since."""
        for name in list(self._store):
            del self._store[name][self._lengths.get(name, 0) :]
            if name not in self._lengths:
                del self._store[name]
        self._trainer.__dict__.update(self._counts)

    def merge(self, shares: list[float]) -> None:
        """Make one figure of those of the parts, as the whole batch would have had."""
        for name, values in self._store.items():
            before = self._lengths.get(name, 0)
            noted = values[before:]
            if len(noted) != len(shares) or len(shares) == 1:
                continue
            extreme = _EXTREMES.get(name.split("_")[0])
            mean = sum(value * share for value, share in zip(noted, shares, strict=True))
            values[before:] = [mean if extreme is None else extreme(noted)]


@dataclass(slots=True)
class _Step:
    """An optimizer step under way.

    Attributes:
        figures: noted up to its beginning.
        random: torch's generators at its beginning.
        batches: its micro-batches so far, each with the step's `num_items_in_batch`.
        told: loss that the trainer has been told of them.
    """

    figures: _Figures
    random: tuple[Tensor, Tensor | None]
    batches: list[tuple[Batch, Any]] = field(default_factory=list)
    told: Tensor | float = 0.0


# ---- the limits


class MicroBatches:
    """How many rows a trainer puts through its model at once, lowered where memory runs out.

    Args:
        trainer: whose batches are cut.

    Attributes:
        rows: most rows of a part of a micro-batch; None: micro-batches are whole.
        eval_rows: the same of an evaluation batch.
        share: what the loss of the part under way is multiplied by.
    """

    def __init__(self, trainer: "StepMixin") -> None:
        self._trainer = trainer
        self._step: _Step | None = None
        self._part: Any = None
        self._is_news = False
        self.rows: int | None = None
        self.eval_rows: int | None = None
        self.share = 1.0

    def take_news(self) -> dict[str, int]:
        """Name the new limit, once after each change, as metrics.jsonl has it."""
        news = {"micro_batch_rows": self.rows} if self._is_news and self.rows is not None else {}
        self._is_news = False
        return news

    def write(self, folder: Path) -> None:
        """Write the limits into a checkpoint, where there are any."""
        if self.rows is not None or self.eval_rows is not None:
            limits: dict[str, Any] = {"micro_batch_rows": self.rows, "eval_batch_rows": self.eval_rows}
            limits |= {"is_news": self._is_news, "device": name_memory(self._trainer.args.device)}
            (folder / MEMORY_NAME).write_text(json.dumps(limits) + "\n", encoding="utf-8")

    def read(self, folder: Path) -> None:
        """Take the limits of a checkpoint up; one that was never short of memory has none.

        Raises:
            CheckpointError: the file holds something else.
        """
        path, here = folder / MEMORY_NAME, name_memory(self._trainer.args.device)
        if not path.exists():
            return
        with refused_as_state(path):
            limits = json.loads(path.read_text(encoding="utf-8"))
            found_on = limits.get("device", "another device")
            if found_on == here:
                self.rows, self.eval_rows = limits["micro_batch_rows"], limits["eval_batch_rows"]
                self._is_news = limits["is_news"]
                return
        log.info(
            "Memory had run out on %s, and this is %s: batches are whole again, until they do not fit here.",
            found_on, here,
        )  # fmt: skip

    # ---- training

    def train(
        self, model: Any, batch: Batch, num_items: Any, train_part: Callable[[Any, Batch, Any], Tensor]
    ) -> Tensor:
        """Train on a micro-batch; where it does not fit, on the whole step again in smaller parts.

        Args:
            model: as transformers hands it to `training_step`.
            batch: the micro-batch.
            num_items: `num_items_in_batch` of the step.
            train_part: transformers' step: forward and backward, and the loss.

        Returns:
            What is to be added to the loss told so far of this step.

        Raises:
            PlaceError: not even a row fits, or the batch cannot be cut.
        """
        trainer = self._trainer
        if self._step is None:
            self._step = _Step(_Figures(trainer, "train"), save_random(trainer.args.device))
        step = self._step
        step.batches.append((batch, num_items))
        todo, told_again = step.batches[-1:], False
        while (loss := self._try_to_train(model, todo, train_part)) is None:
            forget_shared_weights(trainer.model)
            _free()
            trainer.idle_memory.forget_attempt()
            model.zero_grad()
            step.figures.forget()
            restore_random(step.random, trainer.args.device)
            todo, told_again = step.batches, True
        if told_again:
            loss = loss - step.told
        step.told = step.told + loss
        if trainer.accelerator.sync_gradients:  # the step's last micro-batch
            self._step = None
        return loss

    def _try_to_train(
        self, model: Any, todo: list[tuple[Batch, Any]], train_part: Callable[[Any, Batch, Any], Tensor]
    ) -> Tensor | None:
        """Train on micro-batches; None where memory ran out and fewer rows are to be tried."""
        try:
            losses = [self._train_in_parts(model, batch, num_items, train_part) for batch, num_items in todo]
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
            if self._trainer.idle_memory.take_back():
                log.warning(
                    "%s: memory ran out (%s), and less is kept of what it was spent on: %s. The step is repeated.",
                    self._say_where(), first_line(error), self._trainer.idle_memory.describe(),
                )  # fmt: skip
                return None
            rows = self._halve(self.rows, self._trainer.args.per_device_train_batch_size)
            if rows is None:
                raise self._refuse(error) from error
            self.rows, self._is_news = rows, True
            log.warning(
                "%s: memory ran out (%s). From here on %d %s at once and as many a step as before; the step is "
                "repeated.", self._say_where(), first_line(error), rows, "row" if rows == 1 else "rows",
            )  # fmt: skip
            return None
        finally:
            self._part, self.share = None, 1.0
        return torch.stack(losses).sum() if len(losses) > 1 else losses[0]

    def _train_in_parts(
        self, model: Any, batch: Batch, num_items: Any, train_part: Callable[[Any, Batch, Any], Tensor]
    ) -> Tensor:
        trainer = self._trainer
        parts = self._split(batch, self.rows, trainer.args.per_device_train_batch_size)
        if len(parts) == 1:
            self._part = batch
            return train_part(model, batch, num_items)
        # Else the parts' losses add up by themselves: each is a sum over the number of the whole step.
        is_mean = num_items is None or (not trainer.model_accepts_loss_kwargs and trainer.compute_loss_func is None)
        if is_mean:
            parts = [part for part in parts if part.share]  # the mean of no token is not a number
        figures, losses = _Figures(trainer, "train"), []
        for part in parts:
            self._part, self.share = part.batch, part.share if is_mean else 1.0
            with trainer.as_part(part, batch), regularized(trainer.model, 1.0 if is_mean else part.share):
                losses.append(train_part(model, part.batch, num_items))
        self.share = 1.0
        figures.merge([part.share for part in parts])
        return torch.stack(losses).sum()

    # ---- evaluation

    def evaluate(self, batch: Batch, evaluate_part: Callable[[Batch], Result]) -> list[tuple[Batch, Result]]:
        """Evaluate a batch; where it does not fit, in smaller parts.

        Args:
            batch: of a collator; left as it is.
            evaluate_part: gets a copy of the batch or of a part.

        Returns:
            Each part in the order of the rows, with what was found of it.

        Raises:
            PlaceError: not even a row fits, or the batch cannot be cut.
        """
        while (found := self._try_to_evaluate(batch, evaluate_part)) is None:
            _free()
        return found

    def _try_to_evaluate(
        self, batch: Batch, evaluate_part: Callable[[Batch], Result]
    ) -> list[tuple[Batch, Result]] | None:
        trainer, found = self._trainer, []
        figures = _Figures(trainer, "eval")
        try:
            parts = self._split(batch, self.eval_rows, trainer.args.per_device_eval_batch_size)
            for part in parts:
                self._part = part.batch
                with nullcontext() if part.batch is batch else trainer.as_part(part, batch):
                    found.append((part.batch, evaluate_part(dict(part.batch))))
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
            if trainer.idle_memory.take_back(copies_alone=True):
                log.warning(
                    "%s: memory ran out while rows are evaluated (%s). From here on no 4-bit weight is kept in full.",
                    self._say_where(), first_line(error),
                )  # fmt: skip
                figures.forget()
                return None
            rows = self._halve(self.eval_rows, trainer.args.per_device_eval_batch_size)
            if rows is None:
                raise self._refuse(error, evaluates=True) from error
            self.eval_rows = rows
            log.warning(
                "%s: memory ran out while rows are evaluated (%s). From here on %d at once: the figures are means over "
                "the same rows.", self._say_where(), first_line(error), rows,
            )  # fmt: skip
            figures.forget()
            return None
        finally:
            self._part = None
        figures.merge([part.share for part in parts])
        return found

    # ---- the parts

    def _split(self, batch: Any, max_rows: int | None, rows_of_a_batch: int) -> list[Part]:
        if max_rows is None or self._trainer.find_why_whole(batch) is not None:
            return [Part(batch, 1.0)]
        answers_a_row = self._trainer.answers_a_row
        parts = cut(batch, max_rows, answers_a_row=answers_a_row, **self._describe(rows_of_a_batch))
        whole = weigh(batch, answers_a_row)
        return [Part(part, weigh(part, answers_a_row) / whole if whole else 0.0) for part in parts]

    def _describe(self, rows_of_a_batch: int) -> dict[str, Any]:
        """What `cut` and `count_rows` have to know of the collator's layout."""
        collator = self._trainer.data_collator
        if not isinstance(collator, Collator):
            return {}
        flat_rows = rows_of_a_batch if collator.layout == "flat" else None
        return {"pad_token_id": collator.pad_token_id, "flat_rows": flat_rows}

    def _halve(self, limit: int | None, rows_of_a_batch: int) -> int | None:
        """Choose the next limit below the rows of the part that did not fit; None where there is none."""
        trainer, part = self._trainer, self._part
        if trainer.args.world_size > 1 or part is None or trainer.find_why_whole(part) is not None:
            return None
        layout = self._describe(rows_of_a_batch)
        rows = count_rows(part, answers_a_row=trainer.answers_a_row, flat_rows=layout.get("flat_rows"))
        if limit is not None:  # a part of a flat batch does not show how many rows it is worth
            rows = min(rows, limit)
        return rows // 2 if rows > 1 else None

    # ---- what is said

    def _say_where(self) -> str:
        trainer = self._trainer
        return f"step {trainer.state.global_step + 1}" if trainer.is_in_train else "Before the first step"

    def _refuse(self, error: BaseException, *, evaluates: bool = False) -> PlaceError:
        """Say what would help."""
        args, part = self._trainer.args, self._part
        why = None if part is None else self._trainer.find_why_whole(part)
        told = f"{self._say_where()}: memory is full{' while rows are evaluated' if evaluates else ''}"
        if args.world_size == 1 and why is None and part is not None:
            told += f" at a single row of {measure_longest(part):,} tokens"
        lines = [f"{told} ({first_line(error)})."]
        if why is not None or args.world_size > 1:
            lines.append(f"  It is not cut by itself: {why or 'several processes would have to halve together'}.")
            lines.append(
                f"  Fewer at once: training.per_device_eval_batch_size, now {args.per_device_eval_batch_size}"
                if evaluates
                else "  Smaller micro-batches, the same rows a step: training.per_device_train_batch_size=1 with a "
                "larger training.gradient_accumulation_steps"
            )
        kept = (
            "" if args.gradient_checkpointing or evaluates else "     Less kept: training.gradient_checkpointing=true"
        )
        lines.append(f"  Shorter rows: data.max_length{kept}")
        lines.append("  A smaller base: model.quantization=nf4     Less trained: adapter.r, adapter.target_modules")
        return PlaceError("\n".join(lines))


def _free() -> None:
    """Give memory back that a failed attempt held."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
