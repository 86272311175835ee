"""The gradient that a 4-bit layer hands down, against that of the same weights held in full."""

import bitsandbytes as bnb
import pytest
import torch
from torch import nn

from finetune.model.adapters import attach_adapter
from finetune.model.base import BaseModel
from finetune.model.quantization import close_cpu_gradient_trap
from finetune.recipe.schema import AdapterSettings
from tests.model.tiny_models import load_tiny

TOKENS = torch.arange(48).reshape(2, 24)


def to_unquantized(base: BaseModel) -> nn.Module:
    """The same model with every 4-bit layer replaced by its dequantized weights."""
    model = base.model
    for name, module in list(model.named_modules()):
        if isinstance(module, bnb.nn.Linear4bit):
            plain = nn.Linear(module.in_features, module.out_features, bias=False)
            weight = bnb.functional.dequantize_4bit(module.weight.data, module.weight.quant_state)
            plain.weight = nn.Parameter(weight.float(), requires_grad=False)
            model.set_submodule(name, plain)
    return model


def gradient_of_embeddings(model: nn.Module) -> torch.Tensor:
    embedded = model.get_input_embeddings()(TOKENS).detach().requires_grad_(True)
    model(inputs_embeds=embedded, labels=TOKENS, use_cache=False).loss.backward()
    assert embedded.grad is not None
    return embedded.grad


@pytest.mark.parametrize("quantization", ["nf4", "fp4"])
@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("after_evaluation", [False, True])
def test_a_whole_model_hands_down_the_gradient_of_its_dequantized_weights(
    tiny_model, quantization, training, after_evaluation
):
    base = load_tiny(tiny_model, quantization)
    if after_evaluation:
        with torch.no_grad():
            base.model.eval()(TOKENS)
    ours = gradient_of_embeddings(base.model.train(training))
    reference = gradient_of_embeddings(to_unquantized(load_tiny(tiny_model, quantization)).train(training))
    assert reference.abs().max() > 1e-4
    torch.testing.assert_close(ours, reference, rtol=1e-4, atol=1e-7)


def test_adapters_of_the_lowest_layer_get_the_gradient_of_the_dequantized_weights_after_evaluation(tiny_model):
    gradients = []
    for to_reference in (False, True):
        base = load_tiny(tiny_model, "nf4")
        if to_reference:
            base.model.is_loaded_in_4bit = False  # what PEFT reads to choose its layer
            to_unquantized(base)
        model = attach_adapter(base, AdapterSettings(method="lora", init_lora_weights="gaussian"), seed=3)
        with torch.no_grad():
            model.eval()(TOKENS)
        model.train()(input_ids=TOKENS, labels=TOKENS).loss.backward()
        layer = model.base_model.model.model.layers[0].self_attn.q_proj
        gradients.append(layer.lora_B["default"].weight.grad)
    assert gradients[1].abs().max() > 1e-6
    torch.testing.assert_close(gradients[0], gradients[1], rtol=1e-3, atol=1e-7)


def test_one_layer_in_bfloat16_hands_down_the_gradient_of_its_dequantized_weights(tiny_model):
    layer = load_tiny(tiny_model, "nf4", compute_dtype="bfloat16").model.model.layers[0].mlp.up_proj.eval()
    weight = bnb.functional.dequantize_4bit(layer.weight.data, layer.weight.quant_state)
    layer(torch.ones(1, 64, dtype=torch.bfloat16))
    inputs = [torch.ones(3, 64, dtype=torch.bfloat16, requires_grad=True) for _ in range(2)]
    layer(inputs[0]).sum().backward()
    nn.functional.linear(inputs[1], weight.to(torch.bfloat16)).sum().backward()
    torch.testing.assert_close(inputs[0].grad, inputs[1].grad)


def test_the_trap_is_closed_on_every_layer(tiny_model):
    model = load_tiny(tiny_model, "nf4").model
    layers = [module for module in model.modules() if isinstance(module, bnb.nn.Linear4bit)]
    assert len(layers) == 2 * 7
    assert not any(layer.support_avx512bf16_for_cpu for layer in layers)


@pytest.mark.skipif(not bnb.functional.has_avx512bf16(), reason="the trap opens on a CPU with AVX512-BF16 alone")
def test_with_the_trap_open_a_layer_loses_its_gradient(tiny_model):
    """Fails when bitsandbytes has mended it: then `close_cpu_gradient_trap` can go."""
    layer = load_tiny(tiny_model, "nf4").model.model.layers[0].mlp.up_proj.eval()
    layer.support_avx512bf16_for_cpu = True
    with torch.no_grad():
        layer(torch.ones(1, 64))
    inputs = torch.ones(1, 64, requires_grad=True)
    with pytest.warns(UserWarning, match="an autograd kernel was not registered"):
        layer(inputs).sum().backward()
    assert inputs.grad is None
    close_cpu_gradient_trap(layer)
    assert not layer.support_avx512bf16_for_cpu


def test_int8_hands_down_the_gradient_of_its_dequantized_weights(tiny_model):
    layer = load_tiny(tiny_model, "int8").model.model.layers[0].mlp.up_proj
    weight = layer.weight.data.float() * layer.weight.SCB.unsqueeze(1) / 127
    inputs = [torch.linspace(-1, 1, 64).repeat(3, 1).requires_grad_(True) for _ in range(2)]
    layer.train()(inputs[0]).square().sum().backward()
    nn.functional.linear(inputs[1], weight).square().sum().backward()
    torch.testing.assert_close(inputs[0].grad, inputs[1].grad, rtol=2e-2, atol=1e-2)
