"""Differential attention in JAX: the difference of two softmax maps, over causal, padded or packed sequences.

Axes: B batch, A softmax maps ("heads" of the configuration), K key/value heads, G = A/K maps of a key head, S queries,
T keys, R queries of a block, D head size.

Map a reads key head a // G. The maps are paired half against half; pair j owns maps j and j + A/2, and a value of 2D
that joins the value heads of both (Ye et al., 2024, "Differential Transformer", equation 1):

    weights_a = softmax(q_a kᵀ · scale)
    output_j  = (weights_j − λ · weights_{j + A/2}) [v_j, v_{j + A/2}]

A query that may attend to no key gives 0, in every implementation and dtype. Maps are computed and subtracted in
float32.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from itertools import pairwise

import jax
import jax.numpy as jnp
from jax import Array, lax

from longspan.errors import InputError
from longspan.ops.dispatch import Dispatcher
from longspan.ops.flax.attention import drop_weights
from longspan.ops.patterns import num_blocks
from longspan.shapes import check_shape

#: R; blocks of this size keep the maps of a block in the caches of a CPU, and products large
BLOCK_ROWS = 128
#: parts of the queries, each of which reads no key behind it, by the fewest blocks: two parts save a quarter of the
#: work, four three eighths, and each takes as long to compile as all
_PARTS = {64: 4, 8: 2}


def _why_not_chunked(output_weights: bool) -> str | None:
    return "it never holds the attention weights that were asked for" if output_weights else None


#: "chunked" takes a few queries at a time; "eager" is the definition. The request is whether the maps are returned
IMPLEMENTATIONS: Dispatcher[bool] = Dispatcher(
    "differential attention", {"chunked": _why_not_chunked, "eager": lambda _: None}
)


@dataclass(frozen=True)
class DifferentialAttention:
    """Result of `differential_attention`.

    Attributes:
        output: (B, S, A/2, 2D).
        weights: The softmax maps before the subtraction, after dropout, (B, A, S, T); None unless asked for.
        differential_weights: weights_j − λ · weights_{j + A/2}, (B, A/2, S, T); None unless asked for.
    """

    output: Array
    weights: Array | None = None
    differential_weights: Array | None = None


def differential_attention(
    query: Array,
    key: Array,
    value: Array,
    lam: Array,
    *,
    implementation: str = "auto",
    position: Array | None = None,
    key_mask: Array | None = None,
    segment_ids: Array | None = None,
    scale: float | None = None,
    dropout: float = 0.0,
    dropout_rng: Array | None = None,
    output_weights: bool = False,
) -> DifferentialAttention:
    """Causal differential attention.

    Args:
        query: (B, S, A, D).
        key: (B, T, K, D); K divides A. Never repeated in memory.
        value: (B, T, K, D).
        lam: λ, a 0-d float32 array.
        implementation: `"auto"`, `"chunked"` or `"eager"`.
        position: Place of each query among the keys, (S,): query i sees keys 0…position[i]. Default: the queries are
            the last S keys.
        key_mask: (B, T), True = attend; hides padding.
        segment_ids: (B, T) integers; a query sees only keys of its own segment (packed documents).
        scale: Factor of the scores; default 1/√D.
        dropout: Probability with which an entry of a map is dropped; one draw serves both halves of the value.
        dropout_rng: Random key of the dropout; needed if `dropout` is positive.
        output_weights: Return the maps as well; only `"eager"` holds them.

    Returns:
        The output and, if asked for, the maps.

    Raises:
        InputError: shapes disagree, A is odd, K does not divide A, or the implementation cannot serve.
    """
    _check(query, key, value, position, key_mask, segment_ids)
    chosen = IMPLEMENTATIONS.choose(implementation, output_weights, tracing=isinstance(query, jax.core.Tracer))
    query = query * (1.0 / math.sqrt(query.shape[-1]) if scale is None else scale)
    length, num_keys = query.shape[1], key.shape[1]
    shared = _Shared(lam, key_mask, segment_ids, dropout)
    if chosen == "eager":
        places = num_keys - length + jnp.arange(length) if position is None else position
        return _attend(query, places, dropout_rng, key, value, shared)
    if position is not None:
        return DifferentialAttention(_in_blocks(query, position, dropout_rng, key, value, shared))
    outputs = []
    for number, (start, stop) in enumerate(_parts(length)):
        end = num_keys - length + stop
        rng = None if dropout_rng is None else jax.random.fold_in(dropout_rng, number)
        places = num_keys - length + jnp.arange(start, stop)
        part = shared.up_to(end)
        outputs.append(_in_blocks(query[:, start:stop], places, rng, key[:, :end], value[:, :end], part))
    return DifferentialAttention(outputs[0] if len(outputs) == 1 else jnp.concatenate(outputs, axis=1))


@dataclass(frozen=True)
class _Shared:
    """What all blocks share: λ, what hides keys (B, T), and the rate of dropout."""

    lam: Array
    key_mask: Array | None
    segment_ids: Array | None
    dropout: float

    def up_to(self, end: int) -> _Shared:
        """For the first `end` keys."""
        key_mask, segment_ids = (None if mask is None else mask[:, :end] for mask in (self.key_mask, self.segment_ids))
        return replace(self, key_mask=key_mask, segment_ids=segment_ids)

    def visible(self, position: Array, num_keys: int) -> Array:
        """Which keys the queries at these places (S,) may see: boolean, (1 or B, 1, S, T)."""
        visible = (jnp.arange(num_keys) <= position[:, None])[None, None]
        if self.key_mask is not None:
            visible = visible & self.key_mask[:, None, None, :]
        if self.segment_ids is not None:
            own = self.segment_ids[:, position]
            visible = visible & (own[:, None, :, None] == self.segment_ids[:, None, None, :])
        return visible


def _parts(length: int) -> list[tuple[int, int]]:
    """Cut many queries into parts, at whole blocks; a symbolic length of `jax.export` stays in one part."""
    count = 1
    if isinstance(length, int):
        count = next((count for blocks, count in _PARTS.items() if length >= blocks * BLOCK_ROWS), 1)
    ends = [length * number // (count * BLOCK_ROWS) * BLOCK_ROWS for number in range(1, count)]
    return list(pairwise([0, *ends, length]))


def _in_blocks(
    query: Array, position: Array, dropout_rng: Array | None, key: Array, value: Array, shared: _Shared
) -> Array:
    """Attend R queries at a time. The backward pass computes a block's maps again: both hold the maps of one."""
    batch, length = query.shape[:2]
    if isinstance(length, int) and length <= BLOCK_ROWS:
        return _attend(query, position, dropout_rng, key, value, shared).output
    count = num_blocks(length, BLOCK_ROWS)
    missing = count * BLOCK_ROWS - length
    query = jnp.pad(query, ((0, 0), (0, missing), (0, 0), (0, 0)))
    blocks = query.reshape(batch, count, BLOCK_ROWS, *query.shape[2:]).swapaxes(0, 1)
    places = jnp.pad(position, (0, missing)).reshape(count, BLOCK_ROWS)

    @jax.checkpoint
    def attend(block: Array, places: Array, number: Array, key: Array, value: Array, lam: Array) -> Array:
        rng = None if dropout_rng is None else jax.random.fold_in(dropout_rng, number)
        return _attend(block, places, rng, key, value, replace(shared, lam=lam)).output

    output = lax.map(lambda block: attend(*block, key, value, shared.lam), (blocks, places, jnp.arange(count)))
    output = output.swapaxes(0, 1)
    return output.reshape(batch, count * BLOCK_ROWS, *output.shape[3:])[:, :length]


def _attend(
    query: Array, position: Array, dropout_rng: Array | None, key: Array, value: Array, shared: _Shared
) -> DifferentialAttention:
    """Differential attention by its definition, from scaled queries (B, R, A, D) at places (R,)."""
    num_maps, num_kv = query.shape[2], key.shape[2]
    keys, values = key.swapaxes(1, 2), value.swapaxes(1, 2)  # (B, K, T, D)
    scores = _product(_by_key_head(query.swapaxes(1, 2), num_kv), keys.swapaxes(2, 3))
    mask = shared.visible(position, key.shape[1])
    scores = jnp.where(mask, _by_map(scores, num_maps), jnp.finfo(jnp.float32).min)  # (B, A, R, T)
    # a factor for each row, and no division for each weight
    powers = jnp.exp(scores - lax.stop_gradient(scores.max(axis=-1, keepdims=True)))
    inverse = jnp.where(mask.any(axis=-1, keepdims=True), 1.0 / powers.sum(axis=-1, keepdims=True), 0.0)
    weights = drop_weights(powers * inverse, shared.dropout, dropout_rng)
    first, second = jnp.split(weights, 2, axis=1)
    difference = (first - shared.lam * second).astype(value.dtype)  # (B, A/2, R, T)
    return DifferentialAttention(_read(difference, values), weights.astype(value.dtype), difference)


def _read(difference: Array, values: Array) -> Array:
    """(B, R, A/2, 2D) of maps (B, A/2, R, T), each of which reads two value heads (B, K, T, D), half against half."""
    num_pairs, num_kv = difference.shape[1], values.shape[1]
    if num_kv % 2 == 0:
        joined = jnp.concatenate(jnp.split(values, 2, axis=1), axis=-1)  # (B, K/2, T, 2D)
        output = _by_map(_product(_by_key_head(difference, num_kv // 2), joined), num_pairs)
    else:
        both = _by_key_head(jnp.concatenate((difference, difference), axis=1), num_kv)
        halves = jnp.split(_by_map(_product(both, values), 2 * num_pairs), 2, axis=1)  # (B, A/2, R, D)
        output = jnp.concatenate(halves, axis=-1)
    return output.swapaxes(1, 2).astype(values.dtype)


def _product(left: Array, right: Array) -> Array:
    """(B, K, M, N), (B, K, N, P) -> (B, K, M, P), summed in float32."""
    return jnp.matmul(left, right, preferred_element_type=jnp.float32)


def _by_key_head(x: Array, num_kv: int) -> Array:
    """(B, A, R, ...) -> (B, K, G·R, ...): the rows that meet one key head, next to each other."""
    return x.reshape(x.shape[0], num_kv, x.shape[1] // num_kv * x.shape[2], *x.shape[3:])


def _by_map(x: Array, num_maps: int) -> Array:
    """(B, K, G·R, ...) -> (B, A, R, ...)."""
    return x.reshape(x.shape[0], num_maps, x.shape[2] * x.shape[1] // num_maps, *x.shape[3:])


def _check(
    query: Array,
    key: Array,
    value: Array,
    position: Array | None,
    key_mask: Array | None,
    segment_ids: Array | None,
) -> None:
    batch, num_queries, num_maps, head_dim = query.shape
    num_keys, num_kv = key.shape[1:3]
    if num_maps % 2 or num_maps % num_kv:
        raise InputError(
            "differential attention needs an even number of maps that the key/value heads divide. "
            f"Received: {num_maps} maps, {num_kv} key/value heads"
        )
    if key.shape != value.shape or key.shape[0] != batch or key.shape[3] != head_dim:
        raise InputError(
            "query (B, S, A, D), key (B, T, K, D) and value (B, T, K, D) must agree in B, T, K and D. "
            f"Received: {query.shape}, {key.shape}, {value.shape}"
        )
    check_shape(position, (num_queries,), name="position", axes="(S,)")
    for name, array in (("key_mask", key_mask), ("segment_ids", segment_ids)):
        check_shape(array, (batch, num_keys), name=name, axes="(B, T)")
