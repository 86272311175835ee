"""The base's own weights trained: all of them, or what stands above its first layers.

In goes a frozen base; out comes the same with these weights in float32: a 16-bit weight is too coarse for the small
steps of fine-tuning, and float16's gradient scaler refuses one. The others stay as they were held.
"""

from torch import nn
from transformers import PreTrainedModel

from finetune.errors import RecipeError
from finetune.recipe.own_methods import FULL, WHOLE_METHODS
from finetune.recipe.schema import AdapterSettings

__all__ = ["free_weights"]


def free_weights(model: PreTrainedModel, adapter: AdapterSettings) -> PreTrainedModel:
    """Free the weights that a method trains.

    `top_k` frees the last `layers` layers and, with `train_head`, the norm and the head above them; with `layers: 0`
    the base is a frozen source of features.

    Raises:
        RecipeError: there are fewer layers, nothing is left to train, or the head is the table of embeddings.
    """
    if adapter.method == FULL:
        return model.float().requires_grad_(True)
    settings = {name: schema["default"] for name, schema in WHOLE_METHODS[adapter.method].items()} | adapter.fields
    layers, above = _find_layers(model)
    num_freed = settings["layers"]
    if num_freed > len(layers):
        raise RecipeError(
            f"`adapter.layers` is {num_freed}, and the model has {len(layers)}.\n"
            "  All of its weights: adapter.method=full"
        )
    freed = list(layers[len(layers) - num_freed :])
    if settings["train_head"]:
        freed += [*above, *_find_head(model)]
    if not freed:
        raise RecipeError(
            "`adapter.layers` is 0 and `adapter.train_head` false: nothing is left to train.\n"
            "  Set adapter.layers=2, or adapter.train_head=true"
        )
    for module in freed:
        module.float().requires_grad_(True)
    return model


def _find_layers(model: PreTrainedModel) -> tuple[nn.ModuleList, list[nn.Module]]:
    """Find the model's layers, and what stands beside and behind them: its last norm."""
    num_layers = model.config.get_text_config().num_hidden_layers
    for parent in model.modules():
        children = list(parent.children())
        for place, child in enumerate(children):
            if isinstance(child, nn.ModuleList) and len(child) == num_layers:
                return child, [one for one in children[place + 1 :] if any(True for _ in one.parameters())]
    raise RecipeError(
        f"`adapter.method: top_k`: no list of {num_layers} layers is found in {type(model).__name__}.\n"
        "  All of its weights: adapter.method=full"
    )


def _find_head(model: PreTrainedModel) -> list[nn.Module]:
    head = getattr(model, "score", None) or model.get_output_embeddings()
    if head is None:
        return []
    if head.weight is model.get_input_embeddings().weight:
        raise RecipeError(
            "`adapter.train_head`: the head of this model is its table of embeddings, which stays as it is.\n"
            "  Set adapter.train_head=false"
        )
    return [head]
