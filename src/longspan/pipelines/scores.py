"""From logits to scores."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float32]


def softmax(logits: Floats) -> Floats:
    """`exp(x) / sum(exp(x))` over the last axis."""
    powers = np.exp(logits - logits.max(axis=-1, keepdims=True))
    result: Floats = powers / powers.sum(axis=-1, keepdims=True)
    return result


def sigmoid(logits: Floats) -> Floats:
    """`1 / (1 + exp(-x))`, which no x can overflow."""
    result: Floats = np.float32(0.5) * (1 + np.tanh(np.float32(0.5) * logits))
    return result
