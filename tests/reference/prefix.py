"""Prefix tuning, written from its papers: learned keys and values that stand before every layer's own."""

import math

import torch
from torch import Tensor

from tests.reference.decoder import Places

__all__ = ["count_prefix_parameters", "gated_form", "prefix_attention", "to_places"]


def prefix_attention(q: Tensor, k: Tensor, v: Tensor, prefix_k: Tensor, prefix_v: Tensor) -> Tensor:
    """One head over the lengthened keys and values, Attn(q, [P_k; K], [P_v; V]), every key in sight.

    Args:
        q: queries, shape (T, D).
        k: keys, shape (S, D).
        v: values, shape (S, D).
        prefix_k: P_k, shape (m, D).
        prefix_v: P_v, shape (m, D).

    Source: He et al. 2022 (arXiv:2110.04366), equation 5; Li & Liang 2021 (arXiv:2101.00190), section 4.2.
    """
    scores = q @ torch.cat([prefix_k, k]).T / math.sqrt(q.shape[-1])
    return scores.softmax(-1) @ torch.cat([prefix_v, v])


def gated_form(q: Tensor, k: Tensor, v: Tensor, prefix_k: Tensor, prefix_v: Tensor) -> Tensor:
    """The same head as a mean of two: (1 - λ) Attn(q, K, V) + λ Attn(q, P_k, P_v), λ the prefix's share of the softmax.

    Source: He et al. 2022 (arXiv:2110.04366), section 3.1, where equation 5 is rewritten.
    """
    of_keys, of_prefix = (q @ keys.T / math.sqrt(q.shape[-1]) for keys in (k, prefix_k))
    sums = of_keys.exp().sum(-1, keepdim=True), of_prefix.exp().sum(-1, keepdim=True)
    share = sums[1] / (sums[0] + sums[1])
    return (1 - share) * of_keys.softmax(-1) @ v + share * of_prefix.softmax(-1) @ prefix_v


def to_places(prefixes: list[tuple[Tensor, Tensor]]) -> Places:
    """Where the prefix acts: before the keys and values of each layer, P_k and P_v of shape (heads, m, D)."""
    return Places(prefix=lambda layer: prefixes[layer])


def count_prefix_parameters(num_layers: int, m: int, d_kv: int) -> int:
    """Numbers in all layers, 2 L m d: |P| rows of all the activations that one position leaves in the cache.

    Args:
        num_layers: L.
        m: vectors of the prefix.
        d_kv: numbers of one position's keys, over all key heads.

    Source: Li & Liang 2021 (arXiv:2101.00190), section 4.2: P_θ of shape |P_idx| × dim(h_i).
    """
    return 2 * num_layers * m * d_kv
