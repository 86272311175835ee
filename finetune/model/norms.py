"""The norms of a model, for the method that trains them where PEFT has no list of an architecture's.

In goes a model; out come the names that `ln_tuning` takes as `target_modules`.
"""

from collections.abc import Sequence

from peft.utils.constants import TRANSFORMERS_MODELS_TO_LNTUNING_TARGET_MODULES_MAPPING
from transformers import PreTrainedModel

__all__ = ["find_norm_names"]


def find_norm_names(model: PreTrainedModel, head_modules: Sequence[str] = ()) -> list[str] | None:
    """Find the norms of an architecture that PEFT has no list for, BERT's among them.

    Args:
        model: without an adapter.
        head_modules: names of modules whose norms are left out, being trained whole.

    Returns:
        Full names, since another layer's module of the same short name can be none (ModernBERT's first layer has no
        norm there); None where PEFT has a list.
    """
    if model.config.model_type in TRANSFORMERS_MODELS_TO_LNTUNING_TARGET_MODULES_MAPPING:
        return None
    return [
        name
        for name, module in model.named_modules()
        if "norm" in type(module).__name__.lower() and not name.startswith(tuple(head_modules))
    ]
