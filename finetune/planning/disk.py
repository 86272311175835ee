"""What a run leaves on the disk, in bytes: checkpoints, the result, records.

In go a recipe and the shapes of base and adapter; the arithmetic of whole folders is `run.disk`'s.
"""

from collections.abc import Mapping
from typing import Any

from finetune.budget.adapter import AdapterShape
from finetune.budget.shapes import Architecture
from finetune.planning.adapter import estimate_file_bytes
from finetune.recipe.places import is_local
from finetune.recipe.schema import Recipe
from finetune.run.disk import RECORDS_BYTES, count_checkpoints, estimate_checkpoint_bytes, estimate_result_bytes

__all__ = ["estimate_disk", "estimate_result", "estimate_saved"]

_FLOAT32_BYTES = 4


def estimate_saved(architecture: Architecture, shape: AdapterShape) -> int:
    """Estimate the weights in a checkpoint: what is trained in float32, the rest of a whole model in 16 bits."""
    if shape.is_whole:
        return shape.num_parameters * _FLOAT32_BYTES + (architecture.num_parameters - shape.num_parameters) * 2
    if not shape.tensors:
        return shape.num_parameters * _FLOAT32_BYTES
    return sum(tensor.num_numbers for tensor in shape.tensors if tensor.is_saved) * _FLOAT32_BYTES


def estimate_result(recipe: Recipe, fields: Mapping[str, Any], architecture: Architecture, shape: AdapterShape) -> int:
    """Estimate the weights that the result leaves on the disk: an adapter's file to the byte, or a whole model.

    Args:
        recipe: read for `model.weights`.
        fields: of the base's config.
        architecture: the base.
        shape: what is trained.
    """
    if shape.is_whole:  # a model is left in the precision that its files had
        stored = str(fields.get("dtype") or fields.get("torch_dtype") or "")
        in_16_bits = recipe.model.weights == "random" or stored.endswith("16")
        return architecture.num_parameters * (2 if in_16_bits else _FLOAT32_BYTES)
    name = recipe.model.model_name_or_path
    names_base = recipe.model.weights == "pretrained" and name is not None and is_local(name)
    return (
        estimate_file_bytes(shape.tensors, names_base=names_base)
        if shape.tensors
        else shape.num_parameters * _FLOAT32_BYTES
    )


def estimate_disk(recipe: Recipe, architecture: Architecture, shape: AdapterShape, optimizer: str) -> int:
    """Estimate what a run writes at most: as `room` asks the disk for it, without the tokenizer's files."""
    num_frozen = architecture.num_parameters - shape.num_parameters if shape.is_whole else 0
    num_checkpoints = count_checkpoints(
        keep=recipe.training.save_total_limit,
        finds_best=recipe.data.eval is not None and recipe.training.eval_steps is not None,
        max_steps=recipe.training.max_steps,
        save_steps=recipe.training.save_steps,
    )
    each_bytes = estimate_checkpoint_bytes(shape.num_parameters, num_frozen, optimizer, 0)
    result_bytes = estimate_result_bytes(shape.num_parameters, num_frozen, 0)
    return num_checkpoints * each_bytes + result_bytes + RECORDS_BYTES
