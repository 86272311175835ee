"""NF4 and double quantization, written from the QLoRA paper (Dettmers et al. 2023, arXiv:2305.14314).

All in float32 on flat tensors whose size is a multiple of the block.
"""

from statistics import NormalDist

import torch
from torch import Tensor

__all__ = [
    "BLOCK",
    "OFFSET",
    "SECOND_BLOCK",
    "bits_per_parameter",
    "build_dynamic_levels",
    "build_nf4_levels",
    "dequantize",
    "dequantize_absmax",
    "pack",
    "quantize",
    "quantize_absmax",
]

BLOCK = 64
SECOND_BLOCK = 256

# Where the outermost quantile lies, since that of 1 is infinite: the mean of 1 - 1/32 and 1 - 1/30, the middles of the
# outermost of 16 and of 15 equal shares. The paper's appendix prints the levels alone; the number is of its code.
OFFSET = 0.9677083


def build_nf4_levels(offset: float = OFFSET) -> Tensor:
    """The 16 levels, ascending: 8 quantiles of N(0, 1) above zero, zero, 7 below, divided by the largest.

    Two sets of evenly spaced quantiles, which share their zero; one has a level more, since 16 numbers around an
    exact zero cannot be symmetric.

    Source: arXiv:2305.14314, section 3, equation 4 and the paragraph below it; the values in appendix E.
    """
    quantile = NormalDist().inv_cdf
    above = [quantile(0.5 + (offset - 0.5) * i / 8) for i in range(1, 9)]
    below = [-quantile(0.5 + (offset - 0.5) * i / 7) for i in range(7, 0, -1)]
    levels = torch.tensor([*below, 0.0, *above], dtype=torch.float64)
    return (levels / levels.max()).float()


def quantize(values: Tensor, levels: Tensor, block: int) -> tuple[Tensor, Tensor]:
    """Index of the level nearest to each value divided by its block's largest magnitude, and those magnitudes.

    Source: arXiv:2305.14314, equation 1, block by block as section 2 says; the nearest level from section 3.
    """
    blocks = values.float().reshape(-1, block)
    absmax = blocks.abs().amax(dim=1)
    scaled = blocks / absmax[:, None]
    return (scaled.reshape(-1, 1) - levels).abs().argmin(dim=1).to(torch.uint8), absmax


def dequantize(indices: Tensor, absmax: Tensor, levels: Tensor, block: int) -> Tensor:
    """The values back: each level times its block's largest magnitude. Source: arXiv:2305.14314, equation 2."""
    return (levels[indices.long()].reshape(-1, block) * absmax[:, None]).reshape(-1)


def pack(indices: Tensor) -> Tensor:
    """Two 4-bit indices a byte, the first in the upper half; a layout of the library's, not of the paper's."""
    return indices[::2] * 16 + indices[1::2]


def build_dynamic_levels() -> Tensor:
    """The 256 levels of the 8-bit number that holds a first-level constant, ascending.

    A byte is a sign, then zeros, each a factor of 1/10, then a one that ends them, and in what bits are left the
    index of one of equal shares of [0.1, 1], which stands for its middle. All zeros is 0, and with the sign 1, which
    would otherwise be missing.

    Source: Dettmers 2015 (arXiv:1511.04561), the dynamic tree type; QLoRA itself says "8-bit floats" (section 3).
    """
    levels = [0.0, 1.0]
    for byte in range(1, 128):
        num_fraction_bits = byte.bit_length() - 1
        num_zeros = 7 - byte.bit_length()
        share = 0.9 / 2**num_fraction_bits
        fraction = 0.1 + share * (byte - 2**num_fraction_bits + 0.5)
        levels += [fraction / 10**num_zeros, -fraction / 10**num_zeros]
    return torch.tensor(sorted(levels), dtype=torch.float64).float()


def quantize_absmax(absmax: Tensor, block: int = SECOND_BLOCK) -> tuple[Tensor, Tensor, Tensor]:
    """Quantize the constants themselves: codes, the second level's constants, and the mean that was taken off.

    All constants are positive; without their mean half of the codes would go unused.

    Source: arXiv:2305.14314, section 3, Double Quantization.
    """
    mean = absmax.mean()
    padded = torch.nn.functional.pad(absmax - mean, (0, -len(absmax) % block))
    codes, second = quantize(padded, build_dynamic_levels(), block)
    return codes[: len(absmax)], second, mean


def dequantize_absmax(codes: Tensor, second: Tensor, mean: Tensor, block: int = SECOND_BLOCK) -> Tensor:
    """The constants back, the inner bracket of equation 6 of arXiv:2305.14314, and the mean put on again."""
    padded = torch.nn.functional.pad(codes, (0, -len(codes) % block))
    return dequantize(padded, second, build_dynamic_levels(), block)[: len(codes)] + mean


def bits_per_parameter(*, double_quantization: bool) -> float:
    """Bits that a parameter costs: 4 + 32/64 = 4.5, or 4 + 8/64 + 32/(64 · 256) = 4.127.

    Source: arXiv:2305.14314, section 3: "from 32/64 = 0.5 bits, to 8/64 + 32/(64 · 256) = 0.127 bits".
    """
    return 4 + (8 / BLOCK + 32 / (BLOCK * SECOND_BLOCK) if double_quantization else 32 / BLOCK)
