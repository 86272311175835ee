"""A decoder of the Llama family written out, with a hole at each place where a method of the papers goes in.

In go a model's weights by their names and its token ids; out come the logits. RMSNorm (arXiv:1910.07467,
equation 4), rotary positions (arXiv:2104.09864, equation 34), grouped-query attention (arXiv:2305.13245),
SwiGLU (arXiv:2002.05202, equation 6), causal attention (arXiv:1706.03762, equation 1).

Shapes: B rows, T tokens, H heads, D numbers a head.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

__all__ = ["Places", "Shape", "attend", "decode"]


@dataclass(frozen=True, slots=True)
class Shape:
    """What the weights alone do not say."""

    num_layers: int
    num_heads: int
    num_kv_heads: int
    eps: float
    rope_theta: float


def _unchanged(layer: int, value: Tensor) -> Tensor:
    return value


def _no_prefix(layer: int) -> None:
    return None


@dataclass(frozen=True, slots=True)
class Places:
    """What a method does at each place of a layer, which is counted from 0; nothing where it is not named.

    Attributes:
        keys: changes C W_k, before positions are turned in.
        values: changes C W_v.
        intermediate: changes the feed-forward's activations, before they are projected down.
        prefix: gives P_k and P_v, shapes (num_kv_heads, m, D), or None.
        after_attention: changes attention's output, projected, before it joins the residual stream.
        after_feed_forward: changes the feed-forward's output, projected, before it joins the residual stream.
    """

    keys: Callable[[int, Tensor], Tensor] = _unchanged
    values: Callable[[int, Tensor], Tensor] = _unchanged
    intermediate: Callable[[int, Tensor], Tensor] = _unchanged
    prefix: Callable[[int], tuple[Tensor, Tensor] | None] = _no_prefix
    after_attention: Callable[[int, Tensor], Tensor] = _unchanged
    after_feed_forward: Callable[[int, Tensor], Tensor] = _unchanged


def decode(weights: Mapping[str, Tensor], ids_BT: Tensor, shape: Shape, places: Places | None = None) -> Tensor:
    """Logits of every position, shape (B, T, words)."""
    places = places or Places()
    x = weights["model.embed_tokens.weight"][ids_BT]
    for layer in range(shape.num_layers):
        block = _Block(weights, layer, shape, places)
        x = x + places.after_attention(layer, block.attention(block.norm("input_layernorm", x)))
        x = x + places.after_feed_forward(layer, block.feed_forward(block.norm("post_attention_layernorm", x)))
    x = _rms_norm(x, weights["model.norm.weight"], shape.eps)
    return x @ weights["lm_head.weight"].T


def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Attention of T queries over S ≥ T keys, the last of which are the queries' own: softmax(Q Kᵀ / √D) V, causal.

    Args:
        q: shape (..., T, D).
        k: shape (..., S, D).
        v: shape (..., S, D).

    Source: Vaswani et al. 2017 (arXiv:1706.03762), equation 1.
    """
    scores = q @ k.transpose(-1, -2) / math.sqrt(q.shape[-1])
    num_queries, num_keys = scores.shape[-2:]
    later = torch.ones(num_queries, num_keys, dtype=torch.bool).triu(num_keys - num_queries + 1)
    return scores.masked_fill(later, -math.inf).softmax(-1) @ v


@dataclass(frozen=True, slots=True)
class _Block:
    weights: Mapping[str, Tensor]
    layer: int
    shape: Shape
    places: Places

    def norm(self, name: str, x: Tensor) -> Tensor:
        return _rms_norm(x, self.weights[f"model.layers.{self.layer}.{name}.weight"], self.shape.eps)

    def attention(self, x: Tensor) -> Tensor:
        q = self._to_heads(self._linear("self_attn.q_proj", x), self.shape.num_heads)
        k = self._to_heads(self.places.keys(self.layer, self._linear("self_attn.k_proj", x)), self.shape.num_kv_heads)
        v = self._to_heads(self.places.values(self.layer, self._linear("self_attn.v_proj", x)), self.shape.num_kv_heads)
        prefix = self.places.prefix(self.layer)
        start = 0 if prefix is None else prefix[0].shape[-2]
        q, k = _rotate(q, start, self.shape.rope_theta), _rotate(k, start, self.shape.rope_theta)
        if prefix is not None:
            # Li & Liang's prefix is what the cache holds of m earlier positions: it is learned as it is read.
            k, v = (
                torch.cat([p.expand(len(x), -1, -1, -1), own], dim=-2) for p, own in zip(prefix, (k, v), strict=True)
            )
        group = self.shape.num_heads // self.shape.num_kv_heads
        heads = attend(q, k.repeat_interleave(group, dim=1), v.repeat_interleave(group, dim=1))
        return self._linear("self_attn.o_proj", heads.transpose(1, 2).flatten(2))

    def feed_forward(self, x: Tensor) -> Tensor:
        gate = self._linear("mlp.gate_proj", x)
        activations = gate * torch.sigmoid(gate) * self._linear("mlp.up_proj", x)
        return self._linear("mlp.down_proj", self.places.intermediate(self.layer, activations))

    def _linear(self, name: str, x: Tensor) -> Tensor:
        bias = self.weights.get(f"model.layers.{self.layer}.{name}.bias")
        h = x @ self.weights[f"model.layers.{self.layer}.{name}.weight"].T
        return h if bias is None else h + bias

    def _to_heads(self, x: Tensor, num_heads: int) -> Tensor:
        return x.unflatten(-1, (num_heads, -1)).transpose(1, 2)


def _rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    return weight * x / (x.pow(2).mean(-1, keepdim=True) + eps).sqrt()


def _rotate(x: Tensor, start: int, theta: float) -> Tensor:
    """Turn number i of a head with number i + D/2, by an angle of position / theta^(2i / D)."""
    half = x.shape[-1] // 2
    positions = torch.arange(start, start + x.shape[-2])[:, None]
    angles = positions / theta ** (torch.arange(half) / half)
    first, second = x[..., :half], x[..., half:]
    return torch.cat(
        [first * angles.cos() - second * angles.sin(), second * angles.cos() + first * angles.sin()], dim=-1
    )
