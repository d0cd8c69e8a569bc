"""What the layers of BERT and Longformer share: they normalise after adding (Vaswani et al., 2017).

Axes: B batch, S tokens, H width, F width of the feed-forward layers.
"""

from __future__ import annotations

import jax.numpy as jnp
from flax import linen as nn
from jax import Array

from longspan.nn.flax.activations import get_activation
from longspan.nn.flax.layers import Dense, LayerNorm, Part, tokenwise
from longspan.nn.flax.parameters import kernel_init


class Intermediate(Part):
    """activation(W x + b)."""

    def setup(self) -> None:
        """Make the parts."""
        config = self.config
        self.dense = Dense(config.intermediate_size, kernel_init=kernel_init(config), dtype=self.dtype)
        self.activation = get_activation(config.hidden_act)

    def __call__(self, hidden_states: Array) -> Array:
        """(B, S, H) -> (B, S, F)."""
        return self.activation(self.dense(hidden_states))


class AddAndNorm(Part):
    """LayerNorm(x + dropout(W c + b))."""

    def setup(self) -> None:
        """Make the parts."""
        config = self.config
        self.dense = Dense(config.hidden_size, kernel_init=kernel_init(config), dtype=self.dtype)
        self.LayerNorm = LayerNorm(eps=config.layer_norm_eps, dtype=self.dtype)
        self.dropout = nn.Dropout(config.hidden_dropout_prob)

    def __call__(self, hidden_states: Array, residual: Array, *, deterministic: bool) -> Array:
        """(B, S, any), (B, S, H) -> (B, S, H)."""
        return self.LayerNorm(self.dropout(self.dense(hidden_states), deterministic=deterministic) + residual)


class PostNormFeedForward(nn.Module):
    """The second half of a layer, LayerNorm(x + W₂ act(W₁ x)); subclasses add fields and the first half."""

    def setup(self) -> None:
        """Make the parts, behind those of the attention."""
        self.intermediate = Intermediate(self.config, dtype=self.dtype)
        self.output = AddAndNorm(self.config, dtype=self.dtype)

    def feed_forward(self, hidden_states: Array, *, deterministic: bool) -> Array:
        """(B, S, H) -> (B, S, H), for `chunk_size_feed_forward` tokens at a time if that is set."""
        size = self.config.chunk_size_feed_forward

        def apply(states: Array) -> Array:
            return self.output(self.intermediate(states), states, deterministic=deterministic)

        if size == 0:  # the length may be symbolic
            width = self.config.intermediate_size
            return tokenwise(apply, hidden_states, owner=self, width=width, deterministic=deterministic)
        outputs = [apply(hidden_states[:, start : start + size]) for start in range(0, hidden_states.shape[1], size)]
        return outputs[0] if len(outputs) == 1 else jnp.concatenate(outputs, axis=1)
