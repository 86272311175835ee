"""Changes are the smallest that fit, keep the rows of a step, and were estimated again."""

from collections.abc import Mapping
from typing import Any

from finetune.budget.fitting import Knobs, find_changes

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


def test_the_batch_shrinks_no_further_than_it_must_and_the_rows_of_a_step_stay():
    batch, length = find_changes(needs, KNOBS, 145)
    assert batch.settings == {
        "training.per_device_train_batch_size": 4,  # the next that divides 16 rows
        "training.gradient_accumulation_steps": 4,
    }
    assert batch.peak_bytes == 140
    assert batch.to_arguments() == ("training.per_device_train_batch_size=4 training.gradient_accumulation_steps=4")
    assert length.settings == {"data.max_length": 1024}


def test_what_no_change_does_alone_several_do_together_and_none_that_was_not_needed():
    (change,) = find_changes(needs, KNOBS, 99)
    assert change.settings == {
        "training.per_device_train_batch_size": 1,
        "training.gradient_accumulation_steps": 16,
        "training.optim": "adamw_8bit",
    }
    assert change.peak_bytes == needs(change.settings) == 95
    assert "16 rows a step as before" in change.costs


def test_where_nothing_helps_nothing_is_said_to():
    assert find_changes(needs, KNOBS, 10) == []


def test_what_is_not_to_be_had_is_not_offered():
    fixed = Knobs(
        batch_size=1, accumulation=1, recomputes=False, quantization=None, max_length=None, optimizer="sgd", r=None
    )
    (change,) = find_changes(lambda settings: 10 if settings else 100, fixed, 50)
    assert change.settings == {"training.gradient_checkpointing": True, "training.memory": "auto"}
    assert change.to_arguments() == "training.gradient_checkpointing=true training.memory=auto"
