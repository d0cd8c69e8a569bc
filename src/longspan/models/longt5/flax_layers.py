"""Layers that LongT5's encoder and decoder share, in Flax (Guo et al., 2022, https://arxiv.org/abs/2112.07916).

Axes: B batch, S tokens, H width, F width of the feed-forward layers, A heads, D head size.

The modules are nested, and named, as the keys of checkpoints are. `dtype` is the dtype of the computation. In float16
the residual and the last product of the feed-forward layers are float32: their values outgrow float16.
"""

from __future__ import annotations

from typing import Any, ClassVar

import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from jax import Array, lax
from jax.nn.initializers import constant, normal

from longspan.models.longt5.config import LongT5Config
from longspan.nn.flax.activations import get_activation
from longspan.nn.flax.layers import Dense, Dtype, Embedding, Part, Stack, spread, tokenwise
from longspan.nn.flax.parameters import parameter
from longspan.ops import patterns


def linear(config: LongT5Config, features: int, *, std: float, dtype: Dtype) -> Dense:
    """A projection without bias."""
    return Dense(features, kernel_init=normal(config.initializer_factor * std), use_bias=False, dtype=dtype)


class FlaxLongT5LayerNorm(Part):
    """w · x / √(mean(x²) + ε) (Zhang and Sennrich, 2019), computed in float32."""

    config: LongT5Config

    @nn.compact
    def __call__(self, hidden_states: Array) -> Array:
        """(..., H) -> (..., H)."""
        shape = (self.config.d_model,)
        weight = parameter(self, "weight", constant(self.config.initializer_factor), shape, jnp.float32)
        states = hidden_states.astype(jnp.float32)
        variance = jnp.square(states).mean(axis=-1, keepdims=True)
        normalised = states * lax.rsqrt(variance + self.config.layer_norm_epsilon)
        return (normalised * spread(weight.astype(jnp.float32), normalised)).astype(self.dtype)


class FlaxLongT5DenseActDense(Part):
    """W₂ act(W₁ x)."""

    config: LongT5Config

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


class FlaxLongT5DenseGatedActDense(Part):
    """W₂ (act(W₀ x) ⊙ W₁ x) (Shazeer, 2020)."""

    config: LongT5Config

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


class FlaxLongT5Sublayer(Part):
    """x + dropout(f(norm(x))); subclasses bring f."""

    config: LongT5Config

    def setup(self) -> None:
        """Make the parts."""
        self.layer_norm = FlaxLongT5LayerNorm(self.config, dtype=self.dtype)
        self.dropout = nn.Dropout(self.config.dropout_rate)

    def add(self, hidden_states: Array, change: Array, *, deterministic: bool) -> Array:
        """(B, S, H), (B, S, H) -> (B, S, H)."""
        return hidden_states + self.dropout(change, deterministic=deterministic)


class FlaxLongT5LayerFF(FlaxLongT5Sublayer):
    """x + dropout(FF(norm(x)))."""

    def setup(self) -> None:
        """Make the parts."""
        super().setup()
        kind = FlaxLongT5DenseGatedActDense if self.config.is_gated_act else FlaxLongT5DenseActDense
        self.DenseReluDense = kind(self.config, dtype=self.dtype)

    def __call__(self, hidden_states: Array, *, deterministic: bool) -> Array:
        """(B, S, H) -> (B, S, H)."""

        def apply(states: Array) -> Array:
            change = self.DenseReluDense(self.layer_norm(states), deterministic=deterministic)
            return self.add(states, change, deterministic=deterministic)

        return tokenwise(apply, hidden_states, owner=self, width=self.config.d_ff, deterministic=deterministic)


class FlaxLongT5Projections(Part):
    """The four projections of an attention layer; without scaling, which T5 leaves to the initial weights."""

    config: LongT5Config

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


class FlaxLongT5Block(nn.Module):
    """One layer of a stack.

    Attributes:
        config: Settings of the model.
        has_relative_attention_bias: Hold the biases of all layers.
    """

    config: LongT5Config
    has_relative_attention_bias: bool
    dtype: Dtype = jnp.float32

    #: module with the sublayers
    layer_class: ClassVar[type[nn.Module]]

    def setup(self) -> None:
        """Make the parts."""
        self.layer = self.layer_class(self.config, self.has_relative_attention_bias, dtype=self.dtype)

    def __call__(self, *inputs: Any) -> tuple[Array, *tuple[Array | None, ...]]:
        """Inputs, beginning with states (B, S, H), as of the sublayers -> (B, S, H), and weights."""
        outputs: tuple[Array, *tuple[Array | None, ...]] = self.layer(*inputs)
        return outputs

    def biases(self, *arguments: Any) -> Any:
        """As of the attention."""
        return self.layer.biases(*arguments)


class FlaxLongT5Blocks(nn.Module):
    """The layers of a stack, named by their index.

    Attributes:
        config: Settings of the model.
        num_blocks: Number of layers.
        gradient_checkpointing: Recompute the layers' activations in the backward pass.
    """

    config: LongT5Config
    num_blocks: int
    dtype: Dtype = jnp.float32
    gradient_checkpointing: bool = False

    block_class: ClassVar[type[FlaxLongT5Block]]

    def setup(self) -> None:
        """Make the parts."""
        block: Any = self.block_class
        if self.gradient_checkpointing:
            block = nn.remat(block, methods=["__call__"])
        self.blocks = [
            block(self.config, index == 0, dtype=self.dtype, name=str(index)) for index in range(self.num_blocks)
        ]

    def __call__(self, hidden_states: Array, *inputs: Any) -> tuple[list[Array], list[tuple[Array | None, ...]]]:
        """States before every layer and behind the last one, and for each kind of attention the weights of all."""
        states, weights = [hidden_states], []
        for block in self.blocks:
            hidden_states, *new = block(hidden_states, *inputs)
            states.append(hidden_states)
            weights.append(new)
        return states, list(zip(*weights, strict=True))

    def biases(self, *arguments: Any) -> Any:
        """Biases that the first layer holds and all use."""
        return self.blocks[0].biases(*arguments)


class FlaxLongT5Stack(Stack):
    """Embeddings through all layers and a last norm."""

    config: LongT5Config

    def setup(self) -> None:
        """Make the parts."""
        self.block = self.make_blocks()
        self.final_layer_norm = FlaxLongT5LayerNorm(self.config, dtype=self.dtype)
        self.dropout = nn.Dropout(self.config.dropout_rate)

    def make_blocks(self) -> FlaxLongT5Blocks:
        """Make the layers."""
        raise NotImplementedError(f"{type(self).__name__} must say what its layers are")

    def run_blocks(
        self, inputs_embeds: Array, *inputs: Any, deterministic: bool
    ) -> tuple[tuple[Array, ...], list[tuple[Array | None, ...]]]:
        """Embeddings (B, S, H), and what all layers get -> states before every layer and at the end; weights."""
        hidden_states = self.dropout(inputs_embeds, deterministic=deterministic).astype(wide(self.dtype))
        states, weights = self.block(hidden_states, *inputs)
        last = self.dropout(self.final_layer_norm(states.pop()), deterministic=deterministic)
        return (*(end_residual(state, self.dtype) for state in states), last), weights
