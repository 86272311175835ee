import pytest
import torch
from peft import get_peft_model
from torch import nn

from finetune.model.adapters import count_parameters
from finetune.model.own_methods import OWN_METHODS
from tests.reference.bases import HIDDEN, NUM_LAYERS, TOKENS, load, random_like, shape_of, weights_of
from tests.reference.bottleneck import Bottleneck, count_bottleneck_parameters, to_houlsby, to_pfeiffer
from tests.reference.closeness import hold, relative_difference
from tests.reference.decoder import decode

M = 8
PLACES = {"houlsby": ("self_attn.o_proj", "mlp.down_proj"), "pfeiffer": ("mlp.down_proj",)}
ACTIVATIONS = {
    "relu": lambda x: x.clamp(min=0),
    "gelu": lambda x: x * (1 + torch.erf(x / 2**0.5)) / 2,
    "silu": lambda x: x * torch.sigmoid(x),
    "tanh": torch.tanh,
}


def layers_of(model):
    return [module for module in model.modules() if hasattr(module, "bottleneck_down")]


def tensors_of(layer):
    down, up = layer.bottleneck_down["default"], layer.bottleneck_up["default"]
    return [down.weight, down.bias, up.weight, up.bias]


def hold_start(model, before):
    for layer in layers_of(model):
        down, down_bias, up, up_bias = tensors_of(layer)
        assert not down_bias.any()
        assert not up_bias.any()
        for matrix in (down, up):  # Houlsby et al., section 3.6: deviation 0.01, cut at two of them
            assert 0.016 < matrix.abs().max() <= 0.02
            assert matrix.std().item() == pytest.approx(0.0088, rel=0.1)
    with torch.no_grad():
        assert 0 < relative_difference(model(input_ids=TOKENS).logits, before) < 1e-2
        with model.disable_adapter():
            assert torch.equal(model(input_ids=TOKENS).logits, before)


def hold_all(variant, *, activation="relu", quantization="none", plant=None, **fields):
    base = load(quantization)
    weights, shape = weights_of(base), shape_of(base)
    with torch.no_grad():
        before = base.model(TOKENS).logits
    torch.manual_seed(0)
    config = OWN_METHODS["bottleneck"](
        **{"size": M, "variant": variant, "activation": activation, "task_type": "CAUSAL_LM"} | fields
    )
    model = get_peft_model(base.model, config)
    if plant is not None:
        plant(model)
    num_adapters = NUM_LAYERS * len(PLACES[variant])
    expected_count = num_adapters * count_bottleneck_parameters(HIDDEN, M)
    assert count_parameters(model).trainable == expected_count
    hold_start(model, before)

    # In the order of the model: by layer, and in it by place.
    learned = [tensor for layer in layers_of(model) for tensor in tensors_of(layer)]
    for number, tensor in enumerate(learned):
        tensor.data = random_like(tensor, seed=number)
    logits = model(input_ids=TOKENS).logits
    grad = random_like(logits, seed=7)
    ours = torch.autograd.grad(logits, learned, grad)

    copies = [tensor.detach().clone().requires_grad_() for tensor in learned]
    adapters = [Bottleneck(*copies[n : n + 4]) for n in range(0, len(copies), 4)]
    function = ACTIVATIONS[activation]
    places = to_pfeiffer(adapters, function)
    if variant == "houlsby":
        places = to_houlsby(adapters[0::2], adapters[1::2], function)
    expected = decode(weights, TOKENS, shape, places)
    gradients = torch.autograd.grad(expected, copies, grad)
    pairs = {f"gradient {n}": pair for n, pair in enumerate(zip(ours, gradients, strict=True))}
    hold("our bottleneck", logits=(logits, expected), **pairs)


@pytest.mark.parametrize("quantization", ["none", "nf4"])
@pytest.mark.parametrize("variant", PLACES)
def test_logits_gradients_start_and_count_are_the_papers(variant, quantization):
    hold_all(variant, quantization=quantization)


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_every_activation_is_what_its_name_says(activation):
    hold_all("houlsby", activation=activation)


def on_every_layer(change):
    def plant(model):
        for layer in layers_of(model):
            change(layer)

    return plant


def lose_the_skip(layer):
    layer.forward = lambda x: layer.bottleneck_up["default"](
        torch.relu(layer.bottleneck_down["default"](layer.base_layer(x)))
    )


def double(layer):
    layer.bottleneck_up["default"].register_forward_hook(lambda module, inputs, output: 2 * output)


def take_another_activation(layer):
    layer.bottleneck_activation["default"] = nn.GELU()


def start_biases_at_random(layer):
    nn.init.normal_(layer.bottleneck_down["default"].bias)


PLANTED = {
    "one adapter a layer": {"target_modules": ["down_proj"]},
    "behind the queries": {"target_modules": ["q_proj", "down_proj"]},
    "a start of deviation 1": {"init_std": 1.0},
    "a start of deviation 0.02": {"init_std": 0.02},
    "another size": {"size": M + 1},
    "random biases": {"plant": on_every_layer(start_biases_at_random)},
    "no skip": {"plant": on_every_layer(lose_the_skip)},
    "twice the scale": {"plant": on_every_layer(double)},
    "another activation": {"plant": on_every_layer(take_another_activation)},
}


@pytest.mark.parametrize("planted", PLANTED)
def test_a_planted_error_is_found(planted):
    with pytest.raises(AssertionError):
        hold_all("houlsby", **PLANTED[planted])
