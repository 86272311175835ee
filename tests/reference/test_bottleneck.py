import pytest
import torch
from torch import nn

from tests.reference.bases import HIDDEN, NUM_LAYERS, TOKENS, load, random_like, shape_of, weights_of
from tests.reference.bottleneck import (
    Bottleneck,
    bottleneck_output,
    count_bottleneck_parameters,
    to_houlsby,
    to_pfeiffer,
)
from tests.reference.closeness import hold, relative_difference
from tests.reference.decoder import decode

M = 8
HAND = Bottleneck(
    down=torch.tensor([[1.0, -1.0]]),
    down_bias=torch.tensor([3.0]),
    up=torch.tensor([[2.0], [-1.0]]),
    up_bias=torch.tensor([0.5, 0.25]),
)


def hold_hand_computed(output):
    # W_down h + b_down: 1 - 2 + 3 = 2 and -4 - 1 + 3 = -2, which relu stops.
    h = torch.tensor([[1.0, 2.0], [-4.0, 1.0]])
    by_hand = torch.tensor([[1 + 4 + 0.5, 2 - 2 + 0.25], [-4 + 0.5, 1 + 0.25]])
    hold("bottleneck", output=(output(h), by_hand))


def test_the_formula_gives_what_is_computed_by_hand():
    hold_hand_computed(lambda h: bottleneck_output(h, HAND, torch.relu))


def inner(h, activation=torch.relu):
    return activation(h @ HAND.down.T + HAND.down_bias) @ HAND.up.T


PLANTED = {
    "no skip": lambda h: inner(h) + HAND.up_bias,
    "no bias above": lambda h: h + inner(h),
    "no bias below": lambda h: h + torch.relu(h @ HAND.down.T) @ HAND.up.T + HAND.up_bias,
    "no activation": lambda h: h + inner(h, lambda x: x) + HAND.up_bias,
    "the activation behind": lambda h: h + torch.relu(inner(h, lambda x: x) + HAND.up_bias),
    "twice the scale": lambda h: h + 2 * inner(h) + HAND.up_bias,
}


@pytest.mark.parametrize("planted", PLANTED)
def test_a_planted_error_is_found_by_hand(planted):
    with pytest.raises(AssertionError):
        hold_hand_computed(PLANTED[planted])


def test_an_adapter_has_the_papers_number_of_parameters():
    assert count_bottleneck_parameters(2, 1) == sum(
        t.numel() for t in (HAND.down, HAND.down_bias, HAND.up, HAND.up_bias)
    )
    # BERT large, size 64, two in each of 24 layers: the 1.9 % of 335 M that a task of its own adds, norms aside.
    assert 2 * 24 * count_bottleneck_parameters(1024, 64) == 6_343_680


@pytest.mark.parametrize(("std", "is_near"), [(1e-2, True), (1.0, False)])
def test_weights_near_zero_are_near_the_identity(std, is_near):
    torch.manual_seed(0)
    h = torch.randn(100, HIDDEN)
    adapter = Bottleneck(
        nn.init.trunc_normal_(torch.empty(M, HIDDEN), std=std, a=-2 * std, b=2 * std),
        torch.zeros(M),
        nn.init.trunc_normal_(torch.empty(HIDDEN, M), std=std, a=-2 * std, b=2 * std),
        torch.zeros(HIDDEN),
    )
    assert (relative_difference(bottleneck_output(h, adapter, torch.relu), h) < 5e-3) is is_near


def draw_adapters(seed):
    sizes = (M, HIDDEN), (M,), (HIDDEN, M), (HIDDEN,)
    return [
        Bottleneck(
            *(random_like(torch.empty(s), seed=seed + 10 * layer + n).requires_grad_() for n, s in enumerate(sizes))
        )
        for layer in range(NUM_LAYERS)
    ]


def tensors_of(adapters):
    return [t for a in adapters for t in (a.down, a.down_bias, a.up, a.up_bias)]


def hook_in(module, adapter):
    """The same adapter by torch's own layers, behind a module of transformers' own model."""
    below, above = nn.Linear(HIDDEN, M), nn.Linear(M, HIDDEN)
    below.weight, below.bias = nn.Parameter(adapter.down.detach()), nn.Parameter(adapter.down_bias.detach())
    above.weight, above.bias = nn.Parameter(adapter.up.detach()), nn.Parameter(adapter.up_bias.detach())
    branch = nn.Sequential(below, nn.ReLU(), above)
    module.register_forward_hook(lambda module, inputs, output: output + branch(output))
    return list(branch.parameters())


def hold_places(variant, *, attention_place="self_attn.o_proj", feed_forward_place="mlp.down_proj"):
    base = load()
    weights, shape = weights_of(base), shape_of(base)
    after_attention, after_feed_forward = draw_adapters(0), draw_adapters(100)
    if variant == "houlsby":
        places, learned = (
            to_houlsby(after_attention, after_feed_forward, torch.relu),
            [after_attention, after_feed_forward],
        )
    else:
        places, learned = to_pfeiffer(after_feed_forward, torch.relu), [after_feed_forward]
    hooked = []
    for adapters in learned:
        place = attention_place if adapters is after_attention else feed_forward_place
        for layer, adapter in zip(base.model.model.layers, adapters, strict=True):
            hooked += hook_in(layer.get_submodule(place), adapter)
    num_adapters = NUM_LAYERS * (2 if variant == "houlsby" else 1)
    assert sum(p.numel() for p in hooked) == num_adapters * count_bottleneck_parameters(HIDDEN, M)
    logits = base.model(TOKENS).logits
    grad = random_like(logits, seed=7)
    ours = torch.autograd.grad(logits, hooked, grad)
    expected = decode(weights, TOKENS, shape, places)
    gradients = torch.autograd.grad(expected, [t for adapters in learned for t in tensors_of(adapters)], grad)
    pairs = {f"gradient {n}": pair for n, pair in enumerate(zip(ours, gradients, strict=True))}
    hold("bottleneck", logits=(logits, expected), **pairs)


@pytest.mark.parametrize("variant", ["houlsby", "pfeiffer"])
def test_adapters_behind_the_projections_give_the_papers_logits_and_gradients(variant):
    hold_places(variant)


@pytest.mark.parametrize(
    ("variant", "places"),
    [
        ("houlsby", {"attention_place": "input_layernorm"}),
        ("houlsby", {"feed_forward_place": "post_attention_layernorm"}),
        ("pfeiffer", {"feed_forward_place": "self_attn.o_proj"}),
    ],
)
def test_an_adapter_in_another_place_is_found(variant, places):
    with pytest.raises(AssertionError):
        hold_places(variant, **places)
