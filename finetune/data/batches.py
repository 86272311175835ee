"""Rows of tokens to the tensors of one micro-batch.

Answers that are compared lie padded, one a row. All else has three layouts, chosen once by `choose_layout`:

- `padded`: one document a row, padded on the right, with an `attention_mask`.
- `packed`: several documents a row, kept apart by `position_ids` that restart at 0. There is no
  attention mask on purpose: Transformers builds the block-diagonal one from the restarts, and an
  all-ones mask would let the documents read each other.
- `flat`: all rows of the micro-batch as one row without padding, for flash attention, whose
  variable-length kernel reads the restarts of a single row. Unsloth's kernels read them too while they train, and
  `packed_seq_lengths` always.

Shape suffixes: B rows, T tokens.
"""

from collections.abc import Mapping, Sequence
from typing import Any, Literal

import torch

__all__ = ["IGNORE_INDEX", "Collator", "JudgedCollator", "Layout", "PairCollator", "choose_layout"]

IGNORE_INDEX = -100  # the label that PyTorch's cross entropy passes over

Layout = Literal["padded", "packed", "flat"]


def choose_layout(*, packing: bool, attention: str, by_unsloth: bool = False) -> Layout:
    """Choose how a micro-batch lies in memory: flat where the kernels read it, else by packing.

    Args:
        packing: whether a row holds several documents.
        attention: transformers' name of the kernel.
        by_unsloth: whether Unsloth's own kernels attend, which they do on a GPU: of several rows at once they
            would read the packed documents as one, and padding on the right costs them nothing.
    """
    if by_unsloth:
        return "flat" if packing else "padded"
    if attention == "flash_attention_2":
        return "flat"
    return "packed" if packing else "padded"


class Collator:
    """Builds a micro-batch from rows of `input_ids` and `labels` (and `seq_lengths` where packed).

    Args:
        layout: see the module's docstring.
        pad_token_id: the id that fills a row; never trained.
        names_lengths: give the documents' lengths of a flat row as `packed_seq_lengths` too, as Unsloth wants them.

    A row without `seq_lengths` is one document. Beside the tensors a batch holds
    `num_real_tokens`, a plain integer: its tokens without padding.
    """

    def __init__(self, layout: Layout, pad_token_id: int, *, names_lengths: bool = False) -> None:
        self.layout = layout
        self.pad_token_id = pad_token_id
        self.names_lengths = names_lengths and layout == "flat"

    def __call__(self, rows: Sequence[Mapping[str, Any]]) -> dict[str, torch.Tensor | int]:
        """Build the batch: `input_ids`, `labels` and a mask or positions, each (B, T) and int64."""
        ids = [torch.tensor(row["input_ids"], dtype=torch.long) for row in rows]
        labels = [torch.tensor(row["labels"], dtype=torch.long) for row in rows]
        num_real_tokens = sum(len(row_ids) for row_ids in ids)
        if self.layout == "padded":
            return {
                "input_ids": _pad(ids, self.pad_token_id),
                "labels": _pad(labels, IGNORE_INDEX),
                "attention_mask": _pad([torch.ones_like(row_ids) for row_ids in ids], 0),
                "num_real_tokens": num_real_tokens,
            }
        positions = [
            _restarting_positions(row.get("seq_lengths") or [len(row_ids)])
            for row, row_ids in zip(rows, ids, strict=True)
        ]
        # A document's first token is predicted by nothing: its left neighbour is another document's end.
        labels = [row.masked_fill(place == 0, IGNORE_INDEX) for row, place in zip(labels, positions, strict=True)]
        if self.layout == "flat":
            ids, labels, positions = [torch.cat(ids)], [torch.cat(labels)], [torch.cat(positions)]
        return {
            "input_ids": _pad(ids, self.pad_token_id),
            "labels": _pad(labels, IGNORE_INDEX),
            "position_ids": _pad_positions(positions),
            "num_real_tokens": num_real_tokens,
            **({"packed_seq_lengths": _measure_documents(positions[0])} if self.names_lengths else {}),
        }


def _measure_documents(positions: torch.Tensor) -> torch.Tensor:
    """Measure the documents of a single row by where its positions restart: (D,) and int32."""
    starts = torch.cat([(positions == 0).nonzero().flatten(), torch.tensor([len(positions)])])
    return starts.diff().to(torch.int32)


def _restarting_positions(lengths: Sequence[int]) -> torch.Tensor:
    return torch.cat([torch.arange(length) for length in lengths])


def _pad(rows: list[torch.Tensor], value: int) -> torch.Tensor:
    return torch.nn.utils.rnn.pad_sequence(rows, batch_first=True, padding_value=value)


def _pad_positions(positions: list[torch.Tensor]) -> torch.Tensor:
    """Give the padding of each row positions of its own from 0 on: a last document that nobody reads."""
    width = max(len(row) for row in positions)
    return torch.stack([torch.cat([row, torch.arange(width - len(row))]) for row in positions])


class PairCollator:
    """Builds a micro-batch of preferences from rows of `preference_tokens.build_pair_rows`.

    Args:
        pad_token_id: the id that fills a row; never trained.

    The chosen answers come first and then, in the same order, the rejected ones, as TRL's trainers want them.
    """

    def __init__(self, pad_token_id: int) -> None:
        self.pad_token_id = pad_token_id

    def __call__(self, rows: Sequence[Mapping[str, Any]]) -> dict[str, torch.Tensor | int]:
        """Build the batch from B rows.

        Returns:
            `input_ids`, `attention_mask` and `completion_mask` (1 where trained), each (2B, T) and int64, padded on
            the right; `num_real_tokens`; `ref_chosen_logps` and `ref_rejected_logps`, (B,) and float32, where the
            rows have them.
        """
        ids = [row["chosen_ids"] for row in rows] + [row["rejected_ids"] for row in rows]
        labels = [row["chosen_labels"] for row in rows] + [row["rejected_labels"] for row in rows]
        return {
            **_build_answers(ids, labels, self.pad_token_id),
            "num_real_tokens": sum(len(row_ids) for row_ids in ids),
            **_pass_on(rows, ("ref_chosen_logps", "ref_rejected_logps")),
        }


class JudgedCollator:
    """Builds a micro-batch of judged answers from rows of `preference_tokens.build_judged_rows`.

    Args:
        pad_token_id: the id that fills a row; never trained.
    """

    def __init__(self, pad_token_id: int) -> None:
        self.pad_token_id = pad_token_id

    def __call__(self, rows: Sequence[Mapping[str, Any]]) -> dict[str, torch.Tensor | int]:
        """Build the batch from B rows.

        Returns:
            `input_ids`, `attention_mask` and `completion_mask` (1 where trained), each (B, T) and int64, padded on the
            right; the same with `KL_` before their names, for the prompts with other rows' answers; `label`, (B,)
            and bool; `num_real_tokens`, without those of the KL; `ref_logps` and `ref_KL_logps`, (B,) and float32,
            where the rows have them.
        """
        ids = [row["input_ids"] for row in rows]
        kl = _build_answers(
            [row["kl_input_ids"] for row in rows], [row["kl_labels"] for row in rows], self.pad_token_id
        )
        return {
            **_build_answers(ids, [row["labels"] for row in rows], self.pad_token_id),
            **{f"KL_{name}": values for name, values in kl.items()},
            "label": torch.tensor([row["desirable"] for row in rows], dtype=torch.bool),
            "num_real_tokens": sum(len(row_ids) for row_ids in ids),
            **_pass_on(rows, ("ref_logps", "ref_KL_logps")),
        }


def _build_answers(
    ids: Sequence[Sequence[int]], labels: Sequence[Sequence[int]], pad_token_id: int
) -> dict[str, torch.Tensor]:
    """Build ids and masks as TRL names them, padded on the right."""
    id_rows = [torch.tensor(row, dtype=torch.long) for row in ids]
    trained_rows = [(torch.tensor(row, dtype=torch.long) != IGNORE_INDEX).long() for row in labels]
    return {
        "input_ids": _pad(id_rows, pad_token_id),
        "attention_mask": _pad([torch.ones_like(row) for row in id_rows], 0),
        "completion_mask": _pad(trained_rows, 0),
    }


def _pass_on(rows: Sequence[Mapping[str, Any]], columns: Sequence[str]) -> dict[str, torch.Tensor]:
    """Pass on the numbers that rows bring along, e.g. the reference's log-probabilities."""
    return {
        column: torch.tensor([float(row[column]) for row in rows], dtype=torch.float32)
        for column in columns
        if column in rows[0]
    }
