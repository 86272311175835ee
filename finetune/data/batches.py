"""Rows of tokens to the tensors of one micro-batch.

Answers that are compared lie padded, one a row, and so do labelled texts and texts with masked tokens. All
else has three layouts, chosen once by `row_layouts.choose_layout`:

- `padded`: one document a row, padded on the right, with an `attention_mask`.
- `packed`: several documents a row, kept apart by `position_ids` that restart at 0. There is no
  attention mask on purpose: Transformers builds the block-diagonal one from the restarts, and an
  all-ones mask would let the documents read each other.
- `flat`: all rows of the micro-batch as one row without padding, for kernels that attend within each document of a
  single row: flash attention and `model.document_attention`, which are told where documents begin and how long the
  longest is, and Unsloth's, which read the restarts while they train, and `packed_seq_lengths` always. Where documents
  are named, packed rows are filled up to a multiple of 64 tokens with a last document that nobody reads.

What a step would otherwise ask its device for is counted here, on the host: `num_real_tokens` and
`num_trained_tokens`, and in a flat row the documents.

Shape suffixes: B rows, T tokens, D documents.
"""

import copy
import hashlib
from collections.abc import Collection, Mapping, Sequence
from typing import Any

import numpy as np
import torch

from finetune.recipe.row_layouts import FLAT_MULTIPLE, Layout, choose_layout

__all__ = [
    "IGNORE_INDEX",
    "Collator",
    "JudgedCollator",
    "LabelCollator",
    "Layout",
    "MaskedCollator",
    "PairCollator",
    "choose_layout",
    "count_predicted",
    "name_documents",
]

IGNORE_INDEX = -100  # the label that PyTorch's cross entropy passes over


class Collator:
    """Builds a micro-batch from rows of `input_ids` and `labels` (and `seq_lengths` where packed).

    Args:
        layout: see the module's docstring.
        pad_token_id: the id that fills a row; never trained.
        names_lengths: give the documents' lengths of a flat row as `packed_seq_lengths` too, as Unsloth wants them.
        names_documents: tell of a flat row where its documents begin, as transformers' kernels want it.

    A row without `seq_lengths` is one document. Beside the tensors a batch holds plain integers:
    `num_real_tokens`, its tokens without padding, and `num_trained_tokens`, those that another one predicts.
    """

    def __init__(
        self, layout: Layout, pad_token_id: int, *, names_lengths: bool = False, names_documents: bool = False
    ) -> None:
        self.layout = layout
        self.pad_token_id = pad_token_id
        self.names_lengths = names_lengths and layout == "flat"
        self.names_documents = names_documents and layout == "flat"

    def __call__(self, rows: Sequence[Mapping[str, Any]]) -> dict[str, torch.Tensor | int]:
        """Build the batch: `input_ids`, `labels` and a mask or positions, each (B, T) and int64."""
        ids = [torch.tensor(row["input_ids"], dtype=torch.long) for row in rows]
        labels = [torch.tensor(row["labels"], dtype=torch.long) for row in rows]
        num_real_tokens = sum(len(row_ids) for row_ids in ids)
        if self.layout == "padded":
            labels_BT = _pad(labels, IGNORE_INDEX)
            # Nothing predicts a row's first token; learned vectors in front of it would, and some counts include it.
            labels_BT[:, 0] = IGNORE_INDEX
            return {
                "input_ids": _pad(ids, self.pad_token_id),
                "labels": labels_BT,
                "attention_mask": _pad([torch.ones_like(row_ids) for row_ids in ids], 0),
                "num_real_tokens": num_real_tokens,
                "num_trained_tokens": count_predicted(labels_BT),
            }
        positions = [
            _restarting_positions(row.get("seq_lengths") or [len(row_ids)])
            for row, row_ids in zip(rows, ids, strict=True)
        ]
        # A document's first token is predicted by nothing: its left neighbour is another document's end.
        labels = [row.masked_fill(place == 0, IGNORE_INDEX) for row, place in zip(labels, positions, strict=True)]
        if self.layout == "flat":
            num_filled = self._find_filling(positions) if "seq_lengths" in rows[0] else 0
            ids = [torch.cat([*ids, torch.full((num_filled,), self.pad_token_id)])]
            labels = [torch.cat([*labels, torch.full((num_filled,), IGNORE_INDEX)])]
            positions = [torch.cat([*positions, torch.arange(num_filled)])]
        labels_BT = _pad(labels, IGNORE_INDEX)
        return {
            "input_ids": _pad(ids, self.pad_token_id),
            "labels": labels_BT,
            "position_ids": _pad_positions(positions),
            "num_real_tokens": num_real_tokens,
            "num_trained_tokens": count_predicted(labels_BT),
            **({"packed_seq_lengths": _find_starts(positions[0]).diff()} if self.names_lengths else {}),
            **(name_documents(positions[0]) if self.names_documents else {}),
        }

    def _find_filling(self, positions: Sequence[torch.Tensor]) -> int:
        """Find how many tokens fill a flat row up; 0 where that would be a document longer than those it has."""
        num_filled = -sum(map(len, positions)) % FLAT_MULTIPLE
        longest = max(int(row.max()) for row in positions) + 1
        return num_filled if self.names_documents and num_filled <= longest else 0


def count_predicted(labels_BT: torch.Tensor) -> int:
    """Count the labels that carry loss: a row's first has nothing before it that would predict it."""
    return int((labels_BT[:, 1:] != IGNORE_INDEX).sum())


def name_documents(positions_T: torch.Tensor) -> dict[str, torch.Tensor | int]:
    """Tell where the documents of a single row begin, in the words of transformers' kernels.

    Args:
        positions_T: of its tokens; 0 where a document begins.

    Returns:
        `cu_seq_lens_q` and `cu_seq_lens_k`, where each begins and where the last one ends, (D + 1,) and int32;
        `max_length_q` and `max_length_k`, tokens of the longest, plain integers.
    """
    starts_D1 = _find_starts(positions_T)
    longest = int(starts_D1.diff().max())
    return {"cu_seq_lens_q": starts_D1, "cu_seq_lens_k": starts_D1, "max_length_q": longest, "max_length_k": longest}


def _find_starts(positions_T: torch.Tensor) -> torch.Tensor:
    """Find where the documents of a single row begin, and where the last one ends: (D + 1,) and int32."""
    begins = (positions_T == 0).nonzero().flatten()
    return torch.cat([begins, begins.new_tensor([len(positions_T)])]).to(torch.int32)


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


class LabelCollator:
    """Builds a micro-batch of labelled texts from rows of `label_rows.build_label_rows`.

    Args:
        pad_token_id: the id that fills a row.
    """

    def __init__(self, pad_token_id: int) -> None:
        self.pad_token_id = pad_token_id

    def __call__(self, rows: Sequence[Mapping[str, Any]]) -> dict[str, torch.Tensor | int]:
        """Build the batch from B rows.

        Returns:
            `input_ids`, `attention_mask` and, where the rows have them, `token_type_ids`, each (B, T) and int64,
            padded on the right; `labels`, (B,), int64 for a class and float32 for a number, where the rows have
            them; `num_real_tokens`.
        """
        batch = _build_padded(rows, self.pad_token_id)
        if "token_type_ids" in rows[0]:
            types = [torch.tensor(row["token_type_ids"], dtype=torch.long) for row in rows]
            batch["token_type_ids"] = _pad(types, 0)
        if "label" in rows[0]:
            labels = [row["label"] for row in rows]
            is_class = not isinstance(labels[0], float)
            batch["labels"] = torch.tensor(labels, dtype=torch.long if is_class else torch.float32)
        return batch


class MaskedCollator:
    """Builds a micro-batch for masked-language modelling from rows of `input_ids`.

    Of a row's tokens, special ones aside, each is chosen with `mask_fraction`, and one at least; of the chosen
    80 % become the mask token, 10 % a random one and 10 % stay. The model is to name the token that stood there.

    The draws of a row hang on its ids, the seed and the epoch alone. Draws from PyTorch's global generator would
    not survive a resume: transformers (5.17) restores that state as it was at the save, when accelerate (1.15) had
    already drawn the batch after it, and draws the batches it skips before it restores. So a resumed run masks what
    the unbroken one would have, in any order of rows, batch size or number of processes; each epoch masks anew; and
    two rows of the same ids are masked alike.

    Whoever trains calls `set_epoch` before each epoch's first batch; held-out rows go through `for_evaluation`,
    whose masks are the same at every evaluation.

    Args:
        pad_token_id: the id that fills a row.
        mask_token_id: the mask token.
        vocab_size: random tokens are drawn from below it.
        special_ids: never chosen, nor put in another's place.
        mask_fraction: share of the tokens that are chosen.
        seed: of the draws.

    Source: Devlin et al. 2019 (arXiv:1810.04805), section 3.1 and appendix A.1; one token at least as in its code.
    """

    def __init__(
        self,
        pad_token_id: int,
        *,
        mask_token_id: int,
        vocab_size: int,
        special_ids: Collection[int],
        mask_fraction: float = 0.15,
        seed: int = 0,
    ) -> None:
        self.pad_token_id = pad_token_id
        self.mask_token_id = mask_token_id
        self.mask_fraction = mask_fraction
        self.seed = seed
        self._special_ids = torch.tensor(sorted(special_ids), dtype=torch.long)
        usual = torch.ones(vocab_size, dtype=torch.bool)
        usual[self._special_ids[self._special_ids < vocab_size]] = False
        self._usual_ids = usual.nonzero().flatten()
        # Shared, so that a data loader's workers that outlive an epoch see the next one.
        self._epoch = torch.zeros((), dtype=torch.long).share_memory_()

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch whose masks are drawn, from 0."""
        self._epoch.fill_(epoch)

    def for_evaluation(self) -> "MaskedCollator":
        """Build the same with masks that never change and that no epoch of training draws."""
        fixed = copy.copy(self)
        fixed._epoch = torch.full((), -1)
        return fixed

    def __call__(self, rows: Sequence[Mapping[str, Any]]) -> dict[str, torch.Tensor | int]:
        """Build the batch from B rows.

        Returns:
            `input_ids`, `attention_mask` and `labels` (IGNORE_INDEX where no token was chosen), each (B, T) and
            int64, padded on the right; `num_real_tokens`.
        """
        masked = [self._mask(row["input_ids"]) for row in rows]
        batch = _build_padded([{"input_ids": ids} for ids, _ in masked], self.pad_token_id)
        return {**batch, "labels": _pad([labels for _, labels in masked], IGNORE_INDEX)}

    def _mask(self, row: Sequence[int]) -> tuple[torch.Tensor, torch.Tensor]:
        ids = torch.tensor(row, dtype=torch.long)
        draw = torch.Generator().manual_seed(self._build_seed(ids))
        # Drawn whole, whatever the row holds, so that each kind of draw stands alone.
        chances = torch.rand(len(ids), generator=draw)
        fates = torch.rand(len(ids), generator=draw)
        others = self._usual_ids[torch.randint(len(self._usual_ids), (len(ids),), generator=draw)]
        may_be = ~torch.isin(ids, self._special_ids)
        chances = chances.masked_fill(~may_be, 1.0)
        chosen = chances < self.mask_fraction
        if bool(may_be.any()) and not bool(chosen.any()):
            chosen[chances.argmin()] = True
        changed = torch.where(fates < 0.8, torch.full_like(ids, self.mask_token_id), others)
        changed = torch.where(fates < 0.9, changed, ids)
        return torch.where(chosen, changed, ids), ids.masked_fill(~chosen, IGNORE_INDEX)

    def _build_seed(self, ids: torch.Tensor) -> int:
        decides = np.concatenate([np.array([self.seed, int(self._epoch)], dtype=np.int64), ids.numpy()])
        return int.from_bytes(hashlib.sha256(decides.tobytes()).digest()[:8], "big", signed=True)


def _build_padded(rows: Sequence[Mapping[str, Any]], pad_token_id: int) -> dict[str, torch.Tensor | int]:
    """Build the ids of rows, their mask and the count of their tokens."""
    ids = [torch.as_tensor(row["input_ids"], dtype=torch.long) for row in rows]
    return {
        "input_ids": _pad(ids, pad_token_id),
        "attention_mask": _pad([torch.ones_like(row) for row in ids], 0),
        "num_real_tokens": sum(len(row) for row in ids),
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
