"""Which rows an objective reads: the kind of example it wants, and the formats that give one.

How a format is read is in `data.formats`.
"""

from collections.abc import Mapping
from typing import Literal

__all__ = [
    "FORMAT_KINDS",
    "HOLDS",
    "KINDS_OF_FINDING",
    "KIND_OF_OBJECTIVE",
    "READ_FROM",
    "SAMPLED",
    "Kind",
    "find_formats",
]

Kind = Literal["conversation", "document", "preference", "judged", "prompt", "labelled"]

KIND_OF_OBJECTIVE: Mapping[str, Kind] = {
    "sft": "conversation",
    "pretrain": "document",
    "mlm": "document",
    "dpo": "preference",
    "kto": "judged",
    "orpo": "preference",
    "reward": "preference",
    "rloo": "prompt",
    "grpo": "prompt",
    "classify": "labelled",
}
# Objectives whose answers are sampled in the run: prompts alone are known before.
SAMPLED = frozenset(objective for objective, kind in KIND_OF_OBJECTIVE.items() if kind == "prompt")
# From pairs come judged answers too, and from conversations prompts.
READ_FROM: Mapping[Kind, tuple[Kind, ...]] = {
    "conversation": ("conversation",),
    "document": ("document",),
    "preference": ("preference",),
    "judged": ("judged", "preference"),
    "prompt": ("conversation", "prompt"),
    "labelled": ("labelled",),
}
FORMAT_KINDS: Mapping[str, Kind] = {
    "messages": "conversation",
    "sharegpt": "conversation",
    "alpaca": "conversation",
    "prompt_completion": "conversation",
    "text": "document",
    "preference": "preference",
    "openai_preference": "preference",
    "sharegpt_preference": "preference",
    "orca": "preference",
    "dialogues": "preference",
    "ranking": "preference",
    "judged": "judged",
    "judged_messages": "judged",
    "prompt": "prompt",
    "labelled": "labelled",
}
HOLDS: Mapping[Kind, str] = {
    "conversation": "conversations",
    "document": "plain text",
    "preference": "pairs of answers",
    "judged": "judged answers",
    "prompt": "prompts",
    "labelled": "labelled texts",
}
# Of which rows each finding of `data.findings` can be made.
_ALL: frozenset[Kind] = frozenset({"conversation", "document", "preference", "judged", "prompt", "labelled"})
_ANSWERED: frozenset[Kind] = frozenset({"conversation", "preference", "judged"})
KINDS_OF_FINDING: Mapping[str, frozenset[Kind]] = {
    "duplicates": _ALL,
    "near_duplicates": _ALL,
    "eval_overlap": _ALL,
    "near_eval_overlap": _ALL,
    "conflicting_answers": _ALL - {"document"},
    "empty_answers": _ANSWERED,
    "short_answers": _ANSWERED,
    "refusals": _ANSWERED,
    "boilerplate": _ANSWERED,
    "template_leftovers": _ALL,
    "other_language": _ALL,
    "encoding_damage": _ALL,
    "length_bias": frozenset({"preference"}),
}


def find_formats(kind: Kind) -> list[str]:
    """Find the formats that give a kind of example."""
    return [name for source in READ_FROM[kind] for name, given in FORMAT_KINDS.items() if given == source]
