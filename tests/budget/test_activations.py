"""The arithmetic of activations against tensors that autograd keeps in real models.

The whole grid is counted by `benchmarks/plan_error.py`; here stand a dozen of its smallest cells, a second each.
"""

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import datasets
import pytest

from benchmarks.plan_error import count, estimate
from benchmarks.plan_error_cells import EXPERTS, MODELS, Cell
from finetune.budget.activations import BatchShape, estimate_layer, estimate_outside, has_rule
from finetune.budget.adapter import AdapterShape, build_adapter
from finetune.budget.architecture import Architecture, build_architecture
from finetune.budget.computing import Computing
from finetune.budget.passes import estimate_pass
from finetune.recipe.schema import AdapterSettings

TINY = "mistral 128 x 2"
LORA = {"method": "lora", "r": 4, "lora_dropout": 0.0, "target_modules": "all-linear"}
ROW = BatchShape(num_rows=1, row_tokens=64, document_tokens=64)
LEAN = Computing(
    compute_bytes=2,
    attention="sdpa",
    loss="chunks",
    is_lean=True,
    is_lean_elementwise=True,
    is_quantized=True,
    on_cpu=False,
)


@pytest.fixture(autouse=True)
def _without_bars() -> Iterator[None]:
    datasets.disable_progress_bars()
    yield
    datasets.enable_progress_bars()


@pytest.fixture(scope="module")
def tiny() -> Architecture:
    return build_architecture(MODELS[TINY])


def adapter_of(base: Architecture, **fields: object) -> AdapterShape:
    return build_adapter(base, AdapterSettings.model_validate({**LORA, **fields}))


@pytest.mark.parametrize(
    "cell",
    [
        Cell(TINY, "lora", r=4, tokens=64),
        Cell(TINY, "lora", r=64, tokens=128, rows=1, dtype="float32", recompute="half of them"),
        Cell(TINY, "lora", tokens=64, layout="packed", quantization="none"),
        Cell(TINY, "lora", tokens=64, layout="padded"),
        Cell(TINY, "lora", tokens=64, recompute="all layers"),
        Cell("qwen3 192 x 3, tied", "lora, attention alone", tokens=64),
        Cell(TINY, "lora, dropout 0.1", tokens=64),
        Cell(TINY, "dora", tokens=64),
        Cell(TINY, "ia3", tokens=64),
        Cell(TINY, "full", tokens=64, quantization="none"),
        Cell(TINY, "lora", rows=1, tokens=64, objective="dpo"),
        Cell(TINY, "lora", tokens=64, layout="packed", attention="documents"),
        Cell(TINY, "lora, trained head", tokens=64),
        Cell(TINY, "lora, trained embeddings", tokens=64),
        Cell(TINY, "lora, trained head", rows=1, tokens=64, objective="dpo"),
        Cell(TINY, "hra", tokens=64, quantization="none"),
    ],
    ids=lambda cell: f"{cell.method} {cell.layout} {cell.recompute} {cell.dtype} {cell.objective} {cell.attention}",
)
def test_what_autograd_saves_is_estimated_within_five_per_cent(cell: Cell) -> None:
    counted = count(cell, with_peak=False)

    assert estimate(cell, counted).saved_bytes == pytest.approx(counted["saved_bytes"], rel=0.05)


@pytest.mark.parametrize(
    "cell",
    [
        Cell(TINY, "lora", rows=1, tokens=512, recompute="all layers"),
        Cell(TINY, "lora, trained head", tokens=64),
        Cell(TINY, "hra", tokens=64, quantization="none", recompute="all layers"),
    ],
    ids=lambda cell: cell.method,
)
def test_the_fullest_moment_is_estimated_within_three_per_cent(cell: Cell) -> None:
    counted = count(cell)

    assert counted["peak_bytes"] > counted["saved_bytes"]
    assert estimate(cell, counted).peak_bytes == pytest.approx(counted["peak_bytes"], rel=0.03)


def test_of_experts_the_fullest_moment_is_estimated_within_ten_per_cent() -> None:
    cell = Cell(EXPERTS, "lora", tokens=64)

    counted = count(cell)

    assert estimate(cell, counted).saved_bytes > counted["saved_bytes"]
    assert estimate(cell, counted).peak_bytes == pytest.approx(counted["peak_bytes"], rel=0.1)


def test_a_trained_head_of_a_large_vocabulary_is_held_in_float32_from_the_forward_pass_on() -> None:
    base = build_architecture({"model_type": "llama", "vocab_size": 128256})
    frozen, trained = (
        estimate_outside(base, adapter_of(base, **fields), ROW, LEAN)
        for fields in ({}, {"modules_to_save": ["lm_head"]})
    )
    weight = 128256 * 4096

    assert trained.kept_bytes - frozen.kept_bytes == 4 * weight  # 1.96 GiB of Llama 3.1 8B
    # The weight in the compute dtype, and a chunk's gradient of it, beside two chunks of logits of 63 tokens.
    assert trained.head_bytes > 2 * (2 * weight)


def test_a_layer_by_hand(tiny: Architecture) -> None:
    layer = estimate_layer(tiny, adapter_of(tiny), ROW, LEAN)

    norms = 2 * 64 * (128 * 2 + 4)  # inputs as they come, and a root in float32 for each token
    attention = 64 * (128 + 64 + 64 + 128) * 2 + 64 * 4 * 4  # q, k, v and what comes out; a sum for each of 4 heads
    mlp = 64 * 2 * 352 * 2  # gate and up, of which the input of down is made again
    inputs = 64 * (128 + 128) * 2  # of q, k, v; of gate, up: that of o is what comes out above
    inner = 7 * 64 * 4 * 2  # between A and B of seven layers
    sides = 128 + 128 + 128 + 64 + 128 + 64 + 128 + 128 + 2 * (128 + 352) + 352 + 128
    matrices = 4 * sides * 2  # A and B in bfloat16
    assert layer.kept_bytes == norms + attention + mlp + inputs + inner + matrices
    assert layer.input_bytes == 64 * 128 * 2  # that of the first norm
    of_mlp = mlp + 64 * (128 + 3 * 4) * 2 + 4 * 3 * (128 + 352) * 2
    assert layer.mlp_bytes == of_mlp
    assert layer.attention_bytes == layer.kept_bytes - norms - of_mlp


def test_transformers_own_norms_and_mlps_keep_more_and_a_stream_in_float32_as_much(tiny: Architecture) -> None:
    def spare(base: Architecture, **changes: Any) -> int:
        plain, lean = (
            estimate_layer(
                base, adapter_of(base), ROW, replace(LEAN, is_lean_elementwise=is_lean, **changes)
            ).kept_bytes
            for is_lean in (False, True)
        )
        return plain - lean

    qwen = build_architecture(MODELS["qwen3 192 x 3, tied"])
    inside = 64 * 2 * 352  # numbers of the activation, and of the product

    assert spare(tiny) == inside * 2 + 2 * 64 * 128 * 2
    assert spare(tiny, is_lean=False) == inside // 2 * 2 + 2 * 64 * 128 * 2  # PEFT's own path reads the product
    assert spare(tiny, compute_bytes=4) == inside * 4
    assert spare(qwen) == 64 * 2 * 576 * 2 + 64 * (2 * 192 + (6 + 2) * 32) * 2  # queries' and keys' norms too


def test_norms_that_are_trained_keep_what_they_did(tiny: Architecture) -> None:
    trained = build_adapter(tiny, AdapterSettings.model_validate({"method": "ln_tuning"}))
    plain, lean = (
        estimate_layer(tiny, trained, ROW, replace(LEAN, is_lean_elementwise=is_lean)).kept_bytes
        for is_lean in (False, True)
    )

    assert plain - lean == 64 * 352 * 4  # the activation, which is float32 there


def test_peft_own_path_keeps_an_input_for_each_adapter_where_ours_keeps_one(tiny: Architecture) -> None:
    lean, plain = (
        estimate_layer(tiny, adapter_of(tiny), ROW, replace(LEAN, is_lean=is_lean, on_cpu=True)).kept_bytes
        for is_lean in (True, False)
    )

    assert plain - lean == 64 * (2 * 128 + 128 + 128 + 352) * 2  # of k, v; of o; of up; of down


def test_a_mask_costs_the_square_of_a_row_and_named_documents_none(tiny: Architecture) -> None:
    packed = BatchShape(num_rows=1, row_tokens=64, document_tokens=16, is_packed=True)

    masked, named = (
        estimate_layer(tiny, adapter_of(tiny), packed, replace(LEAN, attention=attention)).kept_bytes
        for attention in ("sdpa", "documents")
    )

    assert masked - named == 64 * 64 * 2 + 2 * 64 * (128 - 64) * 2  # the mask; keys and values for all heads


def test_the_loss_keeps_trained_tokens_alone_and_all_logits_where_it_reads_them(tiny: Architecture) -> None:
    few, all_tokens = (
        estimate_outside(tiny, adapter_of(tiny), replace(ROW, trained_fraction=share), LEAN).kept_bytes
        for share in (1 / 63, 1.0)
    )
    logits = estimate_outside(tiny, adapter_of(tiny), ROW, replace(LEAN, loss="logits")).kept_bytes

    assert all_tokens - few == 62 * 128 * 2
    assert logits > 64 * 4096 * 4


def test_recomputing_more_layers_saves_less(tiny: Architecture) -> None:
    saved = [
        estimate_pass(tiny, adapter_of(tiny), ROW, LEAN, num_recomputed=number, may_recompute=True).saved_bytes
        for number in range(3)
    ]

    assert saved[0] > saved[1] > saved[2]


def test_methods_without_a_rule_are_known_as_such_and_estimated_higher_than_lora(tiny: Architecture) -> None:
    def keep(adapter: AdapterShape) -> int:
        return estimate_layer(tiny, adapter, ROW, replace(LEAN, is_lean=False)).kept_bytes

    lora, other = adapter_of(tiny), build_adapter(tiny, AdapterSettings.model_validate({"method": "loha", "r": 4}))

    assert has_rule(tiny, lora) and not has_rule(tiny, other)
    assert keep(other) > keep(lora)
