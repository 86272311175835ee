"""What a base ends with: the words it goes on with or restores, the labels of a text, the one number of a reward model.

In goes a config, or a model as transformers builds it for classification; out come the class that builds it and the
names of its head's modules. A reward model gets a `ScoreHead` in the place of its own; its one tensor is
`score.weight`, by which PEFT saves it beside an adapter and other tools find it.

Shape suffixes: B rows, T tokens, H hidden size.
"""

import copy
from collections.abc import Mapping, Set
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import (
    MODEL_FOR_CAUSAL_LM_MAPPING,
    MODEL_FOR_MASKED_LM_MAPPING,
    MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING,
    AutoModelForCausalLM,
    AutoModelForMaskedLM,
    AutoModelForSequenceClassification,
    PreTrainedConfig,
    PreTrainedModel,
)

from finetune.errors import RecipeError
from finetune.recipe.glue import ProblemType
from finetune.recipe.heads import Head

__all__ = [
    "SCORE_HEAD",
    "SCORE_WEIGHT",
    "LabelSpace",
    "ScoreHead",
    "check_head",
    "find_builder",
    "find_class",
    "find_head_modules",
    "put_score_head",
    "set_labels",
    "write_labels",
]

SCORE_HEAD = "score"
SCORE_WEIGHT = f"{SCORE_HEAD}.weight"
_SAVED_WHOLE = ("classifier", SCORE_HEAD)

_BUILDERS: Mapping[Head, Any] = {
    "words": AutoModelForCausalLM,
    "masked": AutoModelForMaskedLM,
    "labels": AutoModelForSequenceClassification,
    "score": AutoModelForSequenceClassification,
}
_CLASSES: Mapping[Head, Mapping[type[PreTrainedConfig], type[PreTrainedModel]]] = {
    "words": MODEL_FOR_CAUSAL_LM_MAPPING,
    "masked": MODEL_FOR_MASKED_LM_MAPPING,
    "labels": MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING,
    "score": MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING,
}
_UNFIT: Mapping[Head, tuple[str, str]] = {
    "words": (
        "is a {kind} model: no causal language model, it continues no text",
        "Name a model of the kind of Mistral, Llama or Qwen. An encoder is trained by objective: classify or mlm.",
    ),
    "masked": (
        "is a {kind} model: no encoder that restores masked tokens",
        "Name a model of the kind of BERT, RoBERTa or DeBERTa; a language model's texts are objective: pretrain.",
    ),
    "labels": (
        "is a {kind} model, of which transformers has no text classifier",
        "Name a model of the kind of BERT, RoBERTa, DeBERTa, Llama or Mistral.",
    ),
    "score": (
        "cannot become a reward model: transformers has no {kind} model that ends with a score",
        "Name a model of the kind of Mistral, Llama or Qwen: model.model_name_or_path=…",
    ),
}


@dataclass(frozen=True, slots=True)
class LabelSpace:
    """What a classifier tells apart.

    Attributes:
        names: of its outputs, in their order; None: one output, a number.
    """

    names: tuple[str, ...] | None

    @property
    def num_outputs(self) -> int:
        """The width of the head."""
        return 1 if self.names is None else len(self.names)

    @property
    def problem_type(self) -> ProblemType:
        """As transformers calls it."""
        return "regression" if self.names is None else "single_label_classification"


class ScoreHead(nn.Linear):
    """One number for each token's hidden state, held and computed in float32 whatever the model computes in.

    In bfloat16 a score has three digits, and two answers of like quality would tie.
    """

    def __init__(self, hidden_size: int) -> None:
        super().__init__(hidden_size, 1, bias=False, dtype=torch.float32)

    def forward(self, hidden_BTH: Tensor) -> Tensor:
        """Score every token: shape (B, T, 1); the model picks the last one that is no padding."""
        with torch.autocast(hidden_BTH.device.type, enabled=False):
            return F.linear(hidden_BTH.float(), self.weight.float())


def find_builder(head: Head) -> Any:
    """Find transformers' auto class that loads or builds a model with a head."""
    return _BUILDERS[head]


def find_class(config: PreTrainedConfig, head: Head) -> type[PreTrainedModel] | None:
    """Find an architecture's own class with a head; None where transformers has none."""
    mapping = _CLASSES[head]
    known: type[PreTrainedModel] | None = mapping.get(type(config), None)
    return known


def check_head(config: PreTrainedConfig, name: str, head: Head) -> None:
    """Check that an architecture can end with a head; a score's model is built without memory for its weights.

    Raises:
        RecipeError: transformers has no such model of it, or a score would be a head of another kind.
    """
    what, advice = _UNFIT[head]
    if find_class(config, head) is None:
        raise RecipeError(f"{name} {what.format(kind=config.model_type)}.\n  {advice}")
    if head == "score":
        with torch.device("meta"):
            own = dict(AutoModelForSequenceClassification.from_config(config).named_children()).get(SCORE_HEAD)
        if not isinstance(own, nn.Linear) or own.bias is not None:
            raise RecipeError(
                f"{name} cannot become a reward model: a {config.model_type} model classifies by a head of another "
                f"kind.\n  {advice}"
            )


def set_labels(config: PreTrainedConfig, labels: LabelSpace) -> None:
    """Write into a config what a classifier tells apart, so that whoever opens the result reads names."""
    names = labels.names or ("LABEL_0",)
    config.id2label = dict(enumerate(names))  # num_labels follows from it
    config.label2id = {name: number for number, name in enumerate(names)}
    config.problem_type = labels.problem_type


def write_labels(model: PreTrainedModel | PeftModel, folder: Path) -> None:
    """Write a classifier's config.json, which says what its outputs mean, where an adapter has none of its own."""
    config = copy.deepcopy(model.config)
    if "quantization_config" in vars(config):  # whoever opens it decides how the base is held
        del config.quantization_config
    config.save_pretrained(folder)


def find_head_modules(config: PreTrainedConfig, *, trust_remote_code: bool = False) -> tuple[str, ...]:
    """Find the modules that a classifier has and the language model of the same architecture has not.

    They are what nothing has taught before: `classifier`, for BERT its pooler too, which masked-language modelling
    leaves out; `score` of a decoder. Both models are built without memory.

    Returns:
        Full names, none inside another. Layers alone, but for `classifier` and `score`, which PEFT saves whole by
        itself: it cannot put a module of several parts back when it merges most methods (0.21).
    """
    with torch.device("meta"):
        trusted = {"trust_remote_code": trust_remote_code}
        classifier = AutoModelForSequenceClassification.from_config(config, **trusted)
        known: Set[str] = set()
        for head in ("masked", "words"):
            if find_class(config, head) is not None:
                model = find_builder(head).from_config(config, **trusted)
                known = {name for name, _ in model.named_parameters(remove_duplicate=False)}  # tied ones too
                break
    if not known:  # an architecture with no language model: all that is not its body
        prefix = f"{classifier.base_model_prefix}."
        known = {name for name, _ in classifier.named_parameters() if name.startswith(prefix)}
    found: list[str] = []
    for name, module in classifier.named_modules():
        if not name or name.startswith(tuple(f"{one}." for one in found)):
            continue
        own = [f"{name}.{part}" for part, _ in module.named_parameters()]
        is_one = not any(True for _ in module.children()) or name in _SAVED_WHOLE
        if own and is_one and not any(parameter in known for parameter in own):
            found.append(name)
    return tuple(found)


def put_score_head(model: PreTrainedModel, *, seed: int | None) -> None:
    """Put a `ScoreHead` in the place of the model's own head.

    Args:
        model: built for classification with one label; changed in place.
        seed: draws the head by the architecture's rule, the same numbers on every device; None keeps those it has.
    """
    held = model.get_submodule(SCORE_HEAD)
    assert isinstance(held, nn.Linear)
    head = ScoreHead(held.in_features)
    with torch.no_grad(), torch.random.fork_rng([]):
        if seed is None:
            head.weight.copy_(held.weight)
        else:
            torch.manual_seed(seed)
            model._init_weights(head)
    model.set_submodule(SCORE_HEAD, head.to(model.device))
