"""Supervised fine-tuning and continued pretraining, both on TRL's SFTTrainer.

The rows come tokenized and labelled, so the trainer's own preparation (templates, truncation,
masks) is switched off: which token is trained is decided in one place, `data.rendering`.
"""

import hashlib
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import trl
from datasets import Dataset, concatenate_datasets
from transformers import EarlyStoppingCallback, PreTrainedTokenizerBase, PrinterCallback, TrainerCallback
from transformers.integrations import TensorBoardCallback
from trl import SFTConfig, SFTTrainer, pack_dataset

from finetune.data.batches import IGNORE_INDEX, Collator, choose_layout
from finetune.data.rendering import Renderer
from finetune.data.sources import LoadedExamples
from finetune.data.tokens import TokenRows, TooLong, build_token_rows
from finetune.errors import RecipeError
from finetune.model.adapters import RankAllocation
from finetune.model.base import BaseModel
from finetune.model.devices import keep_one_gpu
from finetune.objectives.trainer import StepMixin
from finetune.recipe.schema import DataSettings, TrainingSettings

__all__ = ["SupervisedTrainer", "build_arguments", "build_conversation_rows", "build_document_rows", "build_trainer"]

log = logging.getLogger("finetune.objectives.supervised")

_PACKED_AT_ONCE = 20_000  # documents that best-fit packing chooses among: fills 99 % and stays in memory
# Settings under `training` that other parts act on: the callback that stops early, the rotation of checkpoints.
_NOT_THE_TRAINERS = {"early_stopping_patience", "save_total_limit", "report_to"}


class SupervisedTrainer(StepMixin, SFTTrainer):
    """TRL's SFTTrainer with what must sit inside the step."""


def build_conversation_rows(loaded: LoadedExamples, renderer: Renderer, data: DataSettings) -> TokenRows:
    """Render conversations into rows; one that is too long is dropped unless the recipe says otherwise."""
    return _build_rows(loaded, renderer, data, data.too_long or "drop")


def build_document_rows(loaded: LoadedExamples, renderer: Renderer, data: DataSettings) -> TokenRows:
    """Render plain text into rows; one that is too long becomes several unless the recipe says otherwise."""
    return _build_rows(loaded, renderer, data, data.too_long or "split")


def _build_rows(loaded: LoadedExamples, renderer: Renderer, data: DataSettings, too_long: TooLong) -> TokenRows:
    """Render, and pack where asked: a packed row holds several documents and their `seq_lengths`."""
    rows = build_token_rows(loaded, renderer, max_length=data.max_length, too_long=too_long)
    if not data.packing:
        return rows
    key = hashlib.sha256(f"{rows.fingerprint} {_PACKED_AT_ONCE} {trl.__version__}".encode()).hexdigest()[:16]
    packed = pack_dataset(
        rows.dataset.select_columns(["input_ids", "labels"]),
        data.max_length,
        strategy="bfd",
        map_kwargs={"batch_size": _PACKED_AT_ONCE, "new_fingerprint": key, "desc": "packing"},
    )
    report = rows.report | {
        "packed_rows": len(packed),
        "packing_fill": round(rows.report["tokens"] / (len(packed) * data.max_length), 4),
    }
    return TokenRows(dataset=packed, report=report, fingerprint=rows.fingerprint)


def build_arguments(
    training: TrainingSettings,
    *,
    name: str,
    device: torch.device,
    compute_dtype: torch.dtype,
    evaluates: bool,
    seed: int,
    checkpoints_dir: Path,
) -> SFTConfig:
    """Translate our settings into SFTConfig's; an argument that is neither typed nor chosen keeps its default.

    Args:
        training: the recipe's `training` section.
        name: of the run, as trackers show it.
        device: of the model.
        compute_dtype: of the products.
        evaluates: whether there are held-out rows.
        seed: of the shuffling and of dropout.
        checkpoints_dir: where `checkpoint-N` folders go.

    Raises:
        RecipeError: the library refuses a setting.
    """
    evaluates_during = evaluates and training.eval_steps is not None
    chosen: dict[str, Any] = {
        "output_dir": str(checkpoints_dir),
        "run_name": name,
        "seed": seed,
        "data_seed": seed,
        "use_cpu": device.type == "cpu",
        "bf16": compute_dtype == torch.bfloat16,
        "fp16": compute_dtype == torch.float16,
        # The rows are ready, so nothing is truncated, packed or dropped behind our back.
        "dataset_kwargs": {"skip_prepare_dataset": True},
        "max_length": None,
        "packing": False,
        "remove_unused_columns": False,
        "eval_strategy": "steps" if evaluates_during else "no",
        "save_strategy": "steps",
        "logging_strategy": "steps",
        # The best step is found by the evaluation; `StepMixin.load_best` puts its weights back at the end.
        "metric_for_best_model": "eval_loss" if evaluates_during else None,
        "greater_is_better": False if evaluates_during else None,
        # Early stopping counts on where it stood.
        "restore_callback_states_from_checkpoint": True,
        # The default hides a NaN in the log and trains on.
        "logging_nan_inf_filter": False,
        "disable_tqdm": True,
        "gradient_checkpointing_kwargs": {"use_reentrant": False} if training.gradient_checkpointing else None,
        # In the run's own folder instead of among its checkpoints; `build_trainer` adds it.
        "report_to": [tracker for tracker in training.report_to if tracker != "tensorboard"],
    }
    left_out = _NOT_THE_TRAINERS if evaluates_during else _NOT_THE_TRAINERS | {"eval_steps"}
    typed = {field: getattr(training, field) for field in type(training).model_fields if field not in left_out}
    try:
        return SFTConfig(**{**typed, **chosen, **training.fields})
    except ValueError as error:
        raise RecipeError(f"`training`: TRL refuses a setting: {str(error).strip().splitlines()[0]}") from error


def build_trainer(
    *,
    base: BaseModel,
    model: torch.nn.Module,
    tokenizer: PreTrainedTokenizerBase,
    arguments: SFTConfig,
    train: TokenRows,
    held_out: TokenRows | None,
    data: DataSettings,
    training: TrainingSettings,
    callbacks: Sequence[TrainerCallback],
) -> SupervisedTrainer:
    """Build the trainer of one run.

    Args:
        base: the loaded base, for its attention.
        model: what is trained: the base with its adapter, or the base itself.
        tokenizer: saved into every checkpoint.
        arguments: from `build_arguments`.
        train: rows to train on.
        held_out: rows to evaluate on, or None.
        data: read for packing.
        training: read for early stopping and TensorBoard.
        callbacks: the run's own, behind those that decide how it is trained.
    """
    layout = choose_layout(packing=data.packing, attention=base.attention)
    # Rows of like length lie in one micro-batch where nothing else saves the padding.
    arguments.train_sampling_strategy = "group_by_length" if layout == "padded" else "random"
    if note := keep_one_gpu(arguments):
        log.info("%s", note)
    deciding: list[TrainerCallback] = [RankAllocation()]
    if training.early_stopping_patience is not None:
        deciding.append(EarlyStoppingCallback(training.early_stopping_patience))
    if "tensorboard" in training.report_to:
        from torch.utils.tensorboard import SummaryWriter  # an optional package

        deciding.append(TensorBoardCallback(SummaryWriter(str(Path(arguments.output_dir).with_name("tensorboard")))))
    trainer = SupervisedTrainer(
        model=model,
        args=arguments,
        data_collator=Collator(layout, _pad_id(tokenizer)),
        train_dataset=train.dataset,
        eval_dataset=None if held_out is None else _fill_up(held_out.dataset, arguments),
        processing_class=tokenizer,
        callbacks=[*deciding, *callbacks],
    )
    trainer.remove_callback(PrinterCallback)  # prints every log as a dict; `run.metrics` shows them
    return trainer


def _fill_up(rows: Dataset, arguments: SFTConfig) -> Dataset:
    """Fill up the last batches of several processes with rows that train nothing; accelerate would repeat real ones."""
    num_missing = -len(rows) % (arguments.per_device_eval_batch_size * arguments.world_size)
    if arguments.world_size == 1 or num_missing == 0:
        return rows
    filler = rows.select([0] * num_missing)
    filler = filler.map(lambda row: {"labels": [IGNORE_INDEX] * len(row["labels"])}, features=rows.features)
    return concatenate_datasets([rows, filler])


def _pad_id(tokenizer: PreTrainedTokenizerBase) -> int:
    pad_id = tokenizer.pad_token_id
    assert isinstance(pad_id, int), "load_tokenizer leaves no tokenizer without a pad token"
    return pad_id
