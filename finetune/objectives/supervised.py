"""Supervised fine-tuning and continued pretraining, both on TRL's SFTTrainer.

The rows come tokenized and labelled, so the trainer's own preparation (templates, truncation,
masks) is switched off: which token is trained is decided in one place, `data.rendering`.
"""

import math
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from datasets import Dataset, concatenate_datasets
from trl import SFTConfig

from finetune.data.batches import IGNORE_INDEX, Collator, choose_layout
from finetune.data.packing import pack_documents
from finetune.data.rendering import Renderer
from finetune.data.sources import LoadedExamples
from finetune.data.tokens import TokenRows, TooLong, build_token_rows
from finetune.errors import PlaceError
from finetune.model.document_attention import DOCUMENTS, leave_masks_out
from finetune.objectives.batch_parts import EXPERTS_BALANCE
from finetune.objectives.building import RunArguments, TrainerParts, build, build_config
from finetune.objectives.trained_loss import TrainedTokensTrainer, use_trained_loss
from finetune.objectives.trainer import StepMixin
from finetune.recipe.schema import DataSettings, TrainingSettings

__all__ = ["SupervisedTrainer", "build_arguments", "build_conversation_rows", "build_document_rows", "build_trainer"]

_PROBED_TOKENS = 16  # of each of two documents that are to be read apart


class SupervisedTrainer(StepMixin, TrainedTokensTrainer):
    """TRL's SFTTrainer with what must sit inside the step."""

    def compute_loss(self, model: Any, inputs: dict[str, Any], *args: Any, **kwargs: Any) -> Any:
        """Compute the loss without a cache, with which packed documents would read each other."""
        inputs["use_cache"] = False  # TRL sets this; the trainer that Unsloth rewrites on a GPU does not
        return super().compute_loss(model, inputs, *args, **kwargs)

    def check_before_start(self) -> None:
        """Check that packed documents do not read each other, on this device and by its kernels.

        A document's loss is the same whatever stands before it in the row: one of a few tokens behind two different
        ones, in training and in evaluation. Random numbers are left as they were found.

        Raises:
            PlaceError: they do.
        """
        if self.data_collator.layout == "padded":
            return
        tolerance = 2e-3 if self.args.bf16 or self.args.fp16 else 1e-5
        for training in (True, False):
            with self.as_in_training(float32_logits=False):
                self.model.train(training)
                one, other = (self._measure_second_document(first) for first in (1, 2))
            if not (math.isnan(one) and math.isnan(other)) and not abs(one - other) <= tolerance * abs(one):
                raise PlaceError(
                    f"Packed documents read each other on {self.args.device} with these kernels: a document's loss is "
                    f"{one:.4f} after one text and {other:.4f} after another.\n"
                    "  Train on a row for each: data.packing=false"
                )

    def _measure_second_document(self, seed: int) -> float:
        """The loss of a document of fixed tokens, behind another one that a seed draws."""
        vocabulary = self.model.get_input_embeddings().num_embeddings
        with torch.random.fork_rng():
            torch.manual_seed(0)
            second = torch.randint(vocabulary, (_PROBED_TOKENS,)).tolist()
            torch.manual_seed(seed)
            first = torch.randint(vocabulary, (_PROBED_TOKENS,)).tolist()
            torch.manual_seed(0)  # of dropout
            batch = self.data_collator([
                {
                    "input_ids": first + second,
                    "labels": [IGNORE_INDEX] * len(first) + second,
                    "seq_lengths": [len(first), len(second)],
                }
            ])  # fmt: skip
            inputs = {
                name: value.to(self.args.device) if isinstance(value, torch.Tensor) else value
                for name, value in batch.items()
                if name not in ("num_real_tokens", "num_trained_tokens")
            }
            return float(self.model(**inputs, use_cache=False).loss)

    def find_why_whole(self, batch: Any) -> str | None:
        """Say why a batch cannot be cut: the experts' balance is no mean over tokens."""
        return EXPERTS_BALANCE if self.aux_loss_enabled else None

    def find_train_figures(self) -> dict[str, list[Any]]:
        """Find the figures that wait for the next line of the log, as numbers."""
        self.read_figures("train")
        return super().find_train_figures()

    def sum_loss(self, loss: float, inputs: dict[str, Any]) -> tuple[float, float]:
        """Sum a batch's loss over its trained tokens."""
        return self.sum_counted_loss(loss, float((inputs["labels"][:, 1:] != IGNORE_INDEX).sum()))


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
    row_tokens = data.tokens_per_batch or data.max_length
    is_batch = data.tokens_per_batch is not None  # a row is all that a micro-batch has
    draw_seed = int(rows.report["label_hash"][:16], 16) if is_batch else None
    packed = pack_documents(rows.dataset, row_tokens, rows.fingerprint, draw_seed=draw_seed)
    census = rows.report["census"]
    filled = {"packed_rows": len(packed), "packing_fill": round(census["tokens"] / (len(packed) * row_tokens), 4)}
    return replace(rows, dataset=packed, report=rows.report | {"census": census | filled})


def build_arguments(training: TrainingSettings, run: RunArguments) -> SFTConfig:
    """Build the trainer's own config.

    Raises:
        RecipeError: the library refuses a setting.
    """
    # The rows are ready, so nothing is truncated, packed or dropped behind our back.
    ready: dict[str, Any] = {"dataset_kwargs": {"skip_prepare_dataset": True}, "max_length": None, "packing": False}
    if run.backend == "unsloth" and run.device.type == "cuda":
        # TRL's own takes the head out of the hands of Unsloth's kernels. On a CPU it stays: what Unsloth has there
        # rounds the logits' gradient to bfloat16 (unsloth_zoo 2026.10.9, cpu/ops.py).
        ready["loss_type"] = "nll"
    return build_config(SFTConfig, training, run, ready)


def build_trainer(parts: TrainerParts) -> SupervisedTrainer:
    """Build the trainer of one run."""
    base, data, arguments = parts.base, parts.data, parts.arguments
    by_unsloth = base.backend == "unsloth" and base.device.type == "cuda"
    layout = choose_layout(packing=data.packing, attention=base.attention, by_unsloth=by_unsloth)
    # Rows of like length lie in one micro-batch where nothing else saves the padding.
    arguments.train_sampling_strategy = "group_by_length" if layout == "padded" else "random"
    if data.tokens_per_batch is not None:  # a row is a micro-batch; other numbers the reader of recipes has refused
        arguments.per_device_train_batch_size = arguments.per_device_eval_batch_size = 1
    names_documents = layout == "flat" and not by_unsloth
    if names_documents and base.attention == DOCUMENTS:
        leave_masks_out(base.model)
    if parts.held_out is not None:
        held_out = replace(parts.held_out, dataset=_fill_up(parts.held_out.dataset, arguments))
        parts = replace(parts, held_out=held_out)
    collator = partial(Collator, layout, names_lengths=by_unsloth, names_documents=names_documents)
    trainer = build(SupervisedTrainer, collator, parts)
    # Unsloth has a loss of its own on a GPU; TRL's others are not this one, nor is one with a term for experts.
    if base.backend == "transformers" and arguments.loss_type == "chunked_nll" and not trainer.aux_loss_enabled:
        with trainer.as_in_training(float32_logits=False):
            trainer.sums_trained_tokens = use_trained_loss(base.model)
    return trainer


def _fill_up(rows: Dataset, arguments: SFTConfig) -> Dataset:
    """Fill up the last batches of several processes with rows that train nothing; accelerate would repeat real ones."""
    num_missing = -len(rows) % (arguments.per_device_eval_batch_size * arguments.world_size)
    if arguments.world_size == 1 or num_missing == 0:
        return rows
    filler = rows.select([0] * num_missing)
    filler = filler.map(lambda row: {"labels": [IGNORE_INDEX] * len(row["labels"])}, features=rows.features)
    return concatenate_datasets([rows, filler])
