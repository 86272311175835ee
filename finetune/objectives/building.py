"""What every trainer is built with alike: our `training` section as its own config, rows, callbacks.

Each objective adds what is its own: which config it is, which trainer, and how its rows make a batch.
"""

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import torch
from transformers import (
    EarlyStoppingCallback,
    PreTrainedTokenizerBase,
    PrinterCallback,
    Trainer,
    TrainerCallback,
    TrainingArguments,
)
from transformers.integrations import TensorBoardCallback

from finetune.data.tokens import TokenRows
from finetune.errors import PlaceError, RecipeError
from finetune.model.base import BaseModel
from finetune.model.devices import keep_one_gpu
from finetune.model.rank_allocation import RankAllocation
from finetune.model.tokenizer import find_pad_id
from finetune.objectives.changes import find_moved_defaults, warn_of_changes
from finetune.recipe.backend_limits import OTHERWISE
from finetune.recipe.schema import BackendName, DataSettings, TrainingSettings

__all__ = [
    "BY_LENGTH",
    "RunArguments",
    "TrainerParts",
    "build",
    "build_config",
]

log = logging.getLogger("finetune.objectives.building")

Config = TypeVar("Config", bound=TrainingArguments)
Built = TypeVar("Built", bound=Trainer)

# Rows of like length lie in one micro-batch, where nothing else saves the padding; see `order`.
BY_LENGTH = {"train_sampling_strategy": "group_by_length"}

# Schedules that lower the rate where an evaluation brings nothing better.
_GO_BY_EVALUATIONS = ("greedy", "reduce_lr_on_plateau")

# Settings under `training` that other parts act on: the callback that stops early, the rotation of checkpoints, the
# check of losses and gradients, the rehearsal, what idle memory is spent on.
_NOT_THE_TRAINERS = {
    "early_stopping_patience", "max_skipped_steps", "memory", "non_finite", "rehearsal", "report_to",
    "save_total_limit",
}  # fmt: skip


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainerParts:
    """What every trainer is built from.

    Attributes:
        base: the loaded base.
        model: what is trained: the base with its adapter, or the base itself.
        tokenizer: saved into every checkpoint.
        arguments: the trainer's own config, of the objective's class.
        train: rows to train on.
        held_out: rows to evaluate on, or None.
        data: the recipe's section, for how rows make a batch.
        training: the recipe's section, for what is no field of the trainer's config.
        callbacks: the run's own, behind those that decide how it is trained.
    """

    base: BaseModel
    model: torch.nn.Module
    tokenizer: PreTrainedTokenizerBase
    arguments: Any
    train: TokenRows
    held_out: TokenRows | None
    data: DataSettings
    training: TrainingSettings
    callbacks: Sequence[TrainerCallback] = ()


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
        backend: the library that runs the model.
    """

    name: str
    device: torch.device
    compute_dtype: torch.dtype
    evaluates: bool
    seed: int
    checkpoints_dir: Path
    backend: BackendName = "transformers"


def build_config(
    config_class: type[Config],
    training: TrainingSettings,
    run: RunArguments,
    own: Mapping[str, Any],
    *,
    best: tuple[str, bool] = ("eval_loss", False),
) -> Config:
    """Translate our settings into the trainer's; an argument that is neither typed nor chosen keeps its default.

    A single process is kept to one GPU.

    Args:
        config_class: TRL's, of the objective.
        training: the recipe's `training` section.
        run: what other sections say.
        own: fields the objective chooses for its config.
        best: the figure of an evaluation that the best step is found by, and whether more of it is better.

    Raises:
        RecipeError: the library refuses a setting.
        PlaceError: several processes, where the backend is used in one.
    """
    evaluates_during = run.evaluates and training.eval_steps is not None
    recomputes = training.gradient_checkpointing and training.memory != "recompute_none"
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
        "gradient_checkpointing": recomputes,
        "gradient_checkpointing_kwargs": {"use_reentrant": False} if recomputes else None,
        # In the run's own folder instead of among its checkpoints; `_choose_callbacks` adds it.
        "report_to": [tracker for tracker in training.report_to if tracker != "tensorboard"],
    }
    left_out = _NOT_THE_TRAINERS if evaluates_during else _NOT_THE_TRAINERS | {"eval_steps"}
    typed = {field: getattr(training, field) for field in type(training).model_fields if field not in left_out}
    # What Unsloth rewrites on a GPU has defaults of its own.
    defaults = find_moved_defaults(config_class) if run.backend == "unsloth" else {}
    asked = {**defaults, **typed, **chosen, **own, **training.fields}
    if training.lr_scheduler_type in _GO_BY_EVALUATIONS and more_is_better:
        # Their own rule is for a loss: a rising score would lower the rate.
        asked["lr_scheduler_kwargs"] = {"mode": "max", **(asked.get("lr_scheduler_kwargs") or {})}
    try:
        config = config_class(**asked)
    except ValueError as error:
        library = "TRL" if config_class.__module__.startswith("trl") else "transformers"
        raise RecipeError(f"`training`: {library} refuses a setting: {str(error).strip().splitlines()[0]}") from error
    if run.backend == "unsloth" and config.world_size > 1:
        raise PlaceError(
            f"`backend: unsloth` is used in one process here, and {config.world_size} were started.\n"
            f"  Start it without a launcher: python -m finetune.…     {OTHERWISE}"
        )
    warn_of_changes(asked, config)
    if note := keep_one_gpu(config):
        log.info("%s", note)
    return config


def _choose_callbacks(parts: TrainerParts) -> list[TrainerCallback]:
    """Put those that decide how it is trained before the run's own."""
    deciding: list[TrainerCallback] = [RankAllocation()]
    if parts.training.early_stopping_patience is not None:
        deciding.append(EarlyStoppingCallback(parts.training.early_stopping_patience))
    if "tensorboard" in parts.training.report_to:
        deciding.append(_build_tensorboard(Path(parts.arguments.output_dir).with_name("tensorboard")))
    return [*deciding, *parts.callbacks]


def _build_tensorboard(folder: Path) -> TensorBoardCallback:
    """Build the tracker without its writer: that makes a file at once, where nothing is written before the run starts.

    The callback makes it with the first line that it is given, in the one process that is given any.
    """
    callback = TensorBoardCallback()
    callback.logging_dir = str(folder)
    return callback


def build(
    trainer_class: Callable[..., Built], collator_class: Callable[[int], Any] | None, parts: TrainerParts
) -> Built:
    """Build the trainer of one run.

    Args:
        trainer_class: of the objective.
        collator_class: makes batches, given the id that pads them; None: the trainer makes them by itself.
        parts: what it is built from.
    """
    trainer = trainer_class(
        model=parts.model,
        args=parts.arguments,
        train_dataset=parts.train.dataset,
        eval_dataset=None if parts.held_out is None else parts.held_out.dataset,
        processing_class=parts.tokenizer,
        callbacks=_choose_callbacks(parts),
        **({"data_collator": collator_class(find_pad_id(parts.tokenizer))} if collator_class else {}),
    )
    trainer.remove_callback(PrinterCallback)  # prints every log as a dict; `run.metrics` shows them
    return trainer
