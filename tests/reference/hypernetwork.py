"""A hypernetwork shared by layers and tasks, written from its paper: embeddings in, an adapter's weights out."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from tests.reference.bottleneck import Bottleneck, bottleneck_output
from tests.reference.decoder import Places

__all__ = ["Hypernetwork", "count_hypernetwork_parameters", "make_adapter", "project", "to_hyperformer"]


@dataclass(frozen=True, slots=True)
class Hypernetwork:
    """The weights of it, as torch holds them; t is the size of an embedding, e of the projector's hidden layer.

    Attributes:
        tasks: z, a row for each task, shape (tasks, t).
        layers: l, a row for each layer, shape (layers, t).
        places: p, of the adapters behind attention and behind the feed-forward, shape (2, t).
        hidden: the projector's first matrix, shape (e, 3 t), and its bias.
        projected: its second, shape (s, e), and its bias.
        norm: weight and bias of the norm behind it, shape (s,) each.
        down: G_1, shape (m d, s): row i d + j makes entry (i, j) of W_down.
        down_bias: G_2, shape (m, s).
        up: G_3, shape (d m, s).
        up_bias: G_4, shape (d, s).
    """

    tasks: Tensor
    layers: Tensor
    places: Tensor
    hidden: Tensor
    hidden_bias: Tensor
    projected: Tensor
    projected_bias: Tensor
    norm: Tensor
    norm_bias: Tensor
    down: Tensor
    down_bias: Tensor
    up: Tensor
    up_bias: Tensor


def project(network: Hypernetwork, task: int, layer: int, place: int) -> Tensor:
    """The joint embedding I of a task, a layer and a place, shape (s,): two layers with relu, then a norm.

    Source: Karimi Mahabadi et al. 2021 (arXiv:2106.04489), the projector over the three embeddings of HyperFormer++, as
    in its authors' code (github.com/rabeehk/hyperformer, with `unique_hyper_net_layer_norm`, eps 1e-6).
    """
    embeddings = torch.cat([network.tasks[task], network.layers[layer], network.places[place]])
    hidden = (network.hidden @ embeddings + network.hidden_bias).clamp(min=0)
    x = network.projected @ hidden + network.projected_bias
    x = x - x.mean()
    return network.norm * x / (x.square().mean() + 1e-6).sqrt() + network.norm_bias


def make_adapter(network: Hypernetwork, task: int, layer: int, place: int) -> Bottleneck:
    """The weights that are made for one place: each a linear function of I.

    Source: Karimi Mahabadi et al. 2021 (arXiv:2106.04489), the generators of HyperFormer++, here without their biases.
    """
    embedding = project(network, task, layer, place)
    size, features = len(network.down_bias), len(network.up_bias)
    return Bottleneck(
        down=(network.down @ embedding).reshape(size, features),
        down_bias=network.down_bias @ embedding,
        up=(network.up @ embedding).reshape(features, size),
        up_bias=network.up_bias @ embedding,
    )


def to_hyperformer(network: Hypernetwork, tasks: list[int], activation: Callable[[Tensor], Tensor]) -> Places:
    """Where the adapters of a layer act on rows of these tasks: Houlsby's two places, before the residual sum."""

    def at(place: int) -> Callable[[int, Tensor], Tensor]:
        return lambda layer, h: torch.stack(
            [
                bottleneck_output(h[row], make_adapter(network, task, layer, place), activation)
                for row, task in enumerate(tasks)
            ]
        )

    return Places(after_attention=at(0), after_feed_forward=at(1))


def count_hypernetwork_parameters(tasks: int, layers: int, t: int, e: int, s: int, d: int, m: int) -> int:
    """Numbers of it with two places a layer, term by term: embeddings, projector, norm, generators."""
    embeddings = tasks * t + layers * t + 2 * t
    projector = (3 * t * e + e) + (e * s + s)
    return embeddings + projector + 2 * s + s * (m * d + m + d * m + d)
