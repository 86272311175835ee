"""What every trainer is told alike: our `training` section as the trainer's own config, and the callbacks around it.

Each objective adds what is its own: which config it is, and which of its rows are ready already.
"""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import torch
from transformers import EarlyStoppingCallback, PrinterCallback, Trainer, TrainerCallback, TrainingArguments
from transformers.integrations import TensorBoardCallback

from finetune.errors import RecipeError
from finetune.model.adapters import RankAllocation
from finetune.model.devices import keep_one_gpu
from finetune.recipe.schema import TrainingSettings

__all__ = ["RunArguments", "build_config", "choose_callbacks", "drop_printer"]

log = logging.getLogger("finetune.objectives.arguments")

Config = TypeVar("Config", bound=TrainingArguments)

# Settings under `training` that other parts act on: the callback that stops early, the rotation of checkpoints.
_NOT_THE_TRAINERS = {"early_stopping_patience", "save_total_limit", "report_to"}


@dataclass(frozen=True, slots=True)
class RunArguments:
    """What a trainer's config takes from the other sections of the recipe.

    Attributes:
        name: of the run, as trackers show it.
        device: of the model.
        compute_dtype: of the products.
        evaluates: whether there are held-out rows.
        seed: of the shuffling and of dropout.
        checkpoints_dir: where `checkpoint-N` folders go.
    """

    name: str
    device: torch.device
    compute_dtype: torch.dtype
    evaluates: bool
    seed: int
    checkpoints_dir: Path


def build_config(
    config_class: type[Config],
    training: TrainingSettings,
    run: RunArguments,
    own: Mapping[str, Any],
    *,
    best: tuple[str, bool] = ("eval_loss", False),
) -> Config:
    """Translate our settings into the trainer's; an argument that is neither typed nor chosen keeps its default.

    Args:
        config_class: TRL's, of the objective.
        training: the recipe's `training` section.
        run: what other sections say.
        own: fields the objective chooses for its config.
        best: the figure of an evaluation that the best step is found by, and whether more of it is better.

    Raises:
        RecipeError: the library refuses a setting.
    """
    evaluates_during = run.evaluates and training.eval_steps is not None
    figure, more_is_better = best
    chosen: dict[str, Any] = {
        "output_dir": str(run.checkpoints_dir),
        "run_name": run.name,
        "seed": run.seed,
        "data_seed": run.seed,
        "use_cpu": run.device.type == "cpu",
        "bf16": run.compute_dtype == torch.bfloat16,
        "fp16": run.compute_dtype == torch.float16,
        "remove_unused_columns": False,
        "eval_strategy": "steps" if evaluates_during else "no",
        "save_strategy": "steps",
        "logging_strategy": "steps",
        # The best step is found by the evaluation; `StepMixin.load_weights` puts its weights back at the end.
        "metric_for_best_model": figure if evaluates_during else None,
        "greater_is_better": more_is_better if evaluates_during else None,
        # Early stopping counts on where it stood.
        "restore_callback_states_from_checkpoint": True,
        # The default hides a NaN in the log and trains on.
        "logging_nan_inf_filter": False,
        "disable_tqdm": True,
        "gradient_checkpointing_kwargs": {"use_reentrant": False} if training.gradient_checkpointing else None,
        # In the run's own folder instead of among its checkpoints; `choose_callbacks` adds it.
        "report_to": [tracker for tracker in training.report_to if tracker != "tensorboard"],
    }
    left_out = _NOT_THE_TRAINERS if evaluates_during else _NOT_THE_TRAINERS | {"eval_steps"}
    typed = {field: getattr(training, field) for field in type(training).model_fields if field not in left_out}
    try:
        return config_class(**{**typed, **chosen, **own, **training.fields})
    except ValueError as error:
        raise RecipeError(f"`training`: TRL refuses a setting: {str(error).strip().splitlines()[0]}") from error


def choose_callbacks(
    training: TrainingSettings, arguments: TrainingArguments, run: Sequence[TrainerCallback]
) -> list[TrainerCallback]:
    """Put those that decide how it is trained before the run's own, and keep a process to one GPU."""
    if note := keep_one_gpu(arguments):
        log.info("%s", note)
    deciding: list[TrainerCallback] = [RankAllocation()]
    if training.early_stopping_patience is not None:
        deciding.append(EarlyStoppingCallback(training.early_stopping_patience))
    if "tensorboard" in training.report_to:
        from torch.utils.tensorboard import SummaryWriter  # an optional package

        deciding.append(TensorBoardCallback(SummaryWriter(str(Path(arguments.output_dir).with_name("tensorboard")))))
    return [*deciding, *run]


def drop_printer(trainer: Trainer) -> None:
    """Drop the callback that prints every log as a dict; `run.metrics` shows them."""
    trainer.remove_callback(PrinterCallback)
