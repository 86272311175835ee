"""AdaLoRA's figures through steps that were left out."""

from types import SimpleNamespace

import pytest
import torch
from peft import AdaLoraConfig, PeftModel, get_peft_model
from torch import nn

from finetune.model.rank_allocation import RankAllocation

NUM_STEPS = 8


@pytest.fixture
def model() -> PeftModel:
    torch.manual_seed(0)
    config = AdaLoraConfig(
        init_r=4, target_r=2, tinit=1, tfinal=1, deltaT=1, total_step=NUM_STEPS, target_modules=["0", "1"]
    )
    return get_peft_model(nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 8)), config)


def take_step(model: PeftModel, step: int, gradient: float | None) -> None:
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.grad = None if gradient is None else torch.full_like(parameter, gradient)
    RankAllocation().on_optimizer_step(None, SimpleNamespace(global_step=step), None, model=model)


def keep_figures(model: PeftModel) -> list[torch.Tensor]:
    allocator = model.base_model.rankallocator
    kept = (allocator.ipt, allocator.exp_avg_ipt, allocator.exp_avg_unc)
    return [tensor.clone() for figures in kept for tensor in figures.values()]


def count_ranks(model: PeftModel) -> int:
    return sum(sum(kept) for kept in model.peft_config["default"].rank_pattern.values())


@pytest.mark.parametrize("gradient", [float("inf"), float("nan"), None])
def test_a_step_that_was_left_out_weighs_nothing_and_the_ranks_are_pruned_on(model, gradient):
    for step in (0, 1, 2):
        take_step(model, step, 1.0)
    before, num_before = keep_figures(model), count_ranks(model)
    take_step(model, 3, gradient)
    assert all(map(torch.equal, keep_figures(model), before))
    assert count_ranks(model) < num_before, "the schedule goes on"
    take_step(model, 4, 1.0)
    assert not all(map(torch.equal, keep_figures(model), before)), "the next step weighs again"


@pytest.mark.parametrize("gradient", [float("inf"), None])
def test_a_first_step_that_was_left_out_does_not_keep_the_ranks_from_being_pruned(model, gradient):
    take_step(model, 0, gradient)
    assert not any(tensor.any() for tensor in keep_figures(model))
    for step in range(1, NUM_STEPS):
        take_step(model, step, 1.0 + step)
    assert count_ranks(model) == 2 * 2, "target_r in each of two layers"
