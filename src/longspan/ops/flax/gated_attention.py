r"""Single-head attention of MEGA in JAX: softmax, Laplace or squared-ReLU weights and a relative bias.

Axes: R rows (batch × chunks), T queries, S keys, Z width of queries and keys, V width of values, C queries of a block.

    weights = f(q kᵀ / τ + b),  output = weights v            (Ma et al., arXiv 2209.10655, eq. 16)

with τ = √Z for the softmax, and for the element-wise f the number of keys that the query sees. A key that a query may
not see has the weight 0; a query that sees no key gives 0. Scores, bias and weights are in float32.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array, lax

from longspan.errors import InputError
from longspan.ops.dispatch import Dispatcher
from longspan.ops.flax.attention import drop_weights
from longspan.ops.patterns import num_blocks

ATTENTION_ACTIVATIONS = ("softmax", "laplace", "relu2")
#: C; blocks of this size keep the scores of a block small, and products large
BLOCK_ROWS = 128


def _tiled_why_not(return_weights: bool) -> str | None:
    return "it keeps no attention weights" if return_weights else None


#: "tiled" takes a few queries at a time; "eager" is the definition. The request is whether the weights are returned
GATED_ATTENTION: Dispatcher[bool] = Dispatcher(
    "gated attention", {"tiled": _tiled_why_not, "eager": lambda return_weights: None}
)


class RotaryBias(NamedTuple):
    """b_ij = ⟨R_i α, R_j β⟩: two learned vectors, turned by the angles of each position.

    Attributes:
        alpha: α, (1, Z).
        beta: β, (1, Z).
    """

    alpha: Array
    beta: Array

    def matrix(self, queries: Array, keys: Array) -> Array:
        """The bias between positions (T,) and (S,): (T, S)."""
        return jnp.matmul(rotate(self.alpha, queries), rotate(self.beta, keys).T, precision=lax.Precision.HIGHEST)


class ToeplitzBias(NamedTuple):
    """b_ij = weight[centre + j − i].

    Attributes:
        weight: One number per distance, (2P − 1,).
        centre: Index of distance 0.
    """

    weight: Array
    centre: int

    def matrix(self, queries: Array, keys: Array) -> Array:
        """The bias between positions (T,) and (S,): (T, S)."""
        # what lies beyond the table is beyond the input too: padding, or the unused end of a cache
        place = jnp.clip(self.centre + keys - queries[:, None], 0, self.weight.shape[0] - 1)
        return self.weight.astype(jnp.float32)[place]


def rotate(vector: Array, positions: Array) -> Array:
    """R_i v for every position i: first and second half of v are the two coordinates of the pairs.

    The pair m turns by i · 10000^(−2m/Z).

    Args:
        vector: v, (1, Z).
        positions: (P,).

    Returns:
        (P, Z) float32.
    """
    half = vector.shape[-1] // 2
    frequency = jnp.exp(jnp.arange(half, dtype=jnp.float32) * (-math.log(10000.0) / half))
    angle = positions[:, None].astype(jnp.float32) * frequency
    cos, sin = jnp.cos(angle), jnp.sin(angle)
    first, second = jnp.split(vector.astype(jnp.float32), 2, axis=-1)
    return jnp.concatenate([first * cos - second * sin, second * cos + first * sin], axis=-1)


class Queries(NamedTuple):
    """What is cut into blocks.

    Attributes:
        states: (R, T, Z).
        positions: (T,).
        chunks: Chunk of each query, (R, T), or None.
    """

    states: Array
    positions: Array
    chunks: Array | None


class Keys(NamedTuple):
    """What all blocks read.

    Attributes:
        states: (R, S, Z).
        values: (R, S, V).
        positions: (S,).
        chunks: Chunk of each key, (R, S), or None.
        mask: (R, S), True = a key that may be seen, or None.
        bias: Relative bias.
    """

    states: Array
    values: Array
    positions: Array
    chunks: Array | None
    mask: Array | None
    bias: RotaryBias | ToeplitzBias


def gated_attention(
    queries: Queries,
    keys: Keys,
    *,
    activation: str,
    causal: bool = False,
    dropout: float = 0.0,
    dropout_rng: Array | None = None,
    implementation: str = "auto",
    return_weights: bool = False,
) -> tuple[Array, Array | None]:
    """Attention within each row. A query sees the keys of its own chunk, where chunks are given.

    Args:
        queries: See `Queries`.
        keys: See `Keys`.
        activation: `"softmax"`, `"laplace"` (Gaussian CDF of mean √½ and deviation √(1/4π)) or `"relu2"`.
        causal: A query sees the keys at its own and earlier positions only.
        dropout: Probability with which a weight is dropped.
        dropout_rng: Random key of the dropout; needed if `dropout` is positive.
        implementation: `"eager"` holds all scores at once and can return the weights; `"tiled"` those of 128 queries of
            each row, in the backward pass too; `"auto"` takes the second unless the weights are returned.
        return_weights: Return the weights, before dropout.

    Returns:
        Output (R, T, V) and the weights (R, T, S), or None.

    Raises:
        InputError: the activation or implementation is unknown, or the implementation cannot serve.
    """
    if activation not in ATTENTION_ACTIVATIONS:
        known = ", ".join(ATTENTION_ACTIVATIONS)
        raise InputError(f"activation must be one of {known}. Received: {activation!r}")
    tracing = isinstance(queries.states, jax.core.Tracer)
    chosen = GATED_ATTENTION.choose(implementation, return_weights, tracing=tracing)

    def attend(queries: Queries, keys: Keys, rng: Array | None) -> tuple[Array, Array]:
        weights = _weights(queries, keys, activation, causal)
        dropped = drop_weights(weights, dropout, rng).astype(keys.values.dtype)
        output = jnp.matmul(dropped, keys.values, preferred_element_type=jnp.float32)
        return output.astype(keys.values.dtype), weights.astype(keys.values.dtype)

    rows, length, _ = queries.states.shape
    if chosen == "eager" or (isinstance(length, int) and length <= BLOCK_ROWS):
        output, weights = attend(queries, keys, dropout_rng)
        return output, weights if return_weights else None
    count = num_blocks(length, BLOCK_ROWS)

    def cut(array: Array, axis: int) -> Array:
        """Blocks of queries, first of all axes; what is missing in the last one is zeros."""
        padding = [(0, 0)] * array.ndim
        padding[axis] = (0, count * BLOCK_ROWS - length)
        padded = jnp.pad(array, padding)
        blocks = padded.reshape(*array.shape[:axis], count, BLOCK_ROWS, *array.shape[axis + 1 :])
        return jnp.moveaxis(blocks, axis, 0)

    chunks = None if queries.chunks is None else cut(queries.chunks, 1)
    blocks = Queries(cut(queries.states, 1), cut(queries.positions, 0), chunks)

    @jax.checkpoint
    def attend_block(block: Queries, number: Array, keys: Keys) -> Array:
        rng = None if dropout_rng is None else jax.random.fold_in(dropout_rng, number)
        return attend(block, keys, rng)[0]

    output = lax.map(lambda item: attend_block(*item, keys), (blocks, jnp.arange(count)))  # (count, R, C, V)
    return output.swapaxes(0, 1).reshape(rows, count * BLOCK_ROWS, -1)[:, :length], None


def _weights(queries: Queries, keys: Keys, activation: str, causal: bool) -> Array:
    """(R, T, S) in float32."""
    visible = jnp.ones((1, 1, 1), bool) if keys.mask is None else keys.mask[:, None]
    if causal:
        visible = visible & (keys.positions <= queries.positions[:, None])
    if queries.chunks is not None and keys.chunks is not None:
        visible = visible & (queries.chunks[:, :, None] == keys.chunks[:, None])
    scores = jnp.matmul(queries.states, keys.states.swapaxes(1, 2), preferred_element_type=jnp.float32)
    if activation == "softmax":
        scale: Array | float = queries.states.shape[-1] ** -0.5
    else:
        seen = jnp.broadcast_to(visible, (*visible.shape[:2], scores.shape[-1])).sum(axis=-1, keepdims=True)
        scale = 1.0 / jnp.maximum(seen, 1).astype(jnp.float32)
    scores = scores * scale + keys.bias.matrix(queries.positions, keys.positions)
    if activation == "softmax":
        weights = jax.nn.softmax(jnp.where(visible, scores, jnp.finfo(jnp.float32).min), axis=-1)
        return jnp.where(visible.any(axis=-1, keepdims=True), weights, 0.0)
    if activation == "laplace":
        weights = 0.5 + 0.5 * lax.erf((scores - math.sqrt(0.5)) * math.sqrt(2.0 * math.pi))
    else:
        weights = jnp.square(jax.nn.relu(scores))
    return jnp.where(visible, weights, 0.0)
