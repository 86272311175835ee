"""A small network that makes the weights of all adapters of a model, shared by all layers and tasks.

In go a task, a layer and a place in the layer (attention, feed-forward); out come the weights of the adapter there,
made of three embeddings, of the task t, the layer l and the place p:

    I = norm(W_2 relu(W_1 [z_t; l_l; p_p] + c_1) + c_2)                  the projector
    W_down = G_1 I    b_down = G_2 I    W_up = G_3 I    b_up = G_4 I     the generators
    h <- h + W_up f(W_down h + b_down) + b_up                            the adapter

With T tasks, L layers, P places a layer, adapters of size M behind D features, embeddings of E, H hidden features in
the projector and S at its end, that is, whatever the number of adapters,

    E (T + L + P)  +  3 E H + H + H S + S  +  2 S  +  S (2 M D + M + D)    parameters.

Source: Karimi Mahabadi et al. 2021 (arXiv:2106.04489), HyperFormer++; the shapes are those of its authors' code
(github.com/rabeehk/hyperformer, AdapterLayersOneHyperNetController). Three differences: the layer norm that it
generates behind each adapter is left out, since no adapter with one starts near the identity; the generators have no
bias; the base's own norms stay frozen. `hypernetwork_tuner` puts the adapters in.
"""

from dataclasses import dataclass, field
from enum import Enum
from typing import NamedTuple

import torch
from peft import PeftConfig
from torch import Tensor, nn

from finetune.model.bottleneck import Activation, Variant, check_adapter_values

__all__ = ["Hypernetwork", "HypernetworkConfig", "HypernetworkType", "Weights"]


class HypernetworkType(str, Enum):  # noqa: UP042 - PEFT reads the name behind the dot of str()
    """The method's name where PEFT looks for a member of its own, closed enumeration."""

    HYPERNETWORK = "HYPERNETWORK"


@dataclass
class HypernetworkConfig(PeftConfig):
    """Settings of the hypernetwork and of the adapters it makes.

    What the projector ends with has a root mean square of 1, and the generators of both matrices start from a normal
    distribution of deviation init_std / sqrt(projected_size), so that every matrix that is made starts with deviation
    init_std; the generators of both biases start at zero, and make zeros. An output of root mean square s is changed
    by about init_std^2 sqrt(M D / 2) s under relu: 1 % at D = 768 with the defaults. Nothing starts at zero that
    would leave anything else without a gradient in the first step.

    Attributes:
        size: features M of the adapters, at least 1.
        task_embedding_size: features of the embeddings of task, layer and place, at least 1.
        projector_hidden_size: features of the projector's hidden layer, at least 1.
        projected_size: features that the projector ends with and all weights are made of, at least 1.
        num_tasks: tasks, each with an embedding; `hypernetwork_tuner.pass_task_ids` says how rows tell theirs.
        variant: where adapters are put: `houlsby` behind attention and feed-forward, `pfeiffer` behind the latter.
        activation: the function f.
        init_std: standard deviation of the matrices that are made at the start, above 0.
        dropout: fraction of what is added that is dropped in training, 0 to below 1.
        target_modules: names, or a pattern for whole names, of the linear layers to put adapters behind, in place
            of the variant's; all with the same number of outputs.
        exclude_modules: names, or a pattern for whole names, of modules left out.
        modules_to_save: names of modules trained and saved whole beside the adapters, such as a fresh head.

    Raises:
        ValueError: a setting outside of these.
    """

    size: int = field(default=24, metadata={"help": "Features of the adapters."})
    task_embedding_size: int = field(default=64, metadata={"help": "Features of each embedding."})
    projector_hidden_size: int = field(default=128, metadata={"help": "Hidden features of the projector."})
    projected_size: int = field(default=64, metadata={"help": "Features that all weights are made of."})
    num_tasks: int = field(default=1, metadata={"help": "Tasks with an embedding of their own."})
    variant: Variant = field(default="houlsby", metadata={"help": "Behind attention and feed-forward, or the latter."})
    activation: Activation = field(default="gelu", metadata={"help": "The function inside."})
    init_std: float = field(default=1e-2, metadata={"help": "Standard deviation of the made matrices at the start."})
    dropout: float = field(default=0.0, metadata={"help": "Fraction of what is added that is dropped in training."})
    target_modules: list[str] | str | None = field(
        default=None, metadata={"help": "Linear layers to put adapters behind; None: the variant's."}
    )
    exclude_modules: list[str] | str | None = field(default=None, metadata={"help": "Modules left out."})
    modules_to_save: list[str] | None = field(
        default=None, metadata={"help": "Modules trained and saved whole beside the adapters."}
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        self.peft_type = HypernetworkType.HYPERNETWORK
        for name in ("size", "task_embedding_size", "projector_hidden_size", "projected_size", "num_tasks"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}, and the least is 1")
        check_adapter_values(self.variant, self.activation, self.init_std, self.dropout)


class Weights(NamedTuple):
    """The weights of one adapter for each of N tasks: shapes (N, M, D), (N, M), (N, D, M), (N, D)."""

    down: Tensor
    down_bias: Tensor
    up: Tensor
    up_bias: Tensor


class Hypernetwork(nn.Module):
    """What makes the weights of all adapters, in float32.

    Args:
        config: its sizes.
        num_layers: layers that have adapters.
        num_places: places in a layer that have one.
        features: features D behind which the adapters stand.
    """

    def __init__(self, config: HypernetworkConfig, num_layers: int, num_places: int, features: int) -> None:
        super().__init__()
        self.size, self.features, self.num_tasks = config.size, features, config.num_tasks
        width, hidden, projected = config.task_embedding_size, config.projector_hidden_size, config.projected_size
        self.task = nn.Embedding(config.num_tasks, width, dtype=torch.float32)
        self.layer = nn.Embedding(num_layers, width, dtype=torch.float32)
        self.place = nn.Embedding(num_places, width, dtype=torch.float32)
        self.projector = nn.Sequential(
            nn.Linear(3 * width, hidden, dtype=torch.float32),
            nn.ReLU(),
            nn.Linear(hidden, projected, dtype=torch.float32),
        )
        self.norm = nn.LayerNorm(projected, eps=1e-6, dtype=torch.float32)
        self.down = _make_generator(projected, config.size * features, config.init_std)
        self.down_bias = _make_generator(projected, config.size, 0.0)
        self.up = _make_generator(projected, features * config.size, config.init_std)
        self.up_bias = _make_generator(projected, features, 0.0)

    def forward(self, tasks_N: Tensor, layer: int, place: int) -> Weights:
        """Make the weights of the adapter at a place of a layer, for each of N tasks."""
        number = len(tasks_N)
        of_layer, of_place = self.layer.weight[layer], self.place.weight[place]
        embeddings = [self.task(tasks_N), of_layer.expand(number, -1), of_place.expand(number, -1)]
        projected = self.norm(self.projector(torch.cat(embeddings, dim=-1)))
        return Weights(
            self.down(projected).view(number, self.size, self.features),
            self.down_bias(projected),
            self.up(projected).view(number, self.features, self.size),
            self.up_bias(projected),
        )


def _make_generator(projected: int, numbers: int, std: float) -> nn.Linear:
    """Make a matrix whose products with vectors of root mean square 1 have the deviation asked for."""
    generator = nn.Linear(projected, numbers, bias=False, dtype=torch.float32)
    nn.init.normal_(generator.weight, std=std / projected**0.5)
    return generator
