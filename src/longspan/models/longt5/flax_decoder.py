"""LongT5's decoder in Flax: T5's, with dense causal self-attention and cross-attention to the encoder's states.

Axes: B batch, T target tokens, K target tokens that may be seen (with a cache, those that fit it), S source tokens,
H width, A heads, D head size.
"""

from __future__ import annotations

from typing import Any, ClassVar, Literal

import jax.numpy as jnp
from flax import linen as nn
from flax import struct
from jax import Array

from longspan.models.longt5.config import LongT5Config
from longspan.models.longt5.flax_layers import (
    FlaxLongT5Block,
    FlaxLongT5Blocks,
    FlaxLongT5LayerFF,
    FlaxLongT5Projections,
    FlaxLongT5Stack,
    FlaxLongT5Sublayer,
    relative_bias,
    relative_embedding,
)
from longspan.nn.flax.cache import (
    extend_cache,
    extend_rows,
    is_for_rows,
    rows_mask,
    tokens_and_room,
    tokens_before,
)
from longspan.nn.flax.layers import Dtype
from longspan.nn.flax.masks import causal_mask, extend_mask, key_mask
from longspan.nn.flax.outputs import FlaxBaseModelOutputWithPastAndCrossAttentions
from longspan.ops.flax.attention import Layout, eager_attention, sdpa_attention
from longspan.ops.flax.context import shared_axis
from longspan.ops.flax.sliding_window_bias import sliding_rows

#: where keys and values of the source come from: computed; computed and written to the cache; read from the cache
Source = Literal["compute", "write", "read"]


@struct.dataclass
class DecoderPlan:
    """What all decoder layers of one call share.

    Attributes:
        mask: True = attend, (B or 1, 1, T, K).
        bias: Bias by relative position, (A, T, K).
        source_mask: Source tokens that may be seen, (B, 1, 1, S); None for all.
        source: Where keys and values of the source come from.
        init_cache: This call shapes the cache.
        needs_weights: Attention weights are returned.
        deterministic: Nothing is dropped.
    """

    mask: Array
    bias: Array
    source_mask: Array | None
    source: Source = struct.field(pytree_node=False)
    init_cache: bool = struct.field(pytree_node=False)
    needs_weights: bool = struct.field(pytree_node=False)
    deterministic: bool = struct.field(pytree_node=False)


class FlaxLongT5SelfAttention(FlaxLongT5Projections):
    """Causal attention with a relative bias: Σⱼ softmax(qᵢ·kⱼ + b(j - i)) vⱼ over j ≤ i.

    Attributes:
        config: Settings of the model.
        has_relative_attention_bias: Hold b; the first layer does, and all layers use it.
    """

    has_relative_attention_bias: bool = False

    def setup(self) -> None:
        """Make the parts."""
        super().setup()
        if self.has_relative_attention_bias:
            self.relative_attention_bias = relative_embedding(self.config)

    def __call__(self, hidden_states: Array, plan: DecoderPlan) -> tuple[Array, Array | None]:
        """(B, T, H) -> (B, T, H), and the weights (B, A, T, K) if the plan needs them."""
        query, key, value = (self.split(projection(hidden_states)) for projection in (self.q, self.k, self.v))
        layout: Layout = "bshd"
        shape = query.shape
        if is_for_rows(self):
            (key, value), layout = extend_rows(self, key, value), "bhds"
            query = query.reshape(key.shape[0], -1, *shape[2:])
        elif plan.init_cache or self.has_variable("cache", "cached_key"):
            key, value = self._extend_cache(key, value)
        context, weights = eager_attention(
            query, key, value, mask=plan.mask, bias=plan.bias, scale=1.0, layout=layout,
            **self.dropout_arguments(deterministic=plan.deterministic),
        )  # fmt: skip
        return self.merge(context.reshape(shape)), weights if plan.needs_weights else None

    @nn.compact
    def _extend_cache(self, key: Array, value: Array) -> tuple[Array, Array]:
        return extend_cache(self, key, value)

    def biases(self, length: int, num_keys: int, past: Array | int) -> Array:
        """B of T queries behind `past` tokens and K keys, (A, T, K)."""
        offsets = jnp.arange(length + num_keys - 1) - (length - 1) - past
        bias = relative_bias(self.config, offsets, self.relative_attention_bias, bidirectional=False)
        return sliding_rows(bias, length)[:, ::-1]


class FlaxLongT5CrossAttention(FlaxLongT5Projections):
    """Attention to the encoder's states: Σⱼ softmax(qᵢ·kⱼ) vⱼ over the source tokens j."""

    def __call__(
        self, hidden_states: Array, encoder_hidden_states: Array, plan: DecoderPlan
    ) -> tuple[Array, Array | None]:
        """(B, T, H), (B, S, H) -> (B, T, H), and the weights (B, A, T, S) if the plan needs them."""
        query = self.split(self.q(hidden_states))
        key, value, layout = self._source(encoder_hidden_states, plan)
        shape = query.shape
        if shape[0] != key.shape[0]:  # several rows share a source: they are its queries together
            query = query.reshape(key.shape[0], -1, *shape[2:])
        arguments: dict[str, Any] = {
            "mask": plan.source_mask,
            "scale": 1.0,
            **self.dropout_arguments(deterministic=plan.deterministic),
        }
        if plan.needs_weights or shape[1] == 1 or layout == "bhds" or shared_axis() is not None:
            context, weights = eager_attention(query, key, value, layout=layout, shared=True, **arguments)
        else:
            context, weights = sdpa_attention(query, key, value, **arguments), None
        return self.merge(context.reshape(shape)), weights if plan.needs_weights else None

    @nn.compact
    def _source(self, encoder_hidden_states: Array, plan: DecoderPlan) -> tuple[Array, Array, Layout]:
        """Keys and values of the source, (B, S, A, D), or from the cache (B, A, D, S); and which of both."""
        if plan.source == "read":
            return self.get_variable("cache", "source_key"), self.get_variable("cache", "source_value"), "bhds"
        key, value = self.split(self.k(encoder_hidden_states)), self.split(self.v(encoder_hidden_states))
        if plan.source == "write" or plan.init_cache:
            for name, states in (("source_key", key), ("source_value", value)):
                stored = states.transpose(0, 2, 3, 1)
                self.variable("cache", name, jnp.zeros, stored.shape, stored.dtype).value = stored
        return key, value, "bshd"


class FlaxLongT5LayerSelfAttention(FlaxLongT5Sublayer):
    """x + dropout(self-attention(norm(x))).

    Attributes:
        config: Settings of the model.
        has_relative_attention_bias: Hold the bias.
    """

    has_relative_attention_bias: bool = False

    def setup(self) -> None:
        """Make the parts."""
        super().setup()
        self.SelfAttention = FlaxLongT5SelfAttention(self.config, self.dtype, self.has_relative_attention_bias)

    def __call__(self, hidden_states: Array, plan: DecoderPlan) -> tuple[Array, Array | None]:
        """(B, T, H) -> (B, T, H) and the weights."""
        context, weights = self.SelfAttention(self.layer_norm(hidden_states), plan)
        return self.add(hidden_states, context, deterministic=plan.deterministic), weights


class FlaxLongT5LayerCrossAttention(FlaxLongT5Sublayer):
    """x + dropout(cross-attention(norm(x), e))."""

    def setup(self) -> None:
        """Make the parts."""
        super().setup()
        self.EncDecAttention = FlaxLongT5CrossAttention(self.config, self.dtype)

    def __call__(
        self, hidden_states: Array, encoder_hidden_states: Array, plan: DecoderPlan
    ) -> tuple[Array, Array | None]:
        """(B, T, H), (B, S, H) -> (B, T, H) and the weights."""
        context, weights = self.EncDecAttention(self.layer_norm(hidden_states), encoder_hidden_states, plan)
        return self.add(hidden_states, context, deterministic=plan.deterministic), weights


class FlaxLongT5DecoderSublayers(nn.Module):
    """The parts of one decoder layer, named by their index as in checkpoint keys.

    Attributes:
        config: Settings of the model.
        has_relative_attention_bias: Hold the bias of all layers.
    """

    config: LongT5Config
    has_relative_attention_bias: bool
    dtype: Dtype = jnp.float32

    def setup(self) -> None:
        """Make the parts."""
        self.self_attention = FlaxLongT5LayerSelfAttention(
            self.config, self.dtype, self.has_relative_attention_bias, name="0"
        )
        self.cross_attention = FlaxLongT5LayerCrossAttention(self.config, self.dtype, name="1")
        self.feed_forward = FlaxLongT5LayerFF(self.config, self.dtype, name="2")

    def __call__(
        self, hidden_states: Array, encoder_hidden_states: Array, plan: DecoderPlan
    ) -> tuple[Array, Array | None, Array | None]:
        """(B, T, H), (B, S, H) -> (B, T, H), self-attention weights, cross-attention weights."""
        hidden_states, weights = self.self_attention(hidden_states, plan)
        hidden_states, cross_weights = self.cross_attention(hidden_states, encoder_hidden_states, plan)
        return self.feed_forward(hidden_states, deterministic=plan.deterministic), weights, cross_weights

    def biases(self, length: int, num_keys: int, past: Array | int) -> Array:
        """As of the self-attention."""
        return self.self_attention.SelfAttention.biases(length, num_keys, past)


class FlaxLongT5DecoderBlock(FlaxLongT5Block):
    """One decoder layer: self-attention, cross-attention, feed-forward."""

    layer_class: ClassVar[type[nn.Module]] = FlaxLongT5DecoderSublayers


class FlaxLongT5DecoderBlocks(FlaxLongT5Blocks):
    """The decoder's layers."""

    block_class: ClassVar[type[FlaxLongT5Block]] = FlaxLongT5DecoderBlock


class FlaxLongT5Decoder(FlaxLongT5Stack):
    """The stack of decoder layers."""

    def make_blocks(self) -> FlaxLongT5Blocks:
        """Make the layers."""
        number = self.config.num_decoder_layers or self.config.num_layers
        return FlaxLongT5DecoderBlocks(self.config, number, self.dtype, self.gradient_checkpointing)

    def __call__(
        self,
        inputs_embeds: Array,
        attention_mask: Array | None,
        encoder_hidden_states: Array,
        encoder_attention_mask: Array | None,
        *,
        source: Source,
        ancestors: Array | None,
        init_cache: bool,
        deterministic: bool,
        output_attentions: bool,
        output_hidden_states: bool,
    ) -> FlaxBaseModelOutputWithPastAndCrossAttentions:
        """Decode embeddings (B, T, H); for the arguments see `FlaxLongT5PreTrainedModel.decode`.

        Args:
            source: Where keys and values of the source come from.
            ancestors: With a cache for K rows of each prompt, which row wrote what each row continues, (B, K, T).
            init_cache: Make a cache for as many tokens as this input has, instead of using one.
        """
        length, cache = inputs_embeds.shape[1], self.variables.get("cache") or {}
        past: Array | int
        if ancestors is not None:
            past, num_keys = tokens_before(cache), ancestors.shape[2]
            mask = rows_mask(ancestors, past)
            bias = jnp.repeat(self.block.biases(length, num_keys, past), ancestors.shape[1], axis=-1)
        else:
            past, capacity = (0, None) if init_cache else tokens_and_room(cache)
            num_keys = length if capacity is None else capacity
            mask = causal_mask(past + jnp.arange(length), num_keys)
            bias = self.block.biases(length, num_keys, past)
        if attention_mask is not None:
            mask = mask & extend_mask(key_mask(attention_mask), num_keys)
        plan = DecoderPlan(
            mask,
            bias,
            None if encoder_attention_mask is None else key_mask(encoder_attention_mask),
            source=source,
            init_cache=init_cache,
            needs_weights=output_attentions,
            deterministic=deterministic,
        )
        states, weights = self.run_blocks(inputs_embeds, encoder_hidden_states, plan, deterministic=deterministic)
        return FlaxBaseModelOutputWithPastAndCrossAttentions(
            last_hidden_state=states[-1],
            hidden_states=states if output_hidden_states else None,
            attentions=weights[0] if output_attentions else None,  # type: ignore[arg-type]  # all are there
            cross_attentions=weights[1] if output_attentions else None,  # type: ignore[arg-type]  # all are there
        )
