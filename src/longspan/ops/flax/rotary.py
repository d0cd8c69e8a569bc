"""Rotary position embeddings in JAX, halves rotated against each other.

Axes: B batch, S tokens, H heads, D head size.
"""

from __future__ import annotations

from typing import Any

import jax.numpy as jnp
from jax import Array

from longspan.ops.rotary_tables import RotaryTable


def select_frequencies(table: RotaryTable, position_ids: Array) -> Array:
    """The frequencies for an input of this length.

    Args:
        table: Facts of the model.
        position_ids: (B, S); the length is the largest position plus one.

    Returns:
        (D/2,) float32.
    """
    frequencies = jnp.asarray(table.frequencies)
    if table.limit is None:
        return frequencies
    length = position_ids.max() + 1
    long = table.long_frequencies
    long_frequencies = _stretched(table, length, len(frequencies)) if long is None else jnp.asarray(long)
    return jnp.where(length > table.limit, long_frequencies, frequencies)


def _stretched(table: RotaryTable, length: Array, num_pairs: int) -> Array:
    """NTK-aware frequencies of an input longer than the limit L: θ' = θ · (f · n/L − (f − 1))^(D/(D − 2))."""
    assert table.limit is not None
    head_dim = 2 * num_pairs
    growth = table.factor * jnp.maximum(length, table.limit).astype(jnp.float32) / table.limit - (table.factor - 1)
    theta = table.theta * growth ** (head_dim / (head_dim - 2))
    exponents = jnp.arange(0, head_dim, 2, dtype=jnp.float32) / head_dim
    return 1.0 / theta**exponents


def rotary_cos_sin(
    frequencies: Array, position_ids: Array, *, attention_factor: float = 1.0, dtype: Any = jnp.float32
) -> tuple[Array, Array]:
    """Tables for `apply_rotary`.

    Args:
        frequencies: (D/2,) float32.
        position_ids: (B, S).
        attention_factor: Factor of both tables.
        dtype: Of the result; angles are float32.

    Returns:
        cos and signed sin, (B, S, 1, D): the first half of sin is negative.
    """
    angles = position_ids[:, :, None].astype(jnp.float32) * frequencies  # (B, S, D/2)
    cos, sin = jnp.cos(angles) * attention_factor, jnp.sin(angles) * attention_factor
    cos, sin = jnp.concatenate((cos, cos), axis=-1), jnp.concatenate((-sin, sin), axis=-1)
    return cos[:, :, None].astype(dtype), sin[:, :, None].astype(dtype)


def apply_rotary(x: Array, cos: Array, sin: Array) -> Array:
    """Turn the pairs (i, i + D/2) of every head by the angle of its token.

    Args:
        x: (B, S, H, D).
        cos: (B or 1, S, 1, D), from `rotary_cos_sin`.
        sin: Likewise.

    Returns:
        (B, S, H, D): x · cos + swap(x) · sin, where swap exchanges the halves.
    """
    return x * cos + jnp.roll(x, x.shape[-1] // 2, axis=-1) * sin
