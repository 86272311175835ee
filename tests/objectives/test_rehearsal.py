"""Claims on the rehearsal that need no run; those on whole runs stand in tests/end_to_end/test_memory.py."""

from types import SimpleNamespace
from typing import Any

import pytest
import torch

from finetune.errors import RecipeError
from finetune.objectives import rehearsal
from finetune.objectives.resumable import ResumableTrainer


class WithProjector(torch.optim.SGD):
    """Keeps an object of its own in its state, as GaLore keeps projectors."""

    def step(self, closure: Any = None) -> None:
        """Keep it."""
        self.state[self.param_groups[0]["params"][0]]["projector"] = SimpleNamespace(rank=4)


def test_an_optimizer_whose_states_no_checkpoint_holds_is_refused_by_the_recipes_setting(tmp_path):
    optimizer = WithProjector([torch.nn.Parameter(torch.zeros(2))])
    optimizer.step()
    trainer: Any = SimpleNamespace(
        args=SimpleNamespace(should_save=True, optim="galore_adamw"),
        optimizer=optimizer,
        lr_scheduler=torch.optim.lr_scheduler.ConstantLR(optimizer),
        create_scheduler=lambda num_training_steps: None,
        _save=lambda folder: None,
    )
    trainer._save_optimizer_and_scheduler = lambda folder: ResumableTrainer._save_optimizer_and_scheduler(
        trainer, folder
    )
    with pytest.raises(
        RecipeError, match=r"`training\.optim: galore_adamw` keeps .*optimizer\.state\.0\.projector"
    ) as said:
        rehearsal._save(trainer, tmp_path / ".rehearsal.part", with_optimizer=True)
    assert said.value.exit_code == 2
    assert "training.optim=adamw_8bit" in str(said.value)
    assert list(tmp_path.iterdir()) == []


def test_of_several_processes_only_the_first_touches_the_checkpoint_that_is_rehearsed(tmp_path):
    being_written = tmp_path / ".rehearsal.part" / "adapter_model.safetensors"
    being_written.parent.mkdir()
    being_written.write_bytes(b"by the first process")
    second: Any = SimpleNamespace(args=SimpleNamespace(should_save=False))
    rehearsal._save(second, being_written.parent, with_optimizer=True)
    assert being_written.read_bytes() == b"by the first process"
