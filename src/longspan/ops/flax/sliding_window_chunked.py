"""Sliding-window attention as a loop over blocks of queries that keeps no weights.

The backward pass computes them again, so that both passes need memory for one block besides tensors of the size of the
inputs. Axes as in `sliding_window`; N blocks of R queries, span C = R + left + right, U positions as in
`sliding_window_bias`. X heads of all B·H are taken at once: one on a CPU, where plain products are several times as
fast as batches of them (measured at 4096 tokens, 12 heads of 64, windows of 255: 65 against 101 ms), all elsewhere.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from flax import struct
from jax import Array, lax

from longspan.ops.flax import sliding_window_bias as biases
from longspan.ops.flax.sliding_window_bias import ExtraKeys
from longspan.ops.patterns import num_blocks

CHUNK_ROWS = 128


@dataclass(frozen=True)
class _Plan:
    """The settings of one call."""

    batch: int
    heads: int
    blocks: int
    rows: int
    scale: float
    dropout: float
    positions: int
    heads_at_once: int

    @property
    def steps(self) -> int:
        """Rounds of the loop."""
        return self.batch * self.heads // self.heads_at_once * self.blocks


@struct.dataclass
class _Operands:
    """The arrays of one call, head first. Masks, positions and the random key have no gradient.

    Attributes:
        query: (BH, NR, D).
        key: (BH, NR + C - R, D), with padding around.
        value: (BH, NR + C - R, E).
        band: (H or 1, R, C).
        key_bias: Mask of the keys as a bias, (B, NR + C - R).
        extra_key: (BH, G, D) or None, and likewise all that concern extra keys.
        extra_value: (BH, G, E).
        table: Padded biases of the extra keys, (H, 2G + U - 2).
        extra_bias: Mask of the extra keys as a bias, (B, G).
        position: (B, NR).
        dropout_rng: Random key.
    """

    query: Array
    key: Array
    value: Array
    band: Array
    key_bias: Array
    extra_key: Array | None = None
    extra_value: Array | None = None
    table: Array | None = None
    extra_bias: Array | None = None
    position: Array | None = None
    dropout_rng: Array | None = None


def chunked_attention(
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
) -> tuple[Array, None]:
    """Output (B, S, H, E), and None for the weights; see `sliding_window_attention`."""
    batch, length, heads, _ = query.shape
    rows = max(min(CHUNK_ROWS, length), 1) if isinstance(length, int) else CHUNK_ROWS
    blocks = num_blocks(length, rows)
    missing = blocks * rows - length
    around = (left, right + missing)
    positions = 0 if extra is None else biases.num_positions(rows, extra.step, extra.key.shape[1])
    plan = _Plan(batch, heads, blocks, rows, scale, dropout, positions, _heads_at_once(batch, heads))
    operands = _Operands(
        query=_heads_first(query, (0, missing)),
        key=_heads_first(key, around),
        value=_heads_first(value, around),
        band=biases.band_bias(bias, rows=rows, left=left, right=right),
        key_bias=biases.key_bias(mask, batch=batch, length=length, padding=around),
        dropout_rng=dropout_rng if dropout > 0.0 else None,
        **({} if extra is None else _extra_operands(extra, positions, missing)),
    )
    output = _attend(plan, operands).reshape(batch, heads, blocks * rows, -1)[:, :, :length]
    return output.swapaxes(1, 2).astype(value.dtype), None


def _extra_operands(extra: ExtraKeys, positions: int, missing: int) -> dict[str, Array]:
    """The fields of `_Operands` that concern extra keys."""
    fields = {"extra_key": _heads_first(extra.key, (0, 0)), "extra_value": _heads_first(extra.value, (0, 0))}
    if extra.mask is not None:
        fields["extra_bias"] = jnp.where(extra.mask, 0.0, biases.MASKED)
    if extra.bias is not None:
        assert extra.position is not None
        fields["table"] = biases.pad_table(extra.bias, positions)
        place = jnp.maximum(extra.position, 0)
        fields["position"] = jnp.pad(place, ((0, 0), (0, missing)), mode="edge")
    return fields


def _heads_at_once(batch: int, heads: int) -> int:
    """X."""
    return 1 if jax.default_backend() == "cpu" else batch * heads


def _heads_first(states: Array, padding: tuple[int, int]) -> Array:
    """(B, S, H, D) -> (BH, padding + S, D)."""
    states = jnp.pad(states.swapaxes(1, 2), ((0, 0), (0, 0), padding, (0, 0)))
    return states.reshape(-1, *states.shape[2:])


@partial(jax.custom_vjp, nondiff_argnums=(0,))
def _attend(plan: _Plan, operands: _Operands) -> Array:
    """(BH, NR, E), float32."""
    return _forward(plan, operands)[0]


def _forward(plan: _Plan, operands: _Operands) -> tuple[Array, Array]:
    """Output (BH, NR, E), and the logarithm of each query's sum of exponents, 0 without any key, (BH, NR)."""

    def attend(step: Array) -> tuple[Array, Array]:
        block = _Block(plan, operands, step)
        window, extra = block.scores()
        peak = window.max(axis=-1) if extra is None else jnp.maximum(window.max(axis=-1), extra.max(axis=-1))
        alive = peak > biases.NO_KEY
        exponents = jnp.exp(window - peak[..., None])
        total = exponents.sum(axis=-1)
        output = block.weigh(block.dropped(exponents), block.value)
        if extra is not None:
            exponents = jnp.exp(extra - peak[..., None])
            total = total + exponents.sum(axis=-1)
            output = output + block.weigh(block.dropped(exponents, extra=True), block.extra_value)
        output = jnp.where(alive[..., None], output / total[..., None], 0.0)
        return output, jnp.where(alive, peak + jnp.log(total), 0.0)

    output, log_sum = lax.map(attend, jnp.arange(plan.steps))
    return _join(plan, output), _join(plan, log_sum)


def _forward_saving(plan: _Plan, operands: _Operands) -> tuple[Array, tuple[_Operands, Array, Array]]:
    output, log_sum = _forward(plan, operands)
    return output, (operands, output, log_sum)


def _backward(plan: _Plan, saved: tuple[_Operands, Array, Array], gradient: Array) -> tuple[_Operands]:
    operands, output, log_sum = saved
    delta = (output * gradient).sum(axis=-1)
    wanted = ["key", "value", "extra_key", "extra_value", "table"]
    if operands.band.shape[0] == plan.heads:  # one row of all stands for no bias
        wanted.append("band")
    arrays = {name: getattr(operands, name) for name in wanted}
    sums = {name: jnp.zeros(array.shape, jnp.float32) for name, array in arrays.items() if array is not None}

    def accumulate(sums: dict[str, Array], step: Array) -> tuple[dict[str, Array], Array]:
        sums, block = dict(sums), _Block(plan, operands, step)
        window, extra = block.scores()
        given = block.of_queries(gradient)
        lse, rest = block.of_queries(log_sum)[..., None], block.of_queries(delta)[..., None]
        scores_grad = block.backward(window, lse, rest, given, block.value)
        low = given.astype(operands.value.dtype)
        sums["key"] = block.add_span(sums["key"], block.transposed(scores_grad, block.query) * plan.scale)
        sums["value"] = block.add_span(sums["value"], block.transposed(block.dropped(jnp.exp(window - lse)), low))
        if "band" in sums:
            sums["band"] = block.add_of_table(sums["band"], scores_grad)
        query_grad = block.weigh(scores_grad, block.key)
        if extra is not None:
            scores_grad = block.backward(extra, lse, rest, given, block.extra_value, extra=True)
            key_grad = block.transposed(scores_grad, block.query) * plan.scale
            sums["extra_key"] = block.add_all(sums["extra_key"], key_grad)
            weights = block.dropped(jnp.exp(extra - lse), extra=True)
            sums["extra_value"] = block.add_all(sums["extra_value"], block.transposed(weights, low))
            query_grad = query_grad + block.weigh(scores_grad, block.extra_key)
            if "table" in sums:
                sums["table"] = block.add_biases(sums["table"], scores_grad)
        return sums, query_grad * plan.scale

    sums, query_grad = lax.scan(accumulate, sums, jnp.arange(plan.steps))
    sums["query"] = _join(plan, query_grad)
    cast: dict[str, Any] = dict.fromkeys(operands.__dataclass_fields__)  # None stands for no gradient
    cast |= {name: value.astype(getattr(operands, name).dtype) for name, value in sums.items()}
    return (_Operands(**cast),)


_attend.defvjp(_forward_saving, _backward)


def _join(plan: _Plan, blocks: Array) -> Array:
    """Of all rounds, (BH/X · N, X, R, ...) -> (BH, NR, ...)."""
    groups = blocks.reshape(-1, plan.blocks, *blocks.shape[1:]).swapaxes(1, 2)
    return groups.reshape(plan.batch * plan.heads, plan.blocks * plan.rows, *blocks.shape[3:])


class _Block:
    """One round of the loop: block n of X heads.

    Args:
        plan: Settings of the call.
        operands: Its arrays.
        step: Number of the round.
    """

    def __init__(self, plan: _Plan, operands: _Operands, step: Array) -> None:
        self.plan, self.operands = plan, operands
        self.group, self.number = step // plan.blocks, step % plan.blocks
        self.step = step
        self.query = self.of_queries(operands.query)
        self.key, self.value = self._of_span(operands.key), self._of_span(operands.value)

    @property
    def extra_key(self) -> Array:
        """(X, G, D)."""
        assert self.operands.extra_key is not None
        return self._of_heads(self.operands.extra_key)

    @property
    def extra_value(self) -> Array:
        """(X, G, E)."""
        assert self.operands.extra_value is not None
        return self._of_heads(self.operands.extra_value)

    # -- taking parts of arrays -----------------------------------------------------------------------------------

    def _of_heads(self, array: Array) -> Array:
        """(BH, ...) -> (X, ...)."""
        size = self.plan.heads_at_once
        return lax.dynamic_slice_in_dim(array, self.group * size, size)

    def _of_batch(self, array: Array) -> Array:
        """(B, ...) -> (X, ...)."""
        if self.plan.heads_at_once == 1:
            return lax.dynamic_index_in_dim(array, self.group // self.plan.heads)
        return jnp.repeat(array, self.plan.heads, axis=0)

    def _of_table(self, array: Array) -> Array:
        """(H, ...) or (1, ...) -> (1, ...) or (BH, ...)."""
        if array.shape[0] == 1:
            return array
        if self.plan.heads_at_once == 1:
            return lax.dynamic_index_in_dim(array, self.group % array.shape[0])
        return jnp.tile(array, (self.plan.batch, *([1] * (array.ndim - 1))))

    def of_queries(self, array: Array) -> Array:
        """(BH, NR, ...) -> (X, R, ...)."""
        rows = self.plan.rows
        return lax.dynamic_slice_in_dim(self._of_heads(array), self.number * rows, rows, axis=1)

    def _of_span(self, array: Array) -> Array:
        """(BH, NR + C - R, ...) -> (X, C, ...)."""
        span = self.operands.band.shape[-1]
        return lax.dynamic_slice_in_dim(self._of_heads(array), self.number * self.plan.rows, span, axis=1)

    # -- computing --------------------------------------------------------------------------------------------------

    def scores(self) -> tuple[Array, Array | None]:
        """Scores of the span (X, R, C) and of the extra keys (X, R, G), or None."""
        operands, plan = self.operands, self.plan
        window = self._multiply(self.query, self.key) + self._of_table(operands.band)
        hidden = self._of_batch(operands.key_bias)
        start = self.number * plan.rows
        window = window + lax.dynamic_slice_in_dim(hidden, start, window.shape[-1], axis=1)[:, None]
        if operands.extra_key is None:
            return window, None
        extra = self._multiply(self.query, self.extra_key)
        if operands.table is not None:
            extra = extra + jnp.einsum("xru,xug->xrg", self._chosen_rows(), self._spread_table(operands.table))
        if operands.extra_bias is not None:
            extra = extra + self._of_batch(operands.extra_bias)[:, None]
        return window, extra

    def _multiply(self, query: Array, key: Array) -> Array:
        scores = jnp.einsum("xrd,xcd->xrc", query, key, preferred_element_type=jnp.float32)
        return scores if self.plan.scale == 1.0 else scores * self.plan.scale

    def weigh(self, weights: Array, values: Array) -> Array:
        """(X, R, C), (X, C, E) -> (X, R, E)."""
        return jnp.einsum("xrc,xce->xre", weights.astype(values.dtype), values, preferred_element_type=jnp.float32)

    def transposed(self, weights: Array, states: Array) -> Array:
        """(X, R, C), (X, R, E) -> (X, C, E)."""
        return jnp.einsum("xrc,xre->xce", weights.astype(states.dtype), states, preferred_element_type=jnp.float32)

    def backward(
        self, scores: Array, log_sum: Array, delta: Array, gradient: Array, value: Array, *, extra: bool = False
    ) -> Array:
        """Gradient of the scores: p ⊙ (g vᵀ - Σ g ⊙ o)."""
        given = jnp.einsum("xre,xce->xrc", gradient.astype(value.dtype), value, preferred_element_type=jnp.float32)
        return jnp.exp(scores - log_sum) * (self.dropped(given, extra=extra) - delta)

    def dropped(self, weights: Array, *, extra: bool = False) -> Array:
        """Set weights to 0 by chance and scale the others up; the same ones at every call."""
        rng, dropout = self.operands.dropout_rng, self.plan.dropout
        if rng is None:
            return weights
        rng = jax.random.fold_in(jax.random.fold_in(rng, self.step), int(extra))
        return jnp.where(jax.random.bernoulli(rng, 1.0 - dropout, weights.shape), weights / (1.0 - dropout), 0.0)

    # -- the bias of the extra keys -------------------------------------------------------------------------------

    def _places(self) -> Array:
        """Positions of the queries, (X, R)."""
        assert self.operands.position is not None
        rows = self.plan.rows
        return lax.dynamic_slice_in_dim(self._of_batch(self.operands.position), self.number * rows, rows, axis=1)

    def _chosen_rows(self) -> Array:
        return biases.choose_rows(self._places(), self.plan.positions)

    def _spread_table(self, table: Array) -> Array:
        """(H, 2G + U - 2) -> (X, U, G)."""
        tables = self._of_table(table)
        tables = jnp.broadcast_to(tables, (self.plan.heads_at_once, tables.shape[-1]))
        part_of_table = partial(biases.part_of_table, num_extra=self._num_extra, positions=self.plan.positions)
        parts = jax.vmap(part_of_table)(tables, self._places()[:, 0])
        return biases.sliding_rows(parts, self.plan.positions)

    @property
    def _num_extra(self) -> int:
        assert self.operands.extra_key is not None
        return self.operands.extra_key.shape[1]

    # -- adding to sums ---------------------------------------------------------------------------------------------

    def add_all(self, sums: Array, values: Array) -> Array:
        """Add (X, G, D) to (BH, G, D)."""
        start = self.group * self.plan.heads_at_once
        old = lax.dynamic_slice_in_dim(sums, start, self.plan.heads_at_once)
        return lax.dynamic_update_slice_in_dim(sums, old + values, start, axis=0)

    def add_span(self, sums: Array, values: Array) -> Array:
        """Add (X, C, D) to (BH, NR + C - R, D)."""
        start = (self.group * self.plan.heads_at_once, self.number * self.plan.rows, jnp.zeros_like(self.group))
        old = lax.dynamic_slice(sums, start, values.shape)
        return lax.dynamic_update_slice(sums, old + values, start)

    def add_of_table(self, sums: Array, values: Array) -> Array:
        """Add (X, ...) to (H, ...)."""
        if self.plan.heads_at_once > 1:
            return sums + values.reshape(self.plan.batch, *sums.shape).sum(axis=0)
        head = self.group % self.plan.heads
        return lax.dynamic_update_slice_in_dim(sums, lax.dynamic_slice_in_dim(sums, head, 1) + values, head, axis=0)

    def add_biases(self, sums: Array, scores_grad: Array) -> Array:
        """Add the gradient of the extra keys' scores, (X, R, G), to that of their biases, (H, 2G + U - 2)."""
        rows = jnp.einsum("xru,xrg->xug", self._chosen_rows(), scores_grad)
        shape = jax.ShapeDtypeStruct((rows.shape[0], self._num_extra + self.plan.positions - 1), rows.dtype)
        (parts,) = jax.linear_transpose(partial(biases.sliding_rows, rows=self.plan.positions), shape)(rows)
        starts = self._num_extra - 1 - self._places()[:, 0]
        tables = jnp.zeros((rows.shape[0], sums.shape[-1]))
        return self.add_of_table(sums, jax.vmap(lax.dynamic_update_slice)(tables, parts, starts[:, None]))
