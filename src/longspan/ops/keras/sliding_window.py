"""Sliding-window attention with extra keys that every query sees: the core of Longformer, and of LongT5's windows.

Axes: B batch, H heads, S tokens, D head size, E value size, G extra keys; N blocks of R queries, span C = R + left +
right. B, S and G may be known only when a graph runs.

    score[i, j] = scale · qᵢ·kⱼ + bias[j - i + left]              for i - left ≤ j ≤ i + right and mask[j]
    score[i, g] = scale · qᵢ·k'_g + extra_bias[g - position[i] + G - 1]                   for extra_mask[g]
    output[i]   = Σ softmax(score[i]) v

One softmax, in float32, runs over both kinds of keys; a query without any key gives 0. Time and memory are linear in S,
in the forward and in the backward pass. All is padded, cut and put together by slices, whose transposes are slices.

The two kinds of scores are never joined: with m the greatest score of a query and e = exp(score - m), the output is
(Σ e_j v_j + Σ e_g v_g) / (Σ e_j + Σ e_g).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

import keras
from keras import ops

from longspan.errors import InputError
from longspan.ops import patterns
from longspan.ops.dispatch import Dispatcher
from longspan.ops.keras import Tensor
from longspan.ops.keras.attention import MASKED, Dropout
from longspan.ops.keras.scan import computes_on_cpu, is_compiled, scan
from longspan.shapes import differ

#: queries of a block: the span of a block is wider than a window by this much, so small blocks waste less
BLOCK_ROWS = 64
#: queries of a block of the loop; measured at 16,384 tokens, 4 heads of 64, windows of 257, in seconds of processor
#: time, one batch and loops over 64, 128 and 256 rows: TensorFlow 0.49, 0.33, 0.45, 0.40, JAX 0.40, 0.26, 0.23, 0.25
CHUNK_ROWS = {"tensorflow": 64, "jax": 128}


@dataclass(frozen=True)
class Request:
    """What an implementation is asked to do.

    Attributes:
        needs_weights: Attention weights are returned.
        drops: Weights are dropped: the model is trained.
        compiled: It becomes part of a program, or needs none.
        asked: The implementation was asked for by name.
    """

    needs_weights: bool
    drops: bool
    compiled: bool
    asked: bool


def _why_not_chunked(request: Request) -> str | None:
    if request.needs_weights:
        return "attention weights are returned by 'blocked' only"
    if request.drops:
        return "the weights that are dropped are drawn at once"
    if keras.backend.backend() == "torch":
        return "on PyTorch each round of the loop would be called by itself"
    if request.asked:
        return None
    if not request.compiled:
        return "XLA would compile the loop anew at every call"
    return None if computes_on_cpu() else "an accelerator computes all blocks at once"


#: "auto" tries these in order
DISPATCHER: Dispatcher[Request] = Dispatcher(
    "sliding-window attention", {"chunked": _why_not_chunked, "blocked": lambda request: None}
)


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
    rows: int | None = None,
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
        rows: Queries of a block, R; default: as measured.
        needs_weights: Return the weights.
        implementation: `"auto"`, `"blocked"` (one batch of blocks, from plain operations), or `"chunked"` (a loop over
            the blocks, whose scores stay in the caches of a CPU; without weights and dropout).

    Returns:
        The output (B, H, S, E), and the weights (B, H, N, R, G + C) after dropout, or None: first the extra keys, then
        the span of the block, whose column c is the token at block start + c - left. Weights of places outside the
        sequence or outside the band are 0; those of queries behind the last token mean nothing.

    Raises:
        InputError: shapes disagree, a radius is negative, or the named implementation cannot serve.

    Reference:
        Beltagy et al., "Longformer: The Long-Document Transformer", 2020; Guo et al., "LongT5", 2022.
    """
    _check(query, key, value, left=left, right=right, mask=mask, bias=bias, extra=extra)
    request = Request(needs_weights, dropout is not None, is_compiled(query), implementation != "auto")
    chosen = DISPATCHER.choose(implementation, request)
    extra = None if extra is None or extra.key.shape[2] == 0 else extra
    length = ops.shape(query)[2]
    if rows is None:
        rows = CHUNK_ROWS[keras.backend.backend()] if chosen == "chunked" else BLOCK_ROWS
    if isinstance(length, int) and not needs_weights:  # a short input costs what it must
        most = max(length - 1, 0)
        bias = None if bias is None else bias[:, max(left - most, 0) : left + min(right, most) + 1]
        left, right, rows = min(left, most), min(right, most), min(rows, most + 1)
    blocks = -(-length // rows)
    window = _Window(rows, left, right, blocks, length)
    if chosen == "chunked" and not (isinstance(blocks, int) and blocks == 1):
        return _in_a_loop(window, query * scale, key, value, mask, bias, extra), None
    return _at_once(window, query * scale, key, value, mask, bias, extra, dropout, needs_weights=needs_weights)


class _Window(NamedTuple):
    """The sizes of one call."""

    rows: int
    left: int
    right: int
    blocks: Any
    length: Any

    @property
    def span(self) -> int:
        """C."""
        return self.rows + self.left + self.right


def _at_once(
    window: _Window,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    mask: Tensor | None,
    bias: Tensor | None,
    extra: ExtraKeys | None,
    dropout: Dropout | None,
    *,
    needs_weights: bool,
) -> tuple[Tensor, Tensor | None]:
    """All blocks as one batch."""
    rows, left, _, blocks, length = window
    queries = cut_spans(query, blocks, rows, before=0, columns=rows)  # (B, H, N, R, D)
    keys = ops.transpose(cut_spans(key, blocks, rows, before=left, columns=window.span), (0, 1, 2, 4, 3))
    values = cut_spans(value, blocks, rows, before=left, columns=window.span)
    spans = cut_spans(_seen(mask, length)[:, None, :, None], blocks, rows, before=left, columns=window.span)
    present = ops.transpose(spans, (0, 1, 2, 4, 3)) > 0  # (B or 1, 1, N, 1, C)
    tile = None if bias is None else _float32(bias_tile(bias, rows))[:, None]
    scores, attends = _masked_scores(window, ops.matmul(queries, keys), present, mask, tile)
    extra_scores = None
    batch, heads, size = ops.shape(query)[0], value.shape[1], value.shape[3]
    if extra is not None:
        place = extra.position
        if place is not None:
            place = ops.pad(place, ((0, 0), (0, blocks * rows - length)))
        flat = ops.reshape(queries, (batch, heads, blocks * rows, queries.shape[4]))
        flat = _extra_scores(flat, extra, place)
        extra_scores = ops.reshape(flat, (batch, heads, blocks, rows, ops.shape(flat)[3]))
        attends = _or_extra(attends, extra)
    weights, extra_weights, total = _unnormalised(scores, extra_scores, value.dtype, dropout)
    output = ops.matmul(weights, values)
    if extra is not None and extra_weights is not None:
        flat = ops.reshape(extra_weights, (batch, heads, blocks * rows, ops.shape(extra_weights)[-1]))
        output = output + ops.reshape(ops.matmul(flat, extra.value), (batch, heads, blocks, rows, size))
    factor = _factor(total, attends, output.dtype)
    output = ops.reshape(output * factor, (batch, heads, blocks * rows, size))[:, :, :length]
    if not needs_weights:
        return output, None
    both = weights if extra_weights is None else ops.concatenate([extra_weights, weights], axis=-1)
    return output, both * factor


def _in_a_loop(
    window: _Window,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    mask: Tensor | None,
    bias: Tensor | None,
    extra: ExtraKeys | None,
) -> Tensor:
    """One block after the other, (B, H, S, E): the scores of a block stay in the caches of a CPU."""
    rows, left, _, blocks, length = window
    missing = blocks * rows - length
    around = ((0, 0), (0, 0), (left, window.right + missing), (0, 0))
    key, value = ops.pad(key, around), ops.pad(value, around)
    seen = ops.pad(_seen(mask, length), (around[0], around[2]))
    queries = ops.moveaxis(cut_spans(query, blocks, rows, before=0, columns=rows), 2, 0)  # (N, B, H, R, D)
    places = None if extra is None or extra.bias is None else extra.position
    if places is None:
        places = ops.zeros((1, blocks * rows), "int32")
    else:
        places = ops.pad(ops.cast(places, "int32"), ((0, 0), (0, missing)))
    places = ops.moveaxis(ops.reshape(places, (-1, blocks, rows)), 1, 0)
    tile = None if bias is None else _float32(bias_tile(bias, rows))

    def step(start: Tensor, block: tuple[Tensor, ...]) -> tuple[Tensor, Tensor]:
        query, place = block
        keys, values, present = (_take(states, start, window.span) for states in (key, value, seen))
        scores = ops.matmul(query, ops.transpose(keys, (0, 1, 3, 2)))
        scores, attends = _masked_scores(window, scores, present[:, None, None] > 0, mask, tile)
        extra_scores = None
        if extra is not None:
            extra_scores, attends = _extra_scores(query, extra, place), _or_extra(attends, extra)
        weights, extra_weights, total = _unnormalised(scores, extra_scores, value.dtype, None)
        output = ops.matmul(weights, values)
        if extra is not None and extra_weights is not None:
            output = output + ops.matmul(extra_weights, extra.value)
        return start + rows, output * _factor(total, attends, output.dtype)

    shape = (ops.shape(query)[0], value.shape[1], blocks * rows, value.shape[3])
    block_shape = (query.shape[0], value.shape[1], rows, value.shape[3])
    _, outputs = scan(step, ops.zeros((), "int32"), (queries, places), result=(block_shape, value.dtype))
    return ops.reshape(ops.transpose(outputs, (1, 2, 0, 3, 4)), shape)[:, :, :length]


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


def _extra_scores(queries: Tensor, extra: ExtraKeys, place: Tensor | None) -> Tensor:
    """(B, H, Q, G) of queries (B, H, Q, D) at places (B, Q)."""
    num_extra = ops.shape(extra.key)[2]
    scores = _float32(ops.matmul(queries, ops.transpose(extra.key, (0, 1, 3, 2))))
    if extra.bias is not None and place is not None:
        place = ops.maximum(ops.cast(place, "int32"), 0)
        index = ops.arange(num_extra, dtype="int32") + (num_extra - 1) - place[..., None]  # (B, Q, G)
        scores = scores + ops.transpose(ops.take(_float32(extra.bias), index, axis=1), (1, 0, 2, 3))
    if extra.mask is not None:
        scores = scores + ops.where(extra.mask, 0.0, MASKED)[:, None, None, :]
    return scores


def _seen(mask: Tensor | None, length: Any) -> Tensor:
    """1 for keys that may be seen, integers (B or 1, S)."""
    return ops.ones((1, length), "int32") if mask is None else ops.cast(mask, "int32")


def _take(states: Tensor, start: Tensor, size: int) -> Tensor:
    """Tokens `start` … `start + size - 1` of (B, X, S, D), or of (B, S)."""
    axis = len(states.shape) - 2 if len(states.shape) > 2 else 1
    shape = list(ops.shape(states))
    starts = [0] * len(shape)
    starts[axis], shape[axis] = start, size
    return ops.slice(states, starts, shape)


def _masked_scores(
    window: _Window, scores: Tensor, present: Tensor, mask: Tensor | None, tile: Tensor | None
) -> tuple[Tensor, Tensor | None]:
    """Scores (..., R, C) with bias and mask in float32, and which queries see a key of their window.

    Args:
        window: The sizes.
        scores: (..., R, C).
        present: Which places of the span hold tokens that may be seen, broadcastable to the scores.
        mask: None if every query sees itself.
        tile: The bias, broadcastable to the scores.
    """
    allowed = ops.logical_and(present, patterns.band(window.rows, window.left, window.right))
    masking = ops.where(allowed, 0.0, MASKED)
    attends = None if mask is None else ops.any(allowed, axis=-1, keepdims=True)
    return _float32(scores) + (masking if tile is None else masking + tile), attends


def _or_extra(attends: Tensor | None, extra: ExtraKeys) -> Tensor | None:
    """Which queries see a key of their window or an extra one; None for all."""
    if attends is None or extra.mask is None:
        return None
    some = ops.any(extra.mask, axis=-1)
    return ops.logical_or(attends, ops.reshape(some, (-1, *[1] * (len(attends.shape) - 1))))


def _unnormalised(
    scores: Tensor, extra_scores: Tensor | None, dtype: Any, dropout: Dropout | None
) -> tuple[Tensor, Tensor | None, Tensor]:
    """Weights exp(score - greatest score) of both kinds of keys after dropout, and their sum before it."""
    greatest = ops.max(scores, axis=-1, keepdims=True)
    if extra_scores is not None:
        greatest = ops.maximum(greatest, ops.max(extra_scores, axis=-1, keepdims=True))
    greatest = ops.stop_gradient(greatest)
    drop = dropout if dropout is not None else lambda weights: weights
    weights = ops.exp(scores - greatest)
    total = ops.sum(weights, axis=-1, keepdims=True)
    weights = drop(ops.cast(weights, dtype))
    if extra_scores is None:
        return weights, None, total
    extra_weights = ops.exp(extra_scores - greatest)
    total = total + ops.sum(extra_weights, axis=-1, keepdims=True)
    return weights, drop(ops.cast(extra_weights, dtype)), total


def _factor(total: Tensor, attends: Tensor | None, dtype: Any) -> Tensor:
    """1 over the sum of a query's weights; 0 for queries that see no key."""
    factor = 1.0 / total
    return ops.cast(factor if attends is None else ops.where(attends, factor, 0.0), dtype)


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
