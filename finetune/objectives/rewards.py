"""What an answer is rewarded with: built-in functions by name and reward models, mixed by weight.

In go answers, as text and as tokens, beside their prompts and references; out comes a number for each,
0 to 1, or a reward model's score as it is. No code of the user's is run.
"""

import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NoReturn

from finetune.objectives.scores import exact_match, extract_answer
from finetune.recipe.schema import RewardSettings

__all__ = ["Reward", "ScoreIds", "ToScore", "build_rewards", "mix"]

# Rows of token ids, prompt and answer together, to a score each; a reward model's.
ScoreIds = Callable[[Sequence[list[int]]], list[float]]


@dataclass(frozen=True, slots=True)
class ToScore:
    """An answer of the policy's, with what it is judged by.

    Attributes:
        prompt_ids: what was asked.
        answer_ids: what was generated, the token that ended it included.
        answer: as text, without special tokens and without the one that ended it.
        num_tokens: of the answer, without the one that ended it.
        reference: the row's own answer; None where it has none.
    """

    prompt_ids: list[int]
    answer_ids: list[int]
    answer: str
    num_tokens: int
    reference: str | None


@dataclass(frozen=True, slots=True)
class Reward:
    """One part of the reward.

    Attributes:
        name: as logs show it: the function's, and for a second one of its kind a number.
        weight: what `score` is multiplied by.
        needs_reference: it compares with the row's own answer.
        score: answers to a number each, in their order.
    """

    name: str
    weight: float
    needs_reference: bool
    score: Callable[[Sequence[ToScore]], list[float]]


def build_rewards(settings: Sequence[RewardSettings], scorers: Mapping[str, ScoreIds]) -> list[Reward]:
    """Build the parts of the reward in the recipe's order.

    Args:
        settings: the recipe's `rewards`, held against each other by its reader.
        scorers: the reward models by their `path`.
    """
    rewards: list[Reward] = []
    for part in settings:
        number = sum(earlier.function == part.function for earlier in settings[: len(rewards)]) + 1
        name = part.function if number == 1 else f"{part.function}_{number}"
        score = _build_scores(part, scorers)
        rewards.append(Reward(name, part.weight, part.function == "exact_match", score))
    return rewards


def mix(rewards: Sequence[Reward], answers: Sequence[ToScore]) -> tuple[list[float], dict[str, list[float]]]:
    """Score answers by every part.

    Returns:
        The weighted sum of each answer, and what each part gave, by its name and before its weight.
    """
    parts = {reward.name: reward.score(answers) for reward in rewards}
    totals = [
        sum(reward.weight * value for reward, value in zip(rewards, values, strict=True))
        for values in zip(*parts.values(), strict=True)
    ]
    return totals, parts


def _build_scores(part: RewardSettings, scorers: Mapping[str, ScoreIds]) -> Callable[[Sequence[ToScore]], list[float]]:
    match part.function:
        case "reward_model":
            assert part.path is not None
            score_ids = scorers[part.path]
            return lambda answers: score_ids([one.prompt_ids + one.answer_ids for one in answers])
        case "exact_match":
            score = _build_exact_match(part.pattern)
        case "regex":
            assert part.pattern is not None
            score = _build_regex(part.pattern)
        case "json":
            score = _is_json
        case "length":
            score = _build_length(part.min_tokens, part.max_tokens)
    return lambda answers: [float(score(one)) for one in answers]


def _build_exact_match(pattern: str | None) -> Callable[[ToScore], float]:
    """Whether the answer equals the row's own, or what the pattern's first group finds in the one that in the other."""

    def score(one: ToScore) -> float:
        if one.reference is None:
            return 0.0
        return exact_match(extract_answer(one.answer, pattern), extract_answer(one.reference, pattern))

    return score


def _build_regex(pattern: str) -> Callable[[ToScore], float]:
    compiled = re.compile(pattern)
    return lambda one: compiled.search(one.answer) is not None


def _build_length(min_tokens: int | None, max_tokens: int | None) -> Callable[[ToScore], float]:
    least, most = min_tokens or 0, float("inf") if max_tokens is None else max_tokens
    return lambda one: least <= one.num_tokens <= most


def _is_json(one: ToScore) -> float:
    """Whether the answer, spaces around it aside, is one JSON value; Python would let NaN and Infinity through."""

    def refuse(name: str) -> NoReturn:
        raise ValueError(f"{name} is no JSON")

    try:
        _: Any = json.loads(one.answer, parse_constant=refuse)
    except (ValueError, RecursionError):
        return 0.0
    return 1.0
