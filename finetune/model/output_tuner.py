"""What tuners of our own share on PEFT's bases: modules behind a layer's output, by adapter, in float32."""

from typing import TYPE_CHECKING, Any

import torch
from peft import PeftConfig
from peft.tuners.tuners_utils import BaseTuner, BaseTunerLayer
from torch import nn

__all__ = ["OutputLayer", "OutputTuner"]


class OutputLayer(nn.Module, BaseTunerLayer):
    """A layer with modules behind its output, in dictionaries by adapter that `adapter_layer_names` names."""

    if TYPE_CHECKING:  # torch's own says tensor or module, which is not so of what PEFT's base class gives

        def __getattr__(self, name: str) -> Any: ...

    def _move_adapter_to_device_of_base_layer(self, adapter_name: str, device: torch.device | None = None) -> None:
        """Move an adapter's modules; PEFT would round them to the base's dtype on the way."""
        for kind in self.adapter_layer_names:
            by_adapter = self.get_submodule(kind)
            assert isinstance(by_adapter, nn.ModuleDict)
            if adapter_name not in by_adapter:
                continue
            module = by_adapter[adapter_name]
            if not any(parameter.is_meta for parameter in module.parameters()):
                module.to(device or self.get_base_layer().weight.device)


class OutputTuner(BaseTuner):
    """A model whose targeted layers are such layers, of the class `tuner_layer_cls`."""

    target_module_mapping: dict[str, list[str]] = {}  # noqa: RUF012 - PEFT's name for what is found here instead

    def _check_target(self, base: nn.Module, name: str) -> None:
        """Refuse a module that the method cannot sit on, by a ValueError."""
        raise NotImplementedError

    def _create_and_replace(
        self,
        peft_config: PeftConfig,
        adapter_name: str,
        target: nn.Module,
        target_name: str,
        parent: nn.Module,
        current_key: str,
        parameter_name: str | None = None,
    ) -> None:
        if isinstance(target, self.tuner_layer_cls):
            target.update_layer(adapter_name, peft_config)
            return
        self._check_target(target.get_base_layer() if isinstance(target, BaseTunerLayer) else target, current_key)
        self._replace_module(parent, target_name, self._build_layer(target, adapter_name, peft_config), target)

    def _build_layer(self, target: nn.Module, adapter_name: str, peft_config: PeftConfig) -> OutputLayer:
        return self.tuner_layer_cls(target, adapter_name, peft_config)
