"""Blocks of task heads that more than one family uses."""

from __future__ import annotations

from typing import Any

from keras import ops

from longspan.errors import InputError
from longspan.nn.keras.activations import get_activation
from longspan.nn.keras.checks import Size, static_shape
from longspan.nn.keras.layers import Block, layer_norm, linear
from longspan.ops.keras import Tensor


class Pooler(Block):
    """tanh(W h₀ + b) of the first token's state (BERT, Longformer).

    Args:
        hidden_size: Width H.
        stddev: Standard deviation of the first weights.
        **kwargs: `name`, `dtype`, `trainable`.
    """

    def __init__(self, *, hidden_size: int, stddev: float, **kwargs: Any) -> None:
        super().__init__(hidden_size, **kwargs)
        self.dense = linear(hidden_size, stddev=stddev, dtype=self.dtype_policy, name="dense")

    def call(self, hidden_states: Tensor) -> Tensor:
        """(B, S, H) -> (B, H)."""
        return ops.tanh(self.dense(hidden_states[:, 0]))


class PredictionHeadTransform(Block):
    """dense → activation → layer norm, before the vocabulary projection of BERT.

    Args:
        hidden_size: Width H.
        activation: Name of the activation.
        layer_norm_eps: Epsilon of the norm.
        stddev: Standard deviation of the first weights.
        **kwargs: `name`, `dtype`, `trainable`.
    """

    def __init__(
        self, *, hidden_size: int, activation: str, layer_norm_eps: float, stddev: float, **kwargs: Any
    ) -> None:
        super().__init__(hidden_size, **kwargs)
        self.dense = linear(hidden_size, stddev=stddev, dtype=self.dtype_policy, name="dense")
        self.activation = get_activation(activation)
        self.LayerNorm = layer_norm(layer_norm_eps, dtype=self.dtype_policy, name="LayerNorm")

    def call(self, hidden_states: Tensor) -> Tensor:
        """(tokens, H) -> (tokens, H)."""
        return self.LayerNorm(self.activation(self.dense(hidden_states)))


def fold_choices(*inputs: Tensor | None) -> tuple[Size, tuple[Tensor | None, ...]]:
    """Fold the axis of choices into the batch.

    Args:
        *inputs: Each None or of the shape (B, C, ...), with one C.

    Returns:
        C, and the inputs as (B·C, ...).

    Raises:
        InputError: an input lacks the axis, or the inputs disagree in B or C.
    """
    given = [tensor for tensor in inputs if tensor is not None]
    shapes = [static_shape(tensor) for tensor in given]
    sizes = [{shape[axis] for shape in shapes if len(shape) > axis} - {None} for axis in (0, 1)]
    if not given or any(len(shape) < 3 for shape in shapes) or any(len(found) > 1 for found in sizes):
        raise InputError(f"inputs of multiple choice must all have the shape (batch, choices, ...). Received: {shapes}")
    folded = (None if tensor is None else ops.reshape(tensor, (-1, *ops.shape(tensor)[2:])) for tensor in inputs)
    return ops.shape(given[0])[1], tuple(folded)
