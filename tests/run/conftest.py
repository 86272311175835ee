"""A real trainer of the smallest model there is: what the run's callbacks are tried on."""

from collections.abc import Callable, Sequence
from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def build_trainer() -> Callable[..., object]:
    """Build a trainer of 31 weights over 24 rows: 6 steps an epoch, dropout to tell states apart."""
    import torch
    from transformers import (
        PreTrainedConfig,
        PreTrainedModel,
        PrinterCallback,
        Trainer,
        TrainerCallback,
        TrainingArguments,
    )

    from finetune.objectives.resumable import ResumableTrainer

    class Rows(torch.utils.data.Dataset):
        def __len__(self) -> int:
            return 24

        def __getitem__(self, row: int) -> dict[str, torch.Tensor]:
            x_F = torch.arange(4, dtype=torch.float32) * (row + 1) / 24
            return {"x_F": x_F, "labels": x_F.sum()}

    class Toy(PreTrainedModel):
        def __init__(self) -> None:
            super().__init__(PreTrainedConfig())
            torch.manual_seed(0)
            self.layers = torch.nn.Sequential(torch.nn.Linear(4, 5), torch.nn.Dropout(0.1), torch.nn.Linear(5, 1))

        def forward(self, x_F: torch.Tensor, labels: torch.Tensor) -> dict[str, torch.Tensor]:
            return {"loss": torch.nn.functional.mse_loss(self.layers(x_F).squeeze(-1), labels)}

    class CountingTrainer(ResumableTrainer):
        def log(self, logs: dict[str, float], *args: object, **kwargs: object) -> None:
            self.state.num_input_tokens_seen = 100 * self.state.global_step
            logs["num_real_tokens"] = self.state.num_input_tokens_seen
            super().log(logs, *args, **kwargs)

    def build(checkpoints_dir: Path, callbacks: Sequence[TrainerCallback], **arguments: object) -> Trainer:
        defaults = {
            "max_steps": 10, "save_steps": 2, "logging_steps": 1, "learning_rate": 0.05, "use_cpu": True,
            "report_to": [], "per_device_train_batch_size": 4, "save_total_limit": None, "disable_tqdm": True,
            "seed": 1, "remove_unused_columns": False, "dataloader_pin_memory": False,
        }  # fmt: skip
        trainer = CountingTrainer(
            model=Toy(),
            args=TrainingArguments(output_dir=str(checkpoints_dir), **(defaults | arguments)),
            train_dataset=Rows(),
            eval_dataset=Rows(),
            callbacks=list(callbacks),
        )
        trainer.remove_callback(PrinterCallback)
        return trainer

    return build
