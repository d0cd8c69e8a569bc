"""Sliding-window attention with extra keys that every query sees: the core of Longformer, and of LongT5's windows.

Axes: B batch, H heads, S tokens, D head size, E value size, G extra keys; N blocks of R queries, span C = R + left +
right. B, S and G may be known only when a graph runs.

    score[i, j] = scale · qᵢ·kⱼ + bias[j - i + left]              for i - left ≤ j ≤ i + right and mask[j]
    score[i, g] = scale · qᵢ·k'_g + extra_bias[g - position[i] + G - 1]                   for extra_mask[g]
    output[i]   = Σ softmax(score[i]) v

One softmax, in float32, runs over both kinds of keys; a query without any key gives 0. Time and memory are linear in S,
in the forward and in the backward pass. All is padded, cut and put together by slices, whose transposes are slices.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import keras
from keras import ops

from longspan.errors import InputError
from longspan.ops import patterns
from longspan.ops.dispatch import Dispatcher
from longspan.ops.keras import Tensor
from longspan.ops.keras.attention import MASKED, Dropout, softmax
from longspan.shapes import differ

#: queries of a block: the span of a block is wider than a window by this much, so small blocks waste less
BLOCK_ROWS = 64

DISPATCHER: Dispatcher[None] = Dispatcher("sliding-window attention", {"blocked": lambda request: None})


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
    dropout: Dropout | None = None,
    rows: int = BLOCK_ROWS,
    needs_weights: bool = False,
    implementation: str = "auto",
) -> tuple[Tensor, Tensor | None]:
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
        dropout: Applied to the weights.
        rows: Queries of a block, R.
        needs_weights: Return the weights.
        implementation: `"auto"` or `"blocked"` (one batch of blocks, from plain operations).

    Returns:
        The output (B, H, S, E), and the weights (B, H, N, R, G + C) after dropout, or None: first the extra keys, then
        the span of the block, whose column c is the token at block start + c - left. Weights of places outside the
        sequence or outside the band are 0; those of queries behind the last token mean nothing.

    Raises:
        InputError: shapes disagree, or a radius is negative.

    Reference:
        Beltagy et al., "Longformer: The Long-Document Transformer", 2020; Guo et al., "LongT5", 2022.
    """
    _check(query, key, value, left=left, right=right, mask=mask, bias=bias, extra=extra)
    DISPATCHER.choose(implementation, None)
    length = ops.shape(query)[2]
    if isinstance(length, int) and not needs_weights:  # a short input costs what it must
        most = max(length - 1, 0)
        bias = None if bias is None else bias[:, max(left - most, 0) : left + min(right, most) + 1]
        left, right, rows = min(left, most), min(right, most), min(rows, most + 1)
    span, blocks = rows + left + right, -(-length // rows)
    queries = cut_spans(query * scale, blocks, rows, before=0, columns=rows)  # (B, H, N, R, D)
    keys = ops.transpose(cut_spans(key, blocks, rows, before=left, columns=span), (0, 1, 2, 4, 3))
    values = cut_spans(value, blocks, rows, before=left, columns=span)
    present = _present(mask, length, blocks, rows, left, span)  # (B or 1, 1, N, 1, C)
    allowed = ops.logical_and(present, patterns.band(rows, left, right))
    masking = ops.where(allowed, 0.0, MASKED)
    scores = _float32(ops.matmul(queries, keys))
    scores = scores + (masking if bias is None else masking + _float32(bias_tile(bias, rows))[:, None])
    attends = None if mask is None else ops.any(allowed, axis=-1, keepdims=True)
    if extra is not None:
        scores = ops.concatenate([_extra_scores(queries, extra, length), scores], axis=-1)
        any_extra = True if extra.mask is None else ops.any(extra.mask, axis=-1)[:, None, None, None, None]
        attends = None if attends is None else ops.logical_or(attends, any_extra)
    weights = ops.cast(softmax(scores), value.dtype)
    weights = weights if dropout is None else dropout(weights)
    batch, heads, size = ops.shape(query)[0], value.shape[1], value.shape[3]
    output = ops.matmul(weights[..., ops.shape(weights)[-1] - span :], values)
    if extra is not None:
        num_extra = ops.shape(extra.key)[2]
        flat = ops.reshape(weights[..., :num_extra], (batch, heads, blocks * rows, num_extra))
        output = output + ops.reshape(ops.matmul(flat, extra.value), (batch, heads, blocks, rows, size))
    if attends is not None:  # the output is smaller than the weights
        attends = ops.cast(attends, output.dtype)
        output, weights = output * attends, weights * attends if needs_weights else weights
    output = ops.reshape(output, (batch, heads, blocks * rows, size))[:, :, :length]
    return output, weights if needs_weights else None


def weights_by_offset(weights: Tensor, *, left: int, right: int, length: Any) -> Tensor:
    """Bring the weights of blocks to one row per token.

    Args:
        weights: Of `sliding_window_attention`, (B, H, N, R, G + C).
        left: As in that call.
        right: As in that call.
        length: Number of tokens S.

    Returns:
        (B, H, S, G + left + right + 1): the extra keys, then the tokens i - left … i + right of query i.
    """
    batch, heads, blocks, rows, columns = ops.shape(weights)
    width = left + right + 1
    num_extra = columns - (rows + width - 1)
    # row r of a block has its band at columns r … r + width - 1: read the block with a row pitch one longer
    flat = ops.reshape(weights[..., num_extra:], (batch, heads, blocks, rows * (rows + width - 1)))
    flat = ops.pad(flat, ((0, 0), (0, 0), (0, 0), (0, rows)))
    skewed = ops.reshape(flat, (batch, heads, blocks, rows, rows + width))[..., :width]
    in_order = ops.concatenate([weights[..., :num_extra], skewed], axis=-1)
    return ops.reshape(in_order, (batch, heads, blocks * rows, num_extra + width))[:, :, :length]


def bias_tile(bias: Tensor, rows: int) -> Tensor:
    """Spread a bias by relative position over a block.

    Args:
        bias: (H, W), W = left + right + 1.
        rows: R.

    Returns:
        (H, R, R + W - 1): row r holds the bias from column r on, and 0 elsewhere.
    """
    heads, width = ops.shape(bias)
    pitch = rows + width  # one more than a row: row r begins r columns later
    repeated = ops.broadcast_to(ops.pad(bias, ((0, 0), (0, rows)))[:, None], (heads, rows, pitch))
    flat = ops.reshape(repeated, (heads, rows * pitch))[:, : rows * (pitch - 1)]
    return ops.reshape(flat, (heads, rows, pitch - 1))


def cut_spans(states: Tensor, blocks: Any, rows: int, *, before: int, columns: int) -> Tensor:
    """Overlapping spans (B, X, S, D) -> (B, X, N, columns, D), each put together from pieces of R tokens.

    The span of a block begins `before` tokens before it; places outside the sequence hold zeros.
    """
    batch, length = ops.shape(states)[0], ops.shape(states)[2]
    pieces = -(-columns // rows)
    total = blocks + pieces - 1
    padded = ops.pad(states, ((0, 0), (0, 0), (before, total * rows - before - length), (0, 0)))
    cut = ops.reshape(padded, (batch, states.shape[1], total, rows, states.shape[3]))
    if pieces == 1:
        return cut[:, :, :, :columns]
    parts = [
        cut[:, :, piece : piece + blocks, : min(rows, columns - piece * rows)]  # the last one may be narrower
        for piece in range(pieces)
    ]
    return ops.concatenate(parts, axis=3)


def _present(mask: Tensor | None, length: Any, blocks: Any, rows: int, left: int, span: int) -> Tensor:
    """Which places of the span of each block hold tokens that may be seen, boolean (B or 1, 1, N, 1, C)."""
    seen = ops.ones((1, length), "int32") if mask is None else ops.cast(mask, "int32")
    spans = cut_spans(seen[:, None, :, None], blocks, rows, before=left, columns=span)
    return ops.transpose(spans, (0, 1, 2, 4, 3)) > 0


def _extra_scores(queries: Tensor, extra: ExtraKeys, length: Any) -> Tensor:
    """(B, H, N, R, G)."""
    batch, heads, blocks, rows, size = ops.shape(queries)
    num_extra = ops.shape(extra.key)[2]
    flat = ops.reshape(queries, (batch, heads, blocks * rows, size))
    scores = _float32(ops.matmul(flat, ops.transpose(extra.key, (0, 1, 3, 2))))  # (B, H, NR, G)
    if extra.bias is not None and extra.position is not None:
        place = ops.pad(ops.maximum(ops.cast(extra.position, "int32"), 0), ((0, 0), (0, blocks * rows - length)))
        index = ops.arange(num_extra, dtype="int32") + (num_extra - 1) - place[..., None]  # (B, NR, G)
        scores = scores + ops.transpose(ops.take(_float32(extra.bias), index, axis=1), (1, 0, 2, 3))
    if extra.mask is not None:
        scores = scores + ops.where(extra.mask, 0.0, MASKED)[:, None, None, :]
    return ops.reshape(scores, (batch, heads, blocks, rows, num_extra))


def _float32(states: Tensor) -> Tensor:
    """At least float32."""
    return ops.cast(states, keras.backend.result_type(states.dtype, "float32"))


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
    shape, around = tuple(query.shape), "(batch, heads, tokens, head size)"
    if len(shape) != 4 or differ(key, shape) or differ(value, (*shape[:3], None)):
        shapes = ", ".join(str(tuple(tensor.shape)) for tensor in (query, key, value))
        raise InputError(
            f"query, key and value must have the shape {around} and agree in all but the value's head size. "
            f"Received: {shapes}"
        )
    batch, heads, length, size = shape
    wanted: list[tuple[str, Tensor | None, tuple[int | None, ...]]] = [("mask", mask, (batch, length))]
    wanted.append(("bias", bias, (heads, left + right + 1)))
    if extra is not None:
        num_extra = tuple(extra.key.shape)[2]
        wanted += [
            ("extra.key", extra.key, (batch, heads, None, size)),
            ("extra.value", extra.value, (batch, heads, num_extra, value.shape[3])),
            ("extra.mask", extra.mask, (batch, num_extra)),
            ("extra.position", extra.position, (batch, length)),
            ("extra.bias", extra.bias, (heads, None if num_extra is None else 2 * num_extra - 1)),
        ]
        if extra.bias is not None and extra.position is None:
            raise InputError("extra.bias needs extra.position. Received: extra.position=None")
    for name, tensor, expected in wanted:
        if tensor is not None and differ(tensor, expected):
            raise InputError(f"{name} must have the shape {expected}. Received: {tuple(tensor.shape)}")
