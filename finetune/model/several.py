"""Several adapters on one base in memory, one of them answering at a time, switched without reading anything again.

In go targets that stand on the same base; out comes an `AdapterSet` (of classifiers: `several_classifiers`). Every
method works, own ones and mixtures of methods too: each adapter is attached to the untouched base in turn, what it put
into the model's tree is noted, and switching puts those modules back in their places. The base's tensors are the same
objects all along.

Memory: the base once, and each adapter's own bytes.
"""

import json
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from peft import PeftModel
from torch import nn
from transformers import PreTrainedModel

from finetune.errors import RecipeError
from finetune.model.loading import (
    Speaker,
    attach_saved_adapter,
    check_adapter_file,
    check_target_base,
    find_saved_eos_ids,
    load_saved_tokenizer,
    load_target,
)
from finetune.model.same_base import find_base_difference
from finetune.model.targets import DeviceName, Target, find_target
from finetune.recipe.places import expand

__all__ = [
    "BASE",
    "AdapterSet",
    "ModelSwitch",
    "OneSpeaker",
    "check_same_base",
    "find_base_change",
    "load_adapter_set",
    "to_adapter_name",
]

log = logging.getLogger("finetune.model.several")

# The name of the untouched model beside its adapters.
BASE = "base"

# Starts of PEFT's that take a part out of the base, or round it anew, whenever such an adapter is opened.
_STARTS_CHANGING_THE_BASE = ("corda", "loftq", "lora_ga", "olora", "pissa")

# Every module of the base with the children it has at one time.
_Tree = list[tuple[nn.Module, dict[str, nn.Module]]]


class ModelSwitch:
    """One base and the adapters attached to it, of which at most one is in the model's tree.

    Attributes:
        base: the model; its own modules and tensors stay the same objects.
        active: name of what answers now.
    """

    def __init__(self, base: PreTrainedModel) -> None:
        self.base = base
        self.active = BASE
        self._modules = list(base.modules())
        self._trees: dict[str, _Tree] = {BASE: self._read_tree()}
        self._models: dict[str, PreTrainedModel | PeftModel] = {BASE: base}

    @property
    def names(self) -> list[str]:
        """What can be switched to: the base, then the adapters in the order they came."""
        return list(self._models)

    def attach(self, name: str, folder: Path, heads: Mapping[str, nn.Module] | None = None) -> PeftModel:
        """Attach a saved adapter beside the others and switch to it.

        Args:
            name: free so far.
            folder: PEFT's, with safetensors.
            heads: modules to stand in the place of the base's own of that name, where this adapter's are of another
                size.

        Raises:
            PlaceError: its tensors are not those this base has room for.
            RecipeError: the name is taken, or opening it would change the base under the others.
        """
        if name in self._models:
            raise RecipeError(
                f"There are two adapters named `{name}`.\n  Give each a name of its own: --adapter {name}_2=…"
            )
        change = find_base_change(folder)
        if change is not None:
            raise RecipeError(
                f"{folder}: its {change} changes the base when it is opened, so no other adapter fits beside it.\n"
                "  Talk to it alone, or merge it: python -m finetune.export … --merge DIR"
            )
        self.use(BASE)
        # PEFT leaves the last adapter's configs on the model, and would take the next one for its neighbour.
        vars(self.base).pop("peft_config", None)
        try:
            for place, head in (heads or {}).items():
                self.base.set_submodule(place, head)
            model = attach_saved_adapter(self.base, folder)
        except BaseException:
            self._put(self._trees[BASE])
            raise
        model.eval()
        self._trees[name], self._models[name] = self._read_tree(), model
        self.active = name
        return model

    def use(self, name: str) -> PreTrainedModel | PeftModel:
        """Switch to an adapter, or to the base, and give the model that answers so.

        Raises:
            RecipeError: there is no adapter of that name.
        """
        if name not in self._models:
            raise RecipeError(f"There is no adapter `{name}` here.\n  There are: {', '.join(self.names)}.")
        if name != self.active:
            self._put(self._trees[name])
            self.active = name
        return self._models[name]

    def _read_tree(self) -> _Tree:
        return [(module, dict(module.named_children())) for module in self._modules]

    def _put(self, tree: _Tree) -> None:
        for module, children in tree:
            held = dict(module.named_children())
            for name in held.keys() - children.keys():
                delattr(module, name)
            for name, child in children.items():
                if held.get(name) is not child:
                    module.register_module(name, child)


class AdapterSet:
    """Several speakers on one base: each adapter with the tokenizer, template and end tokens that were saved with it.

    The base answers in the template of the target that was named first.
    """

    def __init__(self, base: Speaker) -> None:
        """Hold a speaker whose model is the base alone."""
        assert isinstance(base.model, PreTrainedModel)
        self._switch = ModelSwitch(base.model)
        self._speakers = {BASE: base}

    @property
    def names(self) -> list[str]:
        """What can be used: the base, then the adapters in the order they came."""
        return self._switch.names

    @property
    def active(self) -> str:
        """Name of what answers now."""
        return self._switch.active

    @property
    def speaker(self) -> Speaker:
        """Who answers now."""
        return self._speakers[self.active]

    def load(self, name: str, target: Target, *, any_base: bool = False) -> Speaker:
        """Load an adapter beside the others and use it; `any_base`: also on other weights than it was trained on.

        Raises:
            PlaceError: a number that is not finite, or tensors that do not fit.
            RecipeError: the name is taken, it stands on another base, or it cannot lie beside others.
        """
        base = self._speakers[BASE]
        check_same_base([base.target, target])
        assert target.adapter_dir is not None
        check_adapter_file(target.adapter_dir)
        check_target_base(target, any_base=any_base)
        tokenizer, eos_ids = load_saved_tokenizer(target), find_saved_eos_ids(target)
        self._speakers[name] = replace(
            base,
            model=self._switch.attach(name, target.adapter_dir),
            tokenizer=tokenizer,
            target=target,
            eos_ids=base.eos_ids if eos_ids is None else eos_ids,
            description=f"{target.name}: {target.method} on {base.description}",
        )
        return self._speakers[name]

    def use(self, name: str) -> Speaker:
        """Switch to an adapter or to the base, at once.

        Raises:
            RecipeError: there is no adapter of that name.
        """
        self._switch.use(name)
        return self._speakers[name]


@dataclass(frozen=True, slots=True)
class OneSpeaker:
    """A speaker alone, asked as an `AdapterSet` is.

    Attributes:
        active: its name.
        speaker: the one that answers.
    """

    active: str
    speaker: Speaker

    @property
    def names(self) -> list[str]:
        """The one there is."""
        return [self.active]

    def use(self, name: str) -> Speaker:
        """Give the speaker.

        Raises:
            RecipeError: another one is asked for.
        """
        if name != self.active:
            raise RecipeError(
                f"There is no adapter `{name}` here: {self.active} answers alone.\n"
                "  Hold others beside it: --adapter NAME=RUN"
            )
        return self.speaker


def load_adapter_set(
    target: str,
    adapters: Mapping[str, str],
    *,
    quantization: str | None = None,
    device: DeviceName = "auto",
    any_base: bool = False,
) -> AdapterSet:
    """Load one base, the adapter of a target where it has one, and further adapters; the target's is in use.

    Args:
        target: a run, an adapter or a whole model; its adapter goes by `to_adapter_name`.
        adapters: further ones, by the name they are switched to with: a run or an adapter each.
        quantization: how the base is held; None takes what each was trained with, which has to be one.
        device: auto, cuda or cpu.
        any_base: take the base that lies there, also where it has other weights than an adapter was trained on.

    Raises:
        PlaceError: something is missing, unfinished, damaged, or out of reach.
        RecipeError: they stand on different bases, or one of them cannot lie beside others.
    """
    first = find_target(target, quantization=quantization, device=device)
    others = {
        name: find_target(adapter, quantization=quantization, device=device) for name, adapter in adapters.items()
    }
    check_same_base([first, *others.values()])
    own = {to_adapter_name(first): first} if first.adapter_dir is not None else {}
    for name in others:
        if name in (BASE, *own):
            raise RecipeError(
                f"--adapter {name}: this name is that of {'the untouched model' if name == BASE else first.name}.\n"
                "  Give it another one."
            )
    held = AdapterSet(load_target(first, base_only=True))
    for name, each in (own | others).items():
        held.load(name, each, any_base=any_base)
    held.use(next(iter(own), BASE))
    return held


def to_adapter_name(target: Target) -> str:
    """Name a target's adapter after its run: `outputs/poems` and `outputs/poems/adapter` are `poems`."""
    place = Path(expand(target.name))
    named = place.absolute().parent if place.absolute().name == "adapter" else place
    return f"{named.name}_adapter" if named.name == BASE else named.name


def check_same_base(targets: Sequence[Target], *, same_precision: bool = True, talks: bool = True) -> None:
    """Check that adapters stand on one base; the first target may be that base itself.

    Args:
        targets: at least one.
        same_precision: whether they also have to be held alike: 4 bits or full.
        talks: refuse what scores or labels.

    Raises:
        RecipeError: two differ, with both named, or one is no adapter, or labels instead of answering.
    """
    first, *others = targets
    for target in targets:
        if talks and target.ends_with in ("labels", "score"):
            raise RecipeError(
                f"{target.name} ends with a score or labels of its own, and gives no answers.\n"
                "  Name adapters of sft, dpo and their like."
            )
    for target in others:
        if target.adapter_dir is None:
            raise RecipeError(
                f"{target.name} is a whole model, not an adapter.\n  Whole models hold their own base: name it first."
            )
        difference = find_base_difference(target.base, target.seed, first.base, first.seed)
        if difference is not None and not difference.may_be_a_copy:
            raise RecipeError(
                f"{target.name} stands on another base than {first.name}.\n"
                f"  The one: {difference.one}     The other: {difference.other}"
            )
        if difference is not None:
            log.warning("%s names %s as its base; taken to be %s.", target.name, difference.one, difference.other)
        precisions = [each.base.quantization for each in (first, target)]
        if same_precision and precisions[0] != precisions[1]:
            raise RecipeError(
                f"{first.name} was trained on its base in {precisions[0]}, {target.name} in {precisions[1]}.\n"
                f"  Choose one for both: --quantization {precisions[0]}"
            )


def find_base_change(folder: Path) -> str | None:
    """Find the setting of a saved adapter by which PEFT changes the base as it opens it; None where there is none."""
    config = json.loads((folder / "adapter_config.json").read_text("utf-8"))
    start = config.get("init_lora_weights")
    if isinstance(start, str) and start.startswith(_STARTS_CHANGING_THE_BASE):
        return f"start `init_lora_weights: {start}`"
    return "`kasa_config`" if config.get("kasa_config") is not None else None
