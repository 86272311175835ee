"""The formulas of preference optimization: log-probabilities in, losses out, nothing kept.

TRL's trainers compute them while a run trains; here they stand alone, to be read, to check the trainers against, and
to tell what a run's first loss has to be. Names are those of TRL's `loss_type`.
Everything is in nats and differentiable. A loss is one number per pair or example, not averaged; a trainer's loss is
its mean. A log-ratio is an answer's log-probability under the policy minus that under the reference; a margin is the
chosen answer's number minus the rejected one's.

Shape suffixes: B pairs or examples, R = 2B rows (all chosen ones, then all rejected ones), T tokens, V vocabulary.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from finetune.data.batches import IGNORE_INDEX

__all__ = [
    "DPO_LOSSES",
    "F_DIVERGENCES",
    "Answers",
    "LossSettings",
    "count_trained_tokens",
    "estimate_kl",
    "kto_loss",
    "loss_at_start",
    "mixed_loss",
    "orpo_loss",
    "pair_logps",
    "reward_loss",
    "sequence_logps",
    "token_mean_nll",
]

_MAX_EXPONENT = 80.0  # e^80 leaves float32 room for a product; beyond it the loss stays and the gradient is 0


@dataclass(frozen=True, slots=True)
class Answers:
    """The chosen or the rejected answers of a batch; each field has shape (B,).

    Attributes:
        logps_B: log-probabilities under the policy, from `pair_logps`.
        reference_logps_B: the same under the frozen reference, no gradient.
        num_tokens_B: trained tokens.
        nll_B: minus `logps_B` with every token at full weight, whatever `ld_alpha` is.
    """

    logps_B: Tensor
    reference_logps_B: Tensor
    num_tokens_B: Tensor
    nll_B: Tensor

    @property
    def ratios_B(self) -> Tensor:
        """Log-ratios: 0 where the policy is as likely to give the answer as the reference."""
        return self.logps_B - self.reference_logps_B


@dataclass(frozen=True, slots=True)
class LossSettings:
    """The numbers in the formulas, with TRL's names and defaults.

    Attributes:
        beta: strength of the pull towards the reference, above 0.
        label_smoothing: share of pairs thought to be swapped, 0 to below 0.5; robust, exo_pair, aot, aot_unpaired.
        f_divergence_type: the distance from the reference, of `F_DIVERGENCES`; a loss that calls neither `_margins`
            nor `_mean_margins` knows `reverse_kl` alone (TRL refuses others there).
        f_alpha_divergence_coef: alpha of `alpha_divergence`.
        discopop_tau: width of the blend in `discopop`, in margins times beta, above 0.
    """

    beta: float = 0.1
    label_smoothing: float = 0.0
    f_divergence_type: str = "reverse_kl"
    f_alpha_divergence_coef: float = 0.5
    discopop_tau: float = 0.05


# ---- log-probabilities


def sequence_logps(logits_BTV: Tensor, labels_BT: Tensor) -> Tensor:
    """Log-probability of each row's trained tokens, summed: shape (B,), at most 0.

    Args:
        logits_BTV: of any float dtype; the softmax is taken in float32 at least.
        labels_BT: the token where trained, else `IGNORE_INDEX`. Not shifted: position t predicts the label
            at t + 1, so the first label of a row is never trained.
    """
    return _token_logps(logits_BTV, labels_BT).sum(dim=1)


def count_trained_tokens(labels_BT: Tensor) -> Tensor:
    """Count the tokens that `sequence_logps` sums: shape (B,), int64."""
    return (labels_BT[:, 1:] != IGNORE_INDEX).sum(dim=1)


def pair_logps(logits_RTV: Tensor, labels_RT: Tensor, ld_alpha: float | None = None) -> tuple[Tensor, Tensor]:
    """Log-probabilities of chosen and rejected answers, each (B,), where a longer answer's tail weighs less.

    The tail is what an answer has beyond the length of its partner. `ld_alpha` is its weight: 1 (or None)
    gives `sequence_logps`; 0 compares over the common length, so that being longer earns nothing.
    Source: Liu et al. 2024, LD-DPO (arXiv:2409.06411).
    """
    shared_B = torch.minimum(*count_trained_tokens(labels_RT).chunk(2))
    place_RT = (labels_RT[:, 1:] != IGNORE_INDEX).cumsum(dim=1)
    weight = 1.0 if ld_alpha is None else ld_alpha
    weight_RT = torch.where(place_RT > shared_B.repeat(2)[:, None], weight, 1.0)
    chosen_B, rejected_B = (weight_RT * _token_logps(logits_RTV, labels_RT)).sum(dim=1).chunk(2)
    return chosen_B, rejected_B


def token_mean_nll(nll_B: Tensor, num_tokens_B: Tensor) -> Tensor:
    """Scale each row's negative log-likelihood so that the mean over rows is the mean over tokens; shape (B,)."""
    return nll_B * len(nll_B) / num_tokens_B.sum().clamp(min=1)


def _token_logps(logits_BTV: Tensor, labels_BT: Tensor) -> Tensor:
    """Log-probability of each label given what stands before it: (B, T - 1), 0 where not trained."""
    logits_BVT = logits_BTV[:, :-1].transpose(1, 2)
    logits_BVT = logits_BVT.to(torch.promote_types(logits_BVT.dtype, torch.float32))
    return -F.cross_entropy(logits_BVT, labels_BT[:, 1:], ignore_index=IGNORE_INDEX, reduction="none")


# ---- the distance from the reference


def _alpha_divergence(ratios_B: Tensor, alpha: float) -> Tensor:
    """(t^(alpha - 1) - 1) / (alpha - 1), log t the log-ratio."""
    if abs(alpha - 1) < 1e-6:
        return ratios_B
    return (torch.exp(((alpha - 1) * ratios_B).clamp(max=_MAX_EXPONENT)) - 1) / (alpha - 1)


# f'(t) of each divergence, from log-ratios and alpha; all are 0 where policy and reference agree. TRL does not
# cap forward KL's exponent: an answer 89 nats less likely than under the reference makes its loss infinite or NaN.
# Source: Wang et al. 2023, f-DPO (arXiv:2309.16240).
F_DIVERGENCES: dict[str, Callable[[Tensor, float], Tensor]] = {
    "reverse_kl": lambda ratios_B, alpha: ratios_B,
    "forward_kl": lambda ratios_B, alpha: _alpha_divergence(ratios_B, 0.0),
    "js_divergence": lambda ratios_B, alpha: math.log(2) + F.logsigmoid(ratios_B),
    "alpha_divergence": _alpha_divergence,
}


def _scores(answers: Answers, settings: LossSettings) -> Tensor:
    return F_DIVERGENCES[settings.f_divergence_type](answers.ratios_B, settings.f_alpha_divergence_coef)


def _margins(chosen: Answers, rejected: Answers, settings: LossSettings) -> Tensor:
    """How far the policy's margin exceeds the reference's, times beta: the log-odds of preferring the chosen."""
    return settings.beta * (_scores(chosen, settings) - _scores(rejected, settings))


def _mean_margins(chosen: Answers, rejected: Answers, settings: LossSettings) -> Tensor:
    """The same per token of each answer, without beta."""
    chosen_B, rejected_B = (_scores(side, settings) / side.num_tokens_B.clamp(min=1) for side in (chosen, rejected))
    return chosen_B - rejected_B


# ---- losses of a pair, one each, shape (B,). "Starts at": what a policy equal to its reference scores on every pair;
# a run whose first loss is another has a wrong reference or a wrong mask.


def sigmoid_loss(chosen: Answers, rejected: Answers, settings: LossSettings) -> Tensor:
    """DPO: a logistic loss on how far the policy's margin exceeds the reference's. Starts at log 2 = 0.693.

    Source: Rafailov et al. 2023 (arXiv:2305.18290), equation 7.
    """
    return -F.logsigmoid(_margins(chosen, rejected, settings))


def hinge_loss(chosen: Answers, rejected: Answers, settings: LossSettings) -> Tensor:
    """SLiC: a pair with a margin of 1/beta nats over the reference's is done with. Starts at 1.

    Source: Zhao et al. 2023 (arXiv:2305.10425), section 2; with a reference, Liu et al. 2023 (arXiv:2309.06657).
    """
    return torch.relu(1 - _margins(chosen, rejected, settings))


def ipo_loss(chosen: Answers, rejected: Answers, settings: LossSettings) -> Tensor:
    """IPO: the margin per token is to be 1/(2 beta), no less and no more. Starts at 1/(4 beta^2).

    Source: Azar et al. 2023 (arXiv:2310.12036), equation 17; the mean over tokens is TRL's, with the authors' consent.
    """
    return (_mean_margins(chosen, rejected, settings) - 1 / (2 * settings.beta)) ** 2


def exo_pair_loss(chosen: Answers, rejected: Answers, settings: LossSettings) -> Tensor:
    """EXO: reverse KL to labels that are right but for e = `label_smoothing`. Starts at -log 2 - log(e - e^2)/2.

    Source: Ji et al. 2024 (arXiv:2402.00856), equation 16. Raises ValueError where e is 0: the loss is infinite.
    """
    margins_B, swapped = _margins(chosen, rejected, settings), settings.label_smoothing
    right_B, wrong_B = F.logsigmoid(margins_B), F.logsigmoid(-margins_B)
    return right_B.exp() * (right_B - math.log1p(-swapped)) + wrong_B.exp() * (wrong_B - math.log(swapped))


def nca_pair_loss(chosen: Answers, rejected: Answers, settings: LossSettings) -> Tensor:
    """NCA: each answer against the reference alone, which keeps the chosen one likely. Starts at 2 log 2 = 1.386.

    Source: Chen et al. 2024 (arXiv:2402.05369), section 4.
    """
    chosen_B, rejected_B = settings.beta * chosen.ratios_B, settings.beta * rejected.ratios_B
    return -F.logsigmoid(chosen_B) - 0.5 * F.logsigmoid(-chosen_B) - 0.5 * F.logsigmoid(-rejected_B)


def robust_loss(chosen: Answers, rejected: Answers, settings: LossSettings) -> Tensor:
    """rDPO: DPO's loss as it would be without the share `label_smoothing` of swapped pairs. Starts at log 2.

    It may fall below 0. Source: Chowdhury et al. 2024 (arXiv:2403.00409), section 3.1.
    """
    margins_B, swapped = _margins(chosen, rejected, settings), settings.label_smoothing
    return (swapped * F.logsigmoid(-margins_B) - (1 - swapped) * F.logsigmoid(margins_B)) / (1 - 2 * swapped)


def bco_pair_loss(chosen: Answers, rejected: Answers, settings: LossSettings) -> Tensor:
    """BCO: a classifier of good and bad answers, without the paper's reward shift. Starts at 2 log 2 = 1.386.

    Source: Jung et al. 2024 (arXiv:2404.04656), section 4.
    """
    return -F.logsigmoid(settings.beta * chosen.ratios_B) - F.logsigmoid(-settings.beta * rejected.ratios_B)


def sppo_hard_loss(chosen: Answers, rejected: Answers, settings: LossSettings) -> Tensor:
    """SPPO: log-ratios are to be 1/(2 beta) if chosen and -1/(2 beta) if rejected. Starts at 1/(2 beta^2).

    Source: Wu et al. 2024 (arXiv:2405.00675), equation 4.7, with a win probability of 1.
    """
    return (chosen.ratios_B - 0.5 / settings.beta) ** 2 + (rejected.ratios_B + 0.5 / settings.beta) ** 2


def aot_loss(chosen: Answers, rejected: Answers, settings: LossSettings) -> Tensor:
    """AOT: the batch's margins, sorted, against the reference's, sorted: a loss per rank. Starts at log 2.

    Source: Melnyk et al. 2024 (arXiv:2406.05882), section 3.
    """
    policy_B = (chosen.logps_B - rejected.logps_B).sort().values
    reference_B = (chosen.reference_logps_B - rejected.reference_logps_B).sort().values
    return _smoothed_sigmoid(settings.beta * (policy_B - reference_B), settings.label_smoothing)


def aot_unpaired_loss(chosen: Answers, rejected: Answers, settings: LossSettings) -> Tensor:
    """AOT without pairs: chosen log-ratios, sorted, against rejected ones: a loss per rank. Starts at log 2.

    Source: Melnyk et al. 2024 (arXiv:2406.05882), section 3.
    """
    margins_B = chosen.ratios_B.sort().values - rejected.ratios_B.sort().values
    return _smoothed_sigmoid(settings.beta * margins_B, settings.label_smoothing)


def _smoothed_sigmoid(margins_B: Tensor, swapped: float) -> Tensor:
    return -(1 - swapped) * F.logsigmoid(margins_B) - swapped * F.logsigmoid(-margins_B)


def apo_zero_loss(chosen: Answers, rejected: Answers, settings: LossSettings) -> Tensor:
    """APO-zero: chosen up, rejected down; for data better than the model's own answers. Starts at 1, within 0 to 2.

    Source: D'Oosterlinck et al. 2024 (arXiv:2408.06266), equation 7.
    """
    return torch.sigmoid(-settings.beta * chosen.ratios_B) + torch.sigmoid(settings.beta * rejected.ratios_B)


def apo_down_loss(chosen: Answers, rejected: Answers, settings: LossSettings) -> Tensor:
    """APO-down: both down, rejected further; for data worse than the model's own answers. Starts at 1, within 0 to 2.

    Source: D'Oosterlinck et al. 2024 (arXiv:2408.06266), equation 8.
    """
    chosen_B, rejected_B = settings.beta * chosen.ratios_B, settings.beta * rejected.ratios_B
    return torch.sigmoid(chosen_B) + torch.sigmoid(rejected_B - chosen_B)


def discopop_loss(chosen: Answers, rejected: Answers, settings: LossSettings) -> Tensor:
    """DiscoPOP: logistic for negative margins, exponential for positive ones. Starts at (log 2 + 1)/2 = 0.847.

    Source: Lu et al. 2024 (arXiv:2406.08414), equation 5.
    """
    margins_B = _margins(chosen, rejected, settings)
    blend_B = margins_B / settings.discopop_tau
    # TRL multiplies e^-m and sigmoid(m / tau), which is inf times 0 below m = -89; one exponential is not.
    return -F.logsigmoid(margins_B) * torch.sigmoid(-blend_B) + torch.exp(F.logsigmoid(blend_B) - margins_B)


def sft_loss(chosen: Answers, rejected: Answers, settings: LossSettings) -> Tensor:
    """Cross entropy per token of the chosen answers, beside a loss that may let them sink. Starts where the data do.

    Source: Wang et al. 2024, MPO (arXiv:2411.10442), as its generation loss.
    """
    return token_mean_nll(chosen.nll_B, chosen.num_tokens_B)


def sigmoid_norm_loss(chosen: Answers, rejected: Answers, settings: LossSettings) -> Tensor:
    """DPO with log-ratios per token, where an answer gains nothing by being long. Starts at log 2.

    Source: Lambert et al. 2024, Tulu 3 (arXiv:2411.15124), section 5.
    """
    return -F.logsigmoid(settings.beta * _mean_margins(chosen, rejected, settings))


DPO_LOSSES: dict[str, Callable[[Answers, Answers, LossSettings], Tensor]] = {
    "sigmoid": sigmoid_loss,
    "hinge": hinge_loss,
    "ipo": ipo_loss,
    "exo_pair": exo_pair_loss,
    "nca_pair": nca_pair_loss,
    "robust": robust_loss,
    "bco_pair": bco_pair_loss,
    "sppo_hard": sppo_hard_loss,
    "aot": aot_loss,
    "aot_unpaired": aot_unpaired_loss,
    "apo_zero": apo_zero_loss,
    "apo_down": apo_down_loss,
    "discopop": discopop_loss,
    "sft": sft_loss,
    "sigmoid_norm": sigmoid_norm_loss,
}


def mixed_loss(
    chosen: Answers, rejected: Answers, settings: LossSettings, loss_types: Sequence[str], weights: Sequence[float]
) -> Tensor:
    """Sum of the named losses times their weights, of which there are as many: one loss per pair, shape (B,)."""
    losses = [DPO_LOSSES[name](chosen, rejected, settings) for name in loss_types]
    return sum((weight * loss_B for weight, loss_B in zip(weights, losses, strict=True)), torch.zeros(()))


def loss_at_start(loss_types: Sequence[str], weights: Sequence[float] | None, settings: LossSettings) -> float | None:
    """Loss of a policy that equals its reference, as every run is at its first step; None if it depends on the data.

    `weights` None counts each loss once. Two pairs as unlike as can be either score the same, or the data decide.
    Of a run with TRL's `use_weighting` it says nothing: that scales each pair by its probabilities.
    """
    logps_B, num_tokens_B = torch.tensor([[-3.0, -50.0], [-7.0, -2.0]]).double(), torch.tensor([[1, 9], [4, 2]])
    chosen, rejected = (Answers(logps, logps, num, -logps) for logps, num in zip(logps_B, num_tokens_B, strict=True))
    first, second = mixed_loss(chosen, rejected, settings, loss_types, weights or [1.0] * len(loss_types)).tolist()
    return first if first == second else None


# ---- losses of one example, without a reference, of a score


def estimate_kl(logps_B: Tensor, reference_logps_B: Tensor) -> Tensor:
    """KL of the policy from its reference, a scalar of at least 0 without gradient: the mean log-ratio of answers.

    Each answer is another prompt's, so that it is neither good nor bad. Several processes: of all their rows.
    Source: Ethayarajh et al. 2024 (arXiv:2402.01306), section 4.
    """
    return (logps_B - reference_logps_B).mean().clamp(min=0).detach()


def kto_loss(
    ratios_B: Tensor, is_desirable_B: Tensor, kl: Tensor | float, beta: float = 0.1,
    desirable_weight: float = 1.0, undesirable_weight: float = 1.0,
) -> Tensor:  # fmt: skip
    """KTO: desirable answers are to gain more than the KL, undesirable ones less; one loss per example, shape (B,).

    A policy equal to its reference scores half the example's weight. With a `kl` of 0 it is TRL's `apo_zero_unpaired`.
    Source: Ethayarajh et al. 2024 (arXiv:2402.01306), equation 7; D'Oosterlinck et al. 2024 (arXiv:2408.06266).
    """
    gains_B = torch.where(is_desirable_B, ratios_B - kl, kl - ratios_B)
    return torch.where(is_desirable_B, desirable_weight, undesirable_weight) * torch.sigmoid(-beta * gains_B)


def orpo_loss(chosen_logps_B: Tensor, rejected_logps_B: Tensor, chosen_nll_B: Tensor, beta: float = 0.1) -> Tensor:
    """ORPO: supervised fine-tuning plus beta times the log-odds' logistic loss; one loss per pair, shape (B,).

    A model that finds both answers equally likely scores its cross entropy plus beta log 2.

    Args:
        chosen_logps_B: log-probability per token of the chosen answer, a mean below 0.
        rejected_logps_B: the same of the rejected answer.
        chosen_nll_B: from `token_mean_nll`; over whichever tokens are labelled (TRL's trainer: prompt and answer).
        beta: weight of the odds, the paper's lambda.

    Source: Hong et al. 2024 (arXiv:2403.07691), equations 4, 6 and 7.
    """
    chosen_B, rejected_B = (
        # Odds are infinite at probability 1, where rounding may put a mean of long answers.
        logps_B - torch.log(-torch.expm1(logps_B.clamp(max=-torch.finfo(logps_B.dtype).eps)))
        for logps_B in (chosen_logps_B, rejected_logps_B)
    )
    return chosen_nll_B - beta * F.logsigmoid(chosen_B - rejected_B)


def reward_loss(
    chosen_B: Tensor, rejected_B: Tensor, margins_B: Tensor | float = 0.0, center_rewards_coefficient: float = 0.0
) -> Tensor:
    """Bradley-Terry loss of a reward model's scores; one loss per pair, shape (B,). Equal scores: log 2 = 0.693.

    `margins_B` is by how much the chosen score is to win; the coefficient, 0.01 is usual, draws both towards 0.
    Source: Ouyang et al. 2022 (arXiv:2203.02155), equation 1; with margins, Touvron et al. 2023 (arXiv:2307.09288),
    equation 2; centred, Eisenstein et al. 2023 (arXiv:2312.09244), equation 2.
    """
    centred_B = center_rewards_coefficient * (chosen_B + rejected_B) ** 2
    return centred_B - F.logsigmoid(chosen_B - rejected_B - margins_B)
