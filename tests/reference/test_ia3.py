import pytest
import torch
from torch import nn

from finetune.model.adapters import count_parameters
from tests.reference.bases import (
    HIDDEN,
    INTERMEDIATE,
    KEYS,
    NUM_LAYERS,
    TOKENS,
    attach,
    load,
    random_like,
    shape_of,
    weights_of,
)
from tests.reference.closeness import hold
from tests.reference.decoder import decode
from tests.reference.ia3 import count_ia3_parameters, to_places

# Every vector of the same size, so that only the numbers can tell one place from another.
SQUARE = {"num_key_value_heads": 4, "intermediate_size": HIDDEN}


def vectors_of(model, layer, names=("k_proj", "v_proj", "down_proj")):
    block = model.base_model.model.model.layers[layer]
    return [next(p for n, p in block.named_parameters() if f"{name}.ia3_l" in n) for name in names]


def hold_all(base, *, d_k=KEYS, d_ff=INTERMEDIATE, names=("k_proj", "v_proj", "down_proj"), plant=None, **fields):
    weights, shape = weights_of(base), shape_of(base)
    with torch.no_grad():
        before = base.model(TOKENS).logits
    model = attach(base, "ia3", **fields)
    if plant is not None:
        plant(model)
    vectors = [vector for layer in range(NUM_LAYERS) for vector in vectors_of(model, layer, names)]
    assert count_parameters(model).trainable == sum(v.numel() for v in vectors)
    assert sum(v.numel() for v in vectors) == count_ia3_parameters(NUM_LAYERS, d_k, d_k, d_ff)
    with torch.no_grad():
        assert torch.equal(model(input_ids=TOKENS).logits, before)
    for number, vector in enumerate(vectors):
        assert (vector == 1).all()
        vector.data = random_like(vector, around=1.0, seed=number)
    logits = model(input_ids=TOKENS).logits
    grad = random_like(logits, seed=7)
    ours = torch.autograd.grad(logits, vectors, grad)

    copies = [vector.detach().flatten().requires_grad_() for vector in vectors]
    expected = decode(weights, TOKENS, shape, to_places(copies[0::3], copies[1::3], copies[2::3]))
    gradients = torch.autograd.grad(expected, copies, grad)
    pairs = {f"gradient {n}": (a.flatten(), b) for n, (a, b) in enumerate(zip(ours, gradients, strict=True))}
    hold("IA3", logits=(logits, expected), **pairs)


@pytest.mark.parametrize("quantization", ["none", "nf4"])
def test_logits_gradients_start_and_count_are_the_papers(quantization):
    hold_all(load(quantization))


def test_vectors_that_are_all_of_one_size_are_where_the_paper_has_them():
    hold_all(load(**SQUARE), d_k=HIDDEN, d_ff=HIDDEN)


def start_at(value):
    def plant(model):
        for name, parameter in model.named_parameters():
            if "ia3_l" in name:
                nn.init.constant_(parameter, value)

    return plant


def swap_keys_and_values(model):
    for layer in model.base_model.model.model.layers:
        projections = layer.self_attn.k_proj, layer.self_attn.v_proj
        for projection, other in (projections, projections[::-1]):
            base, vector = projection.get_base_layer(), other.ia3_l["default"].flatten()
            projection.forward = lambda x, base=base, vector=vector: base(x) * vector


def double(model):
    """What a vector changes, twice: nothing at the start."""
    for layer in model.base_model.model.model.layers:
        keys = layer.self_attn.k_proj
        base, vector = keys.get_base_layer(), keys.ia3_l["default"].flatten()
        keys.forward = lambda x, base=base, vector=vector: base(x) * (2 * vector - 1)


PLANTED = {
    "l_ff on the feed-forward's output": {
        "target_modules": ["k_proj", "v_proj", "down_proj"],
        "feedforward_modules": [],
    },
    "l_k on the inputs": {
        "target_modules": ["k_proj", "v_proj", "down_proj"],
        "feedforward_modules": ["k_proj", "down_proj"],
    },
    "l_k on the queries": {
        "target_modules": ["q_proj", "v_proj", "down_proj"],
        "feedforward_modules": ["down_proj"],
        "names": ("q_proj", "v_proj", "down_proj"),
    },
    "l_ff before the gate": {
        "target_modules": ["k_proj", "v_proj", "gate_proj"],
        "feedforward_modules": [],
        "names": ("k_proj", "v_proj", "gate_proj"),
    },
    "l_k and l_v exchanged": {"plant": swap_keys_and_values},
    "zeros at the start": {"plant": start_at(0.0)},
    "random at the start": {"init_ia3_weights": False},
    "twice the scale": {"plant": double},
}


@pytest.mark.parametrize("planted", PLANTED)
def test_a_planted_error_is_found(planted):
    with pytest.raises(AssertionError):
        hold_all(load(**SQUARE), d_k=HIDDEN, d_ff=HIDDEN, **PLANTED[planted])


def test_a_vector_left_out_is_found():
    with pytest.raises(AssertionError):
        hold_all(
            load(**SQUARE), d_k=HIDDEN, d_ff=HIDDEN, plant=lambda model: vectors_of(model, 0)[0].requires_grad_(False)
        )
