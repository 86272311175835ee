"""What a document's attention costs a CPU in bfloat16 and in float32, by the width of a head.

    python -m benchmarks.narrow_heads

A document of 288 tokens (8 heads over 4 of keys) is attended forward and backward by PyTorch's kernel, as
`finetune.model.document_attention` has it: casts from 16 bits and back are in the time. Written are the milliseconds of
each width, the median of 30. Writes `results/narrow_heads_<machine>.json`.
"""

import statistics
import time

import torch
from torch.nn import functional as F

from benchmarks.recording import write_result
from finetune.model.document_attention import NARROW_HEAD

TOKENS, HEADS, KEY_HEADS, WIDTHS = 288, 8, 4, (8, 16, 32, 64, 128)
ROUNDS = 30


def measure_milliseconds(width: int, dtype: torch.dtype) -> float:
    """Attend in a dtype what comes and goes in 16 bits."""
    query, key, value = (
        torch.randn(1, heads, TOKENS, width, dtype=torch.bfloat16, requires_grad=True)
        for heads in (HEADS, KEY_HEADS, KEY_HEADS)
    )
    gradient = torch.randn(1, HEADS, TOKENS, width, dtype=torch.bfloat16)
    seconds = []
    for _ in range(ROUNDS + 5):
        began = time.perf_counter()
        attended = F.scaled_dot_product_attention(
            query.to(dtype), key.to(dtype), value.to(dtype), is_causal=True, enable_gqa=True
        )
        attended.bfloat16().backward(gradient)
        seconds.append(time.perf_counter() - began)
    return round(1000 * statistics.median(seconds[5:]), 3)


def main() -> None:
    """Measure each width both ways and write them down."""
    widths = []
    for width in WIDTHS:
        one = {name: measure_milliseconds(width, getattr(torch, name)) for name in ("bfloat16", "float32")}
        widths.append({"width": width, **one, "ratio": round(one["bfloat16"] / one["float32"], 2)})
        print(widths[-1])
    write_result("narrow_heads", {"tokens": TOKENS, "widest_in_float32": NARROW_HEAD, "milliseconds": widths})


if __name__ == "__main__":
    main()
