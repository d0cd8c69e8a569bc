"""Differential attention in Keras: the difference of two softmax maps, over causal, padded or packed sequences.

Axes: B batch, A softmax maps ("heads" of the configuration), K key/value heads, G = A/K maps of a key head, S queries,
T keys, R queries of a block, D head size. B, S and T may be known only when a graph runs.

Map a reads key head a // G. The maps are paired half against half; pair j owns maps j and j + A/2, and a value of 2D
that joins the value heads of both (Ye et al., 2024, "Differential Transformer", equation 1):

    weights_a = softmax(q_a kᵀ · scale)
    output_j  = (weights_j − λ · weights_{j + A/2}) [v_j, v_{j + A/2}]

A query that may attend to no key gives 0, in every implementation and dtype. Maps are computed and subtracted in
float32.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import keras
from keras import ops

from longspan.errors import InputError
from longspan.ops.dispatch import Dispatcher
from longspan.ops.keras import Tensor
from longspan.ops.keras.attention import mask_to_bias, softmax
from longspan.ops.keras.scan import scan
from longspan.shapes import differ

#: R; blocks of this size keep the maps of a block in the caches of a CPU, and products large
BLOCK_ROWS = 128
#: from this many blocks on, where shapes are fixed, the first half of the queries reads the first half of the keys only
_MANY_BLOCKS = 8


def _why_not_chunked(output_weights: bool) -> str | None:
    return "it never holds the attention weights that were asked for" if output_weights else None


#: "chunked" takes a few queries at a time; "eager" is the definition. The request is whether the maps are returned
IMPLEMENTATIONS: Dispatcher[bool] = Dispatcher(
    "differential attention", {"chunked": _why_not_chunked, "eager": lambda _: None}
)


class Dropout(NamedTuple):
    """Dropping of entries of the maps; one draw serves both halves of the value.

    Attributes:
        rate: Probability with which an entry is dropped.
        seed: Where random numbers come from.
    """

    rate: float
    seed: keras.random.SeedGenerator


class DifferentialAttention(NamedTuple):
    """Result of `differential_attention`.

    Attributes:
        output: (B, S, A/2, 2D).
        weights: The softmax maps before the subtraction, after dropout, (B, A, S, T); None unless asked for.
        differential_weights: weights_j − λ · weights_{j + A/2}, (B, A/2, S, T); None unless asked for.
    """

    output: Tensor
    weights: Tensor | None = None
    differential_weights: Tensor | None = None


def differential_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    lam: Tensor,
    *,
    implementation: str = "auto",
    position: Tensor | None = None,
    key_mask: Tensor | None = None,
    segment_ids: Tensor | None = None,
    scale: float | None = None,
    dropout: Dropout | None = None,
    output_weights: bool = False,
    dynamic_shapes: bool = False,
) -> DifferentialAttention:
    """Causal differential attention.

    Args:
        query: (B, A, S, D).
        key: (B, K, T, D); K divides A. Never repeated in memory.
        value: (B, K, T, D).
        lam: λ, a 0-d float32 tensor.
        implementation: `"auto"`, `"chunked"` or `"eager"`.
        position: Place of each query among the keys, (S,): query i sees keys 0…position[i]. Default: the queries are
            the last S keys.
        key_mask: (B, T), True = attend; hides padding.
        segment_ids: (B, T) integers; a query sees only keys of its own segment (packed documents).
        scale: Factor of the scores; default 1/√D.
        dropout: Entries of the maps to drop; None for none.
        output_weights: Return the maps as well; only `"eager"` holds them.
        dynamic_shapes: Shapes may depend on values: a block then reads only the keys that it can see.

    Returns:
        The output and, if asked for, the maps.

    Raises:
        InputError: shapes disagree, A is odd, K does not divide A, or the implementation cannot serve.
    """
    _check(query, key, value, position, key_mask, segment_ids)
    chosen = IMPLEMENTATIONS.choose(implementation, output_weights)
    query = query * ops.cast(1.0 / math.sqrt(query.shape[-1]) if scale is None else scale, query.dtype)
    length, num_keys = ops.shape(query)[2], ops.shape(key)[2]
    drawn = None if dropout is None else _Drawn(dropout.rate, dropout.seed.next())
    shared = _Shared(key_mask, segment_ids, drawn, dynamic_shapes)
    places = num_keys - length + ops.arange(length, dtype="int32") if position is None else ops.cast(position, "int32")
    if chosen == "eager" or (isinstance(length, int) and length <= BLOCK_ROWS):
        context, weights, difference = _attend(query, places, key, value, lam, shared)
        if not output_weights:
            return DifferentialAttention(_join_pairs(context))
        return DifferentialAttention(_join_pairs(context), ops.cast(weights, value.dtype), difference)
    contexts = []
    for start, stop in _parts(length) if position is None and not dynamic_shapes else [(0, length)]:
        part = query[:, :, start:stop], places[start:stop]
        end = num_keys - length + stop
        contexts.append(_in_blocks(*part, key[:, :, :end], value[:, :, :end], lam, shared.up_to(end)))
    return DifferentialAttention(_join_pairs(contexts[0] if len(contexts) == 1 else ops.concatenate(contexts, axis=2)))


class _KnownSeed(keras.random.SeedGenerator):
    """A seed that gives the same numbers whenever it is asked: the backward pass drops what the forward pass did."""

    def __init__(self, state: Tensor) -> None:
        self.known = state

    def next(self, ordered: bool = True) -> Tensor:
        """The state."""
        return self.known


@dataclass(frozen=True)
class _Drawn:
    """The dropout of one call: its rate and the state of its random numbers."""

    rate: float
    state: Tensor

    def factors(self, shape: Any, place: Tensor) -> Tensor:
        """0 for what is dropped by the block whose first query stands at `place`, 1/(1 − rate) for the rest."""
        offset = ops.stack([ops.cast(place, self.state.dtype), ops.zeros((), self.state.dtype)])
        kept = keras.random.uniform(shape, dtype="float32", seed=_KnownSeed(self.state + offset)) >= self.rate
        return ops.cast(kept, "float32") / (1.0 - self.rate)


@dataclass(frozen=True)
class _Shared:
    """What all blocks share: what hides keys (B, T), dropout, and whether shapes may depend on values."""

    key_mask: Tensor | None
    segment_ids: Tensor | None
    drawn: _Drawn | None
    dynamic_shapes: bool

    def up_to(self, end: Any) -> _Shared:
        """For the first `end` keys; segments are those of the queries as well, and stay."""
        key_mask = None if self.key_mask is None else self.key_mask[:, :end]
        return _Shared(key_mask, self.segment_ids, self.drawn, self.dynamic_shapes)

    def visible(self, position: Tensor, num_keys: Any) -> Tensor:
        """Which keys the queries at these places (S,) may see: boolean, (1 or B, 1, S, T)."""
        visible = (ops.arange(num_keys, dtype="int32") <= position[:, None])[None, None]
        if self.key_mask is not None:
            visible = ops.logical_and(visible, self.key_mask[:, None, None, :])
        if self.segment_ids is not None:
            own = ops.take(self.segment_ids, position, axis=1)
            same = ops.equal(own[:, None, :, None], self.segment_ids[:, None, None, :num_keys])
            visible = ops.logical_and(visible, same)
        return visible

    def end(self, position: Tensor, num_keys: Any) -> Any:
        """How many keys these queries need at most."""
        if not self.dynamic_shapes:
            return num_keys
        return ops.max(position) + 1


def _parts(length: Any) -> list[tuple[int, int]]:
    """Cut many queries in two, at a whole block; an unknown length stays in one part."""
    if not isinstance(length, int) or length < _MANY_BLOCKS * BLOCK_ROWS:
        return [(0, length)]
    middle = length // (2 * BLOCK_ROWS) * BLOCK_ROWS
    return [(0, middle), (middle, length)]


def _in_blocks(query: Tensor, position: Tensor, key: Tensor, value: Tensor, lam: Tensor, shared: _Shared) -> Tensor:
    """Attend R queries at a time, (B, A, S, D). The backward pass computes a block's maps again: both hold one's."""
    length = ops.shape(query)[2]
    rows = ops.minimum(BLOCK_ROWS, length) if shared.dynamic_shapes else BLOCK_ROWS
    places = _cut(position[None, None, :, None], rows)[:, 0, 0, :, 0]

    def attend(query: Tensor, key: Tensor, value: Tensor, lam: Tensor) -> tuple[Tensor, Callable[..., Any]]:
        def forward(carry: Any, block: tuple[Tensor, ...]) -> tuple[Any, Tensor]:
            queries, position = block
            end = shared.end(position, ops.shape(key)[2])
            keys, values = key[:, :, :end], value[:, :, :end]
            return carry, _attend(queries, position, keys, values, lam, shared.up_to(end))[0]

        def backward(*gradients: Tensor, upstream: Tensor | None = None) -> tuple[Tensor, ...]:
            gradient = gradients[0] if upstream is None else upstream
            return _gradients(blocks, places, _cut(gradient, rows), key, value, lam, shared, length)

        blocks = _cut(query, rows)
        _, contexts = scan(forward, ops.zeros(()), (blocks, places))
        return _uncut(contexts, length), backward

    return ops.custom_gradient(attend)(query, key, value, lam)


def _cut(x: Tensor, rows: Any) -> Tensor:
    """(B, A, S, D) -> (N, B, A, R, D), padded with zeros."""
    batch, heads, length, size = ops.shape(x)
    count = -(-length // rows)
    x = ops.pad(x, ((0, 0), (0, 0), (0, count * rows - length), (0, 0)))
    return ops.transpose(ops.reshape(x, (batch, heads, count, rows, size)), (2, 0, 1, 3, 4))


def _uncut(blocks: Tensor, length: Any) -> Tensor:
    """(N, B, A, R, D) -> (B, A, S, D)."""
    count, batch, heads, rows, size = ops.shape(blocks)
    return ops.reshape(ops.transpose(blocks, (1, 2, 0, 3, 4)), (batch, heads, count * rows, size))[:, :, :length]


def _attend(
    query: Tensor, position: Tensor, key: Tensor, value: Tensor, lam: Tensor, shared: _Shared
) -> tuple[Tensor, Tensor, Tensor]:
    """Differential attention by its definition, from scaled queries (B, A, R, D) at places (R,).

    Returns:
        What each map contributes, (B, A, R, D); the maps, float32 (B, A, R, T); their differences, (B, A/2, R, T).
    """
    weights = _maps(query, position, key, shared)
    if shared.drawn is not None:
        weights = weights * shared.drawn.factors(ops.shape(weights), position[0])
    first, second = ops.split(weights, 2, axis=1)
    difference = ops.cast(first - lam * second, value.dtype)
    return _weigh(difference, value), weights, difference


def _maps(query: Tensor, position: Tensor, key: Tensor, shared: _Shared) -> Tensor:
    """The softmax maps of scaled queries (B, A, R, D) at places (R,), float32 (B, A, R, T)."""
    scores = ops.matmul(_by_key_head(query, key.shape[1]), ops.transpose(key, (0, 1, 3, 2)))
    mask = shared.visible(position, ops.shape(key)[2])
    maps = softmax(_by_map(ops.cast(scores, "float32"), query.shape[1]) + mask_to_bias(mask))
    if shared.key_mask is None:  # a query sees itself
        return maps
    return ops.where(ops.any(mask, axis=-1, keepdims=True), maps, 0.0)


def _weigh(difference: Tensor, value: Tensor) -> Tensor:
    """Maps j and j + A/2 each read their own value head, with the same difference: (B, A/2, R, T) -> (B, A, R, D)."""
    pairs, num_kv = difference.shape[1], value.shape[1]
    if num_kv % 2 or difference.shape[2] == 1:
        return _by_map(ops.matmul(_by_key_head(_twice(difference), num_kv), value), 2 * pairs)
    both = ops.concatenate(ops.split(value, 2, axis=1), axis=-1)  # (B, K/2, T, 2D): one product reads the maps once
    context = _by_map(ops.matmul(_by_key_head(difference, num_kv // 2), both), pairs)
    return ops.concatenate(ops.split(context, 2, axis=-1), axis=1)


def _gradients(
    queries: Tensor, places: Tensor, gradients: Tensor, key: Tensor, value: Tensor, lam: Tensor, shared: _Shared,
    length: Any,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    """Gradients by query, key, value and λ, block by block, from queries and gradients (N, B, A, R, D)."""

    def step(carry: Any, block: tuple[Tensor, ...]) -> tuple[Any, Tensor]:
        query, gradient, position = block
        num_keys = ops.shape(key)[2]
        end = shared.end(position, num_keys)
        by_query, *others = _gradients_of_block(
            query, position, gradient, key[:, :, :end], value[:, :, :end], lam, shared.up_to(end)
        )
        if shared.dynamic_shapes:
            behind = ((0, 0), (0, 0), (0, num_keys - end), (0, 0))
            others[:2] = (ops.pad(x, behind) for x in others[:2])
        return tuple(old + new for old, new in zip(carry, others, strict=True)), by_query

    sums = (*(ops.zeros(ops.shape(x), "float32") for x in (key, value)), ops.zeros((), "float32"))
    (by_key, by_value, by_lam), by_query = scan(step, sums, (queries, gradients, places))
    by_key, by_value = ops.cast(by_key, key.dtype), ops.cast(by_value, value.dtype)
    return _uncut(by_query, length), by_key, by_value, ops.cast(by_lam, lam.dtype)


def _gradients_of_block(
    query: Tensor, position: Tensor, gradient: Tensor, key: Tensor, value: Tensor, lam: Tensor, shared: _Shared
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Gradients of one block by query, in its dtype, and by key, value and λ, in float32.

    With W_j = P_j − λ P_{j+A/2} and O_j = W_j V_j, where P after dropout is P' = P ∘ F:
        dV_j = W_jᵀ dO_j,  dW_j = dO_j V_jᵀ,  dP'_j = dW_j,  dP'_{j+A/2} = −λ dW_j,  dλ = −Σ P'_{j+A/2} ∘ dW_j,
        dP = dP' ∘ F,  dS = P ∘ (dP − rowsum(P ∘ dP)),  dq = dS k,  dk = dSᵀ q.
    """
    num_maps, num_kv = query.shape[1], key.shape[1]
    weights = _maps(query, position, key, shared)
    factors = None if shared.drawn is None else shared.drawn.factors(ops.shape(weights), position[0])
    first, second = ops.split(weights if factors is None else weights * factors, 2, axis=1)
    difference = ops.cast(first - lam * second, value.dtype)
    rows = _by_key_head(gradient, num_kv)
    by_value = ops.matmul(_transposed(_by_key_head(_twice(difference), num_kv)), rows)
    both = _by_map(ops.cast(ops.matmul(rows, _transposed(value)), "float32"), num_maps)
    by_difference = ops.add(*ops.split(both, 2, axis=1))
    by_maps = ops.concatenate((by_difference, -lam * by_difference), axis=1)
    by_maps = by_maps if factors is None else by_maps * factors
    by_scores = weights * (by_maps - ops.sum(weights * by_maps, axis=-1, keepdims=True))
    by_scores = _by_key_head(ops.cast(by_scores, key.dtype), num_kv)
    by_key = ops.matmul(_transposed(by_scores), _by_key_head(query, num_kv))
    by_query = _by_map(ops.matmul(by_scores, key), num_maps)
    by_lam = -ops.sum(second * by_difference)
    return by_query, ops.cast(by_key, "float32"), ops.cast(by_value, "float32"), by_lam


def _twice(x: Tensor) -> Tensor:
    return ops.concatenate((x, x), axis=1)


def _transposed(x: Tensor) -> Tensor:
    return ops.transpose(x, (0, 1, 3, 2))


def _by_key_head(x: Tensor, num_kv: int) -> Tensor:
    """(B, A, R, ...) -> (B, K, G·R, ...): the rows that meet one key head, next to each other."""
    batch, heads, rows, size = ops.shape(x)
    return ops.reshape(x, (batch, num_kv, heads // num_kv * rows, size))


def _by_map(x: Tensor, num_maps: int) -> Tensor:
    """(B, K, G·R, ...) -> (B, A, R, ...)."""
    batch, num_kv, rows, size = ops.shape(x)
    return ops.reshape(x, (batch, num_maps, rows * num_kv // num_maps, size))


def _join_pairs(context: Tensor) -> Tensor:
    """(B, A, S, D) -> (B, S, A/2, 2D): what maps j and j + A/2 contribute, side by side."""
    first, second = ops.split(context, 2, axis=1)
    return ops.transpose(ops.concatenate((first, second), axis=-1), (0, 2, 1, 3))


def _check(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    position: Tensor | None,
    key_mask: Tensor | None,
    segment_ids: Tensor | None,
) -> None:
    batch, num_maps, num_queries, head_dim = query.shape
    num_kv, num_keys = key.shape[1:3]
    if num_maps % 2 or num_maps % num_kv:
        raise InputError(
            "differential attention needs an even number of maps that the key/value heads divide. "
            f"Received: {num_maps} maps, {num_kv} key/value heads"
        )
    if differ(value, key.shape) or differ(key, (batch, num_kv, num_keys, head_dim)):
        raise InputError(
            "query (B, A, S, D), key (B, K, T, D) and value (B, K, T, D) must agree in B, K, T and D. "
            f"Received: {tuple(query.shape)}, {tuple(key.shape)}, {tuple(value.shape)}"
        )
    for name, tensor, expected, axes in (
        ("position", position, (num_queries,), "(S,)"),
        ("key_mask", key_mask, (batch, num_keys), "(B, T)"),
        ("segment_ids", segment_ids, (batch, num_keys), "(B, T)"),
    ):
        if tensor is not None and differ(tensor, expected):
            raise InputError(f"{name} must have the shape {axes} = {expected}. Received: {tuple(tensor.shape)}")
