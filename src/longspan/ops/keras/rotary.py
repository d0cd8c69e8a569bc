"""Rotary position embeddings in Keras, halves rotated against each other.

Axes: B batch, S tokens, H heads, D head size.
"""

from __future__ import annotations

from typing import Any

from keras import ops

from longspan.ops.keras import Tensor
from longspan.ops.rotary_tables import RotaryTable


def select_frequencies(table: RotaryTable, position_ids: Tensor) -> Tensor:
    """The frequencies for an input of this length.

    Args:
        table: Facts of the model.
        position_ids: (B, S); the length is the largest position plus one.

    Returns:
        (D/2,) float32.
    """
    frequencies = ops.convert_to_tensor(table.frequencies)
    if table.limit is None:
        return frequencies
    length, long = ops.max(position_ids) + 1, table.long_frequencies
    long_frequencies = _stretched(table, length, len(table.frequencies)) if long is None else long
    return ops.where(length > table.limit, long_frequencies, frequencies)


def _stretched(table: RotaryTable, length: Tensor, num_pairs: int) -> Tensor:
    """NTK-aware frequencies of an input longer than the limit L: θ' = θ · (f · n/L − (f − 1))^(D/(D − 2))."""
    assert table.limit is not None
    head_dim = 2 * num_pairs
    longer = ops.cast(ops.maximum(length, table.limit), "float32")
    growth = table.factor * longer / table.limit - (table.factor - 1)
    theta = table.theta * growth ** (head_dim / (head_dim - 2))
    return 1.0 / theta ** (ops.arange(0, head_dim, 2, dtype="float32") / head_dim)


def rotary_cos_sin(
    frequencies: Tensor, position_ids: Tensor, *, attention_factor: float = 1.0, dtype: Any = "float32"
) -> tuple[Tensor, Tensor]:
    """Tables for `apply_rotary`.

    Args:
        frequencies: (D/2,) float32.
        position_ids: (B, S).
        attention_factor: Factor of both tables.
        dtype: Of the result; angles are float32.

    Returns:
        cos and signed sin, (B, S, 1, D): the first half of sin is negative.
    """
    angles = ops.cast(position_ids, "float32")[:, :, None] * frequencies  # (B, S, D/2)
    cos, sin = ops.cos(angles) * attention_factor, ops.sin(angles) * attention_factor
    cos, sin = ops.concatenate((cos, cos), axis=-1), ops.concatenate((-sin, sin), axis=-1)
    return ops.cast(cos[:, :, None], dtype), ops.cast(sin[:, :, None], dtype)


def apply_rotary(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Turn the pairs (i, i + D/2) of every head by the angle of its token.

    Args:
        x: (B, S, H, D).
        cos: (B or 1, S, 1, D), from `rotary_cos_sin`.
        sin: Likewise.

    Returns:
        (B, S, H, D): x · cos + swap(x) · sin, where swap exchanges the halves.
    """
    return x * cos + ops.roll(x, x.shape[-1] // 2, axis=-1) * sin
