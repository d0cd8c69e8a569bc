"""Blocks of task heads that more than one family uses."""

from __future__ import annotations

import jax.numpy as jnp
from flax import linen as nn
from jax import Array

from longspan.errors import InputError
from longspan.nn.flax.activations import get_activation
from longspan.nn.flax.layers import Dense, Dtype, LayerNorm
from longspan.nn.flax.parameters import Initializer


class Pooler(nn.Module):
    """tanh(W h₀ + b) of the first token's state (BERT, Longformer).

    Attributes:
        hidden_size: Width H.
        kernel_init: Draws W.
    """

    hidden_size: int
    kernel_init: Initializer
    dtype: Dtype = jnp.float32

    def setup(self) -> None:
        """Make the parts."""
        self.dense = Dense(self.hidden_size, kernel_init=self.kernel_init, dtype=self.dtype)

    def __call__(self, hidden_states: Array) -> Array:
        """(B, S, H) -> (B, H)."""
        return jnp.tanh(self.dense(hidden_states[:, 0]))


class PredictionHeadTransform(nn.Module):
    """dense → activation → layer norm, before the vocabulary projection of BERT.

    Attributes:
        hidden_size: Width H.
        activation: Name of the activation.
        layer_norm_eps: Epsilon of the norm.
        kernel_init: Draws W.
    """

    hidden_size: int
    activation: str
    layer_norm_eps: float
    kernel_init: Initializer
    dtype: Dtype = jnp.float32

    def setup(self) -> None:
        """Make the parts."""
        self.dense = Dense(self.hidden_size, kernel_init=self.kernel_init, dtype=self.dtype)
        self.LayerNorm = LayerNorm(eps=self.layer_norm_eps, dtype=self.dtype)

    def __call__(self, hidden_states: Array) -> Array:
        """(B, S, H) -> (B, S, H)."""
        return self.LayerNorm(get_activation(self.activation)(self.dense(hidden_states)))


def fold_choices(*inputs: Array | None) -> tuple[int, tuple[Array | None, ...]]:
    """Fold the axis of choices into the batch.

    Args:
        *inputs: Each None or of the shape (B, C, ...), with one C.

    Returns:
        C, and the inputs as (B·C, ...).

    Raises:
        InputError: an input lacks the axis, or the inputs disagree in B or C.
    """
    shapes = {tuple(array.shape[:2]) for array in inputs if array is not None}
    if len(shapes) != 1 or any(array is not None and array.ndim < 3 for array in inputs):
        received = [tuple(array.shape) for array in inputs if array is not None]
        raise InputError(
            f"inputs of multiple choice must all have the shape (batch, choices, ...). Received: {received}"
        )
    num_choices = shapes.pop()[1]
    return num_choices, tuple(None if array is None else array.reshape(-1, *array.shape[2:]) for array in inputs)
