"""Bottleneck adapters, written from their papers: a small feed-forward layer with a skip of its own."""

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor

from tests.reference.decoder import Places

__all__ = ["Bottleneck", "bottleneck_output", "count_bottleneck_parameters", "to_houlsby", "to_pfeiffer"]


@dataclass(frozen=True, slots=True)
class Bottleneck:
    """The weights of one adapter, as torch holds them.

    Attributes:
        down: W_down, shape (m, d).
        down_bias: b_down, shape (m,).
        up: W_up, shape (d, m).
        up_bias: b_up, shape (d,).
    """

    down: Tensor
    down_bias: Tensor
    up: Tensor
    up_bias: Tensor


def bottleneck_output(h: Tensor, adapter: Bottleneck, activation: Callable[[Tensor], Tensor]) -> Tensor:
    """Output of an adapter, h + W_up f(W_down h + b_down) + b_up.

    With weights near zero it is near the identity, which is how it has to start.

    Source: Houlsby et al. 2019 (arXiv:1902.00751), section 2.1 and figure 2; the paper numbers no equation and names
    no f. As a formula: He et al. 2022 (arXiv:2110.04366), section 2.2, without biases.
    """
    return h + activation(h @ adapter.down.T + adapter.down_bias) @ adapter.up.T + adapter.up_bias


def to_houlsby(
    after_attention: list[Bottleneck], after_feed_forward: list[Bottleneck], activation: Callable[[Tensor], Tensor]
) -> Places:
    """Where Houlsby's two adapters of a layer act: on each sub-layer's projected output, before the residual sum.

    Source: Houlsby et al. 2019 (arXiv:1902.00751), section 2.1 and figure 2, left.
    """
    return Places(
        after_attention=lambda layer, h: bottleneck_output(h, after_attention[layer], activation),
        after_feed_forward=lambda layer, h: bottleneck_output(h, after_feed_forward[layer], activation),
    )


def to_pfeiffer(after_feed_forward: list[Bottleneck], activation: Callable[[Tensor], Tensor]) -> Places:
    """Where Pfeiffer's one adapter of a layer acts: on the feed-forward's projected output.

    Source: Pfeiffer et al. 2020 (arXiv:2005.00247), the single adapter that its search of places chose.
    """
    return Places(after_feed_forward=lambda layer, h: bottleneck_output(h, after_feed_forward[layer], activation))


def count_bottleneck_parameters(d: int, m: int) -> int:
    """Numbers of one adapter, 2 m d + d + m. Source: Houlsby et al. 2019 (arXiv:1902.00751), section 2.1."""
    return 2 * m * d + d + m
