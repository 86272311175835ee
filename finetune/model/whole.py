"""The base's own weights trained: all of them, or what stands above its first layers.

In goes a frozen base; out comes the same with these weights in float32: a 16-bit weight is too coarse for the small
steps of fine-tuning, and float16's gradient scaler refuses one. The others stay as they were held.
"""

import logging
from collections.abc import Sequence

from torch import nn
from transformers import PreTrainedModel

from finetune.errors import RecipeError
from finetune.model.heads import SCORE_HEAD
from finetune.recipe.own_methods import FULL, WHOLE_METHODS
from finetune.recipe.schema import AdapterSettings

__all__ = ["free_weights"]

log = logging.getLogger("finetune.model.whole")


def free_weights(model: PreTrainedModel, adapter: AdapterSettings, head_modules: Sequence[str] = ()) -> PreTrainedModel:
    """Free the weights that a method trains.

    `top_k` frees the last `layers` layers and, with `train_head`, the norm and the head above them; a head that is the
    table of embeddings stays as it is. The score of a reward model and the head of a classifier are always freed. With
    `layers: 0` the base is a frozen source of features.

    Args:
        model: the frozen base, changed in place.
        adapter: the recipe's section.
        head_modules: of a classifier's head.

    Raises:
        RecipeError: there are fewer layers, or nothing is left to train.
    """
    if adapter.method == FULL:
        return model.float().requires_grad_(True)
    settings = {name: schema["default"] for name, schema in WHOLE_METHODS[adapter.method].items()} | adapter.fields
    layers, norms = _find_layers(model)
    num_freed = settings["layers"]
    if num_freed > len(layers):
        raise RecipeError(
            f"`adapter.layers` is {num_freed}, and the model has {len(layers)}.\n"
            "  All of its weights: adapter.method=full"
        )
    freed = list(layers[len(layers) - num_freed :])
    # Drawn for a reward model or a classifier: nothing else has taught it.
    score = dict(model.named_children()).get(SCORE_HEAD)
    fresh = [model.get_submodule(name) for name in head_modules] or ([] if score is None else [score])
    if settings["train_head"]:
        freed += [*norms, *([] if fresh else _find_head(model))]
    freed += fresh
    if not freed:
        raise RecipeError(
            "`adapter.layers` is 0 and `adapter.train_head` false: nothing is left to train.\n"
            "  Set adapter.layers=2, or adapter.train_head=true"
        )
    for module in freed:
        module.float().requires_grad_(True)
    return model


def _find_layers(model: PreTrainedModel) -> tuple[nn.ModuleList, list[nn.Module]]:
    """Find the model's layers, and the norm behind the last one: beside them, and not of the embeddings."""
    num_layers = model.config.get_text_config().num_hidden_layers
    for parent in model.modules():
        for child in parent.children():
            if isinstance(child, nn.ModuleList) and len(child) == num_layers:
                beside = parent.named_children()
                return child, [
                    one for name, one in beside if "norm" in type(one).__name__.lower() and "emb" not in name
                ]
    raise RecipeError(
        f"`adapter.method: top_k`: no list of {num_layers} layers is found in {type(model).__name__}.\n"
        "  All of its weights: adapter.method=full"
    )


def _find_head(model: PreTrainedModel) -> list[nn.Module]:
    head = model.get_output_embeddings()
    if head is None:
        return []
    if head.weight is model.get_input_embeddings().weight:
        log.info("The head is the table of embeddings here, which stays as it is.")
        return []
    return [head]
