"""Sliding-window attention by PyTorch's FlexAttention, for CUDA.

The extra keys follow the tokens on one key axis; block sparsity comes from arithmetic on the band, never from an S x S
mask. Axes as in `sliding_window`.
"""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.nn.attention.flex_attention import BlockMask
from torch.nn.attention.flex_attention import flex_attention as _flex_attention

if TYPE_CHECKING:
    from longspan.ops.torch.sliding_window import ExtraKeys, Request

BLOCK = 128
MIN_HEAD_DIM = 16


def why_not_flex(request: Request) -> str | None:
    """The reason why FlexAttention cannot serve, or None."""
    if request.device != "cuda":
        return f"it needs a CUDA device, and the tensors are on {request.device}"
    if request.dropout > 0.0:
        return f"it has no dropout, and dropout={request.dropout} was asked for"
    if request.head_dim < MIN_HEAD_DIM:
        return f"it needs a head size of {MIN_HEAD_DIM} or more, and got {request.head_dim}"
    return None


def flex_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    *,
    left: int,
    right: int,
    scale: float,
    mask: Tensor | None,
    bias: Tensor | None,
    extra: ExtraKeys | None,
) -> Tensor:
    """Output (B, H, S, E); see `sliding_window_attention`. Compiled on CUDA; elsewhere the plain definition runs."""
    length, num_extra = query.shape[2], 0
    if extra is not None:
        num_extra = extra.key.shape[2]
        key, value = torch.cat((key, extra.key), dim=2), torch.cat((value, extra.value), dim=2)
    block_mask = _block_mask(length, num_extra, left, right, mask, None if extra is None else extra.mask, query.device)
    score_mod = _score_mod(length, num_extra, left, right, bias, extra)
    run = _compiled() if query.is_cuda and not torch.compiler.is_compiling() else _flex_attention
    return run(query, key, value, score_mod=score_mod, block_mask=block_mask, scale=scale)


@functools.cache
def _compiled() -> Any:
    return torch.compile(_flex_attention, dynamic=True)


def _block_mask(
    length: int,
    num_extra: int,
    left: int,
    right: int,
    mask: Tensor | None,
    extra_mask: Tensor | None,
    device: torch.device,
) -> BlockMask:
    def mask_mod(b: Tensor, h: Tensor, q: Tensor, kv: Tensor) -> Tensor:
        token = kv.clamp(max=length - 1)
        allowed = (kv < length) & (kv >= q - left) & (kv <= q + right)
        if mask is not None:
            allowed = allowed & mask[b, token]
        if num_extra == 0:
            return allowed
        place = (kv - length).clamp(min=0, max=num_extra - 1)
        return allowed | ((kv >= length) if extra_mask is None else (kv >= length) & extra_mask[b, place])

    rows = (length + BLOCK - 1) // BLOCK
    columns = (length + num_extra + BLOCK - 1) // BLOCK
    first_query = torch.arange(rows, device=device)[:, None] * BLOCK
    first_key = torch.arange(columns, device=device)[None, :] * BLOCK
    needed = (first_key + BLOCK > first_query - left) & (first_key < first_query + BLOCK + right)
    if num_extra > 0:
        needed = needed | (first_key + BLOCK > length)
    count = needed.sum(dim=1, dtype=torch.int32)[None, None]
    order = needed.to(torch.int8).argsort(dim=1, descending=True, stable=True).to(torch.int32)[None, None]
    return BlockMask.from_kv_blocks(
        count, order, BLOCK_SIZE=BLOCK, mask_mod=mask_mod, seq_lengths=(length, length + num_extra)
    )


def _score_mod(length: int, num_extra: int, left: int, right: int, bias: Tensor | None, extra: ExtraKeys | None) -> Any:
    """Adds both biases; None if there are none."""
    extra_bias, position = (None, None) if extra is None else (extra.bias, extra.position)
    if bias is None and extra_bias is None:
        return None

    def score_mod(score: Tensor, b: Tensor, h: Tensor, q: Tensor, kv: Tensor) -> Tensor:
        if bias is not None:
            near = bias[h, (kv - q + left).clamp(min=0, max=left + right)]
            score = torch.where(kv < length, score + near, score)
        if extra_bias is not None and position is not None:
            place = (kv - length - position[b, q].clamp(min=0) + num_extra - 1).clamp(min=0, max=2 * num_extra - 2)
            score = torch.where(kv < length, score, score + extra_bias[h, place])
        return score

    return score_mod
