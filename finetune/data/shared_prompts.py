"""Both answers of a pair behind one prompt: what they begin with in common stands in a row once.

In goes a batch of `batches.PairCollator`, in which each answer has its own copy of the prompt; out comes a row for each
pair: all of the chosen side, and behind it what the rejected side has of its own. Its positions go on from the end of
what both share, and a mask lets it see that and itself alone, so that every token computes what it did in a row of its
own. Beside the rows stand the places of what is compared: each answer from the token that predicts its first trained
one on. The last shared token predicts the first token of both, and so its place is named twice.

What is shared is found in the ids and not in the text: a tokenizer may have merged the prompt's end with an answer's
beginning, a template may write the two sides differently, and answers may begin with the same words. Sides that share
nothing lie behind each other and do not see each other.

Shape suffixes: B pairs, R = 2B answers (all chosen ones, then all rejected ones), T tokens of a padded side, S of a
shared row, W of an answer, one place before its first trained token included.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

__all__ = ["PairParts", "SharedRows", "Widths", "build_shared_rows", "find_parts"]


@dataclass(frozen=True, slots=True)
class Widths:
    """How wide a batch is in either layout, in tokens, padding included.

    Attributes:
        num_pairs: B.
        side: T, of a prompt with an answer.
        row: S, of a prompt with both.
        answer: W, of an answer.
        shared: that both sides of a pair begin with, of all pairs together.
    """

    num_pairs: int
    side: int
    row: int
    answer: int
    shared: int


@dataclass(frozen=True, slots=True)
class PairParts:
    """Where the parts of each pair lie.

    Attributes:
        lengths_R: tokens of each side.
        shared_B: tokens that both sides begin with.
        starts_R: place, in its side, of the token that predicts an answer's first trained one.
        widths: of the batch.
    """

    lengths_R: Tensor
    shared_B: Tensor
    starts_R: Tensor
    widths: Widths


@dataclass(frozen=True, slots=True)
class SharedRows:
    """A batch in which the prompts stand once.

    Attributes:
        input_ids_BS: of the rows.
        position_ids_BS: of the rows: those that the tokens have in a row of their own side.
        may_see_BSS: whether a token (the middle dimension) attends to another one (the last).
        places_RW: where the tokens of the answers lie in the rows laid end to end, for whoever reads hidden states.
        answer_ids_RW: those tokens.
        completion_mask_RW: 1 where they are trained, int64.
    """

    input_ids_BS: Tensor
    position_ids_BS: Tensor
    may_see_BSS: Tensor
    places_RW: Tensor
    answer_ids_RW: Tensor
    completion_mask_RW: Tensor


def find_parts(batch: Mapping[str, Tensor]) -> PairParts:
    """Find where the parts of each pair lie; the widths come to the host in one transfer.

    Args:
        batch: `input_ids`, `attention_mask` and `completion_mask`, each (R, T), padded on the right.
    """
    ids_RT, mask_RT = batch["input_ids"], batch["attention_mask"]
    lengths_R = mask_RT.sum(1)
    (chosen_BT, rejected_BT), (chosen_mask_BT, rejected_mask_BT) = ids_RT.chunk(2), mask_RT.chunk(2)
    is_shared_BT = (chosen_BT == rejected_BT) & (chosen_mask_BT != 0) & (rejected_mask_BT != 0)
    shared_B = is_shared_BT.long().cumprod(1).sum(1)
    # The first of equal maxima; of an answer without a trained token place 0.
    starts_R = (batch["completion_mask"].argmax(1) - 1).clamp(min=0)
    rows_B = lengths_R.view(2, -1).sum(0) - shared_B
    row, answer, shared = torch.stack([rows_B.max(), (lengths_R - starts_R).max(), shared_B.sum()]).tolist()
    return PairParts(lengths_R, shared_B, starts_R, Widths(len(shared_B), ids_RT.shape[1], row, answer, shared))


def build_shared_rows(batch: Mapping[str, Tensor], parts: PairParts) -> SharedRows:
    """Lay a batch with its prompts once.

    Args:
        batch: as for `find_parts`.
        parts: found in it.

    What fills a row up stands behind all of its tokens, and so is seen by none; it attends itself, for a softmax over
    nothing is not a number.
    """
    ids_RT, widths = batch["input_ids"], parts.widths
    chosen_BT, rejected_BT = ids_RT.chunk(2)
    chosen_B1, shared_B1 = parts.lengths_R[: widths.num_pairs, None], parts.shared_B[:, None]
    column_S = torch.arange(widths.row, device=ids_RT.device)
    is_own_BS = column_S >= chosen_B1  # of the rejected side
    positions_BS = torch.where(is_own_BS, column_S - chosen_B1 + shared_B1, column_S).clamp(max=widths.side - 1)
    own_ids_BS, chosen_ids_BS = rejected_BT.gather(1, positions_BS), chosen_BT.gather(1, positions_BS)
    # A token of the rejected side's own passes over what the chosen side has of its own.
    is_passed_over_BS = ~is_own_BS & (column_S >= shared_B1)
    is_before_SS = column_S <= column_S[:, None]
    return SharedRows(
        input_ids_BS=torch.where(is_own_BS, own_ids_BS, chosen_ids_BS),
        position_ids_BS=positions_BS,
        may_see_BSS=is_before_SS & ~(is_own_BS[:, :, None] & is_passed_over_BS[:, None, :]),
        **_find_answers(batch, parts),
    )


def _find_answers(batch: Mapping[str, Tensor], parts: PairParts) -> dict[str, Tensor]:
    """Find the answers' tokens, and where they lie in the rows laid end to end."""
    widths, lengths_R1 = parts.widths, parts.lengths_R[:, None]
    column_RW = parts.starts_R[:, None] + torch.arange(widths.answer, device=parts.starts_R.device)
    is_token_RW = column_RW < lengths_R1
    column_RW = torch.minimum(column_RW, lengths_R1 - 1)
    chosen_BW, rejected_BW = column_RW.chunk(2)
    chosen_B1, shared_B1 = parts.lengths_R[: widths.num_pairs, None], parts.shared_B[:, None]
    rejected_BW = torch.where(rejected_BW < shared_B1, rejected_BW, rejected_BW - shared_B1 + chosen_B1)
    first_B1 = torch.arange(widths.num_pairs, device=column_RW.device)[:, None] * widths.row
    return {
        "places_RW": torch.cat([first_B1 + chosen_BW, first_B1 + rejected_BW]),
        "answer_ids_RW": batch["input_ids"].gather(1, column_RW),
        "completion_mask_RW": batch["completion_mask"].gather(1, column_RW) * is_token_RW,
    }
