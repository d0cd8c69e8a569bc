"""Blocks of task heads that more than one family uses."""

from __future__ import annotations

import jax.numpy as jnp
from flax import linen as nn
from jax import Array
from jax.nn.initializers import zeros

from longspan.nn.flax.activations import get_activation
from longspan.nn.flax.layers import Dense, Dtype, Embedding, LayerNorm, Part
from longspan.nn.flax.parameters import Initializer, kernel_init, parameter
from longspan.ops.flax.context import first_state
from longspan.shapes import num_choices_of


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
        return jnp.tanh(self.dense(first_state(hidden_states)))


class FirstTokenClassificationHead(nn.Module):
    """dropout → dense → tanh → dropout → projection of the first token's state (Longformer, MEGA).

    Attributes:
        hidden_size: Width H.
        num_labels: Number of classes N.
        rate: Probability of dropout.
        kernel_init: Draws both kernels.
    """

    hidden_size: int
    num_labels: int
    rate: float
    kernel_init: Initializer
    dtype: Dtype = jnp.float32

    def setup(self) -> None:
        """Make the parts."""
        self.dense = Dense(self.hidden_size, kernel_init=self.kernel_init, dtype=self.dtype)
        self.dropout = nn.Dropout(self.rate)
        self.out_proj = Dense(self.num_labels, kernel_init=self.kernel_init, dtype=self.dtype)

    def __call__(self, hidden_states: Array, *, deterministic: bool) -> Array:
        """(B, S, H) -> (B, N)."""
        pooled = jnp.tanh(self.dense(self.dropout(first_state(hidden_states), deterministic=deterministic)))
        return self.out_proj(self.dropout(pooled, deterministic=deterministic))


class LanguageModelHead(Part):
    """Scores over the vocabulary: LayerNorm(gelu(W x + b)) Eᵀ + bias, with the word embeddings E if they are tied."""

    def setup(self) -> None:
        """Make the parts."""
        config = self.config
        self.dense = Dense(config.hidden_size, kernel_init=kernel_init(config), dtype=self.dtype)
        self.layer_norm = LayerNorm(eps=config.layer_norm_eps, dtype=self.dtype)
        if not config.tie_word_embeddings:
            self.decoder = Dense(config.vocab_size, kernel_init=kernel_init(config), use_bias=False, dtype=self.dtype)
        self.bias = parameter(self, "bias", zeros, (config.vocab_size,), jnp.float32)

    def __call__(self, hidden_states: Array, word_embeddings: Embedding) -> Array:
        """(B, S, H), the word embeddings -> (B, S, V)."""
        states = self.layer_norm(get_activation("gelu")(self.dense(hidden_states)))
        scores = word_embeddings.attend(states) if self.config.tie_word_embeddings else self.decoder(states)
        return (scores + self.bias).astype(self.dtype)


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
    """Fold the axis of choices into the batch: (B, C, ...) -> C and (B·C, ...); `num_choices_of` says what fits."""
    folded = tuple(None if array is None else array.reshape(-1, *array.shape[2:]) for array in inputs)
    return num_choices_of(inputs), folded
