"""Extra keys of sliding-window attention, and its biases, spread over a block of queries by slices and reshapes.

The transposes of the latter are slices and sums as well; a lookup by index would have a scatter as its gradient, which
is slow on every platform.
Axes: B batch, S tokens, H heads, D head size, E value size, R rows of a block, C = R + left + right columns of its
span, G extra keys, U different positions on the axis of the extra keys that the queries of a block can have.
"""

from __future__ import annotations

import jax.numpy as jnp
from flax import struct
from jax import Array, lax

from longspan.ops import patterns

#: additive mask: finite, so that a query without keys gives no NaN, and so low that exp() of it is 0 beside any score
MASKED = -1e30
#: a row whose largest score lies below this sees no key
NO_KEY = MASKED / 2


@struct.dataclass
class ExtraKeys:
    """Keys and values that every query sees besides its window.

    Attributes:
        key: (B, G, H, D).
        value: (B, G, H, E).
        mask: Which of them exist, boolean (B, G), True = attend; None for all.
        bias: Bias by relative position on the axis of the extra keys, (H, 2G - 1); its middle is "the same place".
        position: Where each query stands on that axis, integers (B, S) below G; needed with `bias`. Negative counts
            as 0.
        step: Positions never fall, and rise by at most 1 within any `step` consecutive tokens. The larger, the less
            work the bias is.
    """

    key: Array
    value: Array
    mask: Array | None = None
    bias: Array | None = None
    position: Array | None = None
    step: int = struct.field(pytree_node=False, default=1)


def band_bias(bias: Array | None, *, rows: int, left: int, right: int) -> Array:
    """The bias of a block by row and column, `MASKED` outside the band.

    Args:
        bias: (H, left + right + 1), or None for zeros.
        rows: R.
        left: Keys seen before each query.
        right: Keys seen after each query.

    Returns:
        float32 (H, R, C), or (1, R, C) without a bias.
    """
    inside = jnp.asarray(patterns.band(rows, left, right))
    if bias is None:
        return jnp.where(inside, 0.0, MASKED)[None]
    heads, width = bias.shape
    pitch = rows + width  # one more than a row has columns: row r begins r columns later
    repeated = jnp.pad(bias.astype(jnp.float32), ((0, 0), (0, rows)))[:, None, :]
    flat = jnp.broadcast_to(repeated, (heads, rows, pitch)).reshape(heads, rows * pitch)
    return jnp.where(inside, flat[:, : rows * (pitch - 1)].reshape(heads, rows, pitch - 1), MASKED)


def key_bias(mask: Array | None, *, batch: int, length: int, padding: tuple[int, int]) -> Array:
    """0 for keys that may be seen, `MASKED` for others and for the padding around them.

    Args:
        mask: Boolean (B, S), or None for all.
        batch: B.
        length: S.
        padding: Places before and behind the keys.

    Returns:
        float32 (B, padding + S).
    """
    seen = jnp.zeros((batch, length)) if mask is None else jnp.where(mask, 0.0, MASKED)
    return jnp.pad(seen, ((0, 0), padding), constant_values=MASKED)


def num_positions(rows: int, step: int, num_extra: int) -> int:
    """U: positions rise by at most 1 in `step` tokens, and lie below G (which is of no use if it is symbolic)."""
    most = -(-(rows - 1) // step) + 1
    return min(most, num_extra) if isinstance(num_extra, int) else most


def pad_table(table: Array, positions: int) -> Array:
    """(H, 2G - 1) -> (H, 2G + U - 2), so that every block finds its part at a start that is not negative."""
    return jnp.pad(table.astype(jnp.float32), ((0, 0), (positions - 1, 0)))


def part_of_table(table: Array, first: Array, *, num_extra: int, positions: int) -> Array:
    """The part (..., G + U - 1) of padded tables (..., 2G + U - 2) for a block whose first query stands at `first`."""
    return lax.dynamic_slice_in_dim(table, num_extra - 1 - first, num_extra + positions - 1, axis=-1)


def sliding_rows(values: Array, rows: int) -> Array:
    """(..., rows + columns - 1) -> (..., rows, columns): row r holds the values from number r on."""
    length = values.shape[-1]
    lead, columns = values.shape[:-1], length - rows + 1
    repeated = jnp.broadcast_to(values[..., None, :], (*lead, rows + 1, length)).reshape(*lead, -1)
    # read with a pitch one longer, so that row r begins r values later
    return repeated[..., : rows * (length + 1)].reshape(*lead, rows, length + 1)[..., :columns]


def choose_rows(position: Array, positions: int) -> Array:
    """Which of the sliding rows of its part of the table each query takes, the last one at the first position.

    Args:
        position: (..., R).
        positions: U.

    Returns:
        0 and 1, float32 (..., R, U).
    """
    behind = position - position[..., :1]
    return (positions - 1 - behind[..., None] == jnp.arange(positions)).astype(jnp.float32)
