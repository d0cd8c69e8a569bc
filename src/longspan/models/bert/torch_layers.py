"""Layers of BERT in PyTorch (Devlin et al., 2018, https://arxiv.org/abs/1810.04805).

Axes: B batch, S tokens, T keys, N real tokens of a packed batch, H width, A heads, D head size. `tokens` in a shape
stands for (B, S), or for (N,) in a packed batch.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn

from longspan.models.bert.config import BertConfig
from longspan.models.bert.torch_attention import AttentionPlan
from longspan.nn.torch.activations import get_activation
from longspan.nn.torch.base import CheckpointedLayers
from longspan.nn.torch.cache import Cache, EncoderDecoderCache
from longspan.nn.torch.heads import PredictionHeadTransform
from longspan.nn.torch.masks import extend_mask
from longspan.nn.torch.outputs import Tensors
from longspan.nn.torch.resizing import keep_features, remaining_features
from longspan.ops.torch.attention import eager_attention, packed_attention, sdpa_attention


class BertEmbeddings(nn.Module):
    """LayerNorm(word + position + segment), with dropout.

    Args:
        config: Settings of the model.
    """

    def __init__(self, config: BertConfig) -> None:
        super().__init__()
        self.word_embeddings = nn.Embedding(config.vocab_size, config.hidden_size, padding_idx=config.pad_token_id)
        self.position_embeddings = nn.Embedding(config.max_position_embeddings, config.hidden_size)
        self.token_type_embeddings = nn.Embedding(config.type_vocab_size, config.hidden_size)
        self.LayerNorm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.dropout = nn.Dropout(config.hidden_dropout_prob)
        self.adds_positions = config.position_embedding_type == "absolute"

    def forward(
        self,
        *,
        input_ids: Tensor | None,
        inputs_embeds: Tensor | None,
        token_type_ids: Tensor | None,
        position_ids: Tensor,
    ) -> Tensor:
        """Embed ids (tokens) or embeddings (tokens, H) into (tokens, H)."""
        embeddings = self.word_embeddings(input_ids) if inputs_embeds is None else inputs_embeds
        segments = (
            self.token_type_embeddings.weight[0]
            if token_type_ids is None
            else self.token_type_embeddings(token_type_ids)
        )
        embeddings = embeddings + segments
        if self.adds_positions:
            embeddings = embeddings + self.position_embeddings(position_ids)
        return self.dropout(self.LayerNorm(embeddings))


class BertSelfAttention(nn.Module):
    """Multi-head attention without its output projection: softmax(QKᵀ/√D)V.

    With `relative_key` positions the scores gain q·e(i−j) (Shaw et al., 2018); `relative_key_query` adds k·e(i−j) as
    well (Huang et al., 2020).

    Args:
        config: Settings of the model.
        layer_index: Index of the layer in the cache.
        position_embedding_type: As in the configuration; cross-attention is always `"absolute"`.
    """

    def __init__(self, config: BertConfig, *, layer_index: int, position_embedding_type: str) -> None:
        super().__init__()
        self.num_attention_heads = config.num_attention_heads
        self.attention_head_size = config.hidden_size // config.num_attention_heads
        self.query = nn.Linear(config.hidden_size, config.hidden_size)
        self.key = nn.Linear(config.hidden_size, config.hidden_size)
        self.value = nn.Linear(config.hidden_size, config.hidden_size)
        self.dropout = nn.Dropout(config.attention_probs_dropout_prob)
        self.layer_index = layer_index
        self.position_embedding_type = position_embedding_type
        self.max_position_embeddings = config.max_position_embeddings
        if position_embedding_type != "absolute":
            self.distance_embedding = nn.Embedding(2 * config.max_position_embeddings - 1, self.attention_head_size)

    def forward(
        self,
        hidden_states: Tensor,
        *,
        plan: AttentionPlan,
        head_mask: Tensor | None = None,
        encoder_hidden_states: Tensor | None = None,
        cache: Cache | None = None,
        cache_position: Tensor | None = None,
    ) -> tuple[Tensor, Tensor | None]:
        """Attend from (tokens, H) to themselves or to encoder states (B, T, H).

        Returns:
            The context (tokens, H) and the weights (B, A, S, T) if the plan needs them.
        """
        if plan.packing is not None:
            return self._packed(hidden_states, plan, head_mask), None
        query = self._split(self.query(hidden_states))
        if encoder_hidden_states is None:
            key, value = self._own_keys(hidden_states, cache, cache_position)
            mask = None if plan.mask is None else extend_mask(plan.mask, key.shape[2])
        else:
            key, value = self._encoder_keys(encoder_hidden_states, cache)
            mask = plan.encoder_mask
        dropout = self.dropout.p if self.training else 0.0
        if plan.implementation == "sdpa":
            causal = plan.causal and mask is None and encoder_hidden_states is None
            context, weights = sdpa_attention(query, key, value, mask=mask, causal=causal, dropout=dropout), None
            context = context if head_mask is None else context * head_mask
        else:
            bias = self._relative_bias(query, key, plan.positions)
            context, weights = eager_attention(
                query, key, value, mask=mask, bias=bias, head_mask=head_mask, dropout=dropout
            )
        return context.transpose(1, 2).flatten(2), weights if plan.needs_weights else None

    def _split(self, states: Tensor) -> Tensor:
        """(B, S, A·D) -> (B, A, S, D)."""
        return states.unflatten(-1, (self.num_attention_heads, self.attention_head_size)).transpose(1, 2)

    def _own_keys(
        self, hidden_states: Tensor, cache: Cache | None, cache_position: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        key, value = self._split(self.key(hidden_states)), self._split(self.value(hidden_states))
        return (key, value) if cache is None else cache.update(key, value, self.layer_index, cache_position)

    def _encoder_keys(self, encoder_hidden_states: Tensor, cache: Cache | None) -> tuple[Tensor, Tensor]:
        """Keys and values of the encoder's states; computed once and then taken from the cache."""
        if isinstance(cache, EncoderDecoderCache) and cache.is_updated.get(self.layer_index):
            key, value = cache.cross_attention_cache[self.layer_index]
            return key, value
        key, value = self._split(self.key(encoder_hidden_states)), self._split(self.value(encoder_hidden_states))
        if isinstance(cache, EncoderDecoderCache):
            return cache.update_cross(key, value, self.layer_index)
        return key, value

    def _packed(self, hidden_states: Tensor, plan: AttentionPlan, head_mask: Tensor | None) -> Tensor:
        """(N, H) -> (N, H), within each sequence."""
        assert plan.packing is not None
        query, key, value = (
            projection(hidden_states).unflatten(-1, (self.num_attention_heads, self.attention_head_size))
            for projection in (self.query, self.key, self.value)
        )
        context = packed_attention(
            query,
            key,
            value,
            lengths=plan.packing.lengths,
            causal=plan.causal,
            dropout=self.dropout.p if self.training else 0.0,
        )
        context = context if head_mask is None else context * head_mask.reshape(-1, 1)
        return context.flatten(1)

    def _relative_bias(self, query: Tensor, key: Tensor, positions: Tensor) -> Tensor | None:
        """Scores of the distances, already scaled, (B, A, S, T), or None for absolute positions."""
        if self.position_embedding_type == "absolute":
            return None
        distance = positions[:, None] - torch.arange(key.shape[2], device=positions.device)[None, :]  # (S, T)
        limit = self.max_position_embeddings - 1
        embedding = self.distance_embedding(distance.clamp(-limit, limit) + limit)  # (S, T, D)
        scores = torch.einsum("bhld,lrd->bhlr", query, embedding)
        if self.position_embedding_type == "relative_key_query":
            scores = scores + torch.einsum("bhrd,lrd->bhlr", key, embedding)
        return scores / math.sqrt(self.attention_head_size)


class BertSelfOutput(nn.Module):
    """LayerNorm(x + dropout(W c + b)).

    Args:
        config: Settings of the model.
        input_size: Width of c.
    """

    def __init__(self, config: BertConfig, *, input_size: int) -> None:
        super().__init__()
        self.dense = nn.Linear(input_size, config.hidden_size)
        self.LayerNorm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.dropout = nn.Dropout(config.hidden_dropout_prob)

    def forward(self, hidden_states: Tensor, residual: Tensor) -> Tensor:
        """(tokens, input_size), (tokens, H) -> (tokens, H)."""
        return self.LayerNorm(self.dropout(self.dense(hidden_states)) + residual)


class BertAttention(nn.Module):
    """Attention with output projection, residual and norm.

    Args:
        config: Settings of the model.
        layer_index: Index of the layer in the cache.
        position_embedding_type: As in the configuration.
    """

    def __init__(self, config: BertConfig, *, layer_index: int, position_embedding_type: str) -> None:
        super().__init__()
        self.self = BertSelfAttention(config, layer_index=layer_index, position_embedding_type=position_embedding_type)
        self.output = BertSelfOutput(config, input_size=config.hidden_size)
        self.pruned_heads: set[int] = set()
        self.original_num_heads = config.num_attention_heads

    def forward(self, hidden_states: Tensor, **arguments: Any) -> tuple[Tensor, Tensor | None]:
        """(tokens, H) -> (tokens, H) and the weights; arguments of `BertSelfAttention`."""
        context, weights = self.self(hidden_states, **arguments)
        return self.output(context, hidden_states), weights

    def prune_heads(self, heads: list[int]) -> None:
        """Remove heads, given by their original numbers, for good."""
        removed, features = remaining_features(
            heads,
            num_heads=self.original_num_heads,
            head_size=self.self.attention_head_size,
            already_pruned=self.pruned_heads,
        )
        features = features.to(self.self.query.weight.device)
        for name in ("query", "key", "value"):
            setattr(self.self, name, keep_features(getattr(self.self, name), features, axis=0))
        self.output.dense = keep_features(self.output.dense, features, axis=1)
        self.pruned_heads |= removed
        self.self.num_attention_heads = self.original_num_heads - len(self.pruned_heads)


class BertIntermediate(nn.Module):
    """activation(W x + b).

    Args:
        config: Settings of the model.
    """

    def __init__(self, config: BertConfig) -> None:
        super().__init__()
        self.dense = nn.Linear(config.hidden_size, config.intermediate_size)
        self.activation = get_activation(config.hidden_act)

    def forward(self, hidden_states: Tensor) -> Tensor:
        """(tokens, H) -> (tokens, intermediate_size)."""
        return self.activation(self.dense(hidden_states))


class BertLayer(nn.Module):
    """One transformer layer: self-attention, cross-attention in a decoder, feed-forward.

    Args:
        config: Settings of the model.
        layer_index: Index of the layer in the cache.
    """

    def __init__(self, config: BertConfig, *, layer_index: int) -> None:
        super().__init__()
        self.attention = BertAttention(
            config, layer_index=layer_index, position_embedding_type=config.position_embedding_type
        )
        if config.add_cross_attention:
            self.crossattention = BertAttention(config, layer_index=layer_index, position_embedding_type="absolute")
        self.intermediate = BertIntermediate(config)
        self.output = BertSelfOutput(config, input_size=config.intermediate_size)
        self.chunk_size_feed_forward = config.chunk_size_feed_forward

    def forward(
        self,
        hidden_states: Tensor,
        *,
        plan: AttentionPlan,
        head_mask: Tensor | None,
        encoder_hidden_states: Tensor | None,
        cache: Cache | None,
        cache_position: Tensor | None,
    ) -> tuple[Tensor, Tensor | None, Tensor | None]:
        """(tokens, H) -> (tokens, H), self-attention weights, cross-attention weights."""
        hidden_states, weights = self.attention(
            hidden_states, plan=plan, head_mask=head_mask, cache=cache, cache_position=cache_position
        )
        cross_weights = None
        if encoder_hidden_states is not None:
            hidden_states, cross_weights = self.crossattention(
                hidden_states, plan=plan, head_mask=head_mask, encoder_hidden_states=encoder_hidden_states, cache=cache
            )
        return self.feed_forward(hidden_states), weights, cross_weights

    def feed_forward(self, hidden_states: Tensor) -> Tensor:
        """(tokens, H) -> (tokens, H), for `chunk_size_feed_forward` tokens at a time if that is set."""
        if self.chunk_size_feed_forward == 0:
            return self.output(self.intermediate(hidden_states), hidden_states)
        chunks = hidden_states.split(self.chunk_size_feed_forward, dim=-2)
        return torch.cat([self.output(self.intermediate(chunk), chunk) for chunk in chunks], dim=-2)


class BertEncoder(CheckpointedLayers):
    """The stack of layers.

    Args:
        config: Settings of the model.
    """

    def __init__(self, config: BertConfig) -> None:
        super().__init__()
        self.layer = nn.ModuleList([BertLayer(config, layer_index=index) for index in range(config.num_hidden_layers)])

    def forward(
        self,
        hidden_states: Tensor,
        *,
        plan: AttentionPlan,
        head_mask: Tensor | None,
        encoder_hidden_states: Tensor | None,
        cache: Cache | None,
        cache_position: Tensor | None,
        output_hidden_states: bool,
    ) -> tuple[Tensor, Tensors | None, Tensors | None, Tensors | None]:
        """(tokens, H) -> last states (B, S, H), hidden states, attentions, cross-attentions."""
        unpack = plan.packing.unpack if plan.packing is not None else (lambda states: states)
        states, attentions, cross_attentions = [], [], []
        for index, layer in enumerate(self.layer):
            if output_hidden_states:
                states.append(unpack(hidden_states))
            hidden_states, weights, cross_weights = self.run_layer(
                layer,
                hidden_states,
                plan=plan,
                head_mask=None if head_mask is None else head_mask[index],
                encoder_hidden_states=encoder_hidden_states,
                cache=cache,
                cache_position=cache_position,
            )
            attentions.append(weights)
            cross_attentions.append(cross_weights)
        hidden_states = unpack(hidden_states)
        has_cross = plan.needs_weights and encoder_hidden_states is not None
        return (
            hidden_states,
            (*states, hidden_states) if output_hidden_states else None,
            tuple(attentions) if plan.needs_weights else None,
            tuple(cross_attentions) if has_cross else None,
        )


class BertLMPredictionHead(nn.Module):
    """Scores over the vocabulary: decoder(LayerNorm(act(W x + b))).

    Args:
        config: Settings of the model.
    """

    def __init__(self, config: BertConfig) -> None:
        super().__init__()
        self.transform = PredictionHeadTransform(
            hidden_size=config.hidden_size, activation=config.hidden_act, layer_norm_eps=config.layer_norm_eps
        )
        self.decoder = nn.Linear(config.hidden_size, config.vocab_size)
        self.bias = nn.Parameter(torch.zeros(config.vocab_size))

    def forward(self, hidden_states: Tensor) -> Tensor:
        """(B, S, H) -> (B, S, V)."""
        return self.decoder(self.transform(hidden_states))


class BertHeads(nn.Module):
    """The heads of pre-training: masked language modelling, next sentence prediction, or both.

    Args:
        config: Settings of the model.
        predictions: Have the language modelling head.
        seq_relationship: Have the next sentence head.
    """

    def __init__(self, config: BertConfig, *, predictions: bool, seq_relationship: bool) -> None:
        super().__init__()
        if predictions:
            self.predictions = BertLMPredictionHead(config)
        if seq_relationship:
            self.seq_relationship = nn.Linear(config.hidden_size, 2)
