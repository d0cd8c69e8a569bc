"""Root-mean-square normalisation in JAX (Zhang and Sennrich, 2019, https://arxiv.org/abs/1910.07467)."""

from __future__ import annotations

import jax.numpy as jnp
from jax import Array, lax


def rms_norm(x: Array, weight: Array | float, eps: float) -> Array:
    """Weight · x / √(mean(x²) + eps) over the last axis, in float32.

    Args:
        x: (..., H).
        weight: In the shape of `x`, or one that broadcasts to it, or a number.
        eps: Added to the mean square.

    Returns:
        (..., H) in the dtype of `x`.
    """
    wide = x.astype(jnp.float32)
    factor = lax.rsqrt(jnp.square(wide).mean(axis=-1, keepdims=True) + eps)
    # in this order: the gradient of one weight for all features is then summed by token first, which rounds less
    return (wide * (factor * weight)).astype(x.dtype)
