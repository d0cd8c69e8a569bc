"""Sliding-window attention as one batch of blocks, from plain tensor operations.

It runs under torch.compile, torch.export with a dynamic length, torch.func, and autograd of any order, and it can
return the weights. Axes as in `sliding_window`; N blocks of R queries, span C = R + left + right.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.nn import functional as F

from longspan.ops.torch.dropout import dropout as drop

if TYPE_CHECKING:
    from longspan.ops.torch.sliding_window import ExtraKeys

#: queries of a block: the span of a block is wider than a window by this much, so small blocks waste less
BLOCK_ROWS = 64


def blocked_attention(
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
    dropout: float,
    rows: int = BLOCK_ROWS,
) -> tuple[Tensor, Tensor]:
    """Output (B, H, S, E) and weights (B, H, N, R, G + C); N may exceed ⌈S/R⌉ while a graph is traced."""
    length = query.shape[2]
    blocks = _num_computed(length, rows)
    padding = blocks * rows - length
    around = (left, right + padding)
    span = rows + left + right

    queries = _pad_tokens(query, (0, padding)).unflatten(2, (blocks, rows))  # (B, H, N, R, D)
    keys = _pad_tokens(key, around).unfold(2, span, rows)  # (B, H, N, D, C)
    scores = _matmul(queries, keys).to(_score_dtype(query)) * scale
    if bias is not None:
        scores = scores + bias_tile(bias.to(scores.dtype), rows).unsqueeze(1)
    allowed = _allowed_keys(mask, length, around, span, rows, left, right, query.device)  # (B or 1, 1, N, R, C)

    if extra is not None:
        extra_scores = _extra_scores(queries, extra, scale, blocks, rows, padding)
        extra_allowed = torch.ones(1, extra.key.shape[2], dtype=torch.bool, device=query.device)
        extra_allowed = (extra_allowed if extra.mask is None else extra.mask)[:, None, None, None, :]
        scores = torch.cat((extra_scores, scores), dim=-1)
        whole = torch.broadcast_shapes(allowed.shape[:-1], extra_allowed.shape[:-1])
        allowed = torch.cat((extra_allowed.expand(*whole, -1), allowed.expand(*whole, -1)), dim=-1)

    allowed = _expand(allowed, scores.shape)
    weights = torch.softmax(scores.masked_fill(~allowed, torch.finfo(scores.dtype).min), dim=-1)
    weights = weights.masked_fill(~allowed, 0.0).to(query.dtype)
    weights = drop(weights, dropout)
    return _weigh(weights, value, left=left, right=right, extra=extra), weights


def weigh_by_offset(
    weights: Tensor, value: Tensor, *, left: int, right: int, extra: ExtraKeys | None = None, rows: int = BLOCK_ROWS
) -> Tensor:
    """Σⱼ wᵢⱼ vⱼ from weights with one row per token: what is returned of them is then part of the graph.

    Args:
        weights: Of `weights_by_offset`, (B, H, S, G + left + right + 1).
        value: (B, H, S, E).
        left: Number of keys seen before each query.
        right: Number of keys seen after each query.
        extra: Keys that every query sees; their values are read.
        rows: Queries of a block.

    Returns:
        (B, H, S, E).
    """
    length, width = value.shape[2], left + right + 1
    blocks = _num_computed(length, rows)
    several = _pad_tokens(weights, (0, blocks * rows - length)).unflatten(2, (blocks, rows))
    of_extra, band = several.split((weights.shape[-1] - width, width), dim=-1)
    return _weigh(torch.cat((of_extra, _skew(band)), dim=-1), value, left=left, right=right, extra=extra)


def _weigh(weights: Tensor, value: Tensor, *, left: int, right: int, extra: ExtraKeys | None) -> Tensor:
    """Output (B, H, S, E) of weights (B, H, N, R, G + C)."""
    blocks, rows = weights.shape[2:4]
    length, span = value.shape[2], rows + left + right
    around = (left, right + blocks * rows - length)
    values = _pad_tokens(value, around).unfold(2, span, rows).transpose(-1, -2)  # (B, H, N, C, E)
    num_extra = weights.shape[-1] - span
    output = _matmul(weights[..., num_extra:], values)
    if extra is not None:
        output = output + _matmul(weights[..., :num_extra], extra.value.unsqueeze(2))
    return _first(_join_blocks(output), length)


def num_blocks(length: int, rows: int) -> int:
    """⌈S / R⌉."""
    return (length + rows - 1) // rows


def _num_computed(length: int, rows: int) -> int:
    """Number of blocks N; at least two in a graph, which would be specialised to one."""
    blocks = num_blocks(length, rows)
    return torch.sym_max(blocks, 2) if torch.compiler.is_compiling() else blocks


def bias_tile(bias: Tensor, rows: int) -> Tensor:
    """Spread a bias by relative position over a block.

    Args:
        bias: (H, W), W = left + right + 1.
        rows: R.

    Returns:
        (H, R, R + W - 1): row r holds the bias from column r on, and 0 elsewhere.
    """
    return _skew(bias.unsqueeze(1).expand(-1, rows, -1))


def _skew(band: Tensor) -> Tensor:
    """(…, R, W) -> (…, R, R + W - 1): row r begins at column r, and is 0 elsewhere."""
    rows, width = band.shape[-2:]
    pitch = rows + width  # one more than a row
    flat = F.pad(band, (0, rows)).flatten(-2)
    return flat[..., : rows * (pitch - 1)].unflatten(-1, (rows, pitch - 1))


def _matmul(left: Tensor, right: Tensor) -> Tensor:
    """(B, H, N, X, Y) times (B, H, N or 1, Y, Z)."""
    lead = left.shape[:3]
    right = right.expand(*lead, -1, -1)
    product = torch.bmm(_fold(left), _fold(right))
    return product.unflatten(0, lead)


# Merging, slicing or broadcasting symbolic axes makes torch.export ask whether one length divides or exceeds another,
# which it can only answer by fixing the number of blocks. Going through one flat axis, gathering, and tensors of one
# layout ask nothing.


def _fold(states: Tensor) -> Tensor:
    """(B, H, N, X, Y) -> (BHN, X, Y)."""
    inner = states.shape[-2:]
    flat = states.contiguous().view(-1)
    return flat.view(math.prod(states.shape[:-2]), math.prod(inner)).unflatten(1, inner)


def _join_blocks(states: Tensor) -> Tensor:
    """(B, H, N, R, E) -> (B, H, NR, E)."""
    batch, heads, blocks, rows, size = states.shape
    flat = states.contiguous().view(-1)
    return (
        flat.view(batch * heads, blocks * rows * size).unflatten(1, (blocks * rows, size)).unflatten(0, (batch, heads))
    )


def _expand(mask: Tensor, shape: torch.Size) -> Tensor:
    mask = mask.expand(shape)
    return mask.contiguous() if torch.compiler.is_compiling() else mask


def _first(states: Tensor, length: int) -> Tensor:
    """The first `length` tokens of (B, H, NR, E)."""
    if torch.compiler.is_compiling():
        return states.index_select(2, torch.arange(length, device=states.device))
    return states[:, :, :length]


def _pad_tokens(states: Tensor, amount: tuple[int, int]) -> Tensor:
    return F.pad(states, (0, 0, *amount))


def _score_dtype(query: Tensor) -> torch.dtype:
    return torch.promote_types(query.dtype, torch.float32)


def _allowed_keys(
    mask: Tensor | None,
    length: int,
    around: tuple[int, int],
    span: int,
    rows: int,
    left: int,
    right: int,
    device: torch.device,
) -> Tensor:
    if mask is None:
        mask = torch.ones(1, length, dtype=torch.bool, device=device)
    present = F.pad(mask, around, value=False).unfold(1, span, rows)  # (B, N, C)
    offset = torch.arange(span, device=device)[None, :] - torch.arange(rows, device=device)[:, None]
    in_band = (offset >= 0) & (offset <= left + right)  # (R, C)
    return present[:, None, :, None, :] & in_band


def _extra_scores(queries: Tensor, extra: ExtraKeys, scale: float, blocks: int, rows: int, padding: int) -> Tensor:
    """(B, H, N, R, G)."""
    scores = _matmul(queries, extra.key.unsqueeze(2).transpose(-1, -2)).to(_score_dtype(queries)) * scale
    if extra.bias is None or extra.position is None:
        return scores
    num_extra = extra.key.shape[2]
    start = num_extra - 1 - F.pad(extra.position, (0, padding)).clamp(min=0)  # (B, N·R): where a row of biases begins
    index = start[..., None] + torch.arange(num_extra, device=start.device)  # (B, N·R, G)
    biases = extra.bias.to(scores.dtype)[:, index].transpose(0, 1)
    return scores + biases.contiguous().unflatten(2, (blocks, rows))
