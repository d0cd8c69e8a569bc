"""Sliding-window attention with extra keys that every query sees: the core of Longformer and LongT5.

Axes: B batch, H heads, S tokens, D head size, E value size, G extra keys, R rows of a block of queries.

    score[i, j] = scale · qᵢ·kⱼ + bias[j - i + left]              for i - left ≤ j ≤ i + right and mask[j]
    score[i, g] = scale · qᵢ·k'_g + extra_bias[g - position[i] + G - 1]                   for extra_mask[g]
    output[i]   = Σ softmax(score[i]) v

One softmax runs over both kinds of keys; a query without any key gives 0. Time and memory are linear in S, in the
forward and in the backward pass.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from longspan.errors import InputError
from longspan.ops.dispatch import Dispatcher
from longspan.ops.fast_paths import NOT_AVAILABLE, fast_path
from longspan.ops.torch.context import ContextShard, mask_with_neighbours, with_neighbours
from longspan.ops.torch.modes import is_traced as is_traced
from longspan.ops.torch.sliding_window_blocked import BLOCK_ROWS, blocked_attention, num_blocks
from longspan.ops.torch.sliding_window_flex import flex_attention, why_not_flex
from longspan.shapes import check_shape


class ExtraKeys(NamedTuple):
    """Keys and values that every query sees besides its window.

    Attributes:
        key: (B, H, G, D).
        value: (B, H, G, E).
        mask: Which of them exist, boolean (B, G), True = attend; None for all.
        bias: Bias by relative position on the axis of the extra keys, (H, 2G - 1); its middle is "the same place".
        position: Where each query stands on that axis, integers (B, S) below G; needed with `bias`. Negative counts
            as 0.
    """

    key: Tensor
    value: Tensor
    mask: Tensor | None = None
    bias: Tensor | None = None
    position: Tensor | None = None


@dataclass(frozen=True)
class Request:
    """What an implementation is asked to do."""

    device: str
    dropout: float
    head_dim: int
    tracing: bool
    needs_weights: bool = False


_WEIGHTS = "attention weights are returned by 'blocked' only"
_CHUNKED = "sliding_window_chunked.chunked_attention"


def _why_not_flex(request: Request) -> str | None:
    return _WEIGHTS if request.needs_weights else why_not_flex(request)


def _why_not_chunked(request: Request) -> str | None:
    if request.needs_weights:
        return _WEIGHTS
    if request.tracing:
        return "its loop over the length cannot be part of a traced graph or of a torch.func transform"
    return None if fast_path(_CHUNKED) is not None else NOT_AVAILABLE


#: "auto" tries these in order
DISPATCHER: Dispatcher[Request] = Dispatcher(
    "sliding-window attention",
    {"flex": _why_not_flex, "chunked": _why_not_chunked, "blocked": lambda request: None},
)


def sliding_window_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    *,
    left: int,
    right: int,
    scale: float,
    mask: Tensor | None = None,
    bias: Tensor | None = None,
    extra: ExtraKeys | None = None,
    dropout: float = 0.0,
    implementation: str = "auto",
    shard: ContextShard | None = None,
    overwrite_query: bool = False,
) -> Tensor:
    """Attention of each query to the keys near it and to a few extra keys.

    Args:
        query: (B, H, S, D).
        key: (B, H, S, D).
        value: (B, H, S, E).
        left: Number of keys seen before each query.
        right: Number of keys seen after each query.
        scale: Factor of the dot products, e.g. 1/√D.
        mask: Which keys of the windows may be seen, boolean (B, S), True = attend; None for all.
        bias: Bias by relative position, (H, left + right + 1); its column `left` is the query's own place.
        extra: Keys that every query sees.
        dropout: Probability with which a weight is dropped; 0 outside training.
        implementation: `"auto"`, or
            `"chunked"` (a loop over blocks of queries that keeps no weights and recomputes them in the backward pass;
            the fastest on a CPU),
            `"blocked"` (one batch of blocks, from plain tensor operations; can be traced, exported and transformed),
            `"flex"` (PyTorch's FlexAttention; the fastest on CUDA).
        shard: The tokens are the share of a sequence that this process holds. The windows reach into the shares next
            to it; `extra` is the same in all processes.
        overwrite_query: The memory of the queries may take the result: no gradient is asked for, and nobody reads them
            afterwards. `"chunked"` makes use of it.

    Returns:
        (B, H, S, E).

    Raises:
        InputError: shapes disagree, a radius is negative, or the named implementation cannot serve.

    Reference:
        Beltagy et al., "Longformer: The Long-Document Transformer", 2020; Guo et al., "LongT5", 2022.
    """
    _check(query, key, value, left=left, right=right, mask=mask, bias=bias, extra=extra)
    if shard is not None:
        settings: dict[str, Any] = {"left": left, "right": right, "scale": scale, "bias": bias, "dropout": dropout}
        around = _with_neighbours(query, key, value, mask, extra, left, right, shard)
        output = sliding_window_attention(**around, **settings, implementation=implementation)
        return output.narrow(2, left, query.shape[2])
    request = Request(query.device.type, dropout, query.shape[-1], is_traced(query))
    chosen = DISPATCHER.choose(implementation, request, tracing=request.tracing)
    if extra is not None and extra.key.shape[2] == 0:
        extra = None
    if chosen == "blocked":
        return blocked_attention(
            query, key, value, left=left, right=right, scale=scale, mask=mask, bias=bias, extra=extra, dropout=dropout
        )[0]
    if chosen == "flex":
        return flex_attention(query, key, value, left=left, right=right, scale=scale, mask=mask, bias=bias, extra=extra)
    chunked = fast_path(_CHUNKED)
    assert chunked is not None
    return chunked(
        query, key, value, left=left, right=right, scale=scale, mask=mask, bias=bias, extra=extra, dropout=dropout,
        overwrite_query=overwrite_query,
    )  # fmt: skip


def _with_neighbours(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    mask: Tensor | None,
    extra: ExtraKeys | None,
    left: int,
    right: int,
    shard: ContextShard,
) -> dict[str, Any]:
    """The arguments of a share with the keys around it, and queries there whose results nobody reads."""
    sizes = (key.shape[-1], value.shape[-1])
    keys_and_values = with_neighbours(torch.cat((key, value), dim=-1), left, right, shard)
    key, value = (part.contiguous() for part in keys_and_values.split(sizes, dim=-1))
    if extra is not None and extra.position is not None:
        extra = extra._replace(position=F.pad(extra.position, (left, right)))
    mask = mask_with_neighbours(mask, query, left, right, shard)
    return {"query": F.pad(query, (0, 0, left, right)), "key": key, "value": value, "mask": mask, "extra": extra}


def sliding_window_attention_weights(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    *,
    left: int,
    right: int,
    scale: float,
    mask: Tensor | None = None,
    bias: Tensor | None = None,
    extra: ExtraKeys | None = None,
    dropout: float = 0.0,
    rows: int = BLOCK_ROWS,
    implementation: str = "auto",
) -> tuple[Tensor, Tensor]:
    """As `sliding_window_attention`, and returns the weights by which the values were multiplied.

    Args:
        query: (B, H, S, D).
        key: (B, H, S, D).
        value: (B, H, S, E).
        left: Number of keys seen before each query.
        right: Number of keys seen after each query.
        scale: Factor of the dot products.
        mask: Boolean (B, S), True = attend.
        bias: (H, left + right + 1).
        extra: Keys that every query sees.
        dropout: Probability with which a weight is dropped.
        rows: Queries of a block, R.
        implementation: `"auto"` or `"blocked"`, the only one that can return them.

    Returns:
        Output (B, H, S, E) and weights (B, H, ⌈S/R⌉, R, G + R + left + right): first the extra keys, then the span of
        the block, whose column c is the token at block start + c - left. Weights of places outside the sequence or
        outside the band are 0.
    """
    _check(query, key, value, left=left, right=right, mask=mask, bias=bias, extra=extra)
    request = Request(query.device.type, dropout, query.shape[-1], is_traced(query), needs_weights=True)
    DISPATCHER.choose(implementation, request, tracing=request.tracing)
    if extra is not None and extra.key.shape[2] == 0:
        extra = None
    output, weights = blocked_attention(
        query, key, value, left=left, right=right, scale=scale, mask=mask, bias=bias, extra=extra, dropout=dropout,
        rows=rows,
    )  # fmt: skip
    return output, weights[:, :, : num_blocks(query.shape[2], rows)]


def weights_by_offset(weights: Tensor, *, left: int, right: int, length: int) -> Tensor:
    """Bring the weights of blocks to one row per token.

    Args:
        weights: Of `sliding_window_attention_weights`, (B, H, blocks, R, G + R + left + right).
        left: As in that call.
        right: As in that call.
        length: Number of tokens S.

    Returns:
        (B, H, S, G + left + right + 1): the extra keys, then the tokens i - left … i + right of query i.
    """
    batch, heads, blocks, rows, columns = weights.shape
    width = left + right + 1
    num_extra = columns - (rows + left + right)
    extra, span = weights.split((num_extra, columns - num_extra), dim=-1)
    # row r of a block has its band at columns r … r + width - 1: read the block with a row pitch one longer
    skewed = F.pad(span.flatten(-2), (0, rows)).unflatten(-1, (rows, rows + width))
    in_order = torch.cat((extra, skewed[..., :width]), dim=-1)
    return in_order.reshape(batch, heads, blocks * rows, num_extra + width)[:, :, :length]


def _check(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    *,
    left: int,
    right: int,
    mask: Tensor | None,
    bias: Tensor | None,
    extra: ExtraKeys | None,
) -> None:
    if left < 0 or right < 0:
        raise InputError(f"left and right must not be negative. Received: left={left}, right={right}")
    if query.dim() != 4 or key.shape != query.shape or value.shape[:-1] != query.shape[:-1]:
        raise InputError(
            "query, key and value must have the shape (batch, heads, tokens, head size) and agree in all but the "
            f"value's head size. Received: {tuple(query.shape)}, {tuple(key.shape)}, {tuple(value.shape)}"
        )
    batch, heads, length, head_dim = query.shape
    check_shape(mask, (batch, length), name="mask", axes="(batch, tokens)")
    check_shape(bias, (heads, left + right + 1), name="bias", axes="(heads, left + right + 1)")
    if extra is None:
        return
    num_extra = extra.key.shape[2]
    check_shape(extra.key, (batch, heads, num_extra, head_dim), name="extra.key", axes="(batch, heads, extra, size)")
    value_shape = (batch, heads, num_extra, value.shape[-1])
    check_shape(extra.value, value_shape, name="extra.value", axes="(batch, heads, extra, value size)")
    check_shape(extra.mask, (batch, num_extra), name="extra.mask", axes="(batch, extra)")
    check_shape(extra.position, (batch, length), name="extra.position", axes="(batch, tokens)")
    if extra.bias is not None and num_extra > 0:
        check_shape(extra.bias, (heads, 2 * num_extra - 1), name="extra.bias", axes="(heads, 2 * extra - 1)")
        if extra.position is None:
            raise InputError("extra.bias needs extra.position. Received: extra.position=None")
