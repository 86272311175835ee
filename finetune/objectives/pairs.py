"""Held-out pairs scored: how much likelier a model finds the chosen answer than the rejected one.

In go rows of token pairs (`data.preference_tokens`) and a model in whatever state its weights are; out
come the log-probabilities of both answers of every pair, and from those of two states the figures that
people watch. The reference of a DPO run is such a score too, taken before the first step.

Shape suffixes: N pairs.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from datasets import Dataset
from torch import Tensor
from torch.utils.data import DataLoader

from finetune.data.batches import IGNORE_INDEX, PairCollator
from finetune.objectives.losses import count_trained_tokens, sequence_logps

__all__ = ["PairFigures", "PairScores", "ScoreAnswers", "answer_logps", "compare", "score_pairs"]

ScoreAnswers = Callable[[dict[str, Tensor]], tuple[Tensor, Tensor]]


@dataclass(frozen=True, slots=True)
class PairScores:
    """What a model thinks of both answers of each pair, float32 on the CPU.

    Attributes:
        chosen_N: summed log-probability of the chosen answer in nats, or a reward model's score of it.
        rejected_N: the same of the rejected answer.
        chosen_tokens_N: trained tokens of the chosen answer.
        rejected_tokens_N: the same of the rejected answer.
    """

    chosen_N: Tensor
    rejected_N: Tensor
    chosen_tokens_N: Tensor
    rejected_tokens_N: Tensor


@dataclass(frozen=True, slots=True)
class PairFigures:
    """How well one state of the weights tells the answers of the pairs apart.

    Attributes:
        accuracy: share of the pairs whose chosen answer is the likelier one, per token, 0 to 1; with a reward model
            the one with the higher score.
        margin: by how much on the mean: nats per token, or a reward model's score.
        chosen: mean of the chosen answers, in the same unit.
        rejected: mean of the rejected answers.
    """

    accuracy: float
    margin: float
    chosen: float
    rejected: float


def compare(scores: PairScores, *, per_token: bool = True) -> PairFigures:
    """Compare the two answers of every pair.

    Args:
        scores: of one state of the weights.
        per_token: divide by the answers' tokens, so that a short answer is not preferred for being short (the
            length-normalized ranking accuracy of Chen et al. 2024, arXiv:2405.19534, section 3); False for scores.
    """
    chosen_N, rejected_N = scores.chosen_N, scores.rejected_N
    if per_token:
        chosen_N, rejected_N = chosen_N / scores.chosen_tokens_N, rejected_N / scores.rejected_tokens_N
    # Two equal scores tell nothing: half right, as a coin would be.
    right_N = (chosen_N > rejected_N).float() + (chosen_N == rejected_N).float() / 2
    return PairFigures(
        accuracy=right_N.mean().item(),
        margin=(chosen_N - rejected_N).mean().item(),
        chosen=chosen_N.mean().item(),
        rejected=rejected_N.mean().item(),
    )


def answer_logps(model: torch.nn.Module, batch: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
    """Sum the log-probabilities of each row's answer.

    Args:
        model: a causal model.
        batch: `input_ids`, `attention_mask` and `completion_mask`, each (B, T).

    Returns:
        The sums in nats, float32, and the numbers of tokens summed over, each (B,).
    """
    logits = model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"], use_cache=False).logits
    labels = torch.where(batch["completion_mask"] == 1, batch["input_ids"], IGNORE_INDEX)
    # A row at a time and its answer alone: a softmax over every prompt too would be as large as the logits once more.
    sums = []
    for row_logits, row_labels in zip(logits, labels, strict=True):
        places = torch.nonzero(row_labels != IGNORE_INDEX)
        answer = slice(max(int(places[0]) - 1, 0), int(places[-1]) + 1)  # a label is predicted one place before it
        sums.append(sequence_logps(row_logits[None, answer], row_labels[None, answer])[0])
    return torch.stack(sums), count_trained_tokens(labels)


def score_pairs(score: ScoreAnswers, rows: Dataset, collator: PairCollator, batch_size: int) -> PairScores:
    """Score every pair, in the order of the rows; those of like length share a batch.

    Args:
        score: of a batch, a value for each answer and its number of tokens, each (2B,), chosen before rejected.
        rows: of token pairs.
        collator: of the rows.
        batch_size: pairs of a batch.
    """
    order_N = torch.argsort(torch.tensor(rows["length"][:]), descending=True, stable=True)
    found = []
    for batch in DataLoader(rows.select(order_N.tolist()), batch_size=batch_size, collate_fn=collator):
        values, tokens = score(batch)
        found.append((*values.float().cpu().chunk(2), *tokens.cpu().chunk(2)))
    back_N = torch.argsort(order_N)
    return PairScores(*(torch.cat(parts)[back_N] for parts in zip(*found, strict=True)))
