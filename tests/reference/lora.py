"""LoRA, its rank-stabilised scale and DoRA, written from their papers.

Weights lie as torch holds them: W (d_out, d_in), A (r, d_in), B (d_out, r); rows of x are inputs.
"""

import math

from torch import Tensor

__all__ = [
    "count_dora_parameters",
    "count_lora_parameters",
    "dora_output",
    "kaiming_bound",
    "lora_gradients",
    "lora_output",
    "lora_scale",
    "rslora_scale",
]


def lora_output(x: Tensor, weight: Tensor, bias: Tensor | None, A: Tensor, B: Tensor, scale: float) -> Tensor:
    """Output of an adapted layer, h = W x + ΔW x with ΔW = scale · B A.

    Source: Hu et al. 2021 (arXiv:2106.09685), equation 3; the scale from the paragraph below it.
    """
    h = x @ (weight + scale * B @ A).T
    return h if bias is None else h + bias


def lora_gradients(
    x: Tensor, weight: Tensor, A: Tensor, B: Tensor, scale: float, grad: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of A, B and x by the chain rule through equation 3, W being frozen.

    Args:
        x: inputs, shape (N, d_in).
        weight: W.
        A: of LoRA.
        B: of LoRA.
        scale: of BA.
        grad: of the loss with respect to h, shape (N, d_out).

    Source: Hu et al. 2021 (arXiv:2106.09685), equation 3, differentiated by hand.
    """
    of_delta = scale * grad.T @ x
    return B.T @ of_delta, of_delta @ A.T, grad @ (weight + scale * B @ A)


def lora_scale(alpha: float, r: int) -> float:
    """Scale of ΔW, α / r. Source: Hu et al. 2021 (arXiv:2106.09685), section 4.1, below equation 3."""
    return alpha / r


def rslora_scale(alpha: float, r: int) -> float:
    """Scale of ΔW, α / √r, at which learning is stable in every rank.

    Source: Kalajdzievski 2023 (arXiv:2312.03732), theorem 3.2 and what follows from it.
    """
    return alpha / math.sqrt(r)


def count_lora_parameters(d_in: int, d_out: int, r: int) -> int:
    """Numbers in A and B, r (d_in + d_out): section 5.1 of arXiv:2106.09685, for one matrix of any shape."""
    return r * (d_in + d_out)


def kaiming_bound(d_in: int) -> float:
    """Bound of the uniform distribution that A is drawn from; B is zero.

    He's uniform bound is √(6 / ((1 + a²) fan_in)). The paper asks for a random Gaussian A and a zero B
    (arXiv:2106.09685, section 4.1); its authors' code, and all that followed it, draws A by He et al. 2015
    (arXiv:1502.01852) with a = √5, as torch starts a linear layer, which is 1 / √d_in.
    """
    return math.sqrt(6 / ((1 + 5) * d_in))


def dora_output(
    x: Tensor, weight: Tensor, bias: Tensor | None, A: Tensor, B: Tensor, scale: float, magnitude: Tensor
) -> Tensor:
    """Output of an adapted layer, W' = m (W + ΔW) / ‖W + ΔW‖, where the norm is a constant to the gradient.

    The norm is taken over the inputs of each output, as the authors' code does: the "columns" of the
    paper, whose d × k matrix read by h = W x would have one magnitude for each input.

    Args:
        x: inputs.
        weight: W, of which m started as the norm.
        bias: of the frozen layer.
        A: of LoRA.
        B: of LoRA.
        scale: of BA.
        magnitude: m, shape (d_out,).

    Source: Liu et al. 2024 (arXiv:2402.09353), equation 5; section 4.3 on the detached norm.
    """
    direction = weight + scale * B @ A
    norm = direction.pow(2).sum(dim=1, keepdim=True).sqrt().detach()
    h = x @ (magnitude[:, None] * direction / norm).T
    return h if bias is None else h + bias


def count_dora_parameters(d_in: int, d_out: int, r: int) -> int:
    """Numbers in A, B and m, of which there is one for each output."""
    return count_lora_parameters(d_in, d_out, r) + d_out
