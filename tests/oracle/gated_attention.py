"""The attention of MEGA by its definition (Ma et al., arXiv 2209.10655, eq. 16 and appendix E), in float64 NumPy."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]


def rotary_bias(alpha: Array, beta: Array, queries: int, keys: int, offset: int = 0) -> Array:
    """b_ij = ⟨R_i α, R_j β⟩ with a rotation by i · 10000^(−m / (Z/2)) of the pair (v_m, v_{m + Z/2}); (T, S)."""
    half = len(alpha) // 2

    def rotated(vector: Array, position: int) -> Array:
        result = np.zeros_like(vector)
        for m in range(half):
            angle = position * 10000.0 ** (-m / half)
            x, y = vector[m], vector[m + half]
            result[m] = x * math.cos(angle) - y * math.sin(angle)
            result[m + half] = y * math.cos(angle) + x * math.sin(angle)
        return result

    return np.array([[rotated(alpha, offset + i) @ rotated(beta, j) for j in range(keys)] for i in range(queries)])


def simple_bias(weight: Array, centre: int, queries: int, keys: int, offset: int = 0) -> Array:
    """b_ij = weight[centre + j − i]; (T, S)."""
    return np.array([[weight[centre + j - (offset + i)] for j in range(keys)] for i in range(queries)])


def gated_attention(
    query: Array,
    key: Array,
    value: Array,
    bias: Array,
    *,
    activation: str,
    mask: NDArray[np.bool_] | None = None,
    causal: bool = False,
    offset: int = 0,
) -> tuple[Array, Array]:
    """One query at a time, over the keys that it sees and no others.

    Args:
        query: (R, T, Z).
        key: (R, S, Z).
        value: (R, S, V).
        bias: (T, S).
        activation: "softmax", "laplace" or "relu2".
        mask: (R, S), True = may be seen.
        causal: Query t sees keys 0 … offset + t.
        offset: Position of the first query.

    Returns:
        Output (R, T, V) and weights (R, T, S).
    """
    rows, queries, width = query.shape
    weights = np.zeros((rows, queries, key.shape[1]))
    for r in range(rows):
        for t in range(queries):
            seen = np.ones(key.shape[1], dtype=bool) if mask is None else mask[r].copy()
            if causal:
                seen[offset + t + 1 :] = False
            if not seen.any():
                continue
            scale = math.sqrt(width) if activation == "softmax" else seen.sum()
            scores = key[r, seen] @ query[r, t] / scale + bias[t, seen]
            weights[r, t, seen] = _apply(activation, scores)
    return weights @ value, weights


def _apply(activation: str, scores: Array) -> Array:
    if activation == "softmax":
        exponentials = np.exp(scores - scores.max())
        return exponentials / exponentials.sum()
    if activation == "relu2":
        return np.maximum(scores, 0.0) ** 2
    deviation = math.sqrt(1.0 / (4.0 * math.pi))
    return np.array([0.5 * (1.0 + math.erf((x - math.sqrt(0.5)) / (deviation * math.sqrt(2.0)))) for x in scores])
