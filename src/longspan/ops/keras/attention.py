"""Dense attention.

Axes: B batch, A heads, T queries, S keys, D head size, N real tokens of a packed batch.

Every function computes softmax(scale · q kᵀ + bias) v and gives 0 for a query that may attend to no key.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Protocol

from keras import ops

from longspan.ops.keras import Tensor

#: what a key that must not be attended to adds to its score: far below every score, and finite
MASKED = -1e9

Dropout = Callable[[Tensor], Tensor]


def mask_to_bias(mask: Tensor) -> Tensor:
    """0 where a boolean mask is True and `MASKED` elsewhere, in float32."""
    return ops.where(mask, 0.0, MASKED)


def rows_that_attend(mask: Tensor) -> Tensor:
    """1 for each query that may attend to a key, else 0: (B, 1, T, 1), or (B, 1, 1, 1) for a mask of keys alone."""
    return ops.cast(ops.any(mask, axis=-1, keepdims=True), "float32")


def eager_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    *,
    bias: Tensor | None = None,
    attends: Tensor | None = None,
    head_mask: Tensor | None = None,
    dropout: Dropout | None = None,
    scale: float | None = None,
    needs_weights: bool = False,
) -> tuple[Tensor, Tensor | None]:
    """Attention by matmul, softmax in float32, matmul.

    Args:
        query: (B, A, T, D).
        key: (B, A, S, D).
        value: (B, A, S, D).
        bias: Added to the scaled scores, broadcastable to (B, A, T, S).
        attends: 0 for queries whose result is 0, else 1; broadcastable to (B, A, T, 1). None for all 1.
        head_mask: Factor of each head's weights, broadcastable to (B, A, 1, 1).
        dropout: Applied to the weights.
        scale: Factor of the scores; default 1/√D.
        needs_weights: Return the weights.

    Returns:
        The context (B, A, T, D), and the weights (B, A, T, S) after dropout and `head_mask`, or None.
    """
    factor = 1.0 / math.sqrt(query.shape[-1]) if scale is None else scale
    scores = ops.matmul(query * factor, ops.transpose(key, (0, 1, 3, 2)))
    scores = ops.cast(scores, "float32")
    weights = ops.cast(softmax(scores if bias is None else scores + bias), value.dtype)
    if dropout is not None:
        weights = dropout(weights)
    if head_mask is not None:
        weights = weights * ops.cast(head_mask, weights.dtype)
    context = ops.matmul(weights, value)
    if attends is not None:  # the context is smaller than the weights
        attends = ops.cast(attends, context.dtype)
        context = context * attends
        weights = weights * attends if needs_weights else weights
    return context, weights if needs_weights else None


def softmax(scores: Tensor) -> Tensor:
    """Softmax over the last axis."""
    if scores.shape[-1] == 1:  # Keras warns of a softmax over one score, which a text of one token needs
        return ops.exp(scores - ops.max(scores, axis=-1, keepdims=True))
    return ops.softmax(scores, axis=-1)


class RowGroup(Protocol):
    """Neighbouring sequences of a packed batch that attend together; see `longspan.nn.keras.packing`."""

    @property
    def bias(self) -> Tensor:
        """0 at the tokens of each row that may be seen and `MASKED` elsewhere, (rows, 1, 1, width)."""

    @property
    def attends(self) -> Tensor | None:
        """0 for rows in which no token may be seen, else 1, (rows, 1, 1, 1); None for all 1."""

    def to_rows(self, packed: Tensor) -> Tensor:
        """(N, ...) -> (rows, width, ...)."""

    def from_rows(self, rows: Tensor) -> Tensor:
        """(rows, width, ...) -> (tokens of the group, ...)."""


def packed_attention(
    query: Tensor, key: Tensor, value: Tensor, *, groups: Sequence[RowGroup], dropout: Dropout | None = None
) -> Tensor:
    """Attention within each sequence of a packed batch.

    Sequences of like length attend together, padded to the longest of their group.

    Args:
        query: Tokens of all sequences one after the other, (N, A, D).
        key: (N, A, D).
        value: (N, A, D).
        groups: Which tokens attend together; in order they hold every token once.
        dropout: Applied to the weights.

    Returns:
        (N, A, D).
    """
    contexts = []
    for group in groups:
        q, k, v = (ops.transpose(group.to_rows(packed), (0, 2, 1, 3)) for packed in (query, key, value))
        context, _ = eager_attention(q, k, v, bias=group.bias, attends=group.attends, dropout=dropout)
        contexts.append(group.from_rows(ops.transpose(context, (0, 2, 1, 3))))
    return ops.concatenate(contexts, axis=0)
