"""The measured matmul peak of this machine, and the operations of a token, for the share of the one that training uses.

    python -m benchmarks.speed_peak --device cpu|cuda RESULT

Writes a JSON object with `flops_per_second`: the best of several square products in bfloat16, as the training's
are, on all cores or on the GPU.
"""

import argparse
import json
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from finetune.budget.architecture import build_architecture

__all__ = ["estimate_flops_per_token"]

SIZES = {"cpu": 2048, "cuda": 8192}
SECONDS = 3.0
LORA_RANK = 16


def estimate_flops_per_token(
    config: Mapping[str, Any], mean_seen_tokens: float, trained_fraction: float, *, objective: str = "sft"
) -> float:
    """Estimate the operations of a real token, forward and backward, nothing computed twice.

    The frozen base has no gradient of its weights: 2 operations a parameter forward and 2 for the input's gradient, and
    6 for LoRA's own; attention 2 S d a layer forward and 2.5 times that backward; the head over trained tokens.
    DPO's reference is one more forward pass.

    Args:
        config: of the base.
        mean_seen_tokens: S, of the documents.
        trained_fraction: share of the tokens with a label.
        objective: sft or dpo.

    Source: the formulas of QLoRA's cost as Unsloth's `mfu.py` and the FlashAttention paper count them.
    """
    shape = build_architecture(config)
    ranks = sum(linear.in_features + linear.out_features for linear in shape.linears) * LORA_RANK
    width = shape.num_heads * shape.head_dim
    layer_forward = 2 * shape.num_linear_weights + 2 * ranks + 2 * mean_seen_tokens * width
    layer_backward = 2 * shape.num_linear_weights + 4 * ranks + 5 * mean_seen_tokens * width
    head = 2 * shape.vocab_size * shape.hidden_size * trained_fraction
    forward = shape.num_layers * layer_forward + head
    reference = forward if objective == "dpo" else 0.0
    return forward + shape.num_layers * layer_backward + head + reference


def measure_peak(device: str) -> float:
    """Measure the best rate of a square product, in floating point operations a second."""
    import torch

    size = SIZES[device]
    left, right = (torch.randn(size, size, device=device).bfloat16() for _ in range(2))
    best_seconds = float("inf")
    until = time.perf_counter() + SECONDS
    while time.perf_counter() < until:
        start = time.perf_counter()
        torch.mm(left, right)
        if device == "cuda":
            torch.cuda.synchronize()
        best_seconds = min(best_seconds, time.perf_counter() - start)
    return 2 * size**3 / best_seconds


def main() -> None:
    """Measure and write."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--device", choices=SIZES, default="cpu")
    parser.add_argument("result", type=Path)
    given = parser.parse_args()
    given.result.write_text(json.dumps({"flops_per_second": measure_peak(given.device)}), encoding="utf-8")


if __name__ == "__main__":
    main()
