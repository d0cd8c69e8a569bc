"""Boolean attention masks, True = attend.

Axes: B batch, H heads, T queries, S keys, L layers. All masks have four axes that broadcast to (B, H, T, S).
"""

from __future__ import annotations

import jax.numpy as jnp
from jax import Array

from longspan.nn.flax.checks import ArrayLike
from longspan.shapes import check_head_mask


def key_mask(attention_mask: Array) -> Array:
    """Bring a padding mask, nonzero = attend, to four axes.

    Args:
        attention_mask: (B, S), (B, T, S) or (B, 1, T, S).

    Returns:
        Boolean, (B, 1, 1, S) or (B, 1, T, S).
    """
    mask = attention_mask != 0
    if mask.ndim == 2:
        return mask[:, None, None, :]
    return mask[:, None] if mask.ndim == 3 else mask


def causal_mask(query_positions: Array, num_keys: int) -> Array:
    """Query at position p sees keys 0…p.

    Args:
        query_positions: Positions of the queries among the keys, (T,).
        num_keys: S.

    Returns:
        Boolean, (1, 1, T, S).
    """
    return (jnp.arange(num_keys)[None, :] <= query_positions[:, None])[None, None]


def segment_mask(segments: Array, keys: Array | None = None) -> Array:
    """Tokens of one row see the tokens of their own sequence.

    Args:
        segments: Number of each token's sequence within its row, 0 where the row is empty, (B, S).
        keys: The same, and 0 for tokens that none may see; None for `segments`.

    Returns:
        Boolean, (B, 1, S, S).
    """
    keys = segments if keys is None else keys
    return ((segments[:, :, None] == keys[:, None, :]) & (keys[:, None, :] != 0))[:, None]


def extend_mask(mask: Array, num_keys: int) -> Array:
    """Pad the key axis of a boolean mask with False up to `num_keys` (the unused end of a cache)."""
    missing = num_keys - mask.shape[-1]
    return jnp.pad(mask, ((0, 0), (0, 0), (0, 0), (0, missing))) if missing > 0 else mask


def expand_head_mask(head_mask: ArrayLike | None, *, num_layers: int, num_heads: int) -> Array | None:
    """Bring a head mask, 1 keeps and 0 removes a head, to (L, H); `check_head_mask` says what fits."""
    if head_mask is None:
        return None
    check_head_mask(head_mask, num_layers=num_layers, num_heads=num_heads)
    return jnp.broadcast_to(head_mask, (num_layers, num_heads))


def drop_unseen_faults(states: Array, mask: Array | None) -> Array:
    """Set NaN and infinities to 0 where no query may see them: a weight of 0 times NaN would be NaN.

    Args:
        states: (B, S, H).
        mask: Nonzero = attend, (B, S), (B, T, S) or (B, 1, T, S); None for all.
    """
    if mask is None:
        return states
    seen = (mask != 0).any(axis=tuple(range(1, mask.ndim - 1)))
    return jnp.where(seen[..., None] | jnp.isfinite(states), states, jnp.zeros((), states.dtype))
