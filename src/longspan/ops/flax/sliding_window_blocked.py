"""Sliding-window attention as one batch of blocks, from plain operations.

It can return the weights, and be differentiated in every way. Axes as in `sliding_window`; N blocks of R queries, span
C = R + left + right, U positions as in `sliding_window_bias`.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jax import Array

from longspan.ops.flax import sliding_window_bias as biases
from longspan.ops.flax.attention import drop_weights
from longspan.ops.flax.sliding_window_bias import ExtraKeys
from longspan.ops.patterns import num_blocks

#: queries of a block: the span of a block is wider than a window by this much, so small blocks waste less
BLOCK_ROWS = 64


def blocked_attention(
    query: Array,
    key: Array,
    value: Array,
    *,
    left: int,
    right: int,
    scale: float,
    mask: Array | None,
    bias: Array | None,
    extra: ExtraKeys | None,
    dropout: float,
    dropout_rng: Array | None,
    rows: int = BLOCK_ROWS,
) -> tuple[Array, Array]:
    """Output (B, S, H, E) and weights (B, H, N, R, G + C)."""
    batch, length, _, _ = query.shape
    blocks = num_blocks(length, rows)
    missing = blocks * rows - length
    queries = _pad_tokens(query, (0, missing)).reshape(batch, blocks, rows, *query.shape[2:])  # (B, N, R, H, D)
    span = rows + left + right
    around = (left, right + missing)
    keys = _spans(_pad_tokens(key, around), blocks, rows, span)  # (B, N, C, H, D)
    values = _spans(_pad_tokens(value, around), blocks, rows, span)
    scores = _product("bnrhd,bnchd->bhnrc", queries, keys) * scale
    scores = scores + biases.band_bias(bias, rows=rows, left=left, right=right)[:, None]
    hidden = biases.key_bias(mask, batch=batch, length=length, padding=around)
    scores = scores + _spans(hidden, blocks, rows, span)[:, None, :, None, :]
    if extra is not None:
        scores = jnp.concatenate([_extra_scores(queries, extra, scale, missing), scores], axis=-1)
    weights = jax.nn.softmax(scores, axis=-1)
    weights = jnp.where(scores > biases.NO_KEY, weights, 0.0)
    weights = drop_weights(weights, dropout, dropout_rng).astype(query.dtype)
    num_extra = weights.shape[-1] - span
    output = _product("bhnrc,bnchd->bnrhd", weights[..., num_extra:], values)
    if extra is not None:
        output = output + _product("bhnrg,bghd->bnrhd", weights[..., :num_extra], extra.value)
    output = output.reshape(batch, blocks * rows, *output.shape[3:])[:, :length]
    return output.astype(value.dtype), weights


def _extra_scores(queries: Array, extra: ExtraKeys, scale: float, missing: int) -> Array:
    """(B, H, N, R, G)."""
    scores = _product("bnrhd,bghd->bhnrg", queries, extra.key) * scale
    if extra.bias is not None:
        assert extra.position is not None
        scores = scores + _extra_bias(extra, queries.shape[1], queries.shape[2], missing)
    if extra.mask is not None:
        scores = scores + jnp.where(extra.mask, 0.0, biases.MASKED)[:, None, None, None, :]
    return scores


def _extra_bias(extra: ExtraKeys, blocks: int, rows: int, missing: int) -> Array:
    """(B, H, N, R, G)."""
    assert extra.bias is not None
    assert extra.position is not None
    num_extra = extra.key.shape[1]
    positions = biases.num_positions(rows, extra.step, num_extra)
    table = biases.pad_table(extra.bias, positions)
    place = jnp.pad(jnp.maximum(extra.position, 0), ((0, 0), (0, missing)), mode="edge")
    place = place.reshape(-1, blocks, rows)  # (B, N, R)

    def of_block(place: Array) -> Array:
        part = biases.part_of_table(table, place[0], num_extra=num_extra, positions=positions)
        chosen = biases.choose_rows(place, positions)
        return _product("ru,hug->hrg", chosen, biases.sliding_rows(part, positions))

    return jax.vmap(jax.vmap(of_block, out_axes=1))(place)


def _pad_tokens(states: Array, padding: tuple[int, int]) -> Array:
    return jnp.pad(states, ((0, 0), padding, *(((0, 0),) * (states.ndim - 2))))


def _spans(states: Array, blocks: int, rows: int, span: int) -> Array:
    """Overlapping spans: (B, NR + C - R, ...) -> (B, N, C, ...), put together from N blocks at a time."""
    pieces = -(-span // rows)
    states = _pad_tokens(states, (0, (blocks + pieces - 1) * rows - states.shape[1]))
    cut = states.reshape(states.shape[0], blocks + pieces - 1, rows, *states.shape[2:])
    return jnp.concatenate([cut[:, piece : piece + blocks] for piece in range(pieces)], axis=2)[:, :, :span]


def _product(equation: str, first: Array, second: Array) -> Array:
    """`einsum` with sums in float32."""
    return jnp.einsum(equation, first, second, preferred_element_type=jnp.float32)
