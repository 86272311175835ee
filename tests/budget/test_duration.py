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
    compute_bytes=2,
    attention="documents",
    loss="chunks",
    is_lean=True,
    is_lean_elementwise=True,
    is_quantized=True,
    on_cpu=False,
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


def test_keeping_the_mlp_spares_other_work_than_keeping_the_attention():
    d, k, f, r, length = 4096, 1024, 14336, 16, 256
    # What the other part computes again: its matrices but for the last, its adapters' two, and the attention itself.
    attention = 2 * (d * d + 2 * d * k) + 2 * r * (d + d + 2 * (d + k) + d + d) + 2 * length * d
    mlp = 2 * (2 * d * f) + 2 * r * (3 * (d + f))
    by_kind = {
        "mlp": (Spending(num_layers=32, num_mlp_kept=32), attention),
        "attention": (Spending(num_layers=32, num_attention_kept=32), mlp),
        "half of them": (Spending(num_layers=32, num_mlp_kept=16, num_attention_kept=16), (attention + mlp) / 2),
    }
    for kept, (spending, again) in by_kind.items():
        more = count_giga(SETUP, spending, length) - count_giga(SETUP, KEPT, length)
        assert more == pytest.approx(32 * again / 1e9), kept


def test_passes_over_memory_and_dequantizations_follow_what_is_kept():
    works = [
        estimate_work(BY_PEFT, spending, Passes(), tokens=1000, document_tokens=256)
        for spending in (
            KEPT, Spending(num_layers=32, num_mlp_kept=32), Spending(num_layers=32, num_attention_kept=32), RECOMPUTED
        )
    ]  # fmt: skip
    kept, mlp_kept, attention_kept, recomputed = works
    assert kept.moved_bytes < mlp_kept.moved_bytes < attention_kept.moved_bytes < recomputed.moved_bytes
    parts = mlp_kept.moved_bytes + attention_kept.moved_bytes - kept.moved_bytes
    assert parts == pytest.approx(recomputed.moved_bytes)
    # The attention's matrices are dequantized a third time, and nothing of the MLP.
    assert mlp_kept.dequantized_bytes - kept.dequantized_bytes == pytest.approx(
        32 * (2 * 4096 * 4096 + 2 * 4096 * 1024) * 2.516
    )


def test_a_trained_head_costs_its_weights_gradient():
    settings = {"method": "lora", "r": 16, "modules_to_save": ["lm_head"]}
    trained = replace(SETUP, adapter=build_adapter(MISTRAL, AdapterSettings.model_validate(settings)))
    assert count_giga(trained, KEPT) - count_giga(SETUP, KEPT) == pytest.approx(2 * 4096 * 32000 / 1e9)


def test_of_experts_a_token_is_multiplied_with_the_active_ones_alone():
    mixtral = build_architecture({"model_type": "mixtral"})
    adapter = build_adapter(mixtral, AdapterSettings.model_validate({"method": "lora", "r": 16}))
    setup = replace(SETUP, architecture=mixtral, adapter=adapter)
    attention, expert = 2 * 4096 * 4096 + 2 * 4096 * 1024, 3 * 4096 * 14336
    linear = 2 * 2 * 32 * (attention + 2 * expert + 8 * 4096)
    low_rank = 6 * 16 * 32 * (2 * (4096 + 4096) + 2 * (4096 + 1024))
    scores, head = 2 * 256 * 4096 * 32 * 3.5, 4 * 4096 * 32000
    assert count_giga(setup, KEPT) == pytest.approx((linear + low_rank + scores + head) / 1e9)
    again = 2 * 32 * (attention + 2 * expert + 8 * 4096) + 2 * 16 * 32 * (2 * (4096 + 4096) + 2 * (4096 + 1024))
    more = count_giga(setup, RECOMPUTED) - count_giga(setup, KEPT)
    assert more == pytest.approx((again + 2 * 256 * 4096 * 32) / 1e9)


def test_a_device_of_unknown_speed_has_no_seconds():
    work = estimate_work(SETUP, KEPT, Passes(), tokens=1, document_tokens=1)
    assert estimate_seconds(work, replace(find_device("t4"), flops_per_second=None)) is None
