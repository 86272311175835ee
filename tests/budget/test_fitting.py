"""Changes are the smallest that fit, keep the rows of a step, and were estimated again."""

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

from finetune.budget.fitting import Estimate, Estimated, Knobs, find_changes

KNOBS = Knobs(
    batch_size=8,
    accumulation=2,
    recomputes=True,
    quantization="nf4",
    max_length=2048,
    optimizer="adamw_torch_fused",
    r=16,
)


def needs(settings: Mapping[str, Any]) -> int:
    """100 for weights and optimizer, 10 a row of full length."""
    rows = settings.get("training.per_device_train_batch_size", 8)
    length = settings.get("data.max_length", 2048) / 2048
    held = 40 if settings.get("model.quantization") == "nf4" else 80
    states = 5 if settings.get("training.optim") == "adamw_8bit" else 20
    return int(held + states + 10 * rows * length)


def within(memory_bytes: int, peak: Callable[[Mapping[str, Any]], int | None] = needs) -> Estimate:
    """What is estimated where so much is there."""

    def estimate(settings: Mapping[str, Any]) -> Estimated | None:
        peak_bytes = peak(settings)
        return None if peak_bytes is None else Estimated(peak_bytes, fits=peak_bytes <= memory_bytes)

    return estimate


def test_the_batch_shrinks_no_further_than_it_must_and_the_rows_of_a_step_stay():
    batch, length = find_changes(within(145), KNOBS)
    assert batch.settings == {
        "training.per_device_train_batch_size": 4,  # the next that divides 16 rows
        "training.gradient_accumulation_steps": 4,
    }
    assert batch.peak_bytes == 140
    assert batch.to_arguments() == ("training.per_device_train_batch_size=4 training.gradient_accumulation_steps=4")
    assert length.settings == {"data.max_length": 1024}
    (in_turn,) = find_changes(within(145), replace(KNOBS, num_processes=2, row_name="answers", max_length=None))
    assert in_turn.costs == "32 answers a step as before"


def test_shorter_packed_rows_hold_fewer_documents_so_more_of_them_make_a_step():
    packed = replace(KNOBS, is_packed=True, row_name="packed rows")
    batch, length = find_changes(within(145), packed)
    assert batch.costs == "16 packed rows a step as before"
    assert length.settings == {"data.max_length": 1024, "training.gradient_accumulation_steps": 4}
    assert length.costs == "as many tokens a step as before; longer rows are dropped or cut"
    # 80 for weights, 5 for states, 10 for one row of 2,048: what costs results is stepped back first.
    (both,) = find_changes(within(92), packed)
    assert both.settings == {
        "training.per_device_train_batch_size": 1,
        "training.optim": "adamw_8bit",
        "data.max_length": 1024,
        "training.gradient_accumulation_steps": 32,  # 16 rows of 2,048 tokens are 32 of 1,024
    }
    assert both.costs.startswith("as many tokens a step as before; the optimizer's states")


def test_what_the_reader_refuses_is_not_proposed():
    def refuses_one_row(settings: Mapping[str, Any]) -> int | None:
        return None if settings.get("training.per_device_train_batch_size") == 1 else needs(settings)

    (change,) = find_changes(within(112, refuses_one_row), replace(KNOBS, max_length=None))
    assert change.settings == {
        "training.per_device_train_batch_size": 2,
        "training.gradient_accumulation_steps": 8,
        "training.optim": "adamw_8bit",
    }
    assert change.peak_bytes == 105


def test_the_base_itself_is_trained_no_more_where_an_adapter_beside_it_fits():
    whole = replace(KNOBS, batch_size=1, quantization=None, max_length=None, r=None, trains_base=True)
    (change,) = find_changes(within(145), whole)
    assert change.settings == {"adapter.method": "lora", "model.quantization": "nf4"}


def test_a_huge_batch_is_answered_at_once():
    huge = replace(KNOBS, batch_size=10**10, accumulation=1, max_length=None)
    (change, *_) = find_changes(
        within(9, lambda settings: settings.get("training.per_device_train_batch_size", 99)), huge
    )
    assert change.settings["training.per_device_train_batch_size"] == 8


def test_what_no_change_does_alone_several_do_together_and_none_that_was_not_needed():
    (change,) = find_changes(within(99), KNOBS)
    assert change.settings == {
        "training.per_device_train_batch_size": 1,
        "training.gradient_accumulation_steps": 16,
        "training.optim": "adamw_8bit",
    }
    assert change.peak_bytes == needs(change.settings) == 95
    assert "16 rows a step as before" in change.costs


def test_where_nothing_helps_nothing_is_said_to():
    assert find_changes(within(10), KNOBS) == []


def test_what_is_not_to_be_had_is_not_offered():
    fixed = Knobs(
        batch_size=1, accumulation=1, recomputes=False, quantization=None, max_length=None, optimizer="sgd", r=None
    )
    (change,) = find_changes(within(50, lambda settings: 10 if settings else 100), fixed)
    assert change.settings == {"training.gradient_checkpointing": True, "training.memory": "auto"}
    assert change.to_arguments() == "training.gradient_checkpointing=true training.memory=auto"
