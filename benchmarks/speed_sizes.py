"""How large a step is for each contender of a line, so that all take as many rows a step and as many steps.

In go the tokens of rows and the packed rows of a step; out come how many of the rows are trained, and the sizes. A step
of packed rows sets the measure, being the coarsest: its rows are what it holds. Ours packs a budget's rows in an order
that a run draws, and gets the least budget that makes no more steps of them in any of many drawn orders; one in a
hundred of the others still makes one more. Where each row lies alone a step takes whole rows, for as many steps or
nearly so.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from finetune.data.packing import choose_rows

__all__ = ["StepSizes", "choose_micro_batch", "choose_packed_sizes", "choose_sizes_alone"]

# What TRL's trainers take in one micro-batch unless told otherwise; larger steps are accumulated of about as many.
MICRO_BATCH_ROWS = 8
MAX_ROWS_AT_ONCE = 16
# Which order a run draws is not known here. With 20, an eighth of the others made a tenth step of the 125M's nine.
NUM_DRAWN_ORDERS = 100


@dataclass(frozen=True, slots=True)
class StepSizes:
    """Sizes of an optimizer step.

    Attributes:
        micro_batch_rows: of a micro-batch where each row lies alone.
        accumulation: micro-batches of a step there.
        packed_tokens: of a packed row; None, as those below: nothing is packed.
        packed_rows: of a step.
        tokens_per_batch: of a step that is a budget of tokens.
    """

    micro_batch_rows: int
    accumulation: int
    packed_tokens: int | None = None
    packed_rows: int | None = None
    tokens_per_batch: int | None = None


def choose_micro_batch(num_rows: int, num_steps: int) -> tuple[int, int]:
    """Choose rows of a micro-batch and how many of those make a step, where each row lies alone.

    Args:
        num_rows: trained in all.
        num_steps: that they are to last for, the last one perhaps not full.

    Returns:
        Rows and micro-batches whose steps come as near to that number as whole rows allow.
    """
    mean = num_rows / num_steps
    near = range(MICRO_BATCH_ROWS - 2, MICRO_BATCH_ROWS + 3)
    if mean <= MAX_ROWS_AT_ONCE:
        pairs = [(max(1, rows), 1) for rows in (math.floor(mean), math.ceil(mean))]
    else:
        pairs = [(rows, count) for rows in near for count in (math.floor(mean / rows), math.ceil(mean / rows))]

    def distance(pair: tuple[int, int]) -> tuple[float, ...]:
        rows = pair[0] * pair[1]
        return abs(math.ceil(num_rows / rows) - num_steps), abs(rows - mean), abs(pair[0] - MICRO_BATCH_ROWS)

    return min(pairs, key=distance)


def choose_packed_sizes(
    row_tokens: Sequence[int], *, max_tokens: int, packed_tokens: int, packed_rows: int, num_steps: int
) -> tuple[int, StepSizes]:
    """Choose sizes for rows that some contenders pack.

    Args:
        row_tokens: of rows in the order they are taken, more than are needed.
        max_tokens: that a row may have; no budget is smaller.
        packed_tokens: of a packed row, as many at least.
        packed_rows: of a step.
        num_steps: that the rows are to last for.

    Returns:
        How many of the rows fill those steps, and the sizes.
    """
    num_rows, too_many = 1, len(row_tokens) + 1
    while too_many - num_rows > 1:
        middle = (num_rows + too_many) // 2
        if _count_packed(row_tokens[:middle], packed_tokens) <= packed_rows * num_steps:
            num_rows = middle
        else:
            too_many = middle
    taken = row_tokens[:num_rows]
    steps = -(-_count_packed(taken, packed_tokens) // packed_rows)
    budget = max(max_tokens, -(-sum(taken) // steps))
    while not _fits_however_drawn(taken, budget, steps):
        budget += 1
    return num_rows, StepSizes(*choose_micro_batch(num_rows, steps), packed_tokens, packed_rows, budget)


def choose_sizes_alone(row_tokens: Sequence[int], *, tokens_per_step: int, num_steps: int) -> tuple[int, StepSizes]:
    """Choose sizes for rows that nobody packs, such as pairs: how many of them, and as many a step as come nearest."""
    mean_tokens = sum(row_tokens) / len(row_tokens)
    rows_per_step = max(1, round(tokens_per_step / mean_tokens))
    micro_batch_rows, accumulation = choose_micro_batch(rows_per_step * num_steps, num_steps)
    return micro_batch_rows * accumulation * num_steps, StepSizes(micro_batch_rows, accumulation)


def _count_packed(row_tokens: Sequence[int], packed_tokens: int) -> int:
    """Count the packed rows, of which ours and TRL make the same."""
    return len(choose_rows(np.asarray(row_tokens), packed_tokens)[1])


def _fits_however_drawn(row_tokens: Sequence[int], budget: int, num_steps: int) -> bool:
    """Whether rows packed under a budget of tokens, as ours are, fit into so many steps in each of the drawn orders."""
    lengths = np.asarray(row_tokens)
    draws = np.random.default_rng(0)
    orders = (draws.permutation(len(lengths)) for _ in range(NUM_DRAWN_ORDERS))
    return all(len(choose_rows(lengths, budget, order=order)[1]) <= num_steps for order in orders)
