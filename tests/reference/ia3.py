"""IA3, written from its paper: three learned vectors a layer, which rescale what flows through it."""

from torch import Tensor

from tests.reference.decoder import Places

__all__ = ["count_ia3_parameters", "to_places"]


def to_places(l_k: list[Tensor], l_v: list[Tensor], l_ff: list[Tensor]) -> Places:
    """Where the vectors act: softmax(Q (l_k ⊙ Kᵀ) / √d) (l_v ⊙ V), and (l_ff ⊙ γ(W_1 x)) W_2.

    The keys are those of the projection: a model with rotary positions turns the rescaled ones.

    Args:
        l_k: of each layer, shape (d_k,), d_k over all key heads; ones at the start, which change nothing.
        l_v: of each layer, shape (d_v,).
        l_ff: of each layer, shape (d_ff,): one for each intermediate activation.

    Source: Liu et al. 2022 (arXiv:2205.05638), section 3.3, the two unnumbered equations.
    """
    return Places(
        keys=lambda layer, keys: l_k[layer] * keys,
        values=lambda layer, values: l_v[layer] * values,
        intermediate=lambda layer, activations: l_ff[layer] * activations,
    )


def count_ia3_parameters(num_layers: int, d_k: int, d_v: int, d_ff: int) -> int:
    """Numbers in all layers, L (d_k + d_v + d_ff): section 3.3 of arXiv:2205.05638, layers of one attention each."""
    return num_layers * (d_k + d_v + d_ff)
