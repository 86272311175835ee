"""Several classifiers on one encoder in memory, switched without reading anything again.

In go runs or adapters of `objective: classify` that stand on the same base, each with labels of its own; out comes a
`ClassifierSet`. `several.ModelSwitch` does the switching. A head lies in its adapter's file, and one with another
number of outputs than the base was loaded with gets a place of its own size before its adapter is attached.

Memory: the base once, and each adapter's own bytes, its head among them.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from peft import PeftModel
from torch import nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from finetune.errors import RecipeError
from finetune.model.base import BaseModel, load_config
from finetune.model.heads import LabelSpace, find_builder, set_labels
from finetune.model.loading import check_adapter_file, load_saved_tokenizer, load_target
from finetune.model.several import BASE, ModelSwitch, check_same_base
from finetune.model.targets import DeviceName, Target, find_target
from finetune.model.tokenizer import find_pad_id

__all__ = ["Classifier", "ClassifierSet", "load_classifier_set"]


@dataclass(frozen=True, slots=True)
class Classifier:
    """A classifier of the set.

    Attributes:
        model: in evaluation mode; its logits are those of its own head, shape (rows, outputs).
        tokenizer: that was saved with it.
        labels: what its outputs mean.
        target: what was asked for.
    """

    model: PreTrainedModel | PeftModel
    tokenizer: PreTrainedTokenizerBase
    labels: LabelSpace
    target: Target


class ClassifierSet:
    """Classifiers on one base, of which the active one's adapter and head are in the model's tree."""

    def __init__(self, base: BaseModel) -> None:
        """Hold a base that ends with labels, whose own head answers for nobody."""
        self._base = base
        self._switch = ModelSwitch(base.model)
        self._classifiers: dict[str, Classifier] = {}

    @property
    def names(self) -> list[str]:
        """What can be switched to, in the order they came."""
        return list(self._classifiers)

    @property
    def active(self) -> str:
        """Name of what answers now."""
        return self._switch.active

    def load(self, name: str, target: Target) -> Classifier:
        """Load a classifier beside the others and use it.

        Args:
            name: free so far.
            target: an adapter with labels, on the set's base.

        Raises:
            PlaceError: a number that is not finite, or tensors that do not fit.
            RecipeError: the name is taken, or it cannot lie beside others.
        """
        assert target.adapter_dir is not None
        check_adapter_file(target.adapter_dir)
        labels = _find_labels(target)
        heads = _build_heads(self._base, target, labels)
        model = self._switch.attach(name, target.adapter_dir, heads)
        self._classifiers[name] = Classifier(model, load_saved_tokenizer(target), labels, target)
        return self.use(name)

    def use(self, name: str) -> Classifier:
        """Switch to a classifier, at once.

        Raises:
            RecipeError: there is none of that name.
        """
        if name not in self._classifiers:
            raise RecipeError(f"There is no classifier `{name}` here.\n  There are: {', '.join(self.names)}.")
        self._switch.use(name)
        classifier, model = self._classifiers[name], self._base.model
        set_labels(model.config, classifier.labels)
        model.num_labels = classifier.labels.num_outputs  # by which the model's own loss is shaped
        model.config.get_text_config().pad_token_id = find_pad_id(classifier.tokenizer)
        return classifier


def load_classifier_set(
    classifiers: Mapping[str, str], *, quantization: str | None = None, device: DeviceName = "auto"
) -> ClassifierSet:
    """Load classifiers of one base; the first is in use.

    Args:
        classifiers: a run or an adapter each, by the name it is switched to with; at least one.
        quantization: how the base is held; None takes what each was trained with, which has to be one.
        device: auto, cuda or cpu.

    Raises:
        PlaceError: something is missing, unfinished, damaged, or out of reach.
        RecipeError: one is no classifier or a whole model, they stand on different bases, or one cannot lie beside
            others.
    """
    targets = {
        name: find_target(place, quantization=quantization, device=device) for name, place in classifiers.items()
    }
    for target in targets.values():
        if target.ends_with != "labels" or target.adapter_dir is None:
            what = "a whole model" if target.adapter_dir is None else "no classifier"
            raise RecipeError(
                f"{target.name} is {what}, and a set holds adapters that give labels.\n"
                "  Name runs of objective: classify whose method is not full or top_k."
            )
    if BASE in targets:
        raise RecipeError(f"`{BASE}` is the name of the model under the classifiers.\n  Give this one another name.")
    check_same_base(list(targets.values()), talks=False)
    held = ClassifierSet(load_target(next(iter(targets.values())), base_only=True, talks=False).base)
    for name, target in targets.items():
        held.load(name, target)
    held.use(next(iter(targets)))
    return held


def _find_labels(target: Target) -> LabelSpace:
    """Find what a classifier tells apart; one of another tool's may say it in its base's config alone."""
    if target.labels is not None:
        return target.labels
    names = load_config(target.base).id2label
    return LabelSpace(tuple(names[number] for number in sorted(names)))


def _build_heads(base: BaseModel, target: Target, labels: LabelSpace) -> dict[str, nn.Module]:
    """Build the heads that differ in shape from the loaded base's, by name; the adapter's file holds their numbers."""
    config = load_config(target.base)
    set_labels(config, labels)
    with torch.device("meta"):
        built = find_builder("labels").from_config(config)
    heads: dict[str, nn.Module] = {}
    for name in base.head_modules:
        held, wanted = base.model.get_submodule(name), built.get_submodule(name)
        shapes = [{key: tensor.shape for key, tensor in one.state_dict().items()} for one in (held, wanted)]
        if shapes[0] != shapes[1]:
            first = next(held.parameters())
            wanted = wanted.to(first.dtype).to_empty(device=first.device)
            for parameter in wanted.parameters():
                nn.init.zeros_(parameter)
            heads[name] = wanted.requires_grad_(False)
    return heads
