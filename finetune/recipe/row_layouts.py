"""How the rows of a micro-batch lie in memory; making a batch and planning it go by the same rule.

In go what a recipe and a device settle: packing, and the kernel of the attention; out comes the `Layout`, which
`data.batches` describes.
"""

from typing import Literal

__all__ = ["FLAT_MULTIPLE", "Layout", "choose_layout", "fill_up"]

Layout = Literal["padded", "packed", "flat"]

# Tokens that the length of a flat row of packed documents is a multiple of. Kernels are chosen for each new shape, and
# on a CPU compiled and kept (benchmarks/new_lengths.py).
FLAT_MULTIPLE = 64


def choose_layout(*, packing: bool, attention: str, by_unsloth: bool = False) -> Layout:
    """Choose how a micro-batch lies in memory: flat where the kernels read it, else by packing.

    Rows of one document each stay padded under `documents`: there are those of like length in a micro-batch.

    Args:
        packing: whether a row holds several documents.
        attention: transformers' name of the kernel.
        by_unsloth: whether Unsloth's own kernels attend, which they do on a GPU: of several rows at once they
            would read the packed documents as one, and padding on the right costs them nothing.
    """
    if by_unsloth:
        return "flat" if packing else "padded"
    if attention == "flash_attention_2":
        return "flat"
    if attention == "documents" and packing:
        return "flat"
    return "packed" if packing else "padded"


def fill_up(num_tokens: int) -> int:
    """The length to which a flat row of packed documents is filled up."""
    return -(-num_tokens // FLAT_MULTIPLE) * FLAT_MULTIPLE
