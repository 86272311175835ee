"""The shape of a base: its linear layers, its norms and its embeddings, each with its size and its name.

Filled by `architecture`; whatever counts bytes, operations or adapters reads it. Sizes are numbers of parameters or of
features, never bytes.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from finetune.recipe.heads import Head

__all__ = ["Architecture", "Experts", "Linear", "Norm"]


@dataclass(frozen=True, slots=True)
class Linear:
    """One linear layer.

    Attributes:
        name: the end of its path by which no other one of its layer goes: `q_proj`, for BERT `intermediate.dense`.
        in_features: width of its input.
        out_features: width of its output.
        has_bias: whether it adds a bias.
        part: where it stands in a layer, or `head` behind the last one.
        path: its place inside its layer (`self_attn.q_proj`); behind the layers its place in the model.
    """

    name: str
    in_features: int
    out_features: int
    has_bias: bool
    part: Literal["attention", "mlp", "head"]
    path: str

    @property
    def num_weights(self) -> int:
        """Numbers of its matrix."""
        return self.in_features * self.out_features

    @property
    def num_parameters(self) -> int:
        """Numbers of its matrix and its bias."""
        return self.num_weights + (self.out_features if self.has_bias else 0)


@dataclass(frozen=True, slots=True)
class Norm:
    """One normalization layer: `size` weights, as many biases where it has them; `path` as for a `Linear`."""

    path: str
    size: int
    has_bias: bool

    @property
    def num_parameters(self) -> int:
        """Numbers it holds."""
        return 2 * self.size if self.has_bias else self.size


@dataclass(frozen=True, slots=True)
class Experts:
    """The MLPs of a layer that chooses some of them for each token, and the router that chooses.

    They are tensors of all experts at once and no linear layers: neither bitsandbytes (0.50) takes them to 4 or 8 bits
    nor does `all-linear` put an adapter on them.

    Attributes:
        number: experts of a layer.
        num_active: of these, how many a token goes through.
        hidden_size: width of their input and output.
        intermediate_size: width inside each.
    """

    number: int
    num_active: int
    hidden_size: int
    intermediate_size: int

    @property
    def shapes(self) -> tuple[tuple[int, ...], ...]:
        """Of the router, of gate and up together, of down."""
        number, hidden, inside = self.number, self.hidden_size, self.intermediate_size
        return (number, hidden), (number, 2 * inside, hidden), (number, hidden, inside)

    @property
    def num_parameters(self) -> int:
        """Numbers that they hold in one layer."""
        return sum(math.prod(shape) for shape in self.shapes)

    @property
    def num_active_weights(self) -> int:
        """Numbers that a token is multiplied with."""
        return self.number * self.hidden_size + 3 * self.num_active * self.hidden_size * self.intermediate_size


@dataclass(frozen=True, slots=True)
class Architecture:
    """A base by its numbers.

    Attributes:
        model_type: as in config.json.
        hidden_size: d, the width between the layers.
        intermediate_size: f, the width inside an MLP.
        num_layers: L.
        num_heads: query heads.
        num_kv_heads: heads of keys and values.
        head_dim: width of one head.
        vocab_size: V, rows of the embeddings.
        ties_embeddings: whether the output layer is the input embeddings.
        max_positions: tokens it has positions for; None: nothing limits them.
        linears: of one layer, in the order they run.
        norms: of one layer, in the order they run.
        layers_path: where the layers stand: layer 3 is `{layers_path}.3`.
        embeddings_path: where the input embeddings stand.
        is_gated: whether the MLP multiplies an activated branch with another one.
        is_encoder: whether every token sees every other one.
        head: what it ends with.
        head_linears: linear layers between the last layer and the output, taught with the base.
        fresh_linears: those that a classifier or a reward model adds, which nothing has taught; trained in full.
        output: the layer that gives words; None where labels or a score stand in its place.
        outside_norms: norms before the first layer and behind the last one.
        position_rows: rows of the embeddings of positions, and of those of token types.
        experts: those of each layer, in place of linears of an MLP; None: it has an MLP.
        num_other_parameters: numbers about which nothing else here says a word, such as those of a tower for images;
            estimated.
        has_lean_norms: whether the norms are of a kind in the tables of `model.lean_elementwise`.
        has_lean_mlp: whether the MLP is, its activation too.
        num_absent_parameters: what one layer lacks against `norms` (ModernBERT's first has no norm of its attention).
    """

    model_type: str
    hidden_size: int
    intermediate_size: int
    num_layers: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    vocab_size: int
    ties_embeddings: bool
    max_positions: int | None
    linears: tuple[Linear, ...]
    norms: tuple[Norm, ...]
    layers_path: str
    embeddings_path: str
    is_gated: bool
    is_encoder: bool
    head: Head
    head_linears: tuple[Linear, ...]
    fresh_linears: tuple[Linear, ...]
    output: Linear | None
    outside_norms: tuple[Norm, ...]
    position_rows: tuple[int, ...] = ()
    num_absent_parameters: int = 0
    experts: Experts | None = None
    num_other_parameters: int = 0
    has_lean_norms: bool = False
    has_lean_mlp: bool = False

    @property
    def num_linear_weights(self) -> int:
        """n: numbers of the matrices of one layer's linears."""
        return sum(linear.num_weights for linear in self.linears)

    @property
    def num_layer_parameters(self) -> int:
        """Numbers of one layer: matrices, biases, norms and experts."""
        return (
            sum(linear.num_parameters for linear in self.linears)
            + sum(norm.num_parameters for norm in self.norms)
            + self.num_expert_parameters
        )

    @property
    def num_expert_parameters(self) -> int:
        """Numbers of one layer's experts and of their router; 0 where it has an MLP."""
        return 0 if self.experts is None else self.experts.num_parameters

    @property
    def num_active_expert_weights(self) -> int:
        """Of these, the numbers that a token is multiplied with."""
        return 0 if self.experts is None else self.experts.num_active_weights

    @property
    def num_active_mlps(self) -> int:
        """MLPs that a token goes through in each layer."""
        return 1 if self.experts is None else self.experts.num_active

    @property
    def num_embedding_parameters(self) -> int:
        """Numbers of the input embeddings."""
        return self.vocab_size * self.hidden_size

    @property
    def num_output_parameters(self) -> int:
        """Numbers that the output layer holds beside the embeddings: a bias alone where the two are tied."""
        if self.output is None:
            return 0
        tied = self.output.num_weights if self.ties_embeddings else 0
        return self.output.num_parameters - tied

    @property
    def num_fresh_parameters(self) -> int:
        """Numbers of the head that a classifier or a reward model adds."""
        return sum(linear.num_parameters for linear in self.fresh_linears)

    @property
    def num_parameters(self) -> int:
        """Numbers of the whole base, each counted once."""
        return (
            self.num_embedding_parameters
            + sum(self.position_rows) * self.hidden_size
            + self.num_layers * self.num_layer_parameters
            - self.num_absent_parameters
            + sum(norm.num_parameters for norm in self.outside_norms)
            + sum(linear.num_parameters for linear in self.head_linears)
            + self.num_fresh_parameters
            + self.num_output_parameters
            + self.num_other_parameters
        )

    def find_shapes(self) -> Iterator[tuple[int, ...]]:
        """Find the shape of every tensor of the base."""
        yield from ((rows, self.hidden_size) for rows in (self.vocab_size, *self.position_rows))
        linears = [linear for _, linear in self.find_linears()] + [*self.fresh_linears]
        for linear in linears if self.output is None else [*linears, self.output]:
            if not (linear is self.output and self.ties_embeddings):
                yield (linear.out_features, linear.in_features)
            if linear.has_bias:
                yield (linear.out_features,)
        for _, norm in self.find_norms():
            yield from [(norm.size,)] * (2 if norm.has_bias else 1)
        if self.experts is not None:
            yield from self.experts.shapes * self.num_layers
        if self.num_other_parameters:
            yield (self.num_other_parameters,)

    def find_linears(self) -> Iterator[tuple[str, Linear]]:
        """Find every linear layer but output and fresh head, by its full name, in the order they run."""
        for layer in range(self.num_layers):
            for linear in self.linears:
                yield f"{self.layers_path}.{layer}.{linear.path}", linear
        for linear in self.head_linears:
            yield linear.path, linear

    def find_norms(self) -> Iterator[tuple[str, Norm]]:
        """Find every norm by its full name."""
        for layer in range(self.num_layers):
            is_first = layer == 0 and self.num_absent_parameters > 0
            for norm in self.norms[1:] if is_first else self.norms:
                yield f"{self.layers_path}.{layer}.{norm.path}", norm
        for norm in self.outside_norms:
            yield norm.path, norm
