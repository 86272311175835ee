"""Several methods trained together, saved and opened as one adapter: LoRA with virtual tokens, bottlenecks with BitFit.

In goes a frozen model; out comes the same with the layers of every part on it, one around the other: of two parts on
one layer the one later in `PART_METHODS` stands outside and sees what the other has made of the layer's output,
whatever their order in the list. Each part is what it is alone, with PEFT's own classes and settings, so that the
parameters of a combination are the sum of its parts'. `own_methods` makes PEFT know the method; the adapter's folder
holds one list of parts and one file of weights.

A combination does not merge: an outer part acts on what an inner one has made, and some parts are no change of weights.
"""

import dataclasses
import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from enum import Enum
from typing import Any

from peft import PeftConfig, PeftType
from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING, PEFT_TYPE_TO_TUNER_MAPPING
from peft.tuners.tuners_utils import BaseTuner, BaseTunerLayer, _maybe_include_all_linear_layers
from torch import nn
from transformers import PreTrainedModel

from finetune.model.norms import find_norm_names
from finetune.model.virtual_tokens import put_virtual_tokens_in_front
from finetune.recipe.own_methods import OWN_TARGETS, PART_METHODS, PROMPT_PARTS

__all__ = ["CombinedConfig", "CombinedModel", "CombinedType"]

_NO_MERGE = "a combination does not merge: its parts stand one around the other, and not each is a change of weights"
# What a combination says for all of its parts.
_SHARED_FIELDS = frozenset(
    {"task_type", "peft_type", "auto_mapping", "peft_version", "base_model_name_or_path", "revision", "inference_mode"}
    | {"modules_to_save"}
)


class CombinedType(str, Enum):  # noqa: UP042 - PEFT reads the name behind the dot of str()
    """The method's name where PEFT looks for a member of its own, closed enumeration."""

    COMBINED = "COMBINED"


@dataclass
class CombinedConfig(PeftConfig):
    """Settings of a combination.

    Attributes:
        parts: for each part its `method` and the fields of that method's config. At least two, each method once, at
            most one with virtual tokens. As saved, every field and every target is written out.
        modules_to_save: names of modules trained and saved whole beside the parts, such as a fresh head.

    Raises:
        ValueError: parts that do not go together, or a value that the method's own config refuses.
    """

    parts: list[dict[str, Any]] = field(default_factory=list, metadata={"help": "The methods, each with its fields."})
    modules_to_save: list[str] | None = field(
        default=None, metadata={"help": "Modules trained and saved whole beside the parts."}
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        self.peft_type = CombinedType.COMBINED
        methods = [str(part.get("method")) for part in self.parts]
        if len(methods) < 2:
            raise ValueError(f"a combination has at least two parts, and this one has {len(methods)}")
        for method in methods:
            if method not in PART_METHODS:
                raise ValueError(f"{method} cannot be a part; those that can: {', '.join(PART_METHODS)}")
            if methods.count(method) > 1:
                raise ValueError(f"{method} stands in it twice, and a method is a part once; one part may name all")
        with_tokens = [method for method in methods if method in PROMPT_PARTS]
        if len(with_tokens) > 1:
            raise ValueError(f"{' and '.join(with_tokens)} both put virtual tokens in front of a row; take one of them")
        self.build_parts()

    def build_parts(self) -> list[PeftConfig]:
        """Build the parts' own configs, from the innermost to the outermost.

        Raises:
            ValueError: one of them refuses a value, or its adapter would change the base it stands on.
        """
        return [self._build_part(part) for part in sorted(self.parts, key=lambda part: _place_of(part["method"]))]

    def _build_part(self, part: dict[str, Any]) -> PeftConfig:
        method = part["method"]
        fields = {name: value for name, value in part.items() if name != "method"}
        config_class = PEFT_TYPE_TO_CONFIG_MAPPING[method.upper()]
        names = {one.name for one in dataclasses.fields(config_class)}
        if "target_modules" in names and method not in OWN_TARGETS and fields.get("target_modules") is None:
            fields["target_modules"] = "all-linear"
        _check_stands_beside_others(method, fields)
        if "modules_to_save" in names and self.modules_to_save is not None:
            fields["modules_to_save"] = list(self.modules_to_save)
        try:
            config = config_class(**fields, task_type=self.task_type, inference_mode=self.inference_mode)
        except TypeError as error:
            raise ValueError(f"{method}: {error}") from error
        return config

    def write_parts(self, parts: Iterable[PeftConfig]) -> None:
        """Write the parts' configs back, as their adapters have been attached."""
        self.parts = [
            {"method": part.peft_type.value.lower()}
            | {
                name: sorted(value) if isinstance(value, set) else value.value if isinstance(value, Enum) else value
                for name, value in part.to_dict().items()
                if name not in _SHARED_FIELDS
            }
            for part in parts
        ]


class CombinedModel(BaseTuner):
    """A model with the layers of every part."""

    prefix = "combined_"
    tuner_layer_cls = BaseTunerLayer
    target_module_mapping: dict[str, list[str]] = {}  # noqa: RUF012 - PEFT's name
    uses_shared_state = True

    def _pre_injection_hook(self, model: nn.Module, config: PeftConfig, adapter_name: str) -> None:
        # By method; a dictionary keeps torch from finding the base in each of them.
        self._tuners: dict[str, BaseTuner] = {}

    def inject_adapter(
        self, model: nn.Module, adapter_name: str, *args: Any, low_cpu_mem_usage: bool = False, **kwargs: Any
    ) -> None:
        """Put the layers of every part in, the innermost first.

        Raises:
            ValueError: a target that is not there, other parts than the adapters beside it have, or virtual tokens
                before a head that they would mislead.
        """
        config: CombinedConfig = self.peft_config[adapter_name]
        parts = config.build_parts()
        methods = [part.peft_type.value.lower() for part in parts]
        others = [other for name, other in self.peft_config.items() if name != adapter_name]
        if any({part["method"] for part in other.parts} != set(methods) for other in others):
            raise ValueError(
                "adapters side by side are combinations of the same methods, whose layers are nested alike"
            )
        # Named before the first layer is put in: afterwards the names of other parts' layers are among them.
        assert isinstance(model, PreTrainedModel)
        parts = [_name_targets(model, part) for part in parts]
        for method, part in zip(methods, parts, strict=True):
            if method in PROMPT_PARTS:
                put_virtual_tokens_in_front(model, adapter_name, part, self.active_adapters)
            elif method in self._tuners:
                self._tuners[method].peft_config[adapter_name] = part
                self._tuners[method].inject_adapter(model, adapter_name, low_cpu_mem_usage=low_cpu_mem_usage)
            else:
                self._start_tuner(model, method, adapter_name, part, low_cpu_mem_usage=low_cpu_mem_usage)
        config.write_parts(parts)
        model.peft_config = self.peft_config

    def _start_tuner(
        self, model: nn.Module, method: str, adapter_name: str, part: PeftConfig, *, low_cpu_mem_usage: bool
    ) -> None:
        vars(model).pop("peft_config", None)  # of the part before: PEFT warns of a second one
        tuner_class = PEFT_TYPE_TO_TUNER_MAPPING[part.peft_type]
        tuner = tuner_class(model, {adapter_name: part}, adapter_name, low_cpu_mem_usage=low_cpu_mem_usage)
        self._tuners[method] = tuner
        self.targeted_module_names.extend(tuner.targeted_module_names)
        for name, shared in tuner.named_children():
            if name != "model":  # what a method keeps for all of its layers
                self.add_module(name, shared)

    def set_adapter(self, adapter_name: str | list[str], inference_mode: bool = False) -> None:
        """Set the active adapter of every part."""
        super().set_adapter(adapter_name, inference_mode=inference_mode)
        for tuner in self._tuners.values():
            tuner.active_adapter = adapter_name

    def delete_adapter(self, adapter_name: str) -> None:
        """Delete an adapter, all of its parts."""
        super().delete_adapter(adapter_name)
        for tuner in self._tuners.values():
            del tuner.peft_config[adapter_name]
            tuner.active_adapter = self.active_adapter

    @classmethod
    def _remove_adapter_name_from_key(cls, key: str, adapter_name: str) -> str:
        """PEFT looks for the name one step from the end, and some parts keep whole networks behind it."""
        found = re.match(rf"(.*\b(?:hypernetwork_shared|prompt_encoder)\.){re.escape(adapter_name)}\.(.*)", key)
        return found[1] + found[2] if found else super()._remove_adapter_name_from_key(key, adapter_name)

    def _create_and_replace(self, *args: Any, **kwargs: Any) -> None:
        raise NotImplementedError("the tuners of the parts do")

    def _check_merge_allowed(self) -> None:
        """Refuse.

        Raises:
            ValueError: always, with the reason.
        """
        raise ValueError(_NO_MERGE)


def _place_of(method: str) -> int:
    return PART_METHODS.index(method)


def _check_stands_beside_others(method: str, fields: dict[str, Any]) -> None:
    """Check that a part leaves the base's own weights alone, which the others and `disable_adapter` stand on."""
    start = fields.get("init_lora_weights", True)
    if isinstance(start, str) and start != "gaussian":
        raise ValueError(
            f"{method}: `init_lora_weights: {start}` takes its start out of the base; true or gaussian do not"
        )
    if fields.get("bias", "none") != "none":
        raise ValueError(f"{method}: `bias: {fields['bias']}` trains biases of the base; the part for that is bitfit")
    if fields.get("num_tasks", 1) > 1:
        raise ValueError(f"{method}: `num_tasks: {fields['num_tasks']}`; as a part it knows one task")
    for name in ("layer_replication", "target_parameters", "trainable_token_indices", "alora_invocation_tokens"):
        if fields.get(name):
            raise ValueError(f"{method}: `{name}` is no setting of a part; lora has it alone")


def _name_targets(model: PreTrainedModel, part: PeftConfig) -> PeftConfig:
    """Name the modules that a part chooses itself, or that `all-linear` stands for, and check names that were typed."""
    if "target_modules" not in {one.name for one in dataclasses.fields(part)}:
        return part
    if part.peft_type == PeftType.LN_TUNING and part.target_modules is None:
        part.target_modules = find_norm_names(model, part.modules_to_save or ())
    if isinstance(part.target_modules, list | set):
        names = [name for name, _ in model.named_modules()]
        missing = [one for one in part.target_modules if not any(f".{name}".endswith(f".{one}") for name in names)]
        if missing:
            raise ValueError(f"the model has no module {', '.join(f'`{name}`' for name in sorted(missing))}")
    elif part.target_modules == "all-linear" and part.peft_type.value.lower() not in OWN_TARGETS:
        part = _maybe_include_all_linear_layers(part, model)
        part.target_modules = {name.rpartition(".")[2] for name in part.target_modules}
    # A tuner that has put no layer in yet, and is asked what it would.
    tuner_class = PEFT_TYPE_TO_TUNER_MAPPING[part.peft_type]
    tuner = tuner_class.__new__(tuner_class)
    nn.Module.__init__(tuner)
    tuner.model = model
    return tuner._prepare_adapter_config(part, BaseTuner.get_model_config(model))
