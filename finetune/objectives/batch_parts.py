"""A batch cut into parts that together are trained, or measured, as the whole would have been.

In go batches as the collators of `data.batches` build them, in whatever layout; out come parts of fewer rows, each as
wide as its own longest row, and the share that each part's loss has in the whole batch's.

Shape suffixes: B rows, T tokens.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import torch
from peft import AdaLoraModel, PeftModel
from torch import Tensor
from transformers.trainer_pt_utils import nested_concat

from finetune.data.batches import IGNORE_INDEX, count_predicted, name_documents

__all__ = [
    "EXPERTS_BALANCE",
    "Batch",
    "Part",
    "count_rows",
    "cut",
    "find_chosen_factor",
    "join_answers",
    "join_predictions",
    "measure_longest",
    "regularized",
    "weigh",
]

Batch = dict[str, Any]

# Why a mixture of experts is trained on whole micro-batches.
EXPERTS_BALANCE = "the experts' balance is measured over a whole micro-batch"


@dataclass(frozen=True, slots=True)
class Part:
    """One part of a batch.

    Attributes:
        batch: its rows.
        share: of what the whole batch's mean loss is a mean over, 0 to 1.
    """

    batch: Batch
    share: float


def cut(
    batch: Batch, max_rows: int, *, answers_a_row: int = 1, pad_token_id: int = 0, flat_rows: int | None = None
) -> list[Batch]:
    """Cut a batch into parts of at most so many rows, each as wide as its own longest row.

    Args:
        batch: of a collator: tensors of B rows, of B answers' pairs, and plain values.
        max_rows: of a part, at least 1.
        answers_a_row: 2 where rows i and B + i belong together.
        pad_token_id: what fills rows that come without an `attention_mask`.
        flat_rows: how many rows lie behind each other in the one of the flat layout, which is cut between documents,
            each of which counts as a row where there is but one; None: another layout.

    Returns:
        The parts in the order of the rows; the batch itself where it is small enough. All its `num_real_tokens` are
        counted with the first part.
    """
    num_rows = count_rows(batch, answers_a_row=answers_a_row, flat_rows=flat_rows)
    if num_rows <= max_rows:
        return [batch]
    if flat_rows is not None:
        parts = _cut_flat(batch, -(-batch["input_ids"].shape[1] * max_rows // num_rows))
    else:
        starts = range(0, num_rows, max_rows)
        parts = [_trim(_take(batch, start, start + max_rows, answers_a_row), pad_token_id) for start in starts]
    for part in parts[1:]:
        part["num_real_tokens"] = 0
    if "num_trained_tokens" in batch:
        for part in parts:
            part["num_trained_tokens"] = count_predicted(part["labels"])
    return parts


def count_rows(batch: Batch, *, answers_a_row: int = 1, flat_rows: int | None = None) -> int:
    """Count the rows of a batch; of a flat one as many as it was made of, but no more than it has documents.

    A flat row that was made of a single one is worth its documents.
    """
    if flat_rows is not None:
        num_documents = int((batch["position_ids"] == 0).sum())
        return num_documents if flat_rows == 1 else min(flat_rows, num_documents)
    return len(batch["input_ids"]) // answers_a_row


def _take(batch: Batch, start: int, stop: int, answers_a_row: int) -> Batch:
    num_answers = len(batch["input_ids"])
    num_rows = num_answers // answers_a_row
    part: Batch = {}
    for name, value in batch.items():
        if not isinstance(value, Tensor):
            part[name] = value
        elif len(value) == num_answers:
            part[name] = torch.cat([group[start:stop] for group in value.split(num_rows)])
        else:  # one number a pair
            part[name] = value[start:stop]
    return part


def _trim(part: Batch, pad_token_id: int) -> Batch:
    """Drop the columns on the right that are padding in every row."""
    ids_BT = part["input_ids"]
    if "attention_mask" in part:
        is_token_BT = part["attention_mask"] != 0
    else:
        is_token_BT = (ids_BT != pad_token_id) | (part["labels"] != IGNORE_INDEX)
    width = int(is_token_BT.any(0).nonzero().max()) + 1
    return {
        name: value[:, :width].contiguous()
        if isinstance(value, Tensor) and value.dim() == 2 and value.shape[1] == ids_BT.shape[1]
        else value
        for name, value in part.items()
    }


def _cut_flat(batch: Batch, max_tokens: int) -> list[Batch]:
    """Cut one row of many documents between them; a document longer than `max_tokens` is a part of its own."""
    num_tokens = batch["input_ids"].shape[1]
    starts = [*(batch["position_ids"][0] == 0).nonzero().flatten().tolist(), num_tokens]
    edges = [0]  # numbers of documents
    for place in range(1, len(starts) - 1):
        if starts[place + 1] - starts[edges[-1]] > max_tokens:
            edges.append(place)
    edges.append(len(starts) - 1)
    parts = []
    for first, last in pairwise(edges):
        part = {
            name: value[:, starts[first] : starts[last]] if isinstance(value, Tensor) and value.dim() == 2 else value
            for name, value in batch.items()
        }
        if "packed_seq_lengths" in batch:
            part["packed_seq_lengths"] = batch["packed_seq_lengths"][first:last]
        if "cu_seq_lens_q" in batch:
            part |= name_documents(part["position_ids"][0])
        parts.append(part)
    return parts


def weigh(batch: Batch, answers_a_row: int) -> int:
    """Count what a batch's mean loss is a mean over: trained tokens where each has a label, else rows."""
    labels = batch.get("labels")
    if labels is not None and labels.dim() == 2:
        return int((labels[:, 1:] != IGNORE_INDEX).sum())
    return len(batch["input_ids"]) // answers_a_row


def measure_longest(batch: Batch) -> int:
    """Count the tokens of a batch's longest row; of packed ones, the padding included."""
    mask = batch.get("attention_mask")
    return int(mask.sum(1).max()) if mask is not None else int(batch["input_ids"].shape[1])


def join_predictions(predicted: Sequence[tuple[Any, Any, Any]]) -> tuple[Any, Any, Any]:
    """Join what transformers' `prediction_step` gives of parts: the loss of the last, outputs and labels of all rows.

    Whoever reads a mean loss sums it up by the parts before.
    """
    loss, *joined = predicted[0]
    for one, *others in predicted[1:]:
        loss = one
        joined = [
            None if new is None else nested_concat(old, new, padding_index=IGNORE_INDEX)
            for old, new in zip(joined, others, strict=True)
        ]
    return loss, joined[0], joined[1]


def join_answers(scored: Sequence[tuple[Tensor, Tensor]], answers_a_row: int) -> tuple[Tensor, Tensor]:
    """Join the scores and lengths of parts' answers; of pairs all chosen ones come before all rejected ones."""

    def join(column: Sequence[Tensor]) -> Tensor:
        by_kind = zip(*(values.chunk(answers_a_row) for values in column), strict=True)
        return torch.cat([values for kind in by_kind for values in kind])

    values, tokens = zip(*scored, strict=True)
    return join(values), join(tokens)


def find_chosen_factor(part: Part, whole: Batch) -> float:
    """Find what a term of a part's loss is multiplied by that is a mean over the chosen answers' tokens.

    The part's loss is weighed by its share of the pairs, and this makes of that its share of those tokens.

    Args:
        part: of a batch of pairs, one of several.
        whole: the batch.
    """
    return _count_chosen(part.batch) / _count_chosen(whole) / part.share


def _count_chosen(batch: Batch) -> int:
    """Trained tokens of the chosen answers, which come first."""
    mask = batch["completion_mask"]
    return int(mask[: len(mask) // 2, 1:].sum())


@contextmanager
def regularized(model: Any, share: float) -> Iterator[None]:
    """Weigh the regularization that AdaLoRA adds to every forward pass; other models are left as they are.

    Args:
        model: that is trained.
        share: of a part, where its loss is a sum over the whole step's number and is not weighed itself; else 1.
    """
    tuner = model.base_model if isinstance(model, PeftModel) else None
    if share == 1.0 or not isinstance(tuner, AdaLoraModel):
        yield
        return
    config = tuner.peft_config[tuner.trainable_adapter_name]
    weight = config.orth_reg_weight
    config.orth_reg_weight = weight * share
    try:
        yield
    finally:
        config.orth_reg_weight = weight
