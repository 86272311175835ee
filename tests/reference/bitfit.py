"""BitFit, written from its paper: every matrix stays, and only the biases move."""

from collections.abc import Mapping

from torch import Tensor

__all__ = ["bitfit_output", "count_bitfit_parameters", "move_biases"]


def bitfit_output(x: Tensor, weight: Tensor, bias: Tensor | None, delta: Tensor) -> Tensor:
    """Output of a layer whose bias has moved by delta, W x + (b + Δb); a layer without one has b = 0.

    Source: Ben Zaken et al. 2021 (arXiv:2106.10199), section 3, Q(x) = W_q x + b_q and those below it.
    """
    return x @ weight.T + (delta if bias is None else bias + delta)


def move_biases(weights: Mapping[str, Tensor], deltas: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Weights of a model whose biases have moved.

    Args:
        weights: by name.
        deltas: by the name of the bias, `….bias`; one that the model has not got starts at zero.

    Source: Ben Zaken et al. 2021 (arXiv:2106.10199), section 3.
    """
    return dict(weights) | {name: weights[name] + d if name in weights else d for name, d in deltas.items()}


def count_bitfit_parameters(outputs: list[int]) -> int:
    """Numbers of all biases: one for each output of each layer that has one."""
    return sum(outputs)
