"""Differential attention by its definition, in float64 NumPy: one map, one query, one sum at a time.

Axes: B batch, A softmax maps, K key/value heads, S queries, T keys, D head size.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]


def softmax_map(query: Array, key: Array, visible: NDArray[np.bool_], scale: float) -> Array:
    """One map, (S, T): softmax over the visible keys of each query; a query without any gives 0."""
    weights = np.zeros(visible.shape)
    for i, row in enumerate(visible):
        if row.any():
            scores = key[row] @ query[i] * scale
            exponentials = np.exp(scores - scores.max())
            weights[i, row] = exponentials / exponentials.sum()
    return weights


def visible_keys(
    position: NDArray[np.int64],
    num_keys: int,
    key_mask: NDArray[np.bool_] | None,
    segment_ids: NDArray[np.int64] | None,
    batch: int,
) -> NDArray[np.bool_]:
    """(B, S, T): key t is seen by query i if it is not after it, not masked, and of the same segment."""
    visible = np.zeros((batch, len(position), num_keys), dtype=bool)
    for b in range(batch):
        for i, place in enumerate(position):
            for t in range(num_keys):
                seen = t <= place
                seen &= key_mask is None or bool(key_mask[b, t])
                seen &= segment_ids is None or segment_ids[b, t] == segment_ids[b, place]
                visible[b, i, t] = seen
    return visible


def differential_attention(
    query: Array, key: Array, value: Array, lam: float, visible: NDArray[np.bool_], *, scale: float
) -> tuple[Array, Array, Array]:
    """Return output (B, S, A/2, 2D), maps (B, A, S, T) and their differences (B, A/2, S, T)."""
    batch, num_maps, num_queries, head_dim = query.shape
    group, half = num_maps // key.shape[1], num_maps // 2
    maps = np.stack(
        [
            [softmax_map(query[b, a], key[b, a // group], visible[b], scale) for a in range(num_maps)]
            for b in range(batch)
        ]
    )
    difference = maps[:, :half] - lam * maps[:, half:]
    output = np.zeros((batch, num_queries, half, 2 * head_dim))
    for j in range(half):
        pair = np.concatenate([value[:, j // group], value[:, (j + half) // group]], axis=-1)  # (B, T, 2D)
        output[:, :, j] = difference[:, j] @ pair
    return output, maps, difference


def differential_attention_backward(
    grad: Array, query: Array, key: Array, value: Array, lam: float, visible: NDArray[np.bool_], *, scale: float
) -> tuple[Array, Array, Array, float]:
    """Gradients by query, key, value and λ of sum(grad * output), from the chain rule written out.

    With W_j = P_j − λ P_{j+A/2} and O_j = W_j V_j:
        dV_j = W_jᵀ dO_j,  dW_j = dO_j V_jᵀ,  dP_j = dW_j,  dP_{j+A/2} = −λ dW_j,  dλ = −Σ P_{j+A/2} ∘ dW_j,
        dS = P ∘ (dP − rowsum(P ∘ dP)),  dq = scale · dS k,  dk = scale · dSᵀ q.
    """
    batch, num_maps, _, head_dim = query.shape
    group, half = num_maps // key.shape[1], num_maps // 2
    _, maps, difference = differential_attention(query, key, value, lam, visible, scale=scale)
    grad_query, grad_key, grad_value, grad_lam = np.zeros_like(query), np.zeros_like(key), np.zeros_like(value), 0.0
    for b in range(batch):
        for j in range(half):
            left, right = j // group, (j + half) // group
            pair = np.concatenate([value[b, left], value[b, right]], axis=-1)
            grad_pair = difference[b, j].T @ grad[b, :, j]
            grad_value[b, left] += grad_pair[:, :head_dim]
            grad_value[b, right] += grad_pair[:, head_dim:]
            grad_difference = grad[b, :, j] @ pair.T
            grad_lam -= float((maps[b, j + half] * grad_difference).sum())
            for a, grad_map in ((j, grad_difference), (j + half, -lam * grad_difference)):
                weights = maps[b, a]
                grad_scores = weights * (grad_map - (weights * grad_map).sum(axis=-1, keepdims=True))
                grad_query[b, a] += scale * grad_scores @ key[b, a // group]
                grad_key[b, a // group] += scale * grad_scores.T @ query[b, a]
    return grad_query, grad_key, grad_value, grad_lam
