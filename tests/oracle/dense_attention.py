"""Definition of dense attention in float64 NumPy.

Axes: B batch, H heads, T queries, S keys, D head size.

    weights = softmax(q kᵀ · scale + bias) over the keys that the query may see, all 0 if it may see none
    output  = (head_mask · weights) v
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]


def dense_attention(
    query: Array,
    key: Array,
    value: Array,
    *,
    mask: NDArray[np.bool_] | None = None,
    bias: Array | None = None,
    head_mask: Array | None = None,
    scale: float,
) -> tuple[Array, Array]:
    """Query, key and value (B, H, T or S, D); mask and bias broadcast to (B, H, T, S); head_mask (H,).

    Returns the output (B, H, T, D) and the weights (B, H, T, S).
    """
    batch, heads, queries, _ = query.shape
    shape = (batch, heads, queries, key.shape[2])
    seen = np.ones(shape, bool) if mask is None else np.broadcast_to(mask, shape)
    shift = np.zeros(shape) if bias is None else np.broadcast_to(bias, shape)
    weights = np.zeros(shape)
    for b, h, t in np.ndindex(batch, heads, queries):
        keys = np.flatnonzero(seen[b, h, t])
        if len(keys) == 0:
            continue
        scores = key[b, h, keys] @ query[b, h, t] * scale + shift[b, h, t, keys]
        exponents = np.exp(scores - scores.max())
        weights[b, h, t, keys] = exponents / exponents.sum()
    if head_mask is not None:
        weights = weights * head_mask[:, None, None]
    return weights @ value, weights
