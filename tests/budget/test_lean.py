"""What the lean paths are planned for: what they serve, by PEFT's own list of LoRA's variants and by real models."""

from dataclasses import fields
from typing import Any

import pytest
import torch
from peft import LoraConfig

from finetune.budget.adapter import build_adapter
from finetune.budget.architecture import build_architecture
from finetune.budget.decoders import DECODERS
from finetune.budget.lean import is_served
from finetune.model.lean_elementwise import use_lean_elementwise
from finetune.recipe.heads import Head
from finetune.recipe.schema import AdapterSettings
from tests.budget.real_models import SMALL, build_fields, build_model

MISTRAL = build_architecture({"model_type": "mistral"})
QWEN = build_architecture({"model_type": "qwen2"})  # whose queries, keys and values have a bias
VARIANTS = [field.name for field in fields(LoraConfig) if field.metadata.get("is_lora_variant")]
STARTS = [name for field in fields(LoraConfig) for name in field.metadata.get("lora_variants", ())]


def asks(base=MISTRAL, **settings: Any) -> bool:
    adapter = AdapterSettings.model_validate({"method": "lora", **settings})
    return is_served(adapter, build_adapter(base, AdapterSettings.model_validate({"method": "lora"})), base)


@pytest.mark.parametrize(
    "settings",
    [
        *({name: True} for name in VARIANTS),
        *({"init_lora_weights": name} for name in STARTS),
        {"lora_bias": True},
    ],
    ids=str,
)
def test_what_peft_computes_otherwise_is_not_served(settings):
    assert asks()
    assert not asks(**settings)


def test_a_bias_that_is_trained_matters_where_there_is_one():
    assert asks(bias="all")
    assert asks(QWEN, bias="none")
    assert not asks(QWEN, bias="all")
    assert not asks(QWEN, bias="lora_only")


@pytest.mark.parametrize("settings", [{"lora_dropout": 0.1}, {"use_dora": True}, {"method": "ia3"}], ids=str)
def test_the_shape_tells_it_too(settings):
    """As of an adapter that is trained on, whose fields the recipe has not got."""
    shape = build_adapter(MISTRAL, AdapterSettings.model_validate({"method": "lora", **settings}))
    assert not is_served(AdapterSettings.model_validate({"init_from": "outputs/first"}), shape, MISTRAL)


# As configs write them, under either name; each kind reads one of the two.
ACTIVATIONS = [{}, *({name: value} for name in ("hidden_act", "hidden_activation") for value in ("swish", "gelu"))]
ACTIVATIONS += [
    {"hidden_act": value, "hidden_activation": value} for value in ("gelu_pytorch_tanh", "gelu_python_tanh")
]


@pytest.mark.parametrize("kind", sorted(SMALL))
def test_a_plan_knows_which_norms_and_mlps_are_served_as_the_model_itself_does(kind):
    head: Head = "words" if kind in DECODERS else "masked"
    for changes in ACTIVATIONS if kind in DECODERS else ACTIVATIONS[:1]:
        fields = build_fields(kind, **changes)
        base, model = build_architecture(fields, head=head), build_model(fields, head=head).requires_grad_(False)
        norms, mlps = {name for name, _ in base.find_norms()}, {f"{base.layers_path}.0.mlp"}
        use_lean_elementwise(model)
        served = {name for name, module in model.named_modules() if type(module).__name__.startswith("Lean")}
        assert norms & served == (norms if base.has_lean_norms else set())
        assert base.has_lean_mlp == bool(mlps & served and runs_lean(model.get_submodule(*mlps), base.hidden_size))


def runs_lean(mlp: torch.nn.Module, width: int) -> bool:
    """Whether a call of a served MLP goes another way than the library's: its activation may be one not known there."""
    out = mlp(torch.empty(1, 2, width, dtype=torch.bfloat16, device="meta", requires_grad=True))
    nodes, seen = [out.grad_fn], set()
    while nodes:
        node = nodes.pop()
        seen.add(node.name())
        nodes += [following for following, _ in node.next_functions if following is not None]
    return "_GatedBackward" in seen
