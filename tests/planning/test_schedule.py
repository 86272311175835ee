"""Micro-batches lie in the plan as the collator lays them."""

from typing import Any

import pytest

from finetune.budget.devices import find_device
from finetune.data.batches import Collator
from finetune.objectives.step_memory import to_shape
from finetune.planning.estimate import estimate_plan
from finetune.planning.rows import find_rows
from finetune.planning.schedule import build_schedule
from finetune.recipe.reading import build_recipe
from finetune.recipe.row_layouts import choose_layout


def build(training: dict[str, Any] | None = None, model: dict[str, Any] | None = None, **data: Any):
    return build_recipe(
        {
            "name": "laid",
            "model": {"model_name_or_path": "mistralai/Mistral-7B-v0.1", **(model or {})},
            "data": {
                "train": {"path": "org/rows"}, "assumed": {"rows": 5000, "tokens_per_row": 200},
                "max_length": 1000, **data,
            },
            "training": {"gradient_accumulation_steps": 4, **(training or {})},
        }
    )  # fmt: skip


def test_sampled_answers_are_as_long_and_as_many_as_the_trainer_makes_them_unless_the_recipe_says_otherwise():
    def plan(objective: str, **training: Any):
        recipe = build_recipe(
            {
                "name": "sampled",
                "objective": objective,
                "model": {"model_name_or_path": "mistralai/Mistral-7B-v0.1"},
                "data": {"train": {"path": "org/rows"}, "assumed": {"rows": 100, "tokens_per_row": 50}},
                "rewards": [{"function": "exact_match"}],
                "training": training,
            }
        )
        schedule = build_schedule(recipe, find_rows(recipe), attention="sdpa")
        return schedule.steps, schedule.tokens_per_step

    # Eight answers a step. By default GRPO gives eight to a prompt and RLOO two, each of up to 512 tokens (TRL 1.14).
    assert plan("grpo") == (100, 8 * (50 + 512))
    assert plan("rloo") == (25, 8 * (50 + 512))
    assert plan("grpo", max_completion_length=100, num_generations=4) == (50, 8 * (50 + 100))


def test_packed_rows_of_a_micro_batch_are_planned_as_one_row_of_as_many_tokens():
    rows = build({"per_device_train_batch_size": 4}, packing=True)
    tokens = build(packing=True, tokens_per_batch=4000)
    in_rows, in_tokens = (
        estimate_plan(one, device=find_device("l4"), compares_devices=False) for one in (rows, tokens)
    )
    assert in_rows.schedule.largest == in_tokens.schedule.largest
    assert in_rows.chosen.memory == in_tokens.chosen.memory
    assert in_rows.chosen.spending == in_tokens.chosen.spending
    # On a T4 documents are told apart by a mask, of which each row has its own.
    masked = estimate_plan(rows, device=find_device("t4"), compares_devices=False).schedule.largest
    assert (masked.num_rows, masked.row_tokens) == (4, 1000)


@pytest.mark.parametrize(
    ("attention", "packing"),
    [("documents", True), ("sdpa", True), ("flash_attention_2", True), ("flash_attention_2", False), ("sdpa", False)],
)
def test_the_largest_micro_batch_is_the_collator_s_own(attention, packing):
    recipe = build({"per_device_train_batch_size": 2}, packing=packing)
    planned = build_schedule(recipe, find_rows(recipe), attention=attention).largest
    collator = Collator(choose_layout(packing=packing, attention=attention), 0, names_documents=True)
    ids = list(range(1000))
    row = {"input_ids": ids, "labels": ids} | ({"seq_lengths": [600, 400]} if packing else {})
    found = to_shape(collator([row, row]))
    assert (planned.num_rows, planned.row_tokens) == (found.num_rows, found.row_tokens)
    assert planned.is_packed == found.is_packed
