"""Summaries of blocks of tokens, the global keys of LongT5's transient-global attention, in JAX.

Axes: B batch, S tokens, H width, G summaries, P tokens of a block.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from flax import struct
from jax import Array


@struct.dataclass
class Summaries:
    """Which tokens each summary of transient-global attention stands for.

    Blocks count the real tokens of a row, so padding may lie on either side. Tokens that do not fill a block belong to
    the last full one; a row shorter than one block has no summary.

    Attributes:
        position: Where each token stands on the axis of the summaries, (B, S).
        filled: Summaries that exist, (B, G).
        order: Tokens of each row, the real ones first, (B, S); None if all are real.
        place: Where each token went in that order, (B, S).
        real: Number of real tokens of each row, (B,).
        block_size: P.
    """

    position: Array
    filled: Array
    order: Array | None
    place: Array | None
    real: Array
    block_size: int = struct.field(pytree_node=False)

    @classmethod
    def from_mask(cls, real: Array | None, shape: tuple[int, int], block_size: int) -> Summaries | None:
        """Divide the real tokens into blocks.

        Args:
            real: Boolean (B, S), or None for all.
            shape: (B, S).
            block_size: P.

        Returns:
            The blocks; None if not even S tokens fill one.
        """
        batch, length = shape
        if length < block_size:
            return None
        order = place = None
        if real is None:
            count = jnp.broadcast_to(jnp.arange(1, length + 1), shape)
        else:
            count = real.cumsum(axis=1)
            padding = count[:, -1:] + (~real).cumsum(axis=1)
            place = jnp.where(real, count, padding) - 1
            order = jnp.argsort(place, axis=1)
        full = count[:, -1:] // block_size  # (B, 1)
        position = jnp.minimum(jnp.maximum(count - 1, 0) // block_size, jnp.maximum(full - 1, 0))
        filled = jnp.arange(length // block_size) < full
        return cls(position, filled, order, place, jnp.broadcast_to(count[:, -1], (batch,)), block_size)

    def add_up(self, hidden_states: Array) -> Array:
        """Sum the states (B, S, H) of each block, in float32: (B, G, H). What is not filled is unspecified."""
        batch, length, width = hidden_states.shape
        number, size = length // self.block_size, self.block_size
        states = hidden_states.astype(jnp.float32)
        if self.order is not None:
            assert self.place is not None
            states = _permute(states, self.order, self.place)
        sums = states[:, : number * size].reshape(batch, number, size, width).sum(axis=2)
        if self.order is None:
            return sums.at[:, -1].add(states[:, number * size :].sum(axis=1))
        full = self.real // size
        rest = full[:, None] * size + jnp.arange(size - 1)  # tokens that do not fill a block
        tail = jnp.take_along_axis(states, jnp.minimum(rest, length - 1)[..., None], axis=1)
        tail = jnp.where((rest < self.real[:, None])[..., None], tail, 0.0).sum(axis=1)
        is_last = jnp.arange(number) == full[:, None] - 1
        return sums + is_last[..., None] * tail[:, None]


@jax.custom_vjp
def _permute(states: Array, order: Array, place: Array) -> Array:
    """Put the tokens (B, S, H) of each row in an order. The gradient goes back by a lookup, not by a slow scatter."""
    return jnp.take_along_axis(states, order[..., None], axis=1)


def _permute_saving(states: Array, order: Array, place: Array) -> tuple[Array, Array]:
    return _permute(states, order, place), place


def _permute_back(place: Array, gradient: Array) -> tuple[Array, None, None]:
    return jnp.take_along_axis(gradient, place[..., None], axis=1), None, None


_permute.defvjp(_permute_saving, _permute_back)


def summary_offsets(number: int) -> Array:
    """Relative positions on the axis of the summaries: 1 - G … G - 1."""
    return jnp.arange(2 * number - 1) - (number - 1) if number > 0 else jnp.zeros((0,), jnp.int32)
