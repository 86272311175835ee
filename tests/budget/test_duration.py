"""Operations and seconds: the figures that PERFORMANCE.md works out by its formulas."""

from dataclasses import replace

import pytest

from finetune.budget.activations import BatchShape
from finetune.budget.adapter import build_adapter
from finetune.budget.architecture import build_architecture
from finetune.budget.computing import Computing
from finetune.budget.devices import find_device
from finetune.budget.duration import Passes, estimate_seconds, estimate_work
from finetune.budget.memory import Setup
from finetune.budget.spending import Spending
from finetune.budget.weights import Holding
from finetune.recipe.schema import AdapterSettings

MISTRAL = build_architecture({"model_type": "mistral"})
COMPUTING = Computing(
    compute_bytes=2, attention="documents", loss="chunks", is_lean=True, is_quantized=True, on_cpu=False
)
SETUP = Setup(
    architecture=MISTRAL,
    adapter=build_adapter(MISTRAL, AdapterSettings.model_validate({"method": "lora", "r": 16})),
    holding=Holding("nf4", True, 2),
    batch=BatchShape(num_rows=1, row_tokens=8192, document_tokens=256),
    computing=COMPUTING,
    optimizer="adamw_torch_fused",
    may_recompute=True,
)
BY_PEFT = replace(SETUP, computing=replace(COMPUTING, is_lean=False))
KEPT, RECOMPUTED = Spending(num_layers=32, num_kept=32), Spending(num_layers=32)
RESIDENT = replace(KEPT, num_resident=224, resident_bytes=2 * 32 * MISTRAL.num_linear_weights)


def count_giga(setup: Setup, spending: Spending, document_tokens: float = 256) -> float:
    """GFLOP a token."""
    work = estimate_work(setup, spending, Passes(), tokens=1000, document_tokens=document_tokens)
    return work.flops / 1000 / 1e9


@pytest.mark.parametrize(
    ("document_tokens", "kept", "recomputed"), [(256, 28.9, 43.0), (2048, 30.6, 45.2), (4096, 32.5, 47.6)]
)
def test_the_operations_of_a_token_are_those_of_the_survey(document_tokens, kept, recomputed):
    assert count_giga(BY_PEFT, KEPT, document_tokens) == pytest.approx(kept, abs=0.1)
    assert count_giga(BY_PEFT, RECOMPUTED, document_tokens) == pytest.approx(recomputed, abs=0.2)


def test_the_lean_path_leaves_the_last_product_of_a_recomputed_layer_out():
    spared = count_giga(BY_PEFT, RECOMPUTED) - count_giga(SETUP, RECOMPUTED)
    assert spared == pytest.approx(2 * 32 * 4096 * 14336 / 1e9)
    assert count_giga(SETUP, RECOMPUTED) == pytest.approx(39.3, abs=0.2)


def test_an_h200_trains_some_nineteen_thousand_tokens_a_second_with_all_that_idle_memory_buys():
    work = estimate_work(SETUP, RESIDENT, Passes(), tokens=8192, document_tokens=256)
    assert work.dequantized_bytes == 0
    seconds = estimate_seconds(work, find_device("h200"))
    assert 8192 / seconds == pytest.approx(19_000, rel=0.15)


def test_a_reference_is_one_more_pass_forward():
    plain, with_reference = (
        estimate_work(SETUP, KEPT, Passes(extra), tokens=1, document_tokens=256).flops for extra in (0.0, 1.0)
    )
    linear = 2 * 32 * MISTRAL.num_linear_weights
    assert (with_reference - plain) / linear == pytest.approx(1.05, abs=0.03)


def test_a_device_of_unknown_speed_has_no_seconds():
    work = estimate_work(SETUP, KEPT, Passes(), tokens=1, document_tokens=1)
    assert estimate_seconds(work, replace(find_device("t4"), flops_per_second=None)) is None
