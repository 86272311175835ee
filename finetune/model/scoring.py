"""A reward model, opened to score answers in the numbers it was trained with.

In goes a name as typed (`targets` says what it may stand for); out comes a `Scorer`. The libraries fill a score
head that a folder does not hold with random numbers, and each score is then noise: such a folder is refused here.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from peft import PeftModel
from safetensors import safe_open
from torch.nn.utils.rnn import pad_sequence
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from finetune.errors import PlaceError, RecipeError
from finetune.model.base import BaseModel, load_base
from finetune.model.heads import SCORE_WEIGHT
from finetune.model.loading import attach_saved_adapter, check_adapter_file, check_target_base, load_saved_tokenizer
from finetune.model.targets import ADAPTER_WEIGHTS, DeviceName, Target, find_target
from finetune.model.tokenizer import find_pad_id

__all__ = ["Scorer", "check_same_words", "check_scorer", "load_scorer"]


@dataclass(frozen=True, slots=True)
class Scorer:
    """A reward model that scores.

    Attributes:
        model: in evaluation mode; a PeftModel where there is an adapter.
        tokenizer: with the chat template it was trained with: what it scores has to be rendered so.
        base: the loaded base, for its device, dtype and quantization.
        target: what was asked for.
    """

    model: PreTrainedModel | PeftModel
    tokenizer: PreTrainedTokenizerBase
    base: BaseModel
    target: Target

    @torch.no_grad()
    def score(self, rows: Sequence[list[int]], *, batch_size: int = 16) -> list[float]:
        """Score answers behind their prompts.

        Args:
            rows: token ids of a prompt and its answer, with the end token, by this tokenizer.
            batch_size: rows of a batch; those of like length share one.

        Returns:
            A number for each row in the order given, the higher the better. Only differences between answers to one
            prompt mean something: training never saw the number itself.
        """
        order = sorted(range(len(rows)), key=lambda place: len(rows[place]), reverse=True)
        scores = [0.0] * len(rows)
        for start in range(0, len(order), batch_size):
            places = order[start : start + batch_size]
            for place, score in zip(places, self._score_batch([rows[place] for place in places]), strict=True):
                scores[place] = score
        return scores

    def _score_batch(self, rows: Sequence[list[int]]) -> list[float]:
        ids = [torch.tensor(row, dtype=torch.long) for row in rows]
        batch = {
            "input_ids": pad_sequence(ids, batch_first=True, padding_value=find_pad_id(self.tokenizer)),
            "attention_mask": pad_sequence([torch.ones_like(row) for row in ids], batch_first=True),
        }
        device, dtype = self.base.device, self.base.compute_dtype
        # As the trainer computes: adapters in float32 beside a 16-bit base, products in the compute dtype.
        with torch.autocast(device.type, dtype=dtype, enabled=dtype != torch.float32):
            logits = self.model(**{name: tensor.to(device) for name, tensor in batch.items()}, use_cache=False).logits
        scores: list[float] = logits[:, 0].float().tolist()
        return scores


def check_scorer(target: str, *, device: DeviceName = "auto") -> Target:
    """Check that a name stands for a reward model that is whole; reads no weights.

    Raises:
        PlaceError: there is nothing of that name, or it is unfinished or lacks its score head.
        RecipeError: it is no reward model.
    """
    try:
        found = find_target(target, device=device)
    except PlaceError as error:
        raise PlaceError(f"`rewards`: {error}") from error
    if not found.is_reward_model:
        gives = {"labels": "labels", "masked": "masked tokens"}.get(found.ends_with, "answers")
        raise RecipeError(
            f"{target} is no reward model: it gives {gives} and no scores.\n"
            "  Train one from preferences: python -m finetune.reward recipes/quickstart_reward.yaml"
        )
    if found.adapter_dir is not None:
        _check_saved_score(found.adapter_dir)
    return found


def check_same_words(scorer: Scorer, tokenizer: PreTrainedTokenizerBase) -> None:
    """Check that a policy's token ids and template are those the reward model was trained with.

    Raises:
        RecipeError: they are not; it would score other words than those that were said.
    """
    name = scorer.target.name
    if scorer.tokenizer.get_vocab() != tokenizer.get_vocab():
        raise RecipeError(
            f"`rewards`: {name} has another tokenizer than this recipe's base, so it would read other words.\n"
            "  Train the reward model on the same base, or on one of its family."
        )
    if scorer.tokenizer.chat_template != tokenizer.chat_template:
        raise RecipeError(
            f"`rewards`: {name} was trained with another prompt template than this recipe's `data.template`.\n"
            "  Take the same one in both."
        )


def load_scorer(target: str, *, device: DeviceName = "auto") -> Scorer:
    """Load a reward model.

    Args:
        target: a run of `objective: reward`, its adapter folder, or a Hub name of one.
        device: auto, cuda or cpu.

    Raises:
        PlaceError: something is missing, damaged, or out of reach; the score head too.
        RecipeError: it is no reward model.
    """
    found = check_scorer(target, device=device)
    if found.adapter_dir is not None:
        check_adapter_file(found.adapter_dir)
        check_target_base(found, how_to_force=None)
    tokenizer = load_saved_tokenizer(found)
    base = load_base(found.base, seed=found.seed, head="score", fresh_head=found.adapter_dir is not None)
    model: PreTrainedModel | PeftModel = base.model
    if found.adapter_dir is not None:
        model = attach_saved_adapter(base.model, found.adapter_dir)
    base.model.config.get_text_config().pad_token_id = find_pad_id(tokenizer)
    model.eval()
    return Scorer(model, tokenizer, base, found)


def _check_saved_score(folder: Path) -> None:
    """Check that an adapter brings its score head, and one of a single number."""
    with safe_open(folder / ADAPTER_WEIGHTS, framework="pt") as tensors:
        shapes = {
            name: tensors.get_slice(name).get_shape()
            for name in tensors.keys()  # noqa: SIM118 - a safetensors file is no dict
            if name.endswith(f".{SCORE_WEIGHT}")
        }
    if not shapes:
        raise PlaceError(
            f"{folder / ADAPTER_WEIGHTS} holds no {SCORE_WEIGHT}: its scores would be those of a random head.\n"
            "  Save it with PEFT's `modules_to_save: [score]`, as `finetune.reward` does, or copy the whole file."
        )
    [(name, shape), *_] = shapes.items()
    if shape[0] != 1:
        raise RecipeError(
            f"{folder}: {name} gives {shape[0]} numbers, and a reward model gives one.\n"
            "  It is a classifier: train a reward model from preferences with python -m finetune.reward."
        )
