"""A trainer whose checkpoints hold no pickle and lose nothing: what it writes into one and takes up from one.

In place of transformers' (5.17) optimizer.pt, scheduler.pt, scaler.pt and rng_state.pth it writes states as
`training_state` does, and beside them what that Trainer forgets: what was measured since the last line of the
log. Each process holds the whole state: neither DeepSpeed nor FSDP is used.
"""

import logging
from pathlib import Path
from typing import Any

from peft import PeftModel
from torch.optim.lr_scheduler import LambdaLR
from transformers import Trainer
from transformers.training_args import OptimizerNames

from finetune.errors import RecipeError
from finetune.objectives.training_state import (
    UnsavableState,
    build_random_state,
    check_no_pickle,
    put_random_state_back,
    read_state,
    refused_as_state,
    write_state,
)

__all__ = ["ResumableTrainer"]

log = logging.getLogger("finetune.objectives.resumable")

_SMALL_BYTES = 16 * 2**20  # of generators, a scheduler, a scaler, sums
# Adam with its largest value in float32 comes to 12 a parameter; the rest is room for optimizers yet to come.
_MAX_OPTIMIZER_BYTES_PER_PARAMETER = 32
# What the schedule-free optimizers (schedulefree 1.4) count in their groups, among the settings.
_COUNTED = frozenset({"k", "weight_sum", "lr_max", "scheduled_lr", "train_mode"})


class ResumableTrainer(Trainer):
    """A trainer that writes and takes up checkpoints without a pickle.

    Attributes:
        takes_new_settings: the checkpoint was written under other settings, and today's learning rate, schedule and
            optimizer settings are to count from it on. Else the checkpoint's do, to the last bit.
    """

    takes_new_settings = False

    # ---- written

    def _save(self, output_dir: str | None = None, state_dict: dict[str, Any] | None = None) -> None:
        """Save weights and tokenizer, and not the arguments: transformers pickles them, with any Hub token."""
        folder = Path(output_dir or self.args.output_dir)
        folder.mkdir(parents=True, exist_ok=True)
        model = self.accelerator.unwrap_model(self.model, keep_torch_compile=False)
        if isinstance(model, PeftModel):
            # One adapter: of a frozen reference beside it, transformers (5.17) would take up the folder alone.
            # "auto" would ask the Hub whether the vocabulary grew; ours never grows.
            model.save_pretrained(
                str(folder), state_dict=state_dict, selected_adapters=["default"], save_embedding_layers=False
            )
        else:
            model.save_pretrained(str(folder), state_dict=state_dict)
        if self.processing_class is not None:
            self.processing_class.save_pretrained(folder)

    def _save_optimizer_and_scheduler(self, output_dir: str) -> None:
        if self.args.should_save:
            try:
                write_state(Path(output_dir), "optimizer", self.optimizer.state_dict())
            except UnsavableState as error:
                raise RecipeError(
                    f"`training.optim: {OptimizerNames(self.args.optim).value}` keeps states that no checkpoint holds "
                    f"({error}).\n"
                    "  A checkpoint has plain tensors and numbers alone, and the run could never be resumed.\n"
                    "  With states of the same size: training.optim=adamw_8bit     Or: training.optim=adamw_torch"
                ) from error
            write_state(Path(output_dir), "scheduler", self.lr_scheduler.state_dict())

    def _save_scaler(self, output_dir: str) -> None:
        if self.accelerator.scaler is not None and self.args.should_save:
            write_state(Path(output_dir), "scaler", self.accelerator.scaler.state_dict())

    def _save_rng_state(self, output_dir: str) -> None:
        """Save what each process has of its own: its random generators, and its sums since the last line logged."""
        folder = Path(output_dir)
        folder.mkdir(parents=True, exist_ok=True)  # a process can be here before the first one has made it
        state = {"random": build_random_state(all_gpus=self.args.world_size > 1), "sums": self.build_sums()}
        write_state(folder, self._to_process_name(), state)

    def build_sums(self) -> dict[str, Any]:
        """Build what was summed up since the last line of the log, of this process; `take_up_sums` takes it up."""
        return {
            "loss": self._tr_loss,
            "loss_logged": self._total_loss_scalar,
            "last_logged_step": self._globalstep_last_logged,
            "figures": {name: list(values) for name, values in self.find_train_figures().items()},
        }

    @property
    def figures(self) -> dict[str, dict[str, list[Any]]]:
        """Figures that wait for the next line of the log, by mode (train, eval) and name; a trainer with such says so.

        transformers' own trainer averages the loss alone.
        """
        return {"train": {}, "eval": {}}

    def find_train_figures(self) -> dict[str, list[Any]]:
        """Find the figures of the steps since the last line of the log, whose mean the next one holds."""
        return self.figures["train"]

    # ---- taken up

    def _init_training_state(
        self, max_steps: int, steps_of_epoch: int, num_epochs: int, resume_from_checkpoint: str | None, trial: Any
    ) -> tuple[int, int]:
        """Take up the trainer's state, but log, save and evaluate as often as is asked for now."""
        arguments = (max_steps, steps_of_epoch, num_epochs, resume_from_checkpoint, trial)
        if resume_from_checkpoint is None:
            return super()._init_training_state(*arguments)
        with refused_as_state(Path(resume_from_checkpoint) / "trainer_state.json"):
            begun = super()._init_training_state(*arguments)
            self.state.compute_steps(self.args, max_steps)
        return begun

    def _load_from_checkpoint(self, resume_from_checkpoint: str, *args: Any, **kwargs: Any) -> None:
        folder = Path(resume_from_checkpoint)
        check_no_pickle(folder)
        with refused_as_state(folder):
            super()._load_from_checkpoint(resume_from_checkpoint, *args, **kwargs)

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        if checkpoint is None:
            return
        folder = Path(checkpoint)
        asked_for = [{key: group[key] for key in group if key != "params"} for group in self.optimizer.param_groups]
        num_trained = sum(value.numel() for group in self.optimizer.param_groups for value in group["params"])
        max_bytes = _SMALL_BYTES + _MAX_OPTIMIZER_BYTES_PER_PARAMETER * num_trained
        optimizer = read_state(folder, "optimizer", max_bytes=max_bytes)
        scheduler = read_state(folder, "scheduler", max_bytes=_SMALL_BYTES)
        with refused_as_state(folder / "optimizer.json"):
            if not all({"params", "lr"} <= group.keys() for group in optimizer["param_groups"]):
                raise ValueError("a group of parameters has no learning rate")
            self.optimizer.load_state_dict(optimizer)
        with refused_as_state(folder / "scheduler.json"):
            if self.takes_new_settings:
                self._put_new_settings_in_force(asked_for, scheduler)
            else:
                # Of these keys alone: a scheduler takes every key up as an attribute.
                known = self.lr_scheduler.state_dict().keys()
                lacking = {"last_epoch", "_last_lr"} - scheduler.keys()
                if lacking:
                    raise ValueError(f"it has no {min(lacking)}")
                self.lr_scheduler.load_state_dict({key: scheduler[key] for key in scheduler if key in known})

    def _put_new_settings_in_force(self, asked_for: list[dict[str, Any]], then: dict[str, Any]) -> None:
        """Go on from the checkpoint's step under the settings that are asked for now.

        Optimizer and scheduler carry learning rate, decay and betas in their states, so that what was taken up
        would silently undo what was asked for. What a schedule has made of the figures it follows is kept.
        """
        groups, schedule = self.optimizer.param_groups, self.lr_scheduler
        if isinstance(schedule, LambdaLR):  # a function of the step, and so is every other one of transformers
            step = then["last_epoch"]
            rates = [base * factor(step) for base, factor in zip(schedule.base_lrs, schedule.lr_lambdas, strict=True)]
            schedule.last_epoch, schedule._step_count, schedule._last_lr = step, step + 1, rates
        else:
            rates = [group["lr"] for group in groups]
            schedule.load_state_dict(then)
        for group, asked, rate in zip(groups, asked_for, rates, strict=True):
            group.update({key: asked[key] for key in asked if key not in _COUNTED} | {"lr": rate})

    def _load_scaler(self, checkpoint: str | None) -> None:
        if checkpoint is None:
            return
        path = Path(checkpoint) / "scaler.json"
        if self.accelerator.scaler is None or not path.exists():  # the checkpoint of another compute dtype, or device
            return
        state = read_state(path.parent, "scaler", max_bytes=_SMALL_BYTES)
        with refused_as_state(path):
            self.accelerator.scaler.load_state_dict(state)

    def _load_rng_state(self, checkpoint: str | None) -> None:
        state = None if checkpoint is None else self._read_process_state(Path(checkpoint))
        if checkpoint is None or state is None:
            return
        with refused_as_state(Path(checkpoint) / f"{self._to_process_name()}.json"):
            if not put_random_state_back(state["random"], all_gpus=self.args.world_size > 1):
                log.warning("%s has no random state of these GPUs: what is drawn at random will differ.", checkpoint)

    def _run_epoch(self, *args: Any, **kwargs: Any) -> None:
        """Run an epoch; the first one after a resume goes on with the sums of the checkpoint."""
        checkpoint = kwargs["resume_from_checkpoint"]
        if checkpoint is not None and kwargs["epoch"] == kwargs["epochs_trained"]:
            state = self._read_process_state(Path(checkpoint))
            if state is not None:
                with refused_as_state(Path(checkpoint) / f"{self._to_process_name()}.json"):
                    self.take_up_sums(state["sums"])
        super()._run_epoch(*args, **kwargs)

    def take_up_sums(self, sums: dict[str, Any]) -> None:
        """Go on with what `build_sums` built: transformers begins anew, and the next line's mean would be off."""
        self._tr_loss = sums["loss"].to(self.args.device)
        self._total_loss_scalar = sums["loss_logged"]
        self._globalstep_last_logged = sums["last_logged_step"]
        for name, values in sums["figures"].items():
            self.find_train_figures()[name] = values

    # ---- both

    def _read_process_state(self, folder: Path) -> dict[str, Any] | None:
        """Read this process's part; None, and a word in the log, where the run had fewer processes."""
        name = self._to_process_name()
        if self.args.process_index > 0 and not (folder / f"{name}.json").exists():
            log.warning("%s has no part of process %d: it draws anew.", folder, self.args.process_index)
            return None
        state: dict[str, Any] = read_state(folder, name, max_bytes=_SMALL_BYTES)
        with refused_as_state(folder / f"{name}.json"):
            if not state.keys() >= {"random", "sums"}:
                raise ValueError("it is not the state of a process")
        return state

    def _to_process_name(self) -> str:
        return f"random_state_{self.args.process_index}"
