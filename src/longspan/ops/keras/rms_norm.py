"""Root-mean-square normalisation in `keras.ops` (Zhang and Sennrich, 2019, https://arxiv.org/abs/1910.07467)."""

from __future__ import annotations

import keras
from keras import ops

from longspan.ops.keras import Tensor


def rms_norm(x: Tensor, weight: Tensor | float, eps: float) -> Tensor:
    """Weight · x / √(mean(x²) + eps) over the last axis, in float32.

    Args:
        x: (..., H).
        weight: In the shape of `x`, or one that broadcasts to it, or a number.
        eps: Added to the mean square.

    Returns:
        (..., H) in the dtype of `x`.
    """
    wide = ops.cast(x, keras.backend.result_type(x.dtype, "float32"))
    factor = ops.rsqrt(ops.mean(ops.square(wide), axis=-1, keepdims=True) + eps)
    # in this order: the gradient of one weight for all features is then summed by token first, which rounds less
    return ops.cast(wide * (factor * weight), x.dtype)
