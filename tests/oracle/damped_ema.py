"""The damped average of MEGA by its definition (Ma et al., arXiv 2209.10655, eq. 1-3 and 5), in float64 NumPy."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]


def sigmoid(x: Array) -> Array:
    return 1.0 / (1.0 + np.exp(-x))


def damped_ema(
    x: Array,
    alpha_logit: Array,
    delta_logit: Array,
    beta: Array,
    eta: Array,
    *,
    mask: NDArray[np.bool_] | None = None,
    truncation: int | None = None,
    state: Array | None = None,
) -> tuple[Array, Array]:
    """One direction.

    Args:
        x: Inputs, (B, S, D).
        alpha_logit: (D, N).
        delta_logit: (D, N).
        beta: (D, N).
        eta: (D, N).
        mask: (B, S), True = counts.
        truncation: Number of inputs that an output sees.
        state: h before the first token, (B, D, N).

    Returns:
        Outputs (B, S, D) and h after the last token (B, D, N), which is not truncated.
    """
    if mask is not None:
        x = np.where(mask[:, :, None], x, 0.0)
    alpha, delta = sigmoid(alpha_logit), sigmoid(delta_logit)
    length, num = x.shape[1], beta.shape[1]
    h = np.zeros((x.shape[0], *beta.shape)) if state is None else state
    outputs = np.zeros_like(x)
    for t in range(length):
        h = alpha * beta * x[:, t, :, None] + (1.0 - alpha * delta) * h
        seen = h
        if truncation is not None:
            assert state is None, "the definition of a truncated average starts at the first token"
            first = max(t - truncation + 1, 0)
            seen = sum(alpha * beta * x[:, j, :, None] * (1.0 - alpha * delta) ** (t - j) for j in range(first, t + 1))
        outputs[:, t] = (seen * eta).sum(-1) / np.sqrt(num)
    return outputs, h


def bidirectional_damped_ema(
    x: Array,
    forward: tuple[Array, Array, Array, Array],
    backward: tuple[Array, Array, Array, Array],
    *,
    mask: NDArray[np.bool_] | None = None,
    truncation: int | None = None,
    state: Array | None = None,
    backward_state: Array | None = None,
) -> Array:
    """Both directions; `forward` and `backward` are (alpha_logit, delta_logit, beta, eta). Returns (B, S, D)."""
    mirrored = None if mask is None else mask[:, ::-1]
    ahead, _ = damped_ema(x, *forward, mask=mask, truncation=truncation, state=state)
    behind, _ = damped_ema(x[:, ::-1], *backward, mask=mirrored, truncation=truncation, state=backward_state)
    return ahead + behind[:, ::-1]
