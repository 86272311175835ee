"""What a resumed trainer takes from today's settings, and what stays the checkpoint's."""

from types import SimpleNamespace

import torch
from torch.optim.lr_scheduler import LambdaLR

from finetune.objectives.resumable import ResumableTrainer


class Counting(torch.optim.SGD):
    """Counts in its groups, beside its settings, as the schedule-free optimizers do."""

    def __init__(self, weights: list[torch.nn.Parameter], lr: float, weight_decay: float) -> None:
        super().__init__(weights, lr=lr, weight_decay=weight_decay)
        for group in self.param_groups:
            group.update(k=0, weight_sum=0.0, lr_max=-1.0, warmup_steps=3)


def build_trainer(lr: float, weight_decay: float) -> SimpleNamespace:
    optimizer = Counting([torch.nn.Parameter(torch.ones(2))], lr, weight_decay)
    return SimpleNamespace(optimizer=optimizer, lr_scheduler=LambdaLR(optimizer, lambda step: 1.0))


def test_new_settings_leave_what_an_optimizer_has_counted():
    trainer = build_trainer(lr=0.5, weight_decay=0.25)
    (group,) = trainer.optimizer.param_groups
    asked_for = [{key: group[key] for key in group if key != "params"}]
    group.update(k=7, weight_sum=2.0, lr_max=0.1, lr=0.1, weight_decay=0.0, warmup_steps=9)  # as taken up
    ResumableTrainer._put_new_settings_in_force(trainer, asked_for, {"last_epoch": 7})
    assert {key: group[key] for key in ("k", "weight_sum", "lr_max")} == {"k": 7, "weight_sum": 2.0, "lr_max": 0.1}
    settings = {key: group[key] for key in ("lr", "weight_decay", "warmup_steps")}
    assert settings == {"lr": 0.5, "weight_decay": 0.25, "warmup_steps": 3}
