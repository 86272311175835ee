"""What a layer's choices cost and save: each is the layer without what is computed again."""

from dataclasses import replace

import pytest

from finetune.budget.activations import BatchShape
from finetune.budget.adapter import build_adapter
from finetune.budget.architecture import build_architecture
from finetune.budget.computing import Computing
from finetune.budget.devices import build_cpu, find_device
from finetune.budget.layer_options import (
    Recomputing,
    estimate_layer_work,
    estimate_options,
    estimate_part_bytes,
    find_rates,
    has_parts,
)
from finetune.budget.spending import RATES, Rates
from finetune.recipe.schema import AdapterSettings

# One head of 4; 4 x 16 = 64 weights in the attention, 3 x 40 = 120 in the MLP.
BASE = build_architecture(
    {
        "model_type": "mistral", "hidden_size": 4, "intermediate_size": 10, "num_hidden_layers": 1,
        "num_attention_heads": 1, "num_key_value_heads": 1, "vocab_size": 8,
    }
)  # fmt: skip
LORA = build_adapter(BASE, AdapterSettings.model_validate({"method": "lora", "r": 1}))
BATCH = BatchShape(num_rows=1, row_tokens=10, document_tokens=5.0)
LEAN = Computing(
    compute_bytes=2,
    attention="documents",
    loss="chunks",
    is_lean=True,
    is_lean_elementwise=True,
    is_quantized=True,
    on_cpu=False,
)
PEFT = replace(LEAN, is_lean=False)
RATES_OF_ONE = Rates(flops_per_second=1.0, bytes_per_second=1.0)
BY_PARTS = Recomputing(by_parts=True)
SCORES = 10 * 2 * 5 * 4  # tokens, 2 S D


def test_seconds_are_those_of_the_formulas_and_peft_dequantizes_again():
    work = estimate_layer_work(BASE, LORA, BATCH, replace(PEFT, is_quantized=False), RATES_OF_ONE, BY_PARTS)
    assert work.attention_seconds == 10 * 2 * 64 + SCORES
    assert work.mlp_seconds == 10 * 2 * 120
    assert work.whole_seconds == work.attention_seconds + work.mlp_seconds
    quantized = estimate_layer_work(BASE, LORA, BATCH, PEFT, RATES_OF_ONE, BY_PARTS)
    assert quantized.mlp_seconds == pytest.approx(work.mlp_seconds + 2.516 * 120)


def test_the_lean_path_leaves_the_last_product_of_what_is_recomputed_out_and_dequantizes_nothing_again():
    work = estimate_layer_work(BASE, LORA, BATCH, LEAN, RATES_OF_ONE, BY_PARTS)
    assert work.attention_seconds == 10 * 2 * 48 + SCORES
    assert work.mlp_seconds == 10 * 2 * 80
    assert work.whole_seconds == 10 * 2 * (64 + 80) + SCORES  # of a whole layer the attention's last one is needed
    reentrant = estimate_layer_work(BASE, LORA, BATCH, LEAN, RATES_OF_ONE, Recomputing(False, is_reentrant=True))
    assert reentrant.whole_seconds == 10 * 2 * (64 + 120) + SCORES


def test_a_last_linear_without_an_adapter_is_multiplied_again():
    of_queries = build_adapter(
        BASE, AdapterSettings.model_validate({"method": "lora", "r": 1, "target_modules": ["q_proj"]})
    )
    work = estimate_layer_work(BASE, of_queries, BATCH, LEAN, RATES_OF_ONE, BY_PARTS)
    assert work.mlp_seconds == pytest.approx(10 * 2 * 120 + 2.516 * 120)


def test_a_kept_part_costs_and_saves_the_layer_without_the_other_part():
    options = estimate_options(BASE, LORA, BATCH, LEAN, RATES_OF_ONE, BY_PARTS)
    work = estimate_layer_work(BASE, LORA, BATCH, LEAN, RATES_OF_ONE, BY_PARTS)
    parts = estimate_part_bytes(BASE, LORA, BATCH, LEAN)
    assert options["mlp"].num_bytes == parts.whole - parts.attention
    assert options["mlp"].seconds == work.whole_seconds - work.attention_seconds
    assert options["attention"].num_bytes == parts.whole - parts.mlp
    assert options["attention"].seconds == work.whole_seconds - work.mlp_seconds
    # Neither part has the two norms; both would save an input that the whole layer saves once.
    norms = 2 * 10 * (4 * 2 + 4)
    assert parts.whole == parts.attention + parts.mlp + norms + 10 * 4 * 2
    whole_alone = estimate_options(BASE, LORA, BATCH, LEAN, RATES_OF_ONE, Recomputing(by_parts=False))
    assert whole_alone == {"all": options["all"]}


def test_a_device_of_the_table_has_its_own_speed_and_any_other_that_of_its_kind():
    t4 = find_device("t4")
    assert find_rates(t4, on_cpu=False) == Rates(42e12, 320e9)
    assert find_rates(None, on_cpu=False) == RATES["cuda"]
    measured = build_cpu(2**30, has_bfloat16=True, flops_per_second=1e12, source="a run")
    assert find_rates(measured, on_cpu=True) == RATES["cpu"]  # of whole steps, and no bandwidth


def test_decoders_have_parts_and_encoders_have_not():
    assert has_parts(BASE)
    assert not has_parts(build_architecture({"model_type": "bert"}))
