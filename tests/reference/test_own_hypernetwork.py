import dataclasses

import pytest
import torch
from peft import get_peft_model
from torch import nn

from finetune.model.adapters import count_parameters
from finetune.model.hypernetwork_tuner import HypernetworkLinear, pass_task_ids
from finetune.model.own_methods import OWN_METHODS
from tests.reference.bases import HIDDEN, NUM_LAYERS, TOKENS, load, random_like, shape_of, weights_of
from tests.reference.closeness import hold, relative_difference
from tests.reference.decoder import decode
from tests.reference.hypernetwork import Hypernetwork, count_hypernetwork_parameters, to_hyperformer

M, T, E, S = 8, 5, 7, 6  # the adapters' size, an embedding's, the projector's hidden layer's, and its last's
TASKS = [2, 0]  # of the rows of TOKENS
ACTIVATIONS = {
    "relu": lambda x: x.clamp(min=0),
    "gelu": lambda x: x * (1 + torch.erf(x / 2**0.5)) / 2,
    "silu": lambda x: x * torch.sigmoid(x),
    "tanh": torch.tanh,
}
SIZES = {"size": M, "task_embedding_size": T, "projector_hidden_size": E, "projected_size": S, "num_tasks": 3}


def network_of(model):
    return model.base_model.hypernetwork_shared["default"]


def tensors_of(network):
    first, _, second = network.projector
    modules = [network.task, network.layer, network.place, first, second, network.norm]
    modules += [network.down, network.down_bias, network.up, network.up_bias]
    return [parameter for module in modules for parameter in module.parameters()]


def hold_start(model, before):
    network = network_of(model)
    for layer in range(NUM_LAYERS):
        for place in range(2):
            made = network(torch.arange(3), layer, place)
            assert not made.down_bias.any()
            assert not made.up_bias.any()
            for matrices in (made.down, made.up):
                assert matrices.std().item() == pytest.approx(0.01, rel=0.15)
    with torch.no_grad():
        assert 0 < relative_difference(model(input_ids=TOKENS).logits, before) < 1e-2
        with model.disable_adapter():
            assert torch.equal(model(input_ids=TOKENS).logits, before)


def hold_all(*, activation="gelu", quantization="none", plant=None, tasks=TASKS, **fields):
    base = load(quantization)
    weights, shape = weights_of(base), shape_of(base)
    with torch.no_grad():
        before = base.model(TOKENS).logits
    torch.manual_seed(0)
    config = OWN_METHODS["hypernetwork"](**{"activation": activation, "task_type": "CAUSAL_LM"} | SIZES | fields)
    model = get_peft_model(base.model, config)
    pass_task_ids(model)
    if plant is not None:
        plant(model)
    expected_count = count_hypernetwork_parameters(3, NUM_LAYERS, T, E, S, HIDDEN, M)
    assert count_parameters(model).trainable == expected_count
    hold_start(model, before)

    learned = tensors_of(network_of(model))
    for number, tensor in enumerate(learned):
        tensor.data = random_like(tensor, seed=number)
    logits = model(input_ids=TOKENS, task_ids=torch.tensor(TASKS)).logits
    grad = random_like(logits, seed=7)
    ours = torch.autograd.grad(logits, learned, grad)

    copies = [tensor.detach().clone().requires_grad_() for tensor in learned]
    places = to_hyperformer(Hypernetwork(*copies), tasks, ACTIVATIONS[activation])
    expected = decode(weights, TOKENS, shape, places)
    gradients = torch.autograd.grad(expected, copies, grad)
    names = [f"gradient of {field.name}" for field in dataclasses.fields(Hypernetwork)]
    pairs = dict(zip(names, zip(ours, gradients, strict=True), strict=True))
    hold("our hypernetwork", logits=(logits, expected), **pairs)


@pytest.mark.parametrize("quantization", ["none", "nf4"])
@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_logits_gradients_start_and_count_are_the_papers(activation, quantization):
    hold_all(activation=activation, quantization=quantization)


def on_every_layer(change):
    def plant(model):
        for layer in model.modules():
            if isinstance(layer, HypernetworkLinear):
                change(layer)

    return plant


def lose_the_skip(layer):
    forward = layer.forward
    layer.forward = lambda x: forward(x) - layer.base_layer(x)


def double(layer):
    layer.hypernetwork_dropout["default"].register_forward_hook(lambda module, inputs, output: 2 * output)


def swap_places(layer):
    number, place = layer.hypernetwork_position["default"]
    layer.hypernetwork_position["default"] = (number, 1 - place)


def count_layers_from_the_last(layer):
    number, place = layer.hypernetwork_position["default"]
    layer.hypernetwork_position["default"] = (NUM_LAYERS - 1 - number, place)


def take_another_activation(layer):
    layer.hypernetwork_function["default"] = nn.functional.silu


def start_biases_at_random(model):
    nn.init.normal_(network_of(model).up_bias.weight)


def start_at_the_identity(model):
    nn.init.zeros_(network_of(model).up.weight)


def leave_out_the_norm(model):
    network_of(model).norm.forward = lambda x: x


PLANTED = {
    "one adapter a layer": {"variant": "pfeiffer"},
    "behind the queries": {"target_modules": ["q_proj", "down_proj"]},
    "a start of deviation 1": {"init_std": 1.0},
    "a start of deviation 0.02": {"init_std": 0.02},
    "another size": {"size": M + 1},
    "random biases": {"plant": start_biases_at_random},
    "a start at the identity": {"plant": start_at_the_identity},
    "no norm": {"plant": leave_out_the_norm},
    "no skip": {"plant": on_every_layer(lose_the_skip)},
    "twice the scale": {"plant": on_every_layer(double)},
    "places swapped": {"plant": on_every_layer(swap_places)},
    "layers counted from the last": {"plant": on_every_layer(count_layers_from_the_last)},
    "another activation": {"plant": on_every_layer(take_another_activation)},
    "rows of other tasks": {"tasks": TASKS[::-1]},
}


@pytest.mark.parametrize("planted", PLANTED)
def test_a_planted_error_is_found(planted):
    with pytest.raises(AssertionError):
        hold_all(**PLANTED[planted])
