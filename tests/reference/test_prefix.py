import pytest
import torch

from finetune.model.adapters import count_parameters
from tests.reference.bases import KEYS, NUM_LAYERS, TOKENS, attach, load, random_like, shape_of, weights_of
from tests.reference.closeness import hold
from tests.reference.decoder import attend, decode
from tests.reference.prefix import count_prefix_parameters, gated_form, prefix_attention, to_places

M = 3


def to_prefixes(embedding, shape):
    """P_k and P_v of each layer, as PEFT lays them in one matrix: m × (layer, key or value, head, number)."""
    laid_out = embedding.unflatten(1, (shape.num_layers, 2, shape.num_kv_heads, -1))
    return [tuple(laid_out[:, layer, which].transpose(0, 1) for which in (0, 1)) for layer in range(shape.num_layers)]


def forward(model):
    return model(input_ids=TOKENS, attention_mask=torch.ones_like(TOKENS)).logits


def hold_all(*, run=forward, plant=None, **changes):
    base = load(**changes)
    weights, shape = weights_of(base), shape_of(base)
    model = attach(base, "prefix_tuning", num_virtual_tokens=M)
    embedding = model.prompt_encoder["default"].embedding.weight
    d_kv = weights["model.layers.0.self_attn.k_proj.weight"].shape[0]
    expected_count = count_prefix_parameters(NUM_LAYERS, M, d_kv)
    assert count_parameters(model).trainable == expected_count
    if plant is not None:
        plant(model)
    logits = run(model)
    grad = random_like(logits, seed=7)
    (ours,) = torch.autograd.grad(logits, embedding, grad)

    copy = embedding.detach().clone().requires_grad_()
    expected = decode(weights, TOKENS, shape, to_places(to_prefixes(copy, shape)))
    (gradient,) = torch.autograd.grad(expected, copy, grad)
    hold("prefix", logits=(logits, expected), **{"gradient of the prefix": (ours, gradient)})


@pytest.mark.parametrize(
    "changes", [{}, {"quantization": "nf4"}, {"model_type": "llama", "num_key_value_heads": 4}], ids=str
)
def test_logits_gradient_and_count_are_the_papers(changes):
    hold_all(**changes)


def change_prompts(change):
    def plant(model):
        encoder = model.prompt_encoder["default"]
        encoder.register_forward_hook(
            lambda module, inputs, output: change(output.unflatten(-1, (NUM_LAYERS, 2, KEYS))).flatten(-3)
        )

    return plant


def from_position_zero(model):
    """The tokens where they stood without a prefix."""
    cache = model.get_prompt(len(TOKENS))
    positions = torch.arange(TOKENS.shape[1]).expand(len(TOKENS), -1)
    return model.base_model(input_ids=TOKENS, past_key_values=cache, position_ids=positions).logits


def out_of_sight(model):
    """The first vector of the prefix masked away."""
    mask = torch.ones(len(TOKENS), M + TOKENS.shape[1], dtype=torch.long)
    mask[:, 0] = 0
    return model.base_model(input_ids=TOKENS, past_key_values=model.get_prompt(len(TOKENS)), attention_mask=mask).logits


PLANTED = {
    "keys and values exchanged": {"plant": change_prompts(lambda output: output.flip(-2))},
    "layers exchanged": {"plant": change_prompts(lambda output: output.flip(-3))},
    "twice the scale": {"plant": change_prompts(lambda output: 2 * output)},
    "values only": {"plant": change_prompts(lambda output: output * torch.tensor([[0.0], [1.0]]))},
    "no positions of its own": {"run": from_position_zero},
    "a vector out of sight": {"run": out_of_sight},
}


@pytest.mark.parametrize("planted", PLANTED)
def test_a_planted_error_is_found(planted):
    with pytest.raises(AssertionError):
        hold_all(**PLANTED[planted])


def test_the_lengthened_attention_is_the_gated_mean_of_two():
    q, k, v, prefix_k, prefix_v = (
        torch.randn(n, 8, generator=torch.Generator().manual_seed(n)) for n in (4, 5, 5, 3, 3)
    )
    hold("prefix", gated=(prefix_attention(q, k, v, prefix_k, prefix_v), gated_form(q, k, v, prefix_k, prefix_v)))


def test_a_prefix_is_before_every_token_and_the_tokens_stay_causal():
    q, k, v, prefix_k, prefix_v = (
        torch.randn(n, 8, generator=torch.Generator().manual_seed(n)) for n in (5, 6, 7, 3, 2)
    )
    k, v, prefix_v = k[:5], v[:5], torch.cat([prefix_v, prefix_v[:1]])
    causal = attend(q, torch.cat([prefix_k, k]), torch.cat([prefix_v, v]))
    rows = [prefix_attention(q[t : t + 1], k[: t + 1], v[: t + 1], prefix_k, prefix_v) for t in range(5)]
    hold("prefix", rows=(causal, torch.cat(rows)))


def test_attention_over_one_key_and_one_prefix_of_equal_scores_is_their_mean():
    zero, one, three = torch.zeros(1, 2), torch.ones(1, 2), torch.full((1, 2), 3.0)
    assert prefix_attention(zero, one, three, one, one).tolist() == [[2.0, 2.0]]
    assert count_prefix_parameters(24, 10, 1024) == 491520
