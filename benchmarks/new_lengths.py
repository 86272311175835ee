"""What a new length costs a CPU: attention of documents as they are, and filled up to a multiple.

    python -m benchmarks.new_lengths [--documents N]

oneDNN and PyTorch's attention compile kernels for each shape they meet in 16 bits and keep them. Each way runs in a
process of its own: documents of drawn lengths are attended forward and backward (4 heads of 64, as the tiny base has)
in bfloat16, as they are and filled up, and as they are in float32, all of them twice. Written are the memory that came
to be held and the milliseconds of a document, in the first pass and in the second, when every shape has been met.
Writes `results/new_lengths_<machine>.json`.
"""

import argparse
import json
import random
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from benchmarks.recording import ROOT, write_result
from finetune.model.document_attention import LENGTH_MULTIPLE

NUM_HEADS, WIDTH = 4, 64
LENGTHS = (30, 512)


def read_held_bytes() -> int:
    """Bytes of this process in memory, as Linux tells them."""
    fields = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    return int(fields["VmRSS"].split()[0]) * 1024


def measure(num_documents: int, multiple: int, dtype_name: str) -> dict[str, Any]:
    """Attend all documents twice, each filled up to a multiple."""
    import torch
    from torch.nn import functional as F

    torch.set_num_threads(1)
    draw = random.Random(0)
    drawn = [draw.randint(*LENGTHS) for _ in range(num_documents)]
    lengths = [-(-length // multiple) * multiple for length in drawn]

    def attend(length: int) -> float:
        query, key, value = (
            torch.randn(1, NUM_HEADS, length, WIDTH, dtype=getattr(torch, dtype_name), requires_grad=True)
            for _ in range(3)
        )
        began = time.perf_counter()
        out = F.scaled_dot_product_attention(query, key, value, is_causal=True)
        out.backward(torch.ones_like(out))
        return time.perf_counter() - began

    attend(2 * LENGTHS[1])
    before = read_held_bytes()
    passes = [1000 * sum(map(attend, lengths)) / num_documents for _ in range(2)]
    return {
        "dtype": dtype_name,
        "multiple": multiple,
        "distinct_lengths": len(set(lengths)),
        "held_bytes": read_held_bytes() - before,
        "first_pass_milliseconds": round(passes[0], 2),
        "second_pass_milliseconds": round(passes[1], 2),
    }


def main() -> None:
    """Measure both ways and write them down."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--documents", type=int, default=250)
    parser.add_argument("--multiple", type=int, help=argparse.SUPPRESS)  # one way, in this process
    parser.add_argument("--dtype", default="bfloat16", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.multiple is not None:
        print(json.dumps(measure(options.documents, options.multiple, options.dtype)))
        return
    ways = []
    for dtype, multiple in (("bfloat16", 1), ("bfloat16", LENGTH_MULTIPLE), ("float32", 1)):
        command = [sys.executable, "-m", "benchmarks.new_lengths", f"--documents={options.documents}"]
        done = subprocess.run(
            [*command, f"--multiple={multiple}", f"--dtype={dtype}"],
            cwd=ROOT,
            stdout=subprocess.PIPE,
            text=True,
            check=True,
        )
        ways.append(json.loads(done.stdout.splitlines()[-1]))
        print(ways[-1])
    write_result("new_lengths", {"documents": options.documents, "ways": ways})


if __name__ == "__main__":
    main()
