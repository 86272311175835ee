"""Packed documents on a real GPU: each kernel's loss and gradients are those of documents alone. `make test-gpu`."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from finetune.model import document_attention
from finetune.model.document_attention import attend_within_documents

DEVICE = "cuda"
LENGTHS = (70, 5, 300, 129, 8)

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device"),
    pytest.mark.timeout(300),
]


class Layer(nn.Module):
    """What a kernel reads of the layer it serves."""

    num_key_value_groups = 2
    is_causal = True


def attend(dtype: torch.dtype, window: int | None, device: str = DEVICE) -> tuple[Tensor, ...]:
    """What is attended to, and the gradients of queries, keys and values: (1, T, 4, 64), then (1, heads, T, 64)."""
    draw = torch.Generator().manual_seed(0)
    num_tokens = sum(LENGTHS)
    parts = [
        torch.randn(1, heads, num_tokens, 64, generator=draw).to(device, dtype).requires_grad_() for heads in (4, 2, 2)
    ]
    starts = torch.tensor([0, *torch.tensor(LENGTHS).cumsum(0).tolist()], dtype=torch.int32, device=device)
    attended, _ = attend_within_documents(
        Layer(), *parts, None, scaling=0.125, sliding_window=window, cu_seq_lens_q=starts, max_length_q=max(LENGTHS)
    )
    weights = torch.randn(attended.shape, generator=draw).to(device, dtype)
    return attended, *torch.autograd.grad((attended * weights).sum(), parts)


def find_way(dtype: torch.dtype) -> Any:
    row = document_attention._Row(torch.tensor([0, 8]), 8, None, 0.0, None)
    return document_attention._find_way(torch.empty(1, 4, 8, 64, device=DEVICE, dtype=dtype), row)


def may(capability: tuple[int, int]) -> bool:
    return torch.cuda.is_available() and torch.cuda.get_device_capability() >= capability


@pytest.mark.parametrize("window", [None, 50])
@pytest.mark.parametrize(
    ("way", "dtype", "capability", "tolerance"),
    [
        ("_attend_by_varlen", torch.bfloat16, (8, 0), 5e-2),
        ("_attend_by_varlen", torch.float16, (8, 0), 1e-2),
        ("_attend_by_flex", torch.float32, (8, 0), 1e-2),
        ("_attend_under_one_mask", torch.float16, (7, 0), 1e-2),
    ],
)
def test_a_kernel_attends_within_documents_as_a_cpu_does(monkeypatch, way, dtype, capability, tolerance, window):
    if not may(capability):
        pytest.skip(f"needs compute capability {capability}")
    monkeypatch.setattr(document_attention, "_find_way", lambda *_: getattr(document_attention, way))
    found = attend(dtype, window)
    monkeypatch.undo()
    for one, wanted in zip(found, attend(torch.float64, window, device="cpu"), strict=True):
        torch.testing.assert_close(one.cpu().double(), wanted, rtol=tolerance, atol=tolerance)


def test_the_kernel_goes_by_capability_and_precision():
    quick = may((8, 0))
    assert find_way(torch.bfloat16).__name__ == ("_attend_by_varlen" if quick else "_attend_under_one_mask")
    assert find_way(torch.float32).__name__ == ("_attend_by_flex" if quick else "_attend_under_one_mask")
