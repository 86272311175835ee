"""AdaLoRA's ranks: weighed and pruned at every step, and kept in checkpoints so that a run can go on with them.

PEFT (0.21) saves an adapter of AdaLoRA with the pruned ranks cut out, and neither what they were nor how important each
has been. That is a result; from it a run cannot go on: the fresh model's matrices are larger, and pruned ranks may come
back. So a checkpoint holds the matrices whole, and the allocator's state in a file beside them.
"""

import json
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import torch
from peft import AdaLoraModel, PeftModel
from safetensors import safe_open
from safetensors.torch import save_file
from torch import nn
from transformers import TrainerCallback

from finetune.model.sound_weights import find_not_finite

__all__ = ["RankAllocation", "put_rank_state_back", "whole_ranks", "write_rank_state"]

RANK_STATE = "rank_allocation.safetensors"
# The allocator's own names: sensitivity, its running mean, the running mean of how far it lies from that.
_FIGURES = ("ipt", "exp_avg_ipt", "exp_avg_unc")


class RankAllocation(TrainerCallback):
    """AdaLoRA's part of every step: weighs the ranks and prunes them down to the budget.

    Without it AdaLoRA keeps its initial rank everywhere. Does nothing to another model.
    """

    def on_optimizer_step(self, args: Any, state: Any, control: Any, model: PeftModel, **_: Any) -> None:
        """Weigh the ranks while the step's gradients are still there.

        A step that was left out has none, and one that a float16 scaler left out has some that are not finite. Such a
        step weighs nothing: the figures stay as they were, and the schedule of the ranks goes on.
        """
        tuner = _find_tuner(model)
        if tuner is None:
            return
        trained = [(name, parameter) for name, parameter in tuner.named_parameters() if parameter.requires_grad]
        gradients = [(name, parameter.grad) for name, parameter in trained if parameter.grad is not None]
        is_left_out = not gradients or find_not_finite(gradients) is not None
        for _, parameter in trained:
            if is_left_out or parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)
        with _unweighed(tuner) if is_left_out else nullcontext():
            tuner.update_and_allocate(state.global_step)


def _find_tuner(model: nn.Module) -> AdaLoraModel | None:
    return model.base_model if isinstance(model, PeftModel) and isinstance(model.base_model, AdaLoraModel) else None


@contextmanager
def _unweighed(tuner: AdaLoraModel) -> Iterator[None]:
    """Let the allocator weigh nothing while this lasts; its running means would not recover from a NaN.

    Before its first step it has no means yet: zeros begin them, as its own start does.
    """
    allocator = tuner.rankallocator
    if not allocator.exp_avg_ipt:
        yield
        return
    allocator.update_ipt = lambda model: None
    try:
        yield
    finally:
        del allocator.update_ipt


@contextmanager
def whole_ranks(model: nn.Module) -> Iterator[None]:
    """Save or load AdaLoRA's matrices whole while this lasts; any other model is left alone."""
    tuner = _find_tuner(model)
    if tuner is None:
        yield
        return
    config = tuner.peft_config[tuner.trainable_adapter_name]
    pattern, config.rank_pattern = config.rank_pattern, None
    try:
        yield
    finally:
        config.rank_pattern = pattern


def write_rank_state(model: nn.Module, folder: Path) -> None:
    """Write AdaLoRA's ranks and what they were weighed by beside a checkpoint's weights."""
    tuner = _find_tuner(model)
    if tuner is None:
        return
    allocator, config = tuner.rankallocator, tuner.peft_config[tuner.trainable_adapter_name]
    figures = {
        f"{figure}/{name}": tensor.contiguous()
        for figure in _FIGURES
        for name, tensor in getattr(allocator, figure).items()
    }
    save_file(figures, folder / RANK_STATE, metadata={"rank_pattern": json.dumps(config.rank_pattern)})


def put_rank_state_back(model: nn.Module, folder: Path) -> None:
    """Put the ranks and their weights back as `write_rank_state` wrote them."""
    tuner = _find_tuner(model)
    if tuner is None:
        return
    allocator, config = tuner.rankallocator, tuner.peft_config[tuner.trainable_adapter_name]
    for figure in _FIGURES:
        getattr(allocator, figure).clear()
    parameters = dict(tuner.model.named_parameters())
    with safe_open(folder / RANK_STATE, framework="pt") as tensors:
        config.rank_pattern = json.loads(tensors.metadata()["rank_pattern"])
        for key in tensors.keys():  # noqa: SIM118 - a safetensors file is no dict
            figure, _, name = key.partition("/")
            getattr(allocator, figure)[name] = tensors.get_tensor(key).to(parameters[name].device)
