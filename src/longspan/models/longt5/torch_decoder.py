"""LongT5's decoder in PyTorch: T5's, with dense causal self-attention and cross-attention to the encoder's states.

Axes: B batch, T target tokens, K cached and new target tokens, S source tokens, H width, A heads, D head size.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from longspan.errors import InputError
from longspan.models.longt5.config import LongT5Config
from longspan.models.longt5.torch_layers import (
    LongT5LayerAttention,
    LongT5LayerFF,
    LongT5LayerNorm,
    LongT5Projections,
    RelativeBuckets,
    begin_residual,
    end_residual,
    relative_embedding,
)
from longspan.nn.torch.apply import project
from longspan.nn.torch.base import CheckpointedLayers
from longspan.nn.torch.cache import Cache, DynamicCache, EncoderDecoderCache, LegacyCache, as_cache
from longspan.nn.torch.checks import check_ids
from longspan.nn.torch.dropout import Dropout
from longspan.nn.torch.masks import causal_mask, expand_head_mask, extend_mask, finite_at_padding, key_mask
from longspan.nn.torch.outputs import BaseModelOutputWithPastAndCrossAttentions, finish, resolve
from longspan.ops.torch.attention import eager_attention, sdpa_attention
from longspan.ops.torch.context import ContextShard, ReadsContext, alike_randomness


@dataclass(frozen=True)
class DecoderPlan:
    """What all decoder layers of one call share.

    Attributes:
        mask: True = attend, (B or 1, 1, T, K).
        buckets: Bucket of each relative position, (T, K).
        source_mask: Source tokens that may be seen, (B, 1, 1, S); None for all.
        position: Positions of the new tokens, (T,).
        cache: Keys and values of earlier calls.
        needs_weights: Attention weights are returned.
        bias: Bias by relative position, (A, T, K); the first layer adds it.
        shard: The share of the source that this process holds; None for all of it. The target is whole in each.
    """

    mask: Tensor
    buckets: Tensor
    source_mask: Tensor | None
    position: Tensor
    cache: Cache | None
    needs_weights: bool
    bias: Tensor | None = None
    shard: ContextShard | None = None


class LongT5SelfAttention(LongT5Projections):
    """Causal attention with a relative bias: Σⱼ softmax(qᵢ·kⱼ + b(j - i)) vⱼ over j ≤ i.

    Args:
        config: Settings of the model.
        layer_index: Index of the layer in the cache.
        has_relative_attention_bias: Hold b; the first layer does, and all layers use it.
    """

    def __init__(self, config: LongT5Config, *, layer_index: int, has_relative_attention_bias: bool) -> None:
        super().__init__(config)
        self.layer_index = layer_index
        self.has_relative_attention_bias = has_relative_attention_bias
        if has_relative_attention_bias:
            self.relative_attention_bias = relative_embedding(config)

    def add_bias(self, plan: DecoderPlan) -> DecoderPlan:
        """Add the bias, which the first layer holds for all."""
        if plan.bias is not None:
            return plan
        return replace(plan, bias=self.relative_attention_bias(plan.buckets).movedim(-1, 0))

    def forward(
        self, hidden_states: Tensor, *, plan: DecoderPlan, head_mask: Tensor | None
    ) -> tuple[Tensor, Tensor | None]:
        """(B, T, H) -> (B, T, H), and the weights (B, A, T, K) if the plan needs them."""
        query, key, value = (self.split(project(layer, hidden_states)) for layer in (self.q, self.k, self.v))
        if plan.cache is not None:
            key, value = plan.cache.update(key, value, self.layer_index, plan.position)
        context, weights = eager_attention(
            query,
            key,
            value,
            mask=extend_mask(plan.mask, key.shape[2]),
            bias=plan.bias,
            head_mask=head_mask,
            dropout=self.dropout,
            scale=1.0,
        )
        return self.merge(context), weights if plan.needs_weights else None


class LongT5CrossAttention(LongT5Projections):
    """Attention to the encoder's states: Σⱼ softmax(qᵢ·kⱼ) vⱼ over the source tokens j."""

    def __init__(self, config: LongT5Config, *, layer_index: int) -> None:
        super().__init__(config)
        self.layer_index = layer_index

    def forward(
        self, hidden_states: Tensor, encoder_hidden_states: Tensor, *, plan: DecoderPlan, head_mask: Tensor | None
    ) -> tuple[Tensor, Tensor | None]:
        """(B, T, H), (B, S, H) -> (B, T, H), and the weights (B, A, T, S) if the plan needs them.

        The targets may be several rows for each source, next to each other: they share its keys and values.
        """
        query = self.split(project(self.q, hidden_states))
        key, value = self._source(encoder_hidden_states, plan.cache)
        if query.shape[0] != key.shape[0]:
            return self._attend_as_one(query, key, value, plan=plan, head_mask=head_mask)
        arguments: dict[str, Any] = {"mask": plan.source_mask, "dropout": self.dropout, "scale": 1.0}
        if plan.needs_weights or plan.shard is not None:
            context, weights = eager_attention(query, key, value, head_mask=head_mask, shard=plan.shard, **arguments)
            return self.merge(context), weights
        context = sdpa_attention(query, key, value, **arguments)
        return self.merge(context if head_mask is None else context * head_mask), None

    def _attend_as_one(
        self, query: Tensor, key: Tensor, value: Tensor, *, plan: DecoderPlan, head_mask: Tensor | None
    ) -> tuple[Tensor, Tensor | None]:
        """Queries (B·K, A, T, D) of K rows per source, keys and values (B, A, S, D): K rows become K·T queries."""
        sources, targets = key.shape[0], query.shape[2]
        query = query.unflatten(0, (sources, -1)).transpose(1, 2).flatten(2, 3)  # (B, A, K·T, D)
        context, weights = eager_attention(
            query, key, value, mask=plan.source_mask, head_mask=head_mask, dropout=self.dropout, scale=1.0
        )
        context, weights = (
            tensor.unflatten(2, (-1, targets)).transpose(1, 2).flatten(0, 1) for tensor in (context, weights)
        )
        return self.merge(context), weights if plan.needs_weights else None

    def _source(self, encoder_hidden_states: Tensor, cache: Cache | None) -> tuple[Tensor, Tensor]:
        """Keys and values of the source; computed once and then taken from the cache."""
        if isinstance(cache, EncoderDecoderCache) and cache.is_updated.get(self.layer_index):
            key, value = cache.cross_attention_cache[self.layer_index]
            return key, value
        key, value = (self.split(project(layer, encoder_hidden_states)) for layer in (self.k, self.v))
        if isinstance(cache, EncoderDecoderCache):
            if not torch.is_grad_enabled():  # every token will read them
                key, value = key.contiguous(), value.contiguous()
            return cache.update_cross(key, value, self.layer_index)
        return key, value


class LongT5LayerSelfAttention(LongT5LayerAttention):
    """x + dropout(self-attention(norm(x)))."""

    attention_name = "SelfAttention"

    def __init__(self, config: LongT5Config, *, layer_index: int) -> None:
        has_bias = layer_index == 0
        attention = LongT5SelfAttention(config, layer_index=layer_index, has_relative_attention_bias=has_bias)
        super().__init__(config, attention)


class LongT5LayerCrossAttention(LongT5LayerAttention):
    """x + dropout(cross-attention(norm(x), e))."""

    attention_name = "EncDecAttention"

    def __init__(self, config: LongT5Config, *, layer_index: int) -> None:
        super().__init__(config, LongT5CrossAttention(config, layer_index=layer_index))


class LongT5DecoderBlock(nn.Module):
    """One decoder layer: self-attention, cross-attention, feed-forward."""

    def __init__(self, config: LongT5Config, *, layer_index: int) -> None:
        super().__init__()
        self.layer = nn.ModuleList(
            [
                LongT5LayerSelfAttention(config, layer_index=layer_index),
                LongT5LayerCrossAttention(config, layer_index=layer_index),
                LongT5LayerFF(config),
            ]
        )

    def forward(
        self,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor | None,
        *,
        plan: DecoderPlan,
        head_mask: Tensor | None,
        cross_head_mask: Tensor | None,
    ) -> tuple[Tensor, Tensor | None, Tensor | None, Tensor | None]:
        """(B, T, H), (B, S, H) -> (B, T, H), self- and cross-attention weights, and the bias for the layers behind."""
        first: Any = self.layer[0]
        plan = first.attention.add_bias(plan)
        hidden_states, weights = first(hidden_states, plan=plan, head_mask=head_mask)
        cross_weights = None
        if encoder_hidden_states is not None:
            hidden_states, cross_weights = self.layer[1](
                hidden_states, encoder_hidden_states, plan=plan, head_mask=cross_head_mask
            )
        return self.layer[2](hidden_states), weights, cross_weights, plan.bias


class LongT5Decoder(ReadsContext, CheckpointedLayers):
    """The embeddings and the stack of decoder layers.

    Args:
        config: Settings of the model.
        embed_tokens: The embeddings, which all parts of a model share.
    """

    def __init__(self, config: LongT5Config, embed_tokens: nn.Embedding) -> None:
        super().__init__()
        self.config = config
        self.num_layers = config.num_decoder_layers or config.num_layers
        self.embed_tokens = embed_tokens
        self.block = nn.ModuleList([LongT5DecoderBlock(config, layer_index=index) for index in range(self.num_layers)])
        self.final_layer_norm = LongT5LayerNorm(config)
        self.dropout = Dropout(config.dropout_rate)
        self.buckets = RelativeBuckets(config, bidirectional=False)

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        encoder_hidden_states: Tensor | None = None,
        encoder_attention_mask: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
        head_mask: Tensor | None = None,
        cross_attn_head_mask: Tensor | None = None,
        past_key_values: Cache | LegacyCache | None = None,
        use_cache: bool | None = None,
        output_attentions: bool | None = None,
        output_hidden_states: bool | None = None,
        return_dict: bool | None = None,
        cache_position: Tensor | None = None,
    ) -> Any:
        """Decode ids (B, T) or embeddings (B, T, H); for the arguments see `LongT5Model.forward`.

        Without `encoder_hidden_states` the layers skip their cross-attention.

        Returns:
            `BaseModelOutputWithPastAndCrossAttentions`.
        """
        config = self.config
        inputs_embeds = self._embed(input_ids, finite_at_padding(inputs_embeds, attention_mask))
        use_cache = self.resolve_use_cache(resolve(use_cache, config.use_cache))
        cache = _make_cache(past_key_values, use_cache)
        plan = self._plan(
            inputs_embeds,
            attention_mask=attention_mask,
            encoder_hidden_states=encoder_hidden_states,
            encoder_attention_mask=encoder_attention_mask,
            cache=cache,
            cache_position=cache_position,
            needs_weights=resolve(output_attentions, config.output_attentions),
        )
        heads = {"num_layers": self.num_layers, "num_heads": config.num_heads}
        with alike_randomness(self.context_shard, inputs_embeds.device):
            hidden_states, states, attentions, cross_attentions = self._run_layers(
                inputs_embeds,
                encoder_hidden_states,
                plan=plan,
                head_mask=expand_head_mask(head_mask, **heads),
                cross_head_mask=expand_head_mask(cross_attn_head_mask, **heads),
                keeps_states=resolve(output_hidden_states, config.output_hidden_states),
            )
        legacy = isinstance(past_key_values, tuple | list)
        output = BaseModelOutputWithPastAndCrossAttentions(
            last_hidden_state=hidden_states,
            past_key_values=None if not use_cache or cache is None else cache.to_legacy_cache() if legacy else cache,
            hidden_states=states,
            attentions=attentions,
            cross_attentions=cross_attentions,
        )
        return finish(output, resolve(return_dict, config.return_dict))

    def _run_layers(
        self,
        inputs_embeds: Tensor,
        encoder_hidden_states: Tensor | None,
        *,
        plan: DecoderPlan,
        head_mask: Tensor | None,
        cross_head_mask: Tensor | None,
        keeps_states: bool,
    ) -> tuple[Tensor, Any, Any, Any]:
        """Last states, and the states, weights and cross-attention weights of all layers (None if not wanted)."""
        hidden_states = begin_residual(self.dropout(inputs_embeds))
        states, attentions, cross_attentions = [], [], []
        for index, block in enumerate(self.block):
            if keeps_states:
                states.append(end_residual(hidden_states, inputs_embeds.dtype))
            hidden_states, weights, cross_weights, bias = self.run_layer(
                block,
                hidden_states,
                encoder_hidden_states,
                plan=plan,
                head_mask=None if head_mask is None else head_mask[index],
                cross_head_mask=None if cross_head_mask is None else cross_head_mask[index],
            )
            plan = replace(plan, bias=bias)
            attentions.append(weights)
            cross_attentions.append(cross_weights)
        hidden_states = self.dropout(self.final_layer_norm(hidden_states))
        return (
            hidden_states,
            (*states, hidden_states) if keeps_states else None,
            tuple(attentions) if plan.needs_weights else None,
            tuple(cross_attentions) if plan.needs_weights and encoder_hidden_states is not None else None,
        )

    def _embed(self, input_ids: Tensor | None, inputs_embeds: Tensor | None) -> Tensor:
        if (input_ids is None) == (inputs_embeds is None):
            given = "neither" if input_ids is None else "both"
            raise InputError(
                "exactly one of decoder_input_ids and decoder_inputs_embeds must be given (or labels, from which the "
                f"model makes decoder_input_ids). Received: {given}"
            )
        if input_ids is None:
            assert inputs_embeds is not None
            return inputs_embeds
        if input_ids.dim() != 2:
            shape = tuple(input_ids.shape)
            raise InputError(f"decoder_input_ids must have the shape (batch, target tokens). Received: {shape}")
        check_ids(input_ids, self.config.vocab_size, name="decoder_input_ids", limit_name="vocab_size")
        return self.embed_tokens(input_ids)

    def _plan(
        self,
        inputs_embeds: Tensor,
        *,
        attention_mask: Tensor | None,
        encoder_hidden_states: Tensor | None,
        encoder_attention_mask: Tensor | None,
        cache: Cache | None,
        cache_position: Tensor | None,
        needs_weights: bool,
    ) -> DecoderPlan:
        batch, length, _ = inputs_embeds.shape
        past = 0 if cache is None else cache.get_seq_length()
        if cache_position is None:
            cache_position = past + torch.arange(length, device=inputs_embeds.device)
        capacity = None if cache is None else cache.get_max_cache_shape()
        num_keys = int(past) + length if capacity is None else capacity
        mask = causal_mask(cache_position, num_keys)[None, None]
        if attention_mask is not None:
            described = num_keys if capacity is None else attention_mask.shape[-1]
            padding = key_mask(attention_mask, batch=batch, num_keys=described, name="decoder_attention_mask")
            mask = mask & extend_mask(padding, num_keys)
        offsets = torch.arange(num_keys, device=mask.device)[None, :] - cache_position[:, None]
        source_mask = None
        if encoder_attention_mask is not None and encoder_hidden_states is not None:
            source_mask = key_mask(
                encoder_attention_mask,
                batch=encoder_hidden_states.shape[0],
                num_keys=encoder_hidden_states.shape[1],
                name="encoder_attention_mask",
            )
        return DecoderPlan(
            mask=mask,
            buckets=self.buckets(offsets),
            source_mask=source_mask,
            position=cache_position,
            cache=cache,
            needs_weights=needs_weights,
            shard=self.context_shard,
        )


def _make_cache(past_key_values: Cache | LegacyCache | None, use_cache: bool) -> Cache | None:
    past_key_values = as_cache(past_key_values)
    if isinstance(past_key_values, Cache):
        return past_key_values
    if past_key_values is not None:
        return EncoderDecoderCache.from_legacy_cache(past_key_values)
    return EncoderDecoderCache(DynamicCache(), DynamicCache()) if use_cache else None
