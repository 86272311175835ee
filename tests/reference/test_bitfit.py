import pytest
import torch

from tests.reference.bases import HIDDEN, KEYS, NUM_LAYERS, TOKENS, load, random_like, shape_of, weights_of
from tests.reference.bitfit import bitfit_output, count_bitfit_parameters, move_biases
from tests.reference.closeness import hold
from tests.reference.decoder import decode

WEIGHT, BIAS, DELTA = torch.tensor([[1.0, 2.0], [3.0, 4.0]]), torch.tensor([10.0, 20.0]), torch.tensor([0.5, -1.0])


def hold_hand_computed(output):
    # W x = [3, 7] for x of ones.
    hold("BitFit", output=(output(torch.ones(1, 2)), torch.tensor([[3 + 10.5, 7 + 19.0]])))


def test_the_formula_gives_what_is_computed_by_hand():
    hold_hand_computed(lambda x: bitfit_output(x, WEIGHT, BIAS, DELTA))
    assert bitfit_output(torch.ones(1, 2), WEIGHT, None, DELTA).tolist() == [[3.5, 6.0]]


@pytest.mark.parametrize(
    "planted",
    [
        lambda x: x @ WEIGHT.T + DELTA,
        lambda x: x @ WEIGHT.T + BIAS + 2 * DELTA,
        lambda x: (x + DELTA) @ WEIGHT.T + BIAS,
        lambda x: x @ WEIGHT.T + BIAS * (1 + DELTA),
    ],
    ids=["the bias lost", "twice the scale", "on the input", "as a factor"],
)
def test_a_planted_error_is_found_by_hand(planted):
    with pytest.raises(AssertionError):
        hold_hand_computed(planted)


def test_a_model_whose_biases_moved_has_the_papers_logits_and_gradients():
    base = load(model_type="qwen2")
    weights, shape = weights_of(base), shape_of(base)
    biases = {name: p for name, p in base.model.named_parameters() if name.endswith("bias")}
    deltas = {name: random_like(p, seed=n).requires_grad_() for n, (name, p) in enumerate(biases.items())}
    assert sum(d.numel() for d in deltas.values()) == count_bitfit_parameters([HIDDEN, KEYS, KEYS] * NUM_LAYERS)
    for name, bias in biases.items():
        bias.data += deltas[name].detach()
        bias.requires_grad_(True)
    logits = base.model(TOKENS).logits
    grad = random_like(logits, seed=7)
    # Adding one number to every key changes no softmax: the gradient of a key's bias is rounding alone, but for the
    # rotary positions, which turn the same number differently at each.
    ours = torch.autograd.grad(logits, list(biases.values()), grad)
    expected = decode(move_biases(weights, deltas), TOKENS, shape)
    gradients = torch.autograd.grad(expected, list(deltas.values()), grad)
    pairs = {f"gradient of {n}": pair for n, *pair in zip(biases, ours, gradients, strict=True)}
    hold("BitFit", logits=(logits, expected), **pairs)


def test_a_bias_that_the_model_has_not_got_starts_at_zero():
    base = load()
    name = "model.layers.0.self_attn.o_proj.bias"
    weights, shape, delta = weights_of(base), shape_of(base), random_like(torch.empty(HIDDEN))
    base.model.model.layers[0].self_attn.o_proj.bias = torch.nn.Parameter(delta)
    with torch.no_grad():
        hold("BitFit", logits=(base.model(TOKENS).logits, decode(move_biases(weights, {name: delta}), TOKENS, shape)))
