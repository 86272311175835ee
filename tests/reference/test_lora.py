import pytest
import torch
from torch import nn

from finetune.model.adapters import count_parameters
from tests.reference import lora
from tests.reference.bases import LINEARS, NUM_LAYERS, TOKENS, attach, dense, load, random_like
from tests.reference.closeness import hold

R, ALPHA = 4, 8
SCALES = {"LoRA": lora.lora_scale, "rsLoRA": lora.rslora_scale, "DoRA": lora.lora_scale}
FIELDS = {"LoRA": {}, "rsLoRA": {"use_rslora": True}, "DoRA": {"use_dora": True}}
BASES = {
    "mistral": {},
    "mistral in nf4": {"quantization": "nf4"},
    "qwen2, which has biases": {"model_type": "qwen2"},
}


def adapted(method, *, base="mistral", **fields):
    return attach(load(**BASES[base]), "lora", r=R, lora_alpha=ALPHA, **FIELDS[method] | fields)


def layers_of(model):
    return {name: module for name, module in model.named_modules() if hasattr(module, "lora_A")}


def hold_count(method, model):
    count = lora.count_dora_parameters if method == "DoRA" else lora.count_lora_parameters
    expected = NUM_LAYERS * sum(count(*sizes, R) for sizes in LINEARS.values())
    assert count_parameters(model).trainable == expected


def hold_start(method, model):
    for layer in layers_of(model).values():
        A, B = layer.lora_A["default"].weight.detach(), layer.lora_B["default"].weight
        bound = lora.kaiming_bound(layer.in_features)
        assert 0.95 * bound < A.abs().max() <= bound
        assert A.std() * 3**0.5 / bound == pytest.approx(1, abs=0.1)  # of a uniform distribution
        assert A.mean().abs() < 0.15 * bound
        assert not B.any()
        if method == "DoRA":
            weight = dense(layer.get_base_layer().weight)
            hold(method, start=(layer.lora_magnitude_vector["default"].weight, weight.pow(2).sum(1).sqrt()))
    with torch.no_grad():
        logits = model(input_ids=TOKENS).logits
        with model.disable_adapter():
            assert torch.equal(logits, model(input_ids=TOKENS).logits)


def hold_layers(method, model):
    scale = SCALES[method](ALPHA, R)
    for number, layer in enumerate(layers_of(model).values()):
        A, B = layer.lora_A["default"].weight, layer.lora_B["default"].weight
        B.data = random_like(B, seed=number)
        weight, bias = dense(layer.get_base_layer().weight), layer.get_base_layer().bias
        x = random_like(torch.empty(5, layer.in_features), seed=99).requires_grad_()
        learned = {"A": A, "B": B}
        extra = []
        if method == "DoRA":
            learned["magnitude"] = layer.lora_magnitude_vector["default"].weight
            learned["magnitude"].data += random_like(learned["magnitude"])
            extra = [learned["magnitude"]]
        output = layer(x)
        grad = random_like(output, seed=7)
        ours = torch.autograd.grad(output, [*learned.values(), x], grad)
        if method == "DoRA":
            expected = lora.dora_output(x, weight, bias, A, B, scale, *extra)
            gradients = torch.autograd.grad(expected, [*learned.values(), x], grad)
        else:
            expected = lora.lora_output(x, weight, bias, A, B, scale)
            gradients = lora.lora_gradients(x, weight, A, B, scale, grad)
        pairs = {f"gradient of {name}": pair for name, *pair in zip([*learned, "x"], ours, gradients, strict=True)}
        hold(method, output=(output, expected), **pairs)


def hold_all(method, model):
    hold_count(method, model)
    hold_start(method, model)
    hold_layers(method, model)


@pytest.mark.parametrize("base", BASES)
@pytest.mark.parametrize("method", FIELDS)
def test_output_gradients_start_and_count_are_the_papers(method, base):
    hold_all(method, adapted(method, base=base))


def change_scale(to):
    def plant(model):
        for layer in layers_of(model).values():
            layer.scaling["default"] = to

    return plant


def on_every_layer(change):
    def plant(model):
        for layer in layers_of(model).values():
            change(layer)

    return plant


def swap_starts(layer):
    nn.init.kaiming_uniform_(layer.lora_B["default"].weight, a=5**0.5)
    nn.init.zeros_(layer.lora_A["default"].weight)


def move_behind(layer):
    def forward(x):
        h = layer.get_base_layer()(x)
        if layer.in_features != layer.out_features:
            return h + layer.lora_B["default"](layer.lora_A["default"](x)) * layer.scaling["default"]
        return h + layer.lora_B["default"](layer.lora_A["default"](h)) * layer.scaling["default"]

    layer.forward = forward


def start_magnitudes_at_one(layer):
    nn.init.ones_(layer.lora_magnitude_vector["default"].weight)


def leave_out_the_magnitude(layer):
    magnitude = layer.lora_magnitude_vector["default"].weight

    def forward(x):
        lora_part = layer.lora_B["default"](layer.lora_A["default"](x)) * layer.scaling["default"]
        return layer.get_base_layer()(x) + lora_part + 0 * magnitude

    layer.forward = forward


def let_the_gradient_through_the_norm(layer):
    def forward(x):
        A, B = layer.lora_A["default"].weight, layer.lora_B["default"].weight
        direction = layer.get_base_layer().weight + layer.scaling["default"] * B @ A
        magnitude = layer.lora_magnitude_vector["default"].weight
        return x @ (magnitude[:, None] * direction / direction.norm(dim=1, keepdim=True)).T

    layer.forward = forward


PLANTED = {
    "alpha for alpha / r": ("LoRA", change_scale(ALPHA)),
    "alpha / √r for alpha / r": ("LoRA", change_scale(ALPHA / R**0.5)),
    "alpha / r for alpha / √r": ("rsLoRA", change_scale(ALPHA / R)),
    "a zero A and a random B": ("LoRA", on_every_layer(swap_starts)),
    "a random B": ("LoRA", on_every_layer(lambda layer: nn.init.normal_(layer.lora_B["default"].weight))),
    "a Gaussian A": ("LoRA", on_every_layer(lambda layer: nn.init.normal_(layer.lora_A["default"].weight))),
    "BA on the layer's output": ("LoRA", on_every_layer(move_behind)),
    "magnitudes of one": ("DoRA", on_every_layer(start_magnitudes_at_one)),
    "no magnitude": ("DoRA", on_every_layer(leave_out_the_magnitude)),
    "a gradient through the norm": ("DoRA", on_every_layer(let_the_gradient_through_the_norm)),
}


@pytest.mark.parametrize("planted", PLANTED)
def test_a_planted_error_is_found(planted):
    method, plant = PLANTED[planted]
    model = adapted(method)
    plant(model)
    with pytest.raises(AssertionError):
        hold_all(method, model)


def test_a_layer_left_out_is_found():
    with pytest.raises(AssertionError):
        hold_all("LoRA", adapted("LoRA", target_modules=["q_proj", "v_proj"]))


def test_the_references_own_numbers_are_right():
    x, weight = torch.tensor([[1.0, 2.0]]), torch.tensor([[1.0, 0.0], [0.0, 1.0]])
    A, B = torch.tensor([[1.0, 1.0]]), torch.tensor([[1.0], [0.0]])
    assert lora.lora_output(x, weight, None, A, B, 2.0).tolist() == [[7.0, 2.0]]  # [1, 2] + 2 · [3, 0]
    # W + BA = [[2, 1], [0, 1]]: norms √5 and 1.
    magnitude = torch.tensor([5**0.5, 3.0])
    assert lora.dora_output(x, weight, None, A, B, 1.0, magnitude)[0].tolist() == pytest.approx([4.0, 6.0])
    assert lora.lora_scale(16, 64) == 0.25
    assert lora.rslora_scale(16, 64) == 2.0
    assert lora.count_lora_parameters(4096, 1024, 8) == 40960
    assert lora.kaiming_bound(64) == pytest.approx(0.125)
