"""How rows become steps: micro-batches, rows and tokens of a step, and the largest micro-batch there is.

In go a recipe and its rows; out comes a `Schedule`. Steps are counted as transformers' Trainer counts them.
"""

import math
from dataclasses import dataclass, replace
from typing import Any

from finetune.budget.activations import BatchShape
from finetune.planning.rows import ANSWERS_A_ROW, Rows
from finetune.recipe.catalogue import read_catalogue
from finetune.recipe.row_kinds import SAMPLED
from finetune.recipe.row_layouts import choose_layout, fill_up
from finetune.recipe.schema import Recipe

__all__ = ["Schedule", "build_schedule", "find_setting", "name_rows", "packs_rows"]

# Best-fit packing of documents of these lengths fills 98 to 99.9 % of a row; rows sorted by length, of which those of
# like length share a micro-batch, are 94 to 99 % full (both simulated on Alpaca's lengths, PERFORMANCE.md).
_PACKED_FILL = 0.99
_SORTED_FILL = 0.97
# Those whose rows lie as `recipe.row_layouts` says; all other rows are padded.
_SUPERVISED = frozenset({"sft", "pretrain"})


@dataclass(frozen=True, slots=True, kw_only=True)
class Schedule:
    """Steps, and what is in them.

    Attributes:
        steps: optimizer steps.
        micro_batches: of the whole run, in each process.
        num_processes: that train at once.
        rows_per_step: documents, pairs or prompts of a step on the mean; packed rows count their documents.
        tokens_per_step: real tokens of a step on the mean.
        tokens_per_batch: of a micro-batch on the mean, padding included.
        largest: the largest micro-batch that can come, as it lies in memory.
    """

    steps: int
    micro_batches: int
    num_processes: int
    rows_per_step: float
    tokens_per_step: float
    tokens_per_batch: float
    largest: BatchShape


def build_schedule(
    recipe: Recipe, rows: Rows, *, attention: str, by_unsloth: bool = False, num_processes: int = 1
) -> Schedule:
    """Build the schedule of a run.

    Args:
        recipe: read for the micro-batch, accumulation, epochs and packing.
        rows: to train on.
        attention: the kernel, which decides how rows lie in memory.
        by_unsloth: whether Unsloth's own kernels attend.
        num_processes: that train at once.
    """
    training, max_length = recipe.training, recipe.data.max_length
    size, answers = training.per_device_train_batch_size, ANSWERS_A_ROW.get(recipe.objective, 1)
    num_tokens, longest, num_rows = rows.num_tokens, rows.longest_tokens, rows.num_rows
    if recipe.objective in SAMPLED:
        longest, num_tokens, num_rows = _count_sampled(recipe, rows)
    if packs_rows(recipe):
        row_tokens = recipe.data.tokens_per_batch or max_length
        num_batched = rows.num_packed or max(1, math.ceil(num_tokens / (_PACKED_FILL * row_tokens)))
        fill, size = min(1.0, num_tokens / (num_batched * row_tokens)), 1 if recipe.data.tokens_per_batch else size
    else:
        num_batched, fill, row_tokens = num_rows, _SORTED_FILL if size * answers > 1 else 1.0, longest
    num_batches = math.ceil(num_batched / (size * num_processes))
    steps_per_epoch = max(math.ceil(num_batches / training.gradient_accumulation_steps), 1)
    if training.max_steps > 0:
        steps = training.max_steps
        micro_batches = math.ceil(steps * num_batches / steps_per_epoch)
    else:
        steps = math.ceil(training.num_train_epochs * steps_per_epoch)
        micro_batches = math.ceil(training.num_train_epochs * num_batches)
    mean_tokens = num_tokens / (num_batches * num_processes)
    in_rows = BatchShape(
        num_rows=min(size, num_batched) * answers,
        row_tokens=row_tokens,
        document_tokens=min(rows.attended_tokens, float(row_tokens)),
        trained_fraction=rows.trained_fraction,
        is_packed=packs_rows(recipe),
    )
    tokens_per_batch, largest = mean_tokens / fill, in_rows
    if recipe.objective in _SUPERVISED:
        layout = choose_layout(packing=recipe.data.packing, attention=attention, by_unsloth=by_unsloth)
        if layout == "flat":  # behind each other, without padding
            fills_up = recipe.data.packing and not by_unsloth
            largest = _lay_flat(in_rows, fills_up=fills_up)
            tokens_per_batch = float(fill_up(math.ceil(mean_tokens))) if fills_up else mean_tokens
    return Schedule(
        steps=steps,
        micro_batches=micro_batches,
        num_processes=num_processes,
        rows_per_step=num_rows / steps_per_epoch,
        tokens_per_step=num_tokens / steps_per_epoch,
        tokens_per_batch=tokens_per_batch,
        largest=largest,
    )


def packs_rows(recipe: Recipe) -> bool:
    """Whether a row holds several documents."""
    return recipe.data.packing and recipe.objective in _SUPERVISED


def _lay_flat(batch: BatchShape, *, fills_up: bool) -> BatchShape:
    """All rows of a micro-batch as one row, whose documents are told apart by their positions."""
    tokens = fill_up(batch.num_tokens) if fills_up else batch.num_tokens
    return replace(batch, num_rows=1, row_tokens=tokens, is_packed=True)


def name_rows(objective: str, *, is_packed: bool) -> str:
    """Name the rows of a micro-batch as its size counts them: packed ones, sampled answers, or rows as they are."""
    if is_packed:
        return "packed rows"
    return "answers" if objective in SAMPLED else "rows"


def find_setting(recipe: Recipe, name: str) -> Any:
    """Find a field of the trainer's own config: as the recipe has it, else the library's default.

    Args:
        recipe: read for `training` and the objective.
        name: by the config's own name.
    """
    return read_catalogue().find_trainer_value(recipe.objective, recipe.training.fields, name)


def _count_sampled(recipe: Recipe, rows: Rows) -> tuple[int, int, int]:
    """Prompts with their answers at full length: longest, tokens, and rows where each prompt is answered several times.

    TRL counts answers as rows of a micro-batch (1.14).
    """
    answer_tokens = int(find_setting(recipe, "max_completion_length"))
    num_answers = int(find_setting(recipe, "num_generations")) * int(find_setting(recipe, "num_iterations"))
    longest = min(rows.longest_tokens + answer_tokens, recipe.data.max_length)
    num_rows = rows.num_rows * num_answers
    return longest, num_answers * (rows.num_tokens + rows.num_rows * answer_tokens), num_rows
