"""Whether the disk has room for a run, asked before anything is downloaded.

In go the recipe, the trainer's own config and the adapter that is trained on; out comes nothing, or a PlaceError that
tells by part what is needed: checkpoints, result, and what the Hub has to send. No weight is read.
"""

from pathlib import Path

from transformers import TrainingArguments

from finetune.model.access import find_cache_dir, find_download_bytes
from finetune.model.sizes import estimate_parameters, find_tokenizer_bytes
from finetune.recipe.heads import HEAD_OF_OBJECTIVE
from finetune.recipe.own_methods import WHOLE_METHODS
from finetune.recipe.schema import Recipe
from finetune.run.disk import (
    RECORDS_BYTES,
    Need,
    check_space,
    count_checkpoints,
    estimate_checkpoint_bytes,
    estimate_result_bytes,
    find_size,
    to_size,
)

__all__ = ["check_room", "estimate_checkpoint"]


def check_room(recipe: Recipe, arguments: TrainingArguments, trained_dir: Path | None) -> None:
    """Check that there is room for all that a run writes and fetches.

    Args:
        recipe: the run.
        arguments: the trainer's own config.
        trained_dir: folder of the adapter that is trained on; None: a fresh one.

    Raises:
        PlaceError: there is not, with needed and free bytes by part.
    """
    model, training, folder = recipe.model, recipe.training, Path(recipe.output_dir) / recipe.name
    num_trained, num_frozen, beside_bytes = _count(recipe, trained_dir)
    each_bytes = estimate_checkpoint_bytes(num_trained, num_frozen, str(arguments.optim), beside_bytes)
    num_checkpoints = count_checkpoints(
        keep=training.save_total_limit,
        finds_best=arguments.metric_for_best_model is not None,
        max_steps=training.max_steps,
        save_steps=training.save_steps,
    )
    result_bytes = estimate_result_bytes(num_trained, num_frozen, beside_bytes) + RECORDS_BYTES
    needs = [
        Need(f"{num_checkpoints} x {to_size(each_bytes)} of checkpoints", num_checkpoints * each_bytes, folder),
        Need("result and records", result_bytes, folder),
    ]
    if model.weights == "pretrained" and model.model_name_or_path is not None:
        lacking_bytes = find_download_bytes(model.model_name_or_path, model.revision)
        if lacking_bytes:
            needs.append(Need("the base, to be downloaded", lacking_bytes, find_cache_dir()))
    # What lies in the folder is a part of the run that is resumed, or is replaced by this one once it has begun.
    check_space(needs, given_back=Need("what lies there", find_size(folder), folder))
    if training.rehearsal:
        check_space([Need("a checkpoint, rehearsed beside what lies there", each_bytes, folder)])


def estimate_checkpoint(recipe: Recipe, arguments: TrainingArguments, trained_dir: Path | None) -> int:
    """Estimate the bytes of one checkpoint."""
    num_trained, num_frozen, beside_bytes = _count(recipe, trained_dir)
    return estimate_checkpoint_bytes(num_trained, num_frozen, str(arguments.optim), beside_bytes)


def _count(recipe: Recipe, trained_dir: Path | None) -> tuple[int, int, int]:
    """Count the numbers trained, those saved beside them, and the bytes of the tokenizer."""
    head = HEAD_OF_OBJECTIVE[recipe.objective]
    count = estimate_parameters(recipe.model, recipe.adapter, head=head, trained_dir=trained_dir)
    num_frozen = count.total - count.trainable if recipe.adapter.method in WHOLE_METHODS else 0
    return count.trainable, num_frozen, find_tokenizer_bytes(recipe.model)
