"""Sliding-window attention with extra keys that every query sees: the core of Longformer and LongT5, in JAX.

Axes: B batch, S tokens, H heads, D head size, E value size, G extra keys, R rows of a block of queries.

    score[i, j] = scale · qᵢ·kⱼ + bias[j - i + left]              for i - left ≤ j ≤ i + right and mask[j]
    score[i, g] = scale · qᵢ·k'_g + extra_bias[g - position[i] + G - 1]                   for extra_mask[g]
    output[i]   = Σ softmax(score[i]) v

One softmax, in float32, runs over both kinds of keys; a query without any key gives 0. Products of half-precision
numbers are summed in float32.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import jax
import jax.numpy as jnp
from jax import Array

from longspan.errors import InputError
from longspan.ops.dispatch import Dispatcher
from longspan.ops.flax.context import check_share, shared_axis, with_neighbours
from longspan.ops.flax.sliding_window_bias import ExtraKeys as ExtraKeys
from longspan.ops.flax.sliding_window_blocked import BLOCK_ROWS, blocked_attention
from longspan.ops.flax.sliding_window_chunked import chunked_attention
from longspan.shapes import check_shape

#: scores that "auto" keeps in memory at once on an accelerator, 2 GiB of float32
_MAX_SCORES = 1 << 29


@dataclass(frozen=True)
class Request:
    """What an implementation is asked to do.

    Attributes:
        platform: E.g. `"cpu"`.
        num_scores: Scores of all queries.
        needs_weights: Attention weights are returned.
        asked: The implementation was asked for by name.
    """

    platform: str
    num_scores: int
    needs_weights: bool
    asked: bool


def _why_not_blocked(request: Request) -> str | None:
    if request.asked or request.needs_weights:
        return None
    if request.platform == "cpu":
        return "a CPU computes small plain products several times as fast as batches of them"
    return "its scores need much memory" if request.num_scores > _MAX_SCORES else None


def _why_not_chunked(request: Request) -> str | None:
    return "attention weights are returned by 'blocked' only" if request.needs_weights else None


#: "auto" tries these in order
DISPATCHER: Dispatcher[Request] = Dispatcher(
    "sliding-window attention", {"blocked": _why_not_blocked, "chunked": _why_not_chunked}
)


def sliding_window_attention(
    query: Array,
    key: Array,
    value: Array,
    *,
    left: int,
    right: int,
    scale: float,
    mask: Array | None = None,
    bias: Array | None = None,
    extra: ExtraKeys | None = None,
    dropout: float = 0.0,
    dropout_rng: Array | None = None,
    implementation: str = "auto",
) -> Array:
    """Attention of each query to the keys near it and to a few extra keys.

    Where devices share the sequence, windows reach into the shares next to this one; extra keys are the same on all.

    Args:
        query: (B, S, H, D).
        key: (B, S, H, D).
        value: (B, S, H, E).
        left: Number of keys seen before each query.
        right: Number of keys seen after each query.
        scale: Factor of the dot products, e.g. 1/√D.
        mask: Which keys of the windows may be seen, boolean (B, S), True = attend; None for all.
        bias: Bias by relative position, (H, left + right + 1); its column `left` is the query's own place.
        extra: Keys that every query sees.
        dropout: Probability with which a weight is dropped; 0 outside training.
        dropout_rng: Random key of the dropout; needed if `dropout` is positive.
        implementation: `"auto"`, or
            `"chunked"` (a loop over blocks of queries that keeps no weights and recomputes them in the backward pass:
            memory for one block besides tensors of the size of the inputs, and the fastest on a CPU; it has
            derivatives of the first order, by `jax.grad` and `jax.vjp`),
            `"blocked"` (one batch of blocks, from plain operations; memory for all scores, S · (left + right + R + G)
            of each head; it can be differentiated in every way).

    Returns:
        (B, S, H, E).

    Raises:
        InputError: shapes disagree, a radius is negative, or the named implementation cannot serve.

    Reference:
        Beltagy et al., "Longformer: The Long-Document Transformer", 2020; Guo et al., "LongT5", 2022.
    """
    _check(query, key, value, left=left, right=right, mask=mask, bias=bias, extra=extra)
    length, is_shared = query.shape[1], shared_axis() is not None
    if is_shared:
        query, key, value, mask, extra = _with_neighbours(query, key, value, mask, extra, left, right)
    chosen = DISPATCHER.choose(
        implementation, _request(query, left + right, extra, implementation, needs_weights=False)
    )
    extra = None if extra is None or extra.key.shape[1] == 0 else extra
    attend = blocked_attention if chosen == "blocked" else chunked_attention
    output, _ = attend(
        query, key, value, left=left, right=right, scale=scale, mask=mask, bias=bias, extra=extra, dropout=dropout,
        dropout_rng=dropout_rng,
    )  # fmt: skip
    return output[:, left : left + length] if is_shared else output


def _with_neighbours(
    query: Array, key: Array, value: Array, mask: Array | None, extra: ExtraKeys | None, left: int, right: int
) -> tuple[Array, Array, Array, Array, ExtraKeys | None]:
    """The arguments of a share with the keys around it, and queries there whose results nobody reads."""
    check_share(query.shape[1], reach=max(left, right))
    present = jnp.ones(query.shape[:2], bool) if mask is None else mask
    around = ((0, 0), (left, right))
    if extra is not None and extra.position is not None:
        extra = replace(extra, position=jnp.pad(extra.position, around, mode="edge"))
    query = jnp.pad(query, (*around, (0, 0), (0, 0)))
    key, value, mask = (with_neighbours(array, left, right) for array in (key, value, present))
    return query, key, value, mask, extra


def sliding_window_attention_weights(
    query: Array,
    key: Array,
    value: Array,
    *,
    left: int,
    right: int,
    scale: float,
    mask: Array | None = None,
    bias: Array | None = None,
    extra: ExtraKeys | None = None,
    dropout: float = 0.0,
    dropout_rng: Array | None = None,
    rows: int = BLOCK_ROWS,
    implementation: str = "auto",
) -> tuple[Array, Array]:
    """As `sliding_window_attention`, and returns the weights by which the values were multiplied.

    Args:
        query: (B, S, H, D).
        key: (B, S, H, D).
        value: (B, S, H, E).
        left: Number of keys seen before each query.
        right: Number of keys seen after each query.
        scale: Factor of the dot products.
        mask: Boolean (B, S), True = attend.
        bias: (H, left + right + 1).
        extra: Keys that every query sees.
        dropout: Probability with which a weight is dropped.
        dropout_rng: Random key of the dropout.
        rows: Queries of a block, R.
        implementation: `"auto"` or `"blocked"`, the only one that can return them.

    Returns:
        Output (B, S, H, E) and weights (B, H, ⌈S/R⌉, R, G + R + left + right): first the extra keys, then the span of
        the block, whose column c is the token at block start + c - left. Weights of places outside the sequence or
        outside the band are 0.
    """
    _check(query, key, value, left=left, right=right, mask=mask, bias=bias, extra=extra)
    DISPATCHER.choose(implementation, _request(query, left + right, extra, implementation, needs_weights=True))
    extra = None if extra is None or extra.key.shape[1] == 0 else extra
    return blocked_attention(
        query, key, value, left=left, right=right, scale=scale, mask=mask, bias=bias, extra=extra, dropout=dropout,
        dropout_rng=dropout_rng, rows=rows,
    )  # fmt: skip


def weights_by_offset(weights: Array, *, left: int, right: int, length: int) -> Array:
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
    extra, span = jnp.split(weights, [columns - (rows + left + right)], axis=-1)
    # row r of a block has its band at columns r … r + width - 1: read the block with a row pitch one longer
    flat = jnp.pad(span.reshape(batch, heads, blocks, -1), ((0, 0),) * 3 + ((0, rows),))
    skewed = flat.reshape(batch, heads, blocks, rows, rows + width)
    in_order = jnp.concatenate([extra, skewed[..., :width]], axis=-1)
    return in_order.reshape(batch, heads, blocks * rows, -1)[:, :, :length]


def _request(query: Array, around: int, extra: ExtraKeys | None, name: str, *, needs_weights: bool) -> Request:
    batch, length, heads, _ = query.shape
    keys = around + BLOCK_ROWS + (0 if extra is None else extra.key.shape[1])
    return Request(jax.default_backend(), batch * heads * length * keys, needs_weights, name != "auto")


def _check(
    query: Array,
    key: Array,
    value: Array,
    *,
    left: int,
    right: int,
    mask: Array | None,
    bias: Array | None,
    extra: ExtraKeys | None,
) -> None:
    if left < 0 or right < 0:
        raise InputError(f"left and right must not be negative. Received: left={left}, right={right}")
    if query.ndim != 4 or key.shape != query.shape or value.shape[:-1] != query.shape[:-1]:
        raise InputError(
            "query, key and value must have the shape (batch, tokens, heads, head size) and agree in all but the "
            f"value's head size. Received: {query.shape}, {key.shape}, {value.shape}"
        )
    batch, length, heads, head_dim = query.shape
    check_shape(mask, (batch, length), name="mask", axes="(batch, tokens)")
    check_shape(bias, (heads, left + right + 1), name="bias", axes="(heads, left + right + 1)")
    if extra is None:
        return
    num_extra = extra.key.shape[1]
    check_shape(extra.key, (batch, num_extra, heads, head_dim), name="extra.key", axes="(batch, extra, heads, size)")
    value_shape = (batch, num_extra, heads, value.shape[-1])
    check_shape(extra.value, value_shape, name="extra.value", axes="(batch, extra, heads, value size)")
    check_shape(extra.mask, (batch, num_extra), name="extra.mask", axes="(batch, extra)")
    check_shape(extra.position, (batch, length), name="extra.position", axes="(batch, tokens)")
    if extra.step < 1:
        raise InputError(f"extra.step must be positive. Received: extra.step={extra.step}")
    if extra.bias is not None and num_extra > 0:
        check_shape(extra.bias, (heads, 2 * num_extra - 1), name="extra.bias", axes="(heads, 2 * extra - 1)")
        if extra.position is None:
            raise InputError("extra.bias needs extra.position. Received: extra.position=None")
