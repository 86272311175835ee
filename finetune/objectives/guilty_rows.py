"""The rows of a step whose loss or gradient is not finite: where each stands in the data, its own loss, its text.

In go the micro-batches of the step as the collator made them; out comes an object for each row, the likeliest culprits
first. All of it is done at the failure, so that a step that goes well costs nothing: batches are taken apart into
documents again, those are searched for in the account of rows, and each is put through the model alone.

Shape suffixes: B rows, T tokens.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow.compute as pc
import torch
from datasets import Dataset

from finetune.data.batches import IGNORE_INDEX
from finetune.data.tokens import count_trained
from finetune.errors import PlaceError

if TYPE_CHECKING:
    from finetune.objectives.trainer import StepMixin

__all__ = ["GuiltyRow", "find_guilty_rows", "find_places", "render_guilty_rows", "take_apart"]

_MOST_CHARACTERS = 2_000  # of a text in the run's folder
_MOST_NAMED = 3  # rows in a message
_SEARCHED_AT_ONCE = 10_000
_ABSENT = "not found among the rows"

# A document's ids, one tuple for each of its answers.
Key = tuple[tuple[int, ...], ...]


@dataclass(frozen=True, slots=True)
class GuiltyRow:
    """A row of the step.

    Attributes:
        micro_batch: number within the step, from 1.
        in_odd_batch: whether the loss of its micro-batch was not finite.
        key: its ids, as they stand in the data.
        trained_tokens: that carry loss; None where a row has one label, or answers are sampled.
        alone: a batch of this row only; None where there is no loss of one prompt.
        source: the file it came from; None where it was not found.
        row: number in that file.
        loss: its own, with the weights from before the step and no dropout; None: not computed.
        text: decoded and cut.
    """

    micro_batch: int
    in_odd_batch: bool
    key: Key
    trained_tokens: int | None
    alone: dict[str, Any] | None
    source: str | None = None
    row: int | None = None
    loss: float | None = None
    text: str = ""

    @property
    def num_tokens(self) -> int:
        """Tokens of all its answers."""
        return sum(map(len, self.key))

    @property
    def is_guilty(self) -> bool:
        """Whether its own loss is not finite."""
        return self.loss is not None and not math.isfinite(self.loss)

    def to_json(self, step: int) -> dict[str, Any]:
        """The object of non_finite.jsonl; a loss that JSON has no number for is the word `nan` or `inf`."""
        return {
            "step": step,
            "micro_batch": self.micro_batch,
            "source": self.source,
            "row": self.row,
            "tokens": self.num_tokens,
            "trained_tokens": self.trained_tokens,
            "loss": str(self.loss) if self.is_guilty else self.loss,
            "text": self.text,
        }


def find_guilty_rows(
    trainer: "StepMixin", batches: Sequence[tuple[bool, Any]], account: Dataset | None
) -> list[GuiltyRow]:
    """Find the rows of a step, of all processes, those first that are likeliest to blame.

    Args:
        trainer: of the run, its weights as they were before the step.
        batches: of each micro-batch whether its loss was finite, and what the collator made.
        account: the rows that were read; None: places stay unknown.
    """
    rows = [
        row
        for number, (is_finite, inputs) in enumerate(batches, start=1)
        for row in take_apart(inputs, number, in_odd_batch=not is_finite, answers_a_row=trainer.answers_a_row)
    ]
    places = {} if account is None else find_places(account, {row.key for row in rows})
    losses = _measure_alone(trainer, rows)
    tokenizer = trainer.processing_class
    told = []
    for row, loss in zip(rows, losses, strict=True):
        source, number = places.get(row.key, (None, None))
        text = "\n\n".join(tokenizer.decode(list(ids)) for ids in row.key)[:_MOST_CHARACTERS]
        told.append(replace(row, alone=None, source=source, row=number, loss=loss, text=text))
    if trainer.args.world_size > 1:
        of_each: list[list[GuiltyRow]] = [[]] * trainer.args.world_size
        torch.distributed.all_gather_object(of_each, told)
        told = [row for rows_of_one in of_each for row in rows_of_one]
    return sorted(told, key=lambda row: (not row.is_guilty, not row.in_odd_batch, -(row.loss or 0.0)))


def render_guilty_rows(rows: Sequence[GuiltyRow]) -> list[str]:
    """Lines for a message: the rows that are to blame, or what can be said where none is by itself."""
    guilty = [row for row in rows if row.is_guilty]
    suspected = guilty or [row for row in rows if row.in_odd_batch] or list(rows)
    lines = [_render(row) for row in suspected[:_MOST_NAMED]]
    if not guilty and any(row.loss is not None for row in rows):
        lines.insert(0, "Each row by itself has a finite loss; the highest:")
    elif len(guilty) > _MOST_NAMED:
        lines.append(f"and {len(guilty) - _MOST_NAMED} rows more whose loss alone is not finite")
    return lines


def _render(row: GuiltyRow) -> str:
    place = _ABSENT if row.source is None else f"{row.source}:{row.row}"
    loss = "" if row.loss is None else f": its loss alone is {row.loss:.4g}"
    return f"{place} ({row.num_tokens} tokens){loss}"


# ---- a batch taken apart


def take_apart(inputs: Any, micro_batch: int, *, in_odd_batch: bool, answers_a_row: int) -> list[GuiltyRow]:
    """Take a micro-batch apart into the documents, pairs or prompts that it was made of.

    Args:
        inputs: the tensors of a collator of `data.batches`, or a list of rows with a `prompt`.
        micro_batch: its number.
        in_odd_batch: whether its loss was not finite.
        answers_a_row: two where chosen answers stand before rejected ones.
    """
    if not isinstance(inputs, Mapping):
        prompts = dict.fromkeys(tuple(row["prompt"]) for row in inputs)  # each stands there once for every answer
        return [GuiltyRow(micro_batch, in_odd_batch, (prompt,), None, None) for prompt in prompts]
    found = _take_padded_apart(inputs, answers_a_row) if "attention_mask" in inputs else _take_packed_apart(inputs)
    return [GuiltyRow(micro_batch, in_odd_batch, *parts) for parts in found]


def _take_padded_apart(inputs: Mapping[str, Any], answers_a_row: int) -> list[tuple[Key, int | None, dict[str, Any]]]:
    ids_BT, labels_BT = _find_ids(inputs)
    is_real_BT = inputs["attention_mask"].bool()
    num_lines = len(ids_BT)
    num_rows = num_lines // answers_a_row
    found = []
    for place in range(num_rows):
        lines = list(range(place, num_lines, num_rows))
        key = tuple(tuple(ids_BT[line][is_real_BT[line]].tolist()) for line in lines)
        trained = None if labels_BT is None else sum(count_trained(labels_BT[line].tolist()) for line in lines)
        alone = {
            name: value[lines] if len(value) == num_lines else value[[place]]
            for name, value in inputs.items()
            if isinstance(value, torch.Tensor)
        }
        found.append((key, trained, alone | {"num_real_tokens": sum(map(len, key))}))
    return found


def _take_packed_apart(inputs: Mapping[str, Any]) -> list[tuple[Key, int | None, dict[str, Any]]]:
    """Take rows apart where their positions restart; what has no label is padding."""
    found: list[tuple[Key, int | None, dict[str, Any]]] = []
    for ids_T, labels_T, positions_T in zip(inputs["input_ids"], inputs["labels"], inputs["position_ids"], strict=True):
        starts = (positions_T == 0).nonzero().flatten().tolist()
        for start, end in zip(starts, [*starts[1:], len(ids_T)], strict=True):
            trained = count_trained(labels_T[start:end].tolist())
            if not trained:
                continue
            document = slice(start, end)
            alone = {
                "input_ids": ids_T[None, document],
                "labels": labels_T[None, document],
                "position_ids": positions_T[None, document],
                "num_real_tokens": end - start,
            }
            if "packed_seq_lengths" in inputs:
                alone["packed_seq_lengths"] = torch.tensor([end - start], dtype=torch.int32)
            found.append(((tuple(ids_T[document].tolist()),), trained, alone))
    return found


def _find_ids(inputs: Mapping[str, Any]) -> tuple[torch.Tensor, torch.Tensor | None]:
    """The ids as they stand in the data, and the labels by token where there are any.

    A masked token is in the labels still.
    """
    ids_BT, labels = inputs["input_ids"], inputs.get("labels")
    if labels is not None and labels.dim() == 2:
        return torch.where(labels == IGNORE_INDEX, ids_BT, labels), labels
    if "completion_mask" in inputs:
        return ids_BT, ids_BT.masked_fill(inputs["completion_mask"] == 0, IGNORE_INDEX)
    return ids_BT, None


# ---- where it stands, and its own loss


def find_places(account: Dataset, keys: set[Key]) -> dict[Key, tuple[str, int]]:
    """Find the file and the row of documents by their ids; of several alike, the first.

    Args:
        account: of the rows read (`TokenRows.account`).
        keys: ids of documents, pairs (chosen, rejected) or prompts.
    """
    columns = ["input_ids"]
    if "prompt" in account.column_names:
        columns = ["prompt"]
    elif "chosen_ids" in account.column_names:
        columns = ["chosen_ids", "rejected_ids"]
    lengths = sorted({len(key[0]) for key in keys})
    places: dict[Key, tuple[str, int]] = {}
    tables = account.select_columns([*columns, "source", "row"]).with_format("arrow")
    for table in tables.iter(_SEARCHED_AT_ONCE):
        # By length first: only a few are then turned into lists.
        held = pc.list_value_length(table[columns[0]]).to_numpy()
        for row in table.take(np.flatnonzero(np.isin(held, lengths))).to_pylist():
            key = tuple(tuple(row[column]) for column in columns)
            if key in keys:
                places.setdefault(key, (row["source"], row["row"]))
    return places


def _measure_alone(trainer: "StepMixin", rows: Sequence[GuiltyRow]) -> list[float | None]:
    """Measure each row's loss by itself; None where that cannot be.

    In one process alone: the trainers gather figures inside their loss, and processes hold unequal numbers of rows.
    """
    losses: list[float | None] = []
    if trainer.args.world_size == 1:
        try:
            with trainer.as_in_training():
                for row in rows:
                    losses.append(None if row.alone is None else _measure(trainer, row.alone))
        except PlaceError:  # the memory is full; what was measured so far helps
            pass
        trainer.forget_figures()
    return losses + [None] * (len(rows) - len(losses))


def _measure(trainer: "StepMixin", alone: dict[str, Any]) -> float:
    loss, _, _ = trainer.prediction_step(trainer.model, alone, prediction_loss_only=True)
    return float(loss)
