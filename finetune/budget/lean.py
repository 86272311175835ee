"""Which adapters the lean path serves, by the settings that make them; `model.lean` looks at the modules themselves.

In goes the recipe's `adapter` section; a plan and a run's first decision on memory ask the same.
"""

from finetune.budget.adapter import AdapterShape
from finetune.budget.shapes import Architecture
from finetune.recipe.schema import AdapterSettings

__all__ = ["is_served"]

# Fields of PEFT's LoraConfig (0.21) that put another computation into a layer where they are set: its variants, and a
# bias on B. tests/budget/test_lean.py asks PEFT for the variants.
_OTHER_COMPUTATIONS = (
    "lora_bias", "use_dora", "velora_config", "alora_invocation_tokens", "monteclora_config", "use_bdlora",
    "arrow_config", "kasa_config",
)  # fmt: skip
_OTHER_STARTS = frozenset({"mica"})  # values of `init_lora_weights` that do the same


def is_served(settings: AdapterSettings, adapter: AdapterShape, architecture: Architecture) -> bool:
    """Whether an adapter is the lean path's case: two matrices beside a frozen linear, and nothing else.

    Args:
        settings: the recipe's section; where it goes on with an adapter its fields are not there, and the shape tells.
        adapter: the shape of what is trained.
        architecture: of the base.
    """
    fields = settings.fields
    if adapter.method != "lora" or adapter.dropout or adapter.is_weight_decomposed:
        return False
    if any(fields.get(name) for name in _OTHER_COMPUTATIONS) or fields.get("init_lora_weights") in _OTHER_STARTS:
        return False
    # A bias of the base that is trained makes its linear one that is not frozen.
    trains_biases = fields.get("bias", "none") != "none"
    return not (trains_biases and any(one.has_bias for one in architecture.linears if adapter.adapts(one)))
