r"""Single-head attention of MEGA in `keras.ops`: softmax, Laplace or squared-ReLU weights and a relative bias.

Axes: R rows (batch × chunks), T queries, S keys, Z width of queries and keys, V width of values. R, T and S may be
known only when a graph runs.

    weights = f(q kᵀ / τ + b),  output = weights v            (Ma et al., arXiv 2209.10655, eq. 16)

with τ = √Z for the softmax, and for the element-wise f the number of keys that the query sees. A key that a query may
not see has the weight 0; a query that sees no key gives 0. Scores, bias and weights are in float32.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
from keras import ops

from longspan.errors import InputError
from longspan.ops.dispatch import Dispatcher
from longspan.ops.keras import Tensor
from longspan.ops.keras.attention import Dropout, mask_to_bias, softmax

GATED_ATTENTION: Dispatcher[None] = Dispatcher("gated attention", {"eager": lambda request: None})


def laplace(x: Tensor) -> Tensor:
    """Gaussian CDF with mean √½ and standard deviation √(1/4π) (MEGA, appendix E)."""
    return 0.5 * (1.0 + ops.erf((x - math.sqrt(0.5)) * math.sqrt(2.0 * math.pi)))


def relu2(x: Tensor) -> Tensor:
    """max(x, 0)²."""
    return ops.square(ops.relu(x))


#: functions of each score alone; besides these there is the softmax
ELEMENTWISE = {"laplace": laplace, "relu2": relu2}
ATTENTION_ACTIVATIONS = ("softmax", *ELEMENTWISE)


class RotaryBias(NamedTuple):
    """b_ij = ⟨R_i α, R_j β⟩: two learned vectors, turned by the angles of each position.

    Attributes:
        alpha: α, (1, Z).
        beta: β, (1, Z).
    """

    alpha: Tensor
    beta: Tensor

    def matrix(self, queries: Tensor, keys: Tensor) -> Tensor:
        """The bias between positions (T,) and (S,): (T, S)."""
        return ops.matmul(rotate(self.alpha, queries), ops.transpose(rotate(self.beta, keys)))


class ToeplitzBias(NamedTuple):
    """b_ij = weight[centre + j − i].

    Attributes:
        weight: One number per distance, (2P − 1,).
        centre: Index of distance 0.
    """

    weight: Tensor
    centre: int

    def matrix(self, queries: Tensor, keys: Tensor) -> Tensor:
        """The bias between positions (T,) and (S,): (T, S)."""
        # what lies beyond the table is beyond the input too: the unused end of a cache
        place = ops.clip(self.centre + keys[None] - queries[:, None], 0, self.weight.shape[0] - 1)
        return ops.take(ops.cast(self.weight, "float32"), place, axis=0)


def rotate(vector: Tensor, positions: Tensor) -> Tensor:
    """R_i v for every position i: first and second half of v are the two coordinates of the pairs.

    The pair m turns by i · 10000^(−2m/Z).

    Args:
        vector: v, (1, Z).
        positions: (P,).

    Returns:
        (P, Z) float32.
    """
    half = vector.shape[-1] // 2
    frequency = np.exp(np.arange(half, dtype=np.float32) * np.float32(-math.log(10000.0) / half))
    angle = ops.cast(positions, "float32")[:, None] * frequency
    cos, sin = ops.cos(angle), ops.sin(angle)
    first, second = ops.split(ops.cast(vector, "float32"), 2, axis=-1)
    return ops.concatenate([first * cos - second * sin, second * cos + first * sin], axis=-1)


class Keys(NamedTuple):
    """What queries read.

    Attributes:
        states: (R, S, Z).
        values: (R, S, V).
        positions: (S,).
        mask: True = a key that may be seen, (R, S), or for each query (R, T, S); None for all.
        bias: Relative bias.
    """

    states: Tensor
    values: Tensor
    positions: Tensor
    mask: Tensor | None
    bias: RotaryBias | ToeplitzBias


def gated_attention(
    queries: Tensor,
    positions: Tensor,
    keys: Keys,
    *,
    activation: str,
    causal: bool = False,
    dropout: Dropout | None = None,
    implementation: str = "auto",
) -> tuple[Tensor, Tensor]:
    """Attention within each row.

    Args:
        queries: (R, T, Z).
        positions: Where they stand among the keys, (T,).
        keys: See `Keys`.
        activation: `"softmax"`, `"laplace"` (Gaussian CDF of mean √½ and deviation √(1/4π)) or `"relu2"`.
        causal: A query sees the keys at its own and earlier positions only.
        dropout: Applied to the weights.
        implementation: `"auto"` or `"eager"`, which holds all scores of the rows.

    Returns:
        Output (R, T, V) and the weights before dropout (R, T, S), in the dtype of the values.

    Raises:
        InputError: the activation or implementation is unknown.
    """
    if activation not in ATTENTION_ACTIVATIONS:
        known = ", ".join(ATTENTION_ACTIVATIONS)
        raise InputError(f"activation must be one of {known}. Received: {activation!r}")
    GATED_ATTENTION.choose(implementation, None)
    visible = _visible(positions, keys, causal)
    scores = ops.cast(ops.matmul(queries, ops.transpose(keys.states, (0, 2, 1))), "float32")
    bias = keys.bias.matrix(positions, keys.positions)
    if activation == "softmax":
        scores = scores * queries.shape[-1] ** -0.5 + bias
        weights = softmax(scores if visible is None else scores + mask_to_bias(visible))
    else:
        width = ops.shape(keys.states)[1]
        seen = width if visible is None else _count(visible)
        weights = ELEMENTWISE[activation](scores / ops.cast(seen, "float32") + bias)
    if visible is not None:
        weights = weights * ops.cast(visible, weights.dtype)
    weights = ops.cast(weights, keys.values.dtype)
    return ops.matmul(weights if dropout is None else dropout(weights), keys.values), weights


def _visible(positions: Tensor, keys: Keys, causal: bool) -> Tensor | None:
    """Which keys a query may see, boolean and broadcastable to (R, T, S); None for all."""
    mask = keys.mask if keys.mask is None or len(keys.mask.shape) == 3 else keys.mask[:, None]
    if not causal:
        return mask
    earlier = (keys.positions[None] <= positions[:, None])[None]
    return earlier if mask is None else ops.logical_and(mask, earlier)


def _count(visible: Tensor) -> Tensor:
    """Keys that each query sees, at least 1."""
    return ops.maximum(ops.sum(ops.cast(visible, "float32"), axis=-1, keepdims=True), 1.0)
