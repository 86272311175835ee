"""The ways to make several adapters into one, by PEFT's names: what `compose` offers and `model.composition` does."""

from typing import Literal, get_args

__all__ = ["HOWS", "How", "MajoritySign"]

How = Literal[
    "cat",
    "svd",
    "linear",
    "ties",
    "ties_svd",
    "dare_linear",
    "dare_linear_svd",
    "dare_ties",
    "dare_ties_svd",
    "magnitude_prune",
    "magnitude_prune_svd",
]
MajoritySign = Literal["total", "frequency"]
HOWS: tuple[How, ...] = get_args(How)
