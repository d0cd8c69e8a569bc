"""Rotary position embeddings, halves rotated against each other.

Axes: B batch, S tokens, H heads, D head size.
"""

from __future__ import annotations

import torch
from torch import Tensor

from longspan.ops.rotary_tables import RotaryTable
from longspan.ops.torch.modes import is_traced


def select_frequencies(
    table: RotaryTable, position_ids: Tensor, *, frequencies: Tensor, long_frequencies: Tensor | None
) -> Tensor:
    """The frequencies for an input of this length, without looking at values on the host.

    Args:
        table: Facts of the model.
        position_ids: (B, S); the length is the largest position plus one.
        frequencies: `table.frequencies` on the device, (D/2,).
        long_frequencies: `table.long_frequencies` on the device, (D/2,), or None.

    Returns:
        (D/2,) float32.
    """
    if table.limit is None:
        return frequencies
    length = position_ids.max() + 1
    if long_frequencies is None:
        long_frequencies = _stretched(table, length, frequencies)
    return torch.where(length > table.limit, long_frequencies, frequencies)


def _stretched(table: RotaryTable, length: Tensor, frequencies: Tensor) -> Tensor:
    """NTK-aware frequencies of an input longer than the limit L: θ' = θ · (f · n/L − (f − 1))^(D/(D − 2))."""
    assert table.limit is not None
    head_dim = 2 * frequencies.shape[0]
    growth = table.factor * length.clamp(min=table.limit).float() / table.limit - (table.factor - 1)
    theta = table.theta * growth ** (head_dim / (head_dim - 2))
    exponents = torch.arange(0, head_dim, 2, device=frequencies.device).float() / head_dim
    return 1.0 / theta**exponents


def rotary_cos_sin(
    frequencies: Tensor, position_ids: Tensor, *, attention_factor: float = 1.0, dtype: torch.dtype = torch.float32
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
    with torch.autocast(device_type=position_ids.device.type, enabled=False):
        angles = position_ids[:, :, None].float() * frequencies  # (B, S, D/2)
        cos, sin = angles.cos() * attention_factor, angles.sin() * attention_factor
    cos, sin = torch.cat((cos, cos), dim=-1), torch.cat((-sin, sin), dim=-1)
    return cos[:, :, None].to(dtype), sin[:, :, None].to(dtype)


def apply_rotary(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Turn the pairs (i, i + D/2) of every head by the angle of its token.

    Args:
        x: (B, S, H, D).
        cos: (B or 1, S, 1, D), from `rotary_cos_sin`.
        sin: Likewise.

    Returns:
        (B, S, H, D): x · cos + swap(x) · sin, where swap exchanges the halves.
    """
    scaled, swapped = x * cos, x.roll(x.shape[-1] // 2, dims=-1)
    if torch.is_grad_enabled() or is_traced(x):
        return torch.addcmul(scaled, swapped, sin)
    return scaled.addcmul_(swapped, sin)
