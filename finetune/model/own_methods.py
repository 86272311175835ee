"""The adapter methods of our own, made known to PEFT: bottlenecks, BitFit, the hypernetwork, combinations.

Importing this module enters them into PEFT's registries, once in a process; from then on `get_peft_model`,
`save_pretrained`, `PeftModel.from_pretrained` and `load_adapter` treat them like any other method. PEFT's
`register_peft_method` takes members of its closed `PeftType` alone, but the registries are dictionaries asked by the
name that stands in adapter_config.json, and a member of any enumeration of strings is equal to its name.

A process without this import knows nothing of them: PEFT ends there with `KeyError: 'BITFIT'`.
"""

from peft import PeftConfig
from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING, PEFT_TYPE_TO_PREFIX_MAPPING, PEFT_TYPE_TO_TUNER_MAPPING
from peft.tuners.tuners_utils import BaseTuner

from finetune.model.bitfit import BitFitConfig, BitFitModel, BitFitType
from finetune.model.bottleneck import BottleneckConfig, BottleneckModel, BottleneckType
from finetune.model.combined import CombinedConfig, CombinedModel, CombinedType
from finetune.model.hypernetwork import HypernetworkConfig, HypernetworkType
from finetune.model.hypernetwork_tuner import HypernetworkModel

__all__ = ["OWN_METHODS"]

# Method, as the recipe names it -> its config.
OWN_METHODS: dict[str, type[PeftConfig]] = {
    "bitfit": BitFitConfig,
    "bottleneck": BottleneckConfig,
    "combined": CombinedConfig,
    "hypernetwork": HypernetworkConfig,
}

_Type = BitFitType | BottleneckType | CombinedType | HypernetworkType


def _register(peft_type: _Type, config: type[PeftConfig], tuner: type[BaseTuner]) -> None:
    if peft_type in PEFT_TYPE_TO_CONFIG_MAPPING:
        raise KeyError(f"PEFT has a method {peft_type.value} of its own by now: ours wants another name")
    PEFT_TYPE_TO_CONFIG_MAPPING[peft_type] = config
    PEFT_TYPE_TO_TUNER_MAPPING[peft_type] = tuner
    PEFT_TYPE_TO_PREFIX_MAPPING[peft_type] = tuner.prefix


_register(BitFitType.BITFIT, BitFitConfig, BitFitModel)
_register(BottleneckType.BOTTLENECK, BottleneckConfig, BottleneckModel)
_register(HypernetworkType.HYPERNETWORK, HypernetworkConfig, HypernetworkModel)
_register(CombinedType.COMBINED, CombinedConfig, CombinedModel)
