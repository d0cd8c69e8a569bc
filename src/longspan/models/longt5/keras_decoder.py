"""LongT5's decoder in Keras 3: T5's, with dense causal self-attention and cross-attention to the encoder's states.

Axes: B batch, T target tokens, K target tokens that may be seen (with a cache of a fixed size, those that fit it), S
source tokens, H width, A heads, D head size.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from keras import ops

from longspan.models.longt5.config import LongT5Config
from longspan.models.longt5.keras_layers import (
    LongT5Attention,
    LongT5LayerAttention,
    LongT5LayerFF,
    LongT5Part,
    LongT5Stack,
    relative_bias,
)
from longspan.nn.keras.cache import extend
from longspan.nn.keras.checks import Size
from longspan.nn.keras.masks import causal_mask, expand_head_mask, key_mask
from longspan.nn.keras.outputs import KeyValues, Tensors, TFBaseModelOutputWithPastAndCrossAttentions
from longspan.ops.keras import Tensor
from longspan.ops.keras.attention import eager_attention, mask_to_bias, rows_that_attend
from longspan.ops.keras.sliding_window import bias_tile


@dataclass(frozen=True)
class DecoderPlan:
    """What all decoder layers of one call share.

    Attributes:
        bias: Of the masks and by relative position, (B or 1, A, T, K).
        attends: 0 for queries that may attend to no token, else 1; None for all 1.
        source_bias: 0 at source tokens that may be seen, (B, 1, 1, S); None for all.
        source_attends: As `attends`.
        write_at: Place of the new tokens in a cache of a fixed size; None where a cache grows.
        needs_weights: Attention weights are returned.
    """

    bias: Tensor
    attends: Tensor | None
    source_bias: Tensor | None
    source_attends: Tensor | None
    write_at: Tensor | None
    needs_weights: bool


class LongT5SelfAttention(LongT5Attention):
    """Causal attention with a relative bias: Σⱼ softmax(qᵢ·kⱼ + b(j - i)) vⱼ over j ≤ i.

    The first layer holds b, and all layers use it.
    """

    def call(
        self,
        hidden_states: Tensor,
        *,
        plan: DecoderPlan,
        past: Tensors | None = None,
        head_mask: Tensor | None = None,
        training: bool | None = None,
    ) -> tuple[Tensor, Tensor | None, Tensors]:
        """(B, T, H) -> (B, T, H), the weights (B, A, T, K) if the plan needs them, and all keys and values."""
        query, *new = (self.split(layer(hidden_states)) for layer in (self.q, self.k, self.v))
        key, value = extend(past, new, plan.write_at)
        context, weights = eager_attention(
            query, key, value, bias=plan.bias, attends=plan.attends, head_mask=head_mask, scale=1.0,
            dropout=self.drop_weights(training), needs_weights=plan.needs_weights,
        )  # fmt: skip
        return self.merge(context), weights, (key, value)

    def biases(self, length: Size, num_keys: Size, past: Size) -> Tensor:
        """B of T queries behind `past` tokens and K keys, (A, T, K)."""
        offsets = ops.arange(length + num_keys - 1, dtype="int32") - (length - 1) - past
        bias = relative_bias(self.config, offsets, self.relative_attention_bias, bidirectional=False)
        return bias_tile(bias, length)[:, :, length - 1 : length - 1 + num_keys]


class LongT5CrossAttention(LongT5Attention):
    """Attention to the encoder's states: Σⱼ softmax(qᵢ·kⱼ) vⱼ over the source tokens j."""

    def call(
        self,
        hidden_states: Tensor,
        *,
        plan: DecoderPlan,
        encoder_hidden_states: Tensor | None = None,
        past: Tensors | None = None,
        head_mask: Tensor | None = None,
        training: bool | None = None,
    ) -> tuple[Tensor, Tensor | None, Tensors]:
        """(B, T, H), (B, S, H) -> (B, T, H), the weights (B, A, T, S) if the plan needs them, and keys and values.

        Several rows may share a source whose keys and values are cached: they are its queries together.
        """
        query = self.split(self.q(hidden_states))
        key, value = past or (self.split(self.k(encoder_hidden_states)), self.split(self.v(encoder_hidden_states)))
        shape, sources = ops.shape(query), ops.shape(key)[0]
        shared = isinstance(sources, int) and isinstance(shape[0], int) and shape[0] > sources
        if shared:
            query = ops.transpose(ops.reshape(query, (sources, -1, *shape[1:])), (0, 2, 1, 3, 4))
            query = ops.reshape(query, (sources, shape[1], -1, shape[3]))
        context, weights = eager_attention(
            query, key, value, bias=plan.source_bias, attends=plan.source_attends, head_mask=head_mask, scale=1.0,
            dropout=self.drop_weights(training), needs_weights=plan.needs_weights,
        )  # fmt: skip
        if shared:
            context = ops.reshape(context, (sources, shape[1], -1, *shape[2:]))
            context = ops.reshape(ops.transpose(context, (0, 2, 1, 3, 4)), shape)
        return self.merge(context), weights, (key, value)


class LongT5DecoderBlock(LongT5Part):
    """One decoder layer: self-attention, cross-attention, feed-forward.

    Args:
        config: Settings of the model.
        has_biases: Hold the bias of all layers.
        **kwargs: `name`, `dtype`, `trainable`.
    """

    def __init__(self, config: LongT5Config, *, has_biases: bool, **kwargs: Any) -> None:
        super().__init__(config, **kwargs)
        policy = self.dtype_policy
        biases = ("relative_attention_bias",) if has_biases else ()
        own = LongT5SelfAttention(config, biases=biases, dtype=policy, name="SelfAttention")
        cross = LongT5CrossAttention(config, dtype=policy, name="EncDecAttention")
        self.layer = [
            LongT5LayerAttention(config, own, dtype=policy, name="layer_0"),
            LongT5LayerAttention(config, cross, dtype=policy, name="layer_1"),
            LongT5LayerFF(config, dtype=policy, name="layer_2"),
        ]

    def call(
        self,
        hidden_states: Tensor,
        *,
        encoder_hidden_states: Tensor | None,
        plan: DecoderPlan,
        past: Tensors | None,
        head_mask: Tensor | None = None,
        cross_head_mask: Tensor | None = None,
        training: bool | None = None,
    ) -> tuple[Tensor, Tensor | None, Tensor | None, Tensors]:
        """(B, T, H), (B, S, H) -> (B, T, H), both weights, and keys and values of the target and the source."""
        shared: dict[str, Any] = {"plan": plan, "training": training}
        own, source = (None, None) if past is None else (past[:2], past[2:])
        hidden_states, weights, new = self.layer[0](hidden_states, past=own, head_mask=head_mask, **shared)
        hidden_states, cross_weights, read = self.layer[1](
            hidden_states, encoder_hidden_states=encoder_hidden_states, past=source, head_mask=cross_head_mask, **shared
        )
        return self.layer[2](hidden_states, training=training), weights, cross_weights, (*new, *read)


class LongT5Decoder(LongT5Stack):
    """The stack of decoder layers."""

    def __init__(self, config: LongT5Config, **kwargs: Any) -> None:
        self.num_layers = config.num_decoder_layers or config.num_layers
        blocks: list[LongT5Part] = [
            LongT5DecoderBlock(config, has_biases=index == 0, dtype=kwargs["dtype"], name=f"block_{index}")
            for index in range(self.num_layers)
        ]
        super().__init__(config, blocks, **kwargs)

    def call(
        self,
        inputs_embeds: Tensor,
        *,
        attention_mask: Tensor | None,
        encoder_hidden_states: Tensor | None,
        encoder_attention_mask: Tensor | None,
        head_mask: Tensor | None = None,
        cross_attn_head_mask: Tensor | None = None,
        past_key_values: KeyValues | None = None,
        write_at: Tensor | None = None,
        output_attentions: bool = False,
        output_hidden_states: bool = False,
        training: bool | None = None,
    ) -> TFBaseModelOutputWithPastAndCrossAttentions:
        """Decode embeddings (B, T, H); for the arguments see `TFLongT5Model.call`.

        Args:
            write_at: `past_key_values` have a fixed size, and the new tokens go to this place.
        """
        batch, length = ops.shape(inputs_embeds)[:2]
        source = encoder_hidden_states if past_key_values is None else past_key_values[0][2]
        num_keys = 0 if past_key_values is None else ops.shape(past_key_values[0][0])[2]
        past = num_keys if write_at is None else write_at
        num_keys = num_keys + length if write_at is None else num_keys
        mask = causal_mask(past + ops.arange(length, dtype="int32"), num_keys)[None, None]
        attends = None
        if attention_mask is not None:
            padding = key_mask(attention_mask, batch=batch, num_keys=num_keys, name="decoder_attention_mask")
            mask = ops.logical_and(mask, padding)
            attends = rows_that_attend(mask)
        source_mask = None
        if encoder_attention_mask is not None:
            sizes = {"batch": ops.shape(source)[0], "num_keys": ops.shape(source)[-2]}
            source_mask = key_mask(encoder_attention_mask, **sizes, name="encoder_attention_mask")
        first: Any = self.block[0]
        bias = first.layer[0].attention.biases(length, num_keys, past)
        plan = DecoderPlan(
            mask_to_bias(mask) + ops.cast(bias, "float32")[None],
            attends,
            None if source_mask is None else mask_to_bias(source_mask),
            None if source_mask is None else rows_that_attend(source_mask),
            write_at,
            output_attentions,
        )
        each = self._of_each_layer(head_mask, cross_attn_head_mask, past_key_values)
        states, (weights, cross_weights, presents) = self.run_blocks(
            inputs_embeds, each=each, training=training, encoder_hidden_states=encoder_hidden_states, plan=plan
        )
        return TFBaseModelOutputWithPastAndCrossAttentions(
            last_hidden_state=states[-1],
            past_key_values=presents,
            hidden_states=states if output_hidden_states else None,
            attentions=weights if output_attentions else None,
            cross_attentions=cross_weights if output_attentions else None,
        )

    def _of_each_layer(
        self, head_mask: Tensor | None, cross_head_mask: Tensor | None, past_key_values: KeyValues | None
    ) -> list[dict[str, Any]]:
        """Arguments that differ from layer to layer."""
        sizes = {"num_layers": self.num_layers, "num_heads": self.config.num_heads}
        named = {
            "head_mask": expand_head_mask(head_mask, **sizes),
            "cross_head_mask": expand_head_mask(cross_head_mask, **sizes),
            "past": past_key_values,
        }
        return [
            {name: None if parts is None else parts[index] for name, parts in named.items()}
            for index in range(self.num_layers)
        ]
