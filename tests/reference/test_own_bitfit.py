import pytest
import torch
from peft import get_peft_model
from torch import nn

from finetune.model.adapters import count_parameters
from finetune.model.own_methods import OWN_METHODS
from tests.reference.bases import LINEARS, NUM_LAYERS, TOKENS, load, random_like, shape_of, weights_of
from tests.reference.bitfit import count_bitfit_parameters, move_biases
from tests.reference.closeness import hold
from tests.reference.decoder import decode


def layers_of(model):
    return {name: module for name, module in model.named_modules() if hasattr(module, "bitfit_delta")}


def hold_all(*, plant=None, fields=None, **changes):
    base = load(**changes)
    weights, shape = weights_of(base), shape_of(base)
    with torch.no_grad():
        before = base.model(TOKENS).logits
    model = get_peft_model(base.model, OWN_METHODS["bitfit"](task_type="CAUSAL_LM", **fields or {}))
    if plant is not None:
        plant(model)
    expected_count = count_bitfit_parameters([d_out for _, d_out in LINEARS.values()] * NUM_LAYERS)
    assert count_parameters(model).trainable == expected_count
    with torch.no_grad():
        assert torch.equal(model(input_ids=TOKENS).logits, before)

    deltas = {
        f"{n.removeprefix('base_model.model.')}.bias": p.bitfit_delta["default"].bias
        for n, p in layers_of(model).items()
    }
    for number, delta in enumerate(deltas.values()):
        delta.data = random_like(delta, seed=number)
    logits = model(input_ids=TOKENS).logits
    grad = random_like(logits, seed=7)
    ours = torch.autograd.grad(logits, list(deltas.values()), grad)

    copies = {name: delta.detach().clone().requires_grad_() for name, delta in deltas.items()}
    expected = decode(move_biases(weights, copies), TOKENS, shape)
    gradients = torch.autograd.grad(expected, list(copies.values()), grad)
    pairs = {f"gradient of {name}": pair for name, *pair in zip(copies, ours, gradients, strict=True)}
    hold("our BitFit", logits=(logits, expected), **pairs)


@pytest.mark.parametrize("changes", [{}, {"quantization": "nf4"}, {"model_type": "qwen2"}], ids=str)
def test_logits_gradients_start_and_count_are_the_papers(changes):
    hold_all(**changes)


def on_every_layer(change):
    def plant(model):
        for layer in layers_of(model).values():
            change(layer)

    return plant


def double(layer):
    layer.bitfit_delta["default"].forward = lambda output: output + 2 * layer.bitfit_delta["default"].bias


def take_as_a_factor(layer):
    layer.bitfit_delta["default"].forward = lambda output: output * (1 + layer.bitfit_delta["default"].bias)


def replace_the_bias(layer):
    own = layer.base_layer.bias
    if own is not None:
        layer.bitfit_delta["default"].forward = lambda output: (
            output + (layer.bitfit_delta["default"].bias - own) * (layer.bitfit_delta["default"].bias != 0)
        )


def move_to_the_input(layer):
    delta = layer.bitfit_delta["default"].bias
    if layer.base_layer.in_features == len(delta):
        layer.forward = lambda x: layer.base_layer(x + delta)


PLANTED = {
    "only biases that are there": {"fields": {"target_modules": ["q_proj", "k_proj", "v_proj"]}},
    "a start at random": {"plant": on_every_layer(lambda layer: nn.init.normal_(layer.bitfit_delta["default"].bias))},
    "twice the scale": {"plant": on_every_layer(double)},
    "a factor": {"plant": on_every_layer(take_as_a_factor)},
    "in place of the bias": {"plant": on_every_layer(replace_the_bias)},
    "on the input": {"plant": on_every_layer(move_to_the_input)},
}


@pytest.mark.parametrize("planted", PLANTED)
def test_a_planted_error_is_found(planted):
    with pytest.raises(AssertionError):
        hold_all(model_type="qwen2", **PLANTED[planted])
