"""Layers that LongT5's encoder and decoder share, in Keras 3 (Guo et al., 2022, https://arxiv.org/abs/2112.07916).

Axes: B batch, S tokens, H width, F width of the feed-forward layers, A heads, D head size.

In float16 the residual and the last product of the feed-forward layers are float32: their values outgrow float16.
"""

from __future__ import annotations

from functools import partial
from typing import Any, ClassVar

import keras
import numpy as np
from keras import ops

from longspan.models.longt5.config import LongT5Config
from longspan.nn.keras.activations import get_activation
from longspan.nn.keras.layers import Block, embedding, linear, tokenwise
from longspan.nn.keras.outputs import Tensors
from longspan.nn.keras.policy import asked_dtype
from longspan.ops import patterns
from longspan.ops.keras import Tensor
from longspan.ops.keras.rms_norm import rms_norm


def wide(policy: keras.DTypePolicy) -> keras.DTypePolicy:
    """The dtype policy of what outgrows float16: float32 in its place."""
    return keras.DTypePolicy("float32") if asked_dtype(policy) == "float16" else policy


def end_residual(hidden_states: Tensor, policy: keras.DTypePolicy) -> Tensor:
    """A residual in the dtype of the model, without infinities."""
    dtype = policy.compute_dtype
    if keras.backend.standardize_dtype(hidden_states.dtype) == dtype:
        return hidden_states
    limit = float(np.finfo(dtype).max)
    return ops.cast(ops.clip(hidden_states, -limit, limit), dtype)


class LongT5Part(Block):
    """A part of LongT5, which takes its input in the dtype in which it comes.

    Args:
        config: Settings of the model.
        **kwargs: `name`, `dtype`, `trainable`.
    """

    def __init__(self, config: LongT5Config, **kwargs: Any) -> None:
        super().__init__(config.d_model, autocast=False, **kwargs)
        self.config = config

    def make_dropout(self) -> keras.layers.Dropout:
        """Dropout of states."""
        return keras.layers.Dropout(self.config.dropout_rate, dtype=wide(self.dtype_policy))

    def linear(self, units: int, *, std: float, name: str, dtype: Any = None) -> keras.layers.Dense:
        """A projection without bias."""
        stddev = self.config.initializer_factor * std
        return linear(units, stddev=stddev, use_bias=False, dtype=dtype or self.dtype_policy, name=name)


class LongT5LayerNorm(keras.layers.Layer):
    """w · x / √(mean(x²) + ε) (Zhang and Sennrich, 2019), computed in float32."""

    def __init__(self, config: LongT5Config, **kwargs: Any) -> None:
        super().__init__(autocast=False, **kwargs)
        self.size, self.epsilon, self.first_value = config.d_model, config.layer_norm_epsilon, config.initializer_factor

    def build(self, input_shape: Any = None) -> None:
        """Make the weight."""
        initializer = keras.initializers.Constant(self.first_value)
        self.weight = self.add_weight(shape=(self.size,), initializer=initializer, name="weight")

    def call(self, hidden_states: Tensor) -> Tensor:
        """(..., H) -> (..., H)."""
        states = ops.cast(hidden_states, keras.backend.result_type(hidden_states.dtype, "float32"))
        return ops.cast(rms_norm(states, ops.cast(self.weight, states.dtype), self.epsilon), self.compute_dtype)


class LongT5DenseActDense(LongT5Part):
    """W₂ act(W₁ x)."""

    #: projections that the product begins with
    first: ClassVar[tuple[str, ...]] = ("wi",)

    def __init__(self, config: LongT5Config, **kwargs: Any) -> None:
        super().__init__(config, **kwargs)
        for name in self.first:
            setattr(self, name, self.linear(config.d_ff, std=config.d_model**-0.5, name=name))
        self.wo = self.linear(config.d_model, std=config.d_ff**-0.5, name="wo", dtype=wide(self.dtype_policy))
        self.dropout = self.make_dropout()
        self.activation = get_activation(config.dense_act_fn or "relu")

    def build(self, input_shape: Any = None) -> None:
        """Make the weights of the sub-layers."""
        self.wo.build((None, self.config.d_ff))
        super().build()

    def call(self, hidden_states: Tensor, *, training: bool | None = None) -> Tensor:
        """(B, S, H) -> (B, S, H)."""
        return self.wo(self.dropout(self.inner(hidden_states), training=training))

    def inner(self, hidden_states: Tensor) -> Tensor:
        """(B, S, H) -> (B, S, F)."""
        return self.activation(self.wi(hidden_states))


class LongT5DenseGatedActDense(LongT5DenseActDense):
    """W₂ (act(W₀ x) ⊙ W₁ x) (Shazeer, 2020)."""

    first = ("wi_0", "wi_1")

    def inner(self, hidden_states: Tensor) -> Tensor:
        """(B, S, H) -> (B, S, F)."""
        gate, states = self.activation(self.wi_0(hidden_states)), self.wi_1(hidden_states)
        dtype = wide(self.dtype_policy).compute_dtype
        return ops.cast(gate, dtype) * ops.cast(states, dtype)


class LongT5Sublayer(LongT5Part):
    """x + dropout(f(norm(x))); subclasses bring f."""

    def __init__(self, config: LongT5Config, **kwargs: Any) -> None:
        super().__init__(config, **kwargs)
        self.layer_norm = LongT5LayerNorm(config, dtype=self.dtype_policy, name="layer_norm")
        self.dropout = self.make_dropout()

    def add(self, hidden_states: Tensor, change: Tensor, training: bool | None) -> Tensor:
        """(B, S, H), (B, S, H) -> (B, S, H)."""
        return hidden_states + ops.cast(self.dropout(change, training=training), hidden_states.dtype)


class LongT5LayerFF(LongT5Sublayer):
    """x + dropout(FF(norm(x)))."""

    def __init__(self, config: LongT5Config, **kwargs: Any) -> None:
        super().__init__(config, **kwargs)
        kind = LongT5DenseGatedActDense if config.is_gated_act else LongT5DenseActDense
        self.DenseReluDense = kind(config, dtype=self.dtype_policy, name="DenseReluDense")

    def call(self, hidden_states: Tensor, *, training: bool | None = None) -> Tensor:
        """(B, S, H) -> (B, S, H)."""

        def apply(states: Tensor) -> Tensor:
            change = self.DenseReluDense(self.layer_norm(states), training=training)
            return self.add(states, change, training)

        parts = (self.layer_norm, self.DenseReluDense, self.dropout)
        return tokenwise(apply, hidden_states, parts=parts, width=self.config.d_ff, training=training)


class LongT5LayerAttention(LongT5Sublayer):
    """x + dropout(attention(norm(x))); the attention has its name of checkpoints.

    Args:
        config: Settings of the model.
        attention: The attention.
        **kwargs: `name`, `dtype`, `trainable`.
    """

    def __init__(self, config: LongT5Config, attention: LongT5Part, **kwargs: Any) -> None:
        super().__init__(config, **kwargs)
        setattr(self, attention.name, attention)
        self.attention_name = attention.name

    @property
    def attention(self) -> Any:
        """The attention, whatever its name in checkpoints."""
        return getattr(self, self.attention_name)

    def call(
        self,
        hidden_states: Tensor,
        *,
        plan: Any,
        head_mask: Tensor | None = None,
        encoder_hidden_states: Tensor | None = None,
        past: Tensors | None = None,
        training: bool | None = None,
    ) -> tuple[Tensor, *tuple[Any, ...]]:
        """(B, S, H) -> (B, S, H), and what else the attention returns; the arguments, if given, are its own."""
        others = {"head_mask": head_mask, "encoder_hidden_states": encoder_hidden_states, "past": past}
        given = {name: value for name, value in others.items() if value is not None}
        context, *results = self.attention(self.layer_norm(hidden_states), plan=plan, training=training, **given)
        return self.add(hidden_states, context, training), *results


class LongT5Attention(LongT5Part):
    """The four projections of an attention layer, without scaling, which T5 leaves to the initial weights.

    Args:
        config: Settings of the model.
        biases: Names of the tables of relative biases that it holds.
        **kwargs: `name`, `dtype`, `trainable`.
    """

    def __init__(self, config: LongT5Config, *, biases: tuple[str, ...] = (), **kwargs: Any) -> None:
        super().__init__(config, **kwargs)
        width, inner = config.d_model, config.num_heads * config.d_kv
        self.q = self.linear(inner, std=(width * config.d_kv) ** -0.5, name="q")
        self.k = self.linear(inner, std=width**-0.5, name="k")
        self.v = self.linear(inner, std=width**-0.5, name="v")
        self.o = self.linear(width, std=inner**-0.5, name="o")
        self.weight_dropout = keras.layers.Dropout(config.dropout_rate, dtype=self.dtype_policy)
        size, std = config.relative_attention_num_buckets, config.initializer_factor * width**-0.5
        for name in biases:
            setattr(self, name, embedding(size, config.num_heads, stddev=std, dtype=self.dtype_policy, name=name))

    def build(self, input_shape: Any = None) -> None:
        """Make the weights of the sub-layers."""
        self.o.build((None, self.config.num_heads * self.config.d_kv))
        super().build()

    def split(self, states: Tensor) -> Tensor:
        """(B, S, A·D) -> (B, A, S, D)."""
        batch, length = ops.shape(states)[:2]
        states = ops.reshape(states, (batch, length, self.config.num_heads, self.config.d_kv))
        return ops.transpose(states, (0, 2, 1, 3))

    def merge(self, context: Tensor) -> Tensor:
        """(B, A, S, D) -> (B, S, H)."""
        batch, heads, length, size = ops.shape(context)
        return self.o(ops.reshape(ops.transpose(context, (0, 2, 1, 3)), (batch, length, heads * size)))

    def drop_weights(self, training: bool | None) -> Any:
        """Dropout of the weights in training."""
        return partial(self.weight_dropout, training=training) if training else None


def relative_bias(
    config: LongT5Config, relative_position: Tensor, table: keras.layers.Layer, *, bidirectional: bool
) -> Tensor:
    """Look up a bias per head; farther positions than the largest distance share its bucket.

    Args:
        config: Settings of the model.
        relative_position: Integers, (...).
        table: Biases of the buckets.
        bidirectional: Keys after the query have buckets of their own.

    Returns:
        (A, ...).
    """
    farthest = config.relative_attention_max_distance
    buckets = patterns.bucket_table(
        bidirectional=bidirectional, num_buckets=config.relative_attention_num_buckets, max_distance=farthest
    )
    place = ops.clip(relative_position, -farthest, farthest) + farthest
    return ops.moveaxis(table(ops.take(np.array(buckets, np.int32), place, axis=0)), -1, 0)


class LongT5Stack(LongT5Part):
    """Embeddings through all layers and a last norm.

    Args:
        config: Settings of the model.
        blocks: The layers.
        **kwargs: `name`, `dtype`, `trainable`.
    """

    def __init__(self, config: LongT5Config, blocks: list[LongT5Part], **kwargs: Any) -> None:
        super().__init__(config, **kwargs)
        self.block = blocks
        self.final_layer_norm = LongT5LayerNorm(config, dtype=self.dtype_policy, name="final_layer_norm")
        self.dropout = self.make_dropout()

    def run_blocks(
        self,
        inputs_embeds: Tensor,
        *,
        each: list[dict[str, Any]],
        training: bool | None,
        **arguments: Any,
    ) -> tuple[Tensors, list[tuple[Any, ...]]]:
        """Run all layers.

        Args:
            inputs_embeds: (B, S, H).
            each: Arguments of one layer.
            training: Apply dropout.
            **arguments: Arguments of all.

        Returns:
            States before every layer and at the end, normalised, (B, S, H) each; and for each of the layers' other
            results those of all layers.
        """
        policy = self.dtype_policy
        hidden_states = ops.cast(self.dropout(inputs_embeds, training=training), wide(policy).compute_dtype)
        states, results = [], []
        for block, own in zip(self.block, each, strict=True):
            states.append(end_residual(hidden_states, policy))
            hidden_states, *found = block(hidden_states, training=training, **arguments, **own)
            results.append(found)
        last = ops.cast(self.dropout(self.final_layer_norm(hidden_states), training=training), policy.compute_dtype)
        return (*states, last), list(zip(*results, strict=True))
