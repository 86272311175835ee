"""Attention within each document of a packed row, without a flash-attn build.

In go queries, keys and values of one row, and where its documents begin; out comes what each document would have got
alone. transformers knows it as the attention `documents`, and hands the boundaries through to every layer
(`cu_seq_lens_q`, `max_length_q`), in a recomputation too. Nothing else is different from `sdpa`: padded rows,
several packed rows, answers from a cache get the masks and the kernel that they have there.

Three ways, by what the device has:

- a CPU: PyTorch's kernel once for each document. A row of 2,048 tokens with ten documents has a tenth of the products
  of the whole row under a mask, and takes a fifth to a tenth of the time. Narrow heads are attended in float32, which
  takes half as long: their 16-bit products are too small for the kernels that compute them. Documents of like length
  padded into groups took longer, and so did float32 for wider heads.
- a GPU with 16-bit products from compute capability 8.0 on: PyTorch's own variable-length attention, where it knows
  windows (2.10's does not); in float32 FlexAttention. Neither was measured here yet.
- any other: PyTorch's kernel under one mask of the whole row, made anew in every layer. Not measured either.

Shape suffixes: T tokens of the row, H heads, K key heads, D width of a head, N documents.
"""

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.weak import WeakTensorKeyDictionary
from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedModel
from transformers.integrations.flex_attention import flex_attention_forward
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

from finetune.recipe.served_models import SERVED_MODEL_TYPES

__all__ = [
    "DOCUMENTS",
    "LENGTH_MULTIPLE",
    "NARROW_HEAD",
    "SERVED_MODEL_TYPES",
    "attend_within_documents",
    "leave_masks_out",
]

# The name that transformers and the recipe know it by.
DOCUMENTS = "documents"

# Documents in 16 bits are filled up to a multiple of so many tokens on a CPU, which compiles kernels for each length
# and keeps them: 188 lengths held 1.2 GB, filled up 0.05, and in float32 nothing (benchmarks/new_lengths.py).
LENGTH_MULTIPLE = 32
# On a CPU heads of 16 bits up to this width are attended in float32: twice as fast at a width of 8 and 16, 1.6 times at
# 32, alike at 64, slower at 128 (benchmarks/narrow_heads.py).
NARROW_HEAD = 32
_VARLEN_CAPABILITY = (8, 0)
_VARLEN_DTYPES = (torch.bfloat16, torch.float16)
_MAX_VARLEN_WIDTH = 256


@dataclass(frozen=True, slots=True)
class _Row:
    """A row of documents, and how it is to be attended.

    Attributes:
        starts_N1: where each document begins, and where the last one ends: (N + 1,) and int32, on the device.
        max_tokens: of a document; None: not known without asking the device.
        window: tokens that one sees, itself among them; None: all before it.
        dropout: of the weights, 0 outside of training.
        scaling: of the scores; None: one over the square root of D.
    """

    starts_N1: Tensor
    max_tokens: int | None
    window: int | None
    dropout: float
    scaling: float | None


def attend_within_documents(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    sliding_window: int | None = None,
    cu_seq_lens_q: Tensor | None = None,
    max_length_q: int | None = None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """Attend as transformers' layers ask for it; to all of a row unless its documents are named.

    Args:
        module: the layer.
        query: (rows, H, T, D).
        key: (rows, K, T, D), K a divisor of H.
        value: of the same shape.
        attention_mask: read where no documents are named.
        dropout: of the weights.
        scaling: of the scores.
        sliding_window: tokens that one sees, itself among them.
        cu_seq_lens_q: where each document of the one row begins, and where the last ends: (N + 1,) and int32.
        max_length_q: tokens of the longest document.
        kwargs: what else `sdpa` reads.

    Returns:
        What was attended to, (rows, T, H, D), and no weights.
    """
    if cu_seq_lens_q is None:
        return sdpa_attention_forward(
            module, query, key, value, attention_mask, dropout=dropout, scaling=scaling, **kwargs
        )
    row = _Row(cu_seq_lens_q, max_length_q, sliding_window, dropout, scaling)
    return _find_way(query, row)(module, query, key, value, row), None


def _find_way(query: Tensor, row: _Row) -> Callable[[nn.Module, Tensor, Tensor, Tensor, _Row], Tensor]:
    """Find the way of a device; where weights are dropped, neither of a GPU's own kernels serves."""
    if query.device.type == "cpu":
        return _attend_one_by_one
    capability = torch.cuda.get_device_capability(query.device) if query.device.type == "cuda" else (0, 0)
    if capability < _VARLEN_CAPABILITY or row.dropout:
        return _attend_under_one_mask
    fits = query.dtype in _VARLEN_DTYPES and query.shape[-1] <= _MAX_VARLEN_WIDTH and query.shape[-1] % 8 == 0
    fits = fits and row.max_tokens is not None and "window_size" in _find_varlen_keywords()
    return _attend_by_varlen if fits else _attend_by_flex


@cache
def _find_varlen_keywords() -> frozenset[str]:
    """Find what PyTorch's variable-length attention may be told: its keywords grew from 2.10 to 2.12."""
    from torch.nn.attention.varlen import varlen_attn

    return frozenset(inspect.signature(varlen_attn).parameters)


def _attend_one_by_one(module: nn.Module, query: Tensor, key: Tensor, value: Tensor, row: _Row) -> Tensor:
    """Attend within one document after the other, narrow heads of 16 bits in float32."""
    dtype = torch.get_autocast_dtype("cpu") if torch.is_autocast_enabled("cpu") else query.dtype
    if dtype.itemsize > 2:
        return _attend_each(query, key, value, row)
    if query.shape[-1] > NARROW_HEAD:
        return _attend_each(query, key, value, row, multiple=LENGTH_MULTIPLE)
    with torch.autocast("cpu", enabled=False):
        return _attend_each(query.float(), key.float(), value.float(), row).to(dtype)


def _attend_each(query: Tensor, key: Tensor, value: Tensor, row: _Row, *, multiple: int = 1) -> Tensor:
    """Attend document by document; split and joined at once, so that no gradient is padded.

    What fills a document up stands behind it, where none of its tokens looks.
    """
    lengths = row.starts_N1.diff().tolist()
    attended = []
    for length, *parts in zip(lengths, *(part.split(lengths, dim=2) for part in (query, key, value)), strict=True):
        if num_filled := -length % multiple:
            parts = [F.pad(part, (0, 0, 0, num_filled)) for part in parts]
        query_T, key_T, value_T = parts
        num_tokens = length + num_filled
        mask = None
        if row.window is not None and num_tokens > row.window:
            mask = _see_window(torch.arange(num_tokens, device=query.device), row.window)
        one = F.scaled_dot_product_attention(
            query_T,
            key_T,
            value_T,
            attn_mask=mask,
            dropout_p=row.dropout,
            is_causal=mask is None,
            scale=row.scaling,
            enable_gqa=key.shape[1] != query.shape[1],
        )
        attended.append(one[:, :, :length].transpose(1, 2))
    return torch.cat(attended, dim=1)


def _attend_by_varlen(module: nn.Module, query: Tensor, key: Tensor, value: Tensor, row: _Row) -> Tensor:
    """Attend by PyTorch's variable-length kernel, whose window counts the tokens to the left."""
    from torch.nn.attention.varlen import varlen_attn  # where a GPU is: from PyTorch 2.10 on

    assert row.max_tokens is not None
    is_grouped = key.shape[1] != query.shape[1]
    grouped: dict[str, Any] = {"enable_gqa": is_grouped}
    if "enable_gqa" not in _find_varlen_keywords():  # PyTorch 2.11
        grouped = {}
        if is_grouped:
            key, value = (part.repeat_interleave(query.shape[1] // key.shape[1], dim=1) for part in (key, value))
    query_THD, key_TKD, value_TKD = (part[0].transpose(0, 1) for part in (query, key, value))
    attended = varlen_attn(
        query_THD,
        key_TKD,
        value_TKD,
        row.starts_N1,
        row.starts_N1,
        row.max_tokens,
        row.max_tokens,
        scale=row.scaling,
        window_size=(-1 if row.window is None else row.window - 1, 0),
        **grouped,
    )
    assert isinstance(attended, Tensor)  # without the logarithms of the sums
    return attended[None]


# A mask of blocks for each row under way and each window, made once and read by all layers.
_block_masks: Any = WeakTensorKeyDictionary()


def _attend_by_flex(module: nn.Module, query: Tensor, key: Tensor, value: Tensor, row: _Row) -> Tensor:
    """Attend by FlexAttention, which leaves blocks out that a mask of blocks says are empty."""
    from torch.nn.attention.flex_attention import create_block_mask

    by_window = _block_masks.setdefault(row.starts_N1, {})
    window = row.window
    if window not in by_window:
        # What is kept beside the row must not hold the row itself, or neither would ever go.
        document_T = _number_documents(row.starts_N1, query.shape[2])

        def sees(batch: Tensor, head: Tensor, at: Tensor, seen: Tensor) -> Tensor:
            is_before = (document_T[at] == document_T[seen]) & (at >= seen)
            return is_before if window is None else is_before & (at - seen < window)

        by_window[window] = create_block_mask(
            sees, B=None, H=None, Q_LEN=query.shape[2], KV_LEN=query.shape[2], device=str(query.device)
        )
    attended: Tensor = flex_attention_forward(module, query, key, value, by_window[window], scaling=row.scaling)[0]
    return attended


def _attend_under_one_mask(module: nn.Module, query: Tensor, key: Tensor, value: Tensor, row: _Row) -> Tensor:
    """Attend to the whole row under a mask of T x T."""
    places_T = torch.arange(query.shape[2], device=query.device)
    document_T = _number_documents(row.starts_N1, query.shape[2])
    sees = _see_window(places_T, row.window) & (document_T[:, None] == document_T)
    attended: Tensor = sdpa_attention_forward(
        module, query, key, value, sees[None, None], dropout=row.dropout, scaling=row.scaling
    )[0]
    return attended


def _number_documents(starts_N1: Tensor, num_tokens: int) -> Tensor:
    """Number each token's document, without asking the device anything: (T,) and int64."""
    return torch.bucketize(torch.arange(num_tokens, device=starts_N1.device), starts_N1[1:], right=True)


def _see_window(places_T: Tensor, window: int | None) -> Tensor:
    """Tell for each token which others it sees: those up to itself, and no more than a window holds; (T, T)."""
    distance_TT = places_T[:, None] - places_T
    return distance_TT >= 0 if window is None else (distance_TT >= 0) & (distance_TT < window)


def leave_masks_out(model: PreTrainedModel) -> None:
    """Let a model make no mask of T x T for rows whose documents are named.

    transformers (5.17) makes one wherever positions restart, and asks the device whether they do. A mask of four
    dimensions it hands on as it is: one number stands in its place, which `attend_within_documents` does not read.

    Args:
        model: a causal one; its decoder is watched from here on.
    """

    def stand_in(decoder: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, Mapping[str, Any]]:
        named: Tensor | None = kwargs.get("cu_seq_lens_q")
        if named is None or kwargs.get("attention_mask") is not None:
            return args, kwargs
        return args, kwargs | {"attention_mask": torch.ones((1, 1, 1, 1), dtype=torch.bool, device=named.device)}

    model.base_model.register_forward_pre_hook(stand_in, with_kwargs=True)


AttentionInterface.register(DOCUMENTS, attend_within_documents)
AttentionMaskInterface.register(DOCUMENTS, sdpa_mask)
