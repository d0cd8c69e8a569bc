"""Root-mean-square normalisation in JAX (Zhang and Sennrich, 2019, https://arxiv.org/abs/1910.07467)."""

from __future__ import annotations

import jax.numpy as jnp
from jax import Array, lax


def rms_norm(x: Array, weight: Array | float, eps: float) -> Array:
    """Weight · x / √(mean(x²) + eps) over the last axis, in float32.

    Args:
        x: (..., H).
        weight: In the shape of `x`, or a number.
        eps: Added to the mean square.

    Returns:
        (..., H) in the dtype of `x`.
    """
    wide = x.astype(jnp.float32)
    normalised = wide * lax.rsqrt(jnp.square(wide).mean(axis=-1, keepdims=True) + eps)
    return (normalised * weight).astype(x.dtype)
