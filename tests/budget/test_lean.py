"""Which adapters the lean path is planned for: those that it serves, by PEFT's own list of LoRA's variants."""

from dataclasses import fields
from typing import Any

import pytest
from peft import LoraConfig

from finetune.budget.adapter import build_adapter
from finetune.budget.architecture import build_architecture
from finetune.budget.lean import is_served
from finetune.recipe.schema import AdapterSettings

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
