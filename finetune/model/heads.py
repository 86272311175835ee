"""What a base ends with: the words it goes on with, or the one number of a reward model.

In goes a model as transformers builds it for classification; out comes the same with a `ScoreHead`. Its one tensor
is `score.weight`, by which PEFT saves it beside an adapter and other tools find it.

Shape suffixes: B rows, T tokens, H hidden size.
"""

from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import (
    MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING,
    AutoModelForSequenceClassification,
    PreTrainedConfig,
    PreTrainedModel,
)

from finetune.errors import RecipeError

__all__ = ["SCORE_HEAD", "SCORE_WEIGHT", "Head", "ScoreHead", "check_score_head", "put_score_head"]

Head = Literal["words", "score"]
SCORE_HEAD = "score"
SCORE_WEIGHT = f"{SCORE_HEAD}.weight"


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


def check_score_head(config: PreTrainedConfig, name: str) -> None:
    """Check that an architecture can end with a score; builds it without memory for its weights.

    Raises:
        RecipeError: transformers has no such model of it, or one with a head of another kind.
    """
    reason = f"transformers has no {config.model_type} model that ends with a score"
    if type(config) in MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING:
        with torch.device("meta"):
            head = dict(AutoModelForSequenceClassification.from_config(config).named_children()).get(SCORE_HEAD)
        if isinstance(head, nn.Linear) and head.bias is None:
            return
        reason = f"a {config.model_type} model classifies by a head of another kind"
    raise RecipeError(
        f"{name} cannot become a reward model: {reason}.\n"
        "  Name a model of the kind of Mistral, Llama or Qwen: model.model_name_or_path=…"
    )


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
