"""Layers that LongT5's encoder and decoder share, in Flax (Guo et al., 2022, https://arxiv.org/abs/2112.07916).

Axes: B batch, S tokens, H width, F width of the feed-forward layers, A heads, D head size.

`dtype` is the dtype of the computation. In float16 the residual and the last product of the feed-forward layers are
float32: their values outgrow float16.
"""

from __future__ import annotations

from typing import Any

import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from jax import Array, lax
from jax.nn.initializers import constant, normal

from longspan.models.longt5.config import LongT5Config
from longspan.nn.flax.activations import get_activation
from longspan.nn.flax.layers import Dense, Dtype, Embedding, spread
from longspan.nn.flax.parameters import parameter
from longspan.ops import patterns


def linear(config: LongT5Config, features: int, *, std: float, dtype: Dtype) -> Dense:
    """A projection without bias."""
    return Dense(features, kernel_init=normal(config.initializer_factor * std), use_bias=False, dtype=dtype)


class FlaxLongT5LayerNorm(nn.Module):
    """w · x / √(mean(x²) + ε) (Zhang and Sennrich, 2019), computed in float32.

    Attributes:
        config: Settings of the model.
    """

    config: LongT5Config
    dtype: Dtype = jnp.float32

    @nn.compact
    def __call__(self, hidden_states: Array) -> Array:
        """(..., H) -> (..., H)."""
        shape = (self.config.d_model,)
        weight = parameter(self, "weight", constant(self.config.initializer_factor), shape, jnp.float32)
        states = hidden_states.astype(jnp.float32)
        variance = jnp.square(states).mean(axis=-1, keepdims=True)
        normalised = states * lax.rsqrt(variance + self.config.layer_norm_epsilon)
        return (normalised * spread(weight.astype(jnp.float32), normalised)).astype(self.dtype)


class FlaxLongT5DenseActDense(nn.Module):
    """W₂ act(W₁ x).

    Attributes:
        config: Settings of the model.
    """

    config: LongT5Config
    dtype: Dtype = jnp.float32

    def setup(self) -> None:
        """Make the parts."""
        config = self.config
        self.wi = linear(config, config.d_ff, std=config.d_model**-0.5, dtype=self.dtype)
        self.wo = linear(config, config.d_model, std=config.d_ff**-0.5, dtype=wide(self.dtype))
        self.dropout = nn.Dropout(config.dropout_rate)
        self.activation = get_activation(config.dense_act_fn or "relu")

    def __call__(self, hidden_states: Array, *, deterministic: bool) -> Array:
        """(B, S, H) -> (B, S, H)."""
        return self.wo(self.dropout(self.activation(self.wi(hidden_states)), deterministic=deterministic))


class FlaxLongT5DenseGatedActDense(nn.Module):
    """W₂ (act(W₀ x) ⊙ W₁ x) (Shazeer, 2020).

    Attributes:
        config: Settings of the model.
    """

    config: LongT5Config
    dtype: Dtype = jnp.float32

    def setup(self) -> None:
        """Make the parts."""
        config = self.config
        self.wi_0 = linear(config, config.d_ff, std=config.d_model**-0.5, dtype=self.dtype)
        self.wi_1 = linear(config, config.d_ff, std=config.d_model**-0.5, dtype=self.dtype)
        self.wo = linear(config, config.d_model, std=config.d_ff**-0.5, dtype=wide(self.dtype))
        self.dropout = nn.Dropout(config.dropout_rate)
        self.activation = get_activation(config.dense_act_fn or "gelu_new")

    def __call__(self, hidden_states: Array, *, deterministic: bool) -> Array:
        """(B, S, H) -> (B, S, H)."""
        gate, states = self.activation(self.wi_0(hidden_states)), self.wi_1(hidden_states)
        return self.wo(self.dropout(gate.astype(wide(self.dtype)) * states, deterministic=deterministic))


class FlaxLongT5Sublayer(nn.Module):
    """x + dropout(f(norm(x))); subclasses bring f.

    Attributes:
        config: Settings of the model.
    """

    config: LongT5Config
    dtype: Dtype = jnp.float32

    def setup(self) -> None:
        """Make the parts."""
        self.layer_norm = FlaxLongT5LayerNorm(self.config, dtype=self.dtype)
        self.dropout = nn.Dropout(self.config.dropout_rate)

    def add(self, hidden_states: Array, change: Array, *, deterministic: bool) -> Array:
        """(B, S, H), (B, S, H) -> (B, S, H)."""
        return hidden_states + self.dropout(change, deterministic=deterministic)


class FlaxLongT5LayerFF(FlaxLongT5Sublayer):
    """x + dropout(FF(norm(x))).

    Attributes:
        config: Settings of the model.
    """

    def setup(self) -> None:
        """Make the parts."""
        super().setup()
        kind = FlaxLongT5DenseGatedActDense if self.config.is_gated_act else FlaxLongT5DenseActDense
        self.DenseReluDense = kind(self.config, dtype=self.dtype)

    def __call__(self, hidden_states: Array, *, deterministic: bool) -> Array:
        """(B, S, H) -> (B, S, H)."""
        states = self.DenseReluDense(self.layer_norm(hidden_states), deterministic=deterministic)
        return self.add(hidden_states, states, deterministic=deterministic)


class FlaxLongT5Projections(nn.Module):
    """The four projections of an attention layer; without scaling, which T5 leaves to the initial weights.

    Attributes:
        config: Settings of the model.
    """

    config: LongT5Config
    dtype: Dtype = jnp.float32

    def setup(self) -> None:
        """Make the parts."""
        config, width = self.config, self.config.d_model
        inner = config.num_heads * config.d_kv
        self.q = linear(config, inner, std=(width * config.d_kv) ** -0.5, dtype=self.dtype)
        self.k = linear(config, inner, std=width**-0.5, dtype=self.dtype)
        self.v = linear(config, inner, std=width**-0.5, dtype=self.dtype)
        self.o = linear(config, width, std=inner**-0.5, dtype=self.dtype)

    def split(self, states: Array) -> Array:
        """(B, S, A·D) -> (B, S, A, D)."""
        return states.reshape(*states.shape[:-1], self.config.num_heads, self.config.d_kv)

    def merge(self, context: Array) -> Array:
        """(B, S, A, D) -> (B, S, H)."""
        return self.o(context.reshape(*context.shape[:-2], -1))

    def dropout_arguments(self, *, deterministic: bool) -> dict[str, Any]:
        """Dropout of the weights in the present mode, and its random key."""
        rate = 0.0 if deterministic else self.config.dropout_rate
        return {"dropout": rate, "dropout_rng": self.make_rng("dropout") if rate > 0.0 else None}


def relative_embedding(config: LongT5Config) -> Embedding:
    """Bias of each bucket and head."""
    std = config.initializer_factor * config.d_model**-0.5
    return Embedding(config.relative_attention_num_buckets, config.num_heads, embedding_init=normal(std))


def relative_bias(
    config: LongT5Config, relative_position: Array | np.ndarray, embedding: Embedding, *, bidirectional: bool
) -> Array:
    """Look up a bias per head; farther positions than the largest distance share its bucket.

    Args:
        config: Settings of the model.
        relative_position: Integers, (N,).
        embedding: Biases of the buckets.
        bidirectional: Keys after the query have buckets of their own.

    Returns:
        float32 (A, N).
    """
    farthest = config.relative_attention_max_distance
    table = patterns.bucket_table(
        bidirectional=bidirectional, num_buckets=config.relative_attention_num_buckets, max_distance=farthest
    )
    place = jnp.clip(relative_position, -farthest, farthest) + farthest
    return embedding(jnp.asarray(table)[place]).T


def wide(dtype: Dtype) -> Dtype:
    """The dtype of what outgrows float16: float32 in its place."""
    return jnp.float32 if dtype == jnp.float16 else dtype


def end_residual(hidden_states: Array, dtype: Dtype) -> Array:
    """A residual in the dtype of the model, without infinities."""
    if hidden_states.dtype == dtype:
        return hidden_states
    limit = float(jnp.finfo(dtype).max)
    return jnp.clip(hidden_states, -limit, limit).astype(dtype)
