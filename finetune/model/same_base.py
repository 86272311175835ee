"""Whether two adapters, or an adapter and a recipe, stand on the same base, as far as names can tell.

In go settings of `model` with the seeds that draw random weights; out comes nothing, or both names and whether one may
be a copy of the other. Reads no weights.
"""

from dataclasses import dataclass

from finetune.model.targets import describe_base
from finetune.recipe.places import is_local
from finetune.recipe.schema import ModelSettings

__all__ = ["BaseDifference", "find_base_difference"]


@dataclass(frozen=True, slots=True)
class BaseDifference:
    """Two bases that are not called alike.

    Attributes:
        one: name of the first one, with its commit where that is the difference.
        other: of the second one.
        may_be_a_copy: one names the Hub and the other a folder, so that nobody can tell without reading both.
    """

    one: str
    other: str
    may_be_a_copy: bool


def find_base_difference(
    one: ModelSettings, one_seed: int, other: ModelSettings, other_seed: int
) -> BaseDifference | None:
    """Find what tells two bases apart; None where nothing does.

    Args:
        one: settings of the first.
        one_seed: draws it where its weights are random.
        other: settings of the second.
        other_seed: draws that.

    Returns:
        The names that differ, or, under one name, the commits where both know theirs.
    """
    names = describe_base(one, one_seed), describe_base(other, other_seed)
    if names[0] != names[1]:
        typed = (one.model_name_or_path, other.model_name_or_path)
        are_pretrained = {one.weights, other.weights} == {"pretrained"}
        is_one_here = len({is_local(name) for name in typed if name is not None}) == 2
        return BaseDifference(*names, may_be_a_copy=are_pretrained and is_one_here)
    commits = one.revision, other.revision
    if None not in commits and commits[0] != commits[1]:
        return BaseDifference(f"{names[0]} at {commits[0]}", f"{names[1]} at {commits[1]}", may_be_a_copy=False)
    return None
