"""BERT in PyTorch (Devlin et al., 2018, https://arxiv.org/abs/1810.04805): the layers, then the backbone.

Axes: B batch, S tokens, T keys, N real tokens of a packed batch, H width, A heads, D head size. `tokens` in a shape
stands for (B, S), or for (N,) in a packed batch.
"""

from __future__ import annotations

import math
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from longspan.checkpoints.names import ParameterNames
from longspan.errors import InputError
from longspan.models.bert.config import BertConfig
from longspan.models.bert.names import NAMES
from longspan.models.bert.torch_attention import ATTENTION, AttentionPlan, make_plan
from longspan.nn.torch.apply import lookup, project, project_all
from longspan.nn.torch.base import CheckpointedLayers, PreTrainedModel
from longspan.nn.torch.cache import Cache, DynamicCache, EncoderDecoderCache, LegacyCache, as_cache
from longspan.nn.torch.checks import check_ids, check_length, check_masked, input_shape, values_visible
from longspan.nn.torch.dropout import Dropout
from longspan.nn.torch.heads import Pooler
from longspan.nn.torch.masks import expand_head_mask, extend_mask, finite_at_padding
from longspan.nn.torch.outputs import BaseModelOutputWithPoolingAndCrossAttentions, Tensors, finish, resolve
from longspan.nn.torch.packing import Packing
from longspan.nn.torch.post_norm import PostNormAttention, PostNormFeedForward
from longspan.ops.torch.attention import eager_attention, packed_attention, sdpa_attention
from longspan.shapes import check_shape


class BertEmbeddings(nn.Module):
    """LayerNorm(word + position + segment), with dropout."""

    def __init__(self, config: BertConfig) -> None:
        super().__init__()
        self.word_embeddings = nn.Embedding(config.vocab_size, config.hidden_size, padding_idx=config.pad_token_id)
        self.position_embeddings = nn.Embedding(config.max_position_embeddings, config.hidden_size)
        self.token_type_embeddings = nn.Embedding(config.type_vocab_size, config.hidden_size)
        self.LayerNorm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.dropout = Dropout(config.hidden_dropout_prob)
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
        embeddings = embeddings + lookup(self.token_type_embeddings, token_type_ids, like=embeddings)
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
        self.dropout = Dropout(config.attention_probs_dropout_prob)
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
        if encoder_hidden_states is None:
            query, key, value = map(self._split, project_all((self.query, self.key, self.value), hidden_states))
            if cache is not None:
                key, value = cache.update(key, value, self.layer_index, cache_position)
            mask = None if plan.mask is None else extend_mask(plan.mask, key.shape[2])
        else:
            query = self._split(project(self.query, hidden_states))
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

    def _encoder_keys(self, encoder_hidden_states: Tensor, cache: Cache | None) -> tuple[Tensor, Tensor]:
        """Keys and values of the encoder's states; computed once and then taken from the cache."""
        if isinstance(cache, EncoderDecoderCache) and cache.is_updated.get(self.layer_index):
            key, value = cache.cross_attention_cache[self.layer_index]
            return key, value
        key, value = map(self._split, project_all((self.key, self.value), encoder_hidden_states))
        if isinstance(cache, EncoderDecoderCache):
            return cache.update_cross(key, value, self.layer_index)
        return key, value

    def _packed(self, hidden_states: Tensor, plan: AttentionPlan, head_mask: Tensor | None) -> Tensor:
        """(N, H) -> (N, H), within each sequence."""
        assert plan.packing is not None
        query, key, value = (
            states.unflatten(-1, (self.num_attention_heads, self.attention_head_size))
            for states in project_all((self.query, self.key, self.value), hidden_states)
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


class BertLayer(PostNormFeedForward):
    """One transformer layer: self-attention, cross-attention in a decoder, feed-forward."""

    def __init__(self, config: BertConfig, *, layer_index: int) -> None:
        super().__init__()
        own = BertSelfAttention(config, layer_index=layer_index, position_embedding_type=config.position_embedding_type)
        self.attention = PostNormAttention(config, own)
        if config.add_cross_attention:
            cross = BertSelfAttention(config, layer_index=layer_index, position_embedding_type="absolute")
            self.crossattention = PostNormAttention(config, cross)
        self.add_feed_forward(config)

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


class BertEncoder(CheckpointedLayers):
    """The stack of layers."""

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


class BertPreTrainedModel(PreTrainedModel):
    """What all BERT classes share."""

    config_class: ClassVar[type[BertConfig]] = BertConfig
    base_model_prefix: ClassVar[str] = "bert"
    names: ClassVar[ParameterNames] = NAMES
    input_embeddings: ClassVar[str] = "embeddings.word_embeddings"
    attention_in: ClassVar[tuple[str, str] | None] = ("encoder.layer", "attention")
    config: BertConfig

    def check_implementation(self, name: str) -> None:
        """Raise `InputError` unless `name` is an attention implementation of BERT."""
        ATTENTION.check_name(name)


class BertModel(BertPreTrainedModel):
    """BERT without a head: an encoder, or a decoder if `config.is_decoder`.

    As a decoder it attends causally and may keep a cache; with `config.add_cross_attention` it also attends to
    `encoder_hidden_states`.

    Args:
        config: Settings; the weights are random.
        add_pooling_layer: Have the pooler, which gives `pooler_output`.

    Example:
        >>> import torch
        >>> from longspan import BertConfig, BertModel
        >>> model = BertModel(BertConfig(hidden_size=32, num_attention_heads=2, num_hidden_layers=1))
        >>> output = model(input_ids=torch.tensor([[101, 7592, 102]]))
        >>> output.last_hidden_state.shape, output.pooler_output.shape
        (torch.Size([1, 3, 32]), torch.Size([1, 32]))
    """

    def __init__(self, config: BertConfig, add_pooling_layer: bool = True) -> None:
        super().__init__(config)
        self.embeddings = BertEmbeddings(config)
        self.encoder = BertEncoder(config)
        self.pooler = Pooler(hidden_size=config.hidden_size) if add_pooling_layer else None
        self.post_init()

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        token_type_ids: Tensor | None = None,
        position_ids: Tensor | None = None,
        head_mask: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
        encoder_hidden_states: Tensor | None = None,
        encoder_attention_mask: Tensor | None = None,
        past_key_values: Cache | LegacyCache | None = None,
        use_cache: bool | None = None,
        output_attentions: bool | None = None,
        output_hidden_states: bool | None = None,
        return_dict: bool | None = None,
        cache_position: Tensor | None = None,
        *,
        padding_states: bool = False,
    ) -> Any:
        """Run the model.

        Args:
            input_ids: Token ids, (B, S). Exactly one of this and `inputs_embeds` is given.
            attention_mask: 1 for real tokens, 0 for padding, (B, S); with a cache (B, past + S). A mask per query,
                (B, S, S), is possible as well.
            token_type_ids: Segment of each token, (B, S); default 0.
            position_ids: Position of each token, (B, S); default 0, 1, ...
            head_mask: 1 keeps a head, 0 removes it, (A,) or (L, A).
            inputs_embeds: Embedded tokens, (B, S, H).
            encoder_hidden_states: States that cross-attention reads, (B, S_enc, H); needs a decoder with
                `add_cross_attention`.
            encoder_attention_mask: Their padding mask, (B, S_enc).
            past_key_values: Cache of earlier tokens, or the older nested tuples. The same format is returned.
            use_cache: Return a cache (decoder only); default as configured.
            output_attentions: Return attention weights, L × (B, A, S, T).
            output_hidden_states: Return hidden states, (L + 1) × (B, S, H).
            return_dict: Return a `ModelOutput` rather than a tuple.
            cache_position: Positions of the input tokens in the sequence, (S,); default: after those in the cache.
            padding_states: Compute the states at padding as if it were text; otherwise they are unspecified.

        Returns:
            `BaseModelOutputWithPoolingAndCrossAttentions`.

        Raises:
            InputError: shapes disagree, an id is out of range, or the input is longer than the positions.
        """
        config = self.config
        batch, length = input_shape(input_ids, inputs_embeds)
        inputs_embeds = finite_at_padding(inputs_embeds, attention_mask)
        device = (inputs_embeds if input_ids is None else input_ids).device  # type: ignore[union-attr]  # checked
        needs_weights = resolve(output_attentions, config.output_attentions)
        use_cache = self.encoder.resolve_use_cache(config.is_decoder and resolve(use_cache, config.use_cache))
        self._check_inputs(batch, length, input_ids, token_type_ids, encoder_hidden_states)
        check_masked(input_ids, attention_mask, config.pad_token_id)
        past_key_values = as_cache(past_key_values)
        legacy = isinstance(past_key_values, tuple | list)
        cache = self._make_cache(past_key_values, use_cache)
        past = 0 if cache is None else cache.get_seq_length()
        if cache_position is None:
            cache_position = past + torch.arange(length, device=device)
        if position_ids is None:
            position_ids = self.default_positions(input_ids, cache_position)
        self._check_positions(cache_position, position_ids, length)
        plan = make_plan(
            config,
            batch=batch,
            cache_position=cache_position,
            attention_mask=attention_mask,
            encoder_hidden_states=encoder_hidden_states,
            encoder_attention_mask=encoder_attention_mask,
            cache=cache,
            needs_weights=needs_weights,
            padding_states=padding_states or (self.pooler is not None and self.first_is_padding(attention_mask)),
        )
        hidden_states = self._embed(
            plan.packing, input_ids, inputs_embeds, token_type_ids, position_ids, cache_position
        )
        last_hidden_state, hidden, attentions, cross_attentions = self.encoder(
            hidden_states,
            plan=plan,
            head_mask=expand_head_mask(
                head_mask, num_layers=config.num_hidden_layers, num_heads=config.num_attention_heads
            ),
            encoder_hidden_states=encoder_hidden_states,
            cache=cache,
            cache_position=cache_position,
            output_hidden_states=resolve(output_hidden_states, config.output_hidden_states),
        )
        output = BaseModelOutputWithPoolingAndCrossAttentions(
            last_hidden_state=last_hidden_state,
            pooler_output=None if self.pooler is None else self.pooler(last_hidden_state),
            past_key_values=None if not use_cache or cache is None else cache.to_legacy_cache() if legacy else cache,
            hidden_states=hidden,
            attentions=attentions,
            cross_attentions=cross_attentions,
        )
        return finish(output, resolve(return_dict, config.return_dict))

    def default_positions(self, input_ids: Tensor | None, cache_position: Tensor) -> Tensor | None:
        """Positions (B, S) of tokens for which none are given; None stands for `cache_position` (S,), as in BERT."""
        return None

    def _check_inputs(
        self,
        batch: int,
        length: int,
        input_ids: Tensor | None,
        token_type_ids: Tensor | None,
        encoder_hidden_states: Tensor | None,
    ) -> None:
        config = self.config
        if input_ids is not None:
            check_ids(input_ids, config.vocab_size, name="input_ids", limit_name="vocab_size")
        if token_type_ids is not None:
            check_shape(token_type_ids, (batch, length), name="token_type_ids", axes="(batch, tokens)")
            check_ids(token_type_ids, config.type_vocab_size, name="token_type_ids", limit_name="type_vocab_size")
        if encoder_hidden_states is not None and not config.add_cross_attention:
            raise InputError(
                "encoder_hidden_states needs a decoder with cross-attention: config.is_decoder=True and "
                f"config.add_cross_attention=True. Received: is_decoder={config.is_decoder}, "
                f"add_cross_attention={config.add_cross_attention}"
            )

    def first_is_padding(self, attention_mask: Tensor | None) -> bool:
        """True if the first token of a row is padding, which a head on it reads, and `"auto"` might pack it away."""
        if attention_mask is None or self.config.attn_implementation != "auto":
            return False
        return values_visible(attention_mask) and attention_mask.dim() == 2 and bool((attention_mask[:, 0] == 0).any())

    def _check_positions(self, cache_position: Tensor, position_ids: Tensor | None, length: int) -> None:
        limit = self.config.max_position_embeddings
        if position_ids is not None:
            check_ids(position_ids, limit, name="position_ids", limit_name="max_position_embeddings")
            check_length(length, limit)
        elif values_visible(cache_position) and length > 0:
            check_length(int(cache_position[-1]) + 1, limit)
        else:
            check_length(length, limit)

    def _make_cache(self, past_key_values: Cache | LegacyCache | None, use_cache: bool) -> Cache | None:
        kind = EncoderDecoderCache if self.config.add_cross_attention else DynamicCache
        if isinstance(past_key_values, Cache):
            return past_key_values
        if past_key_values is not None:
            return kind.from_legacy_cache(past_key_values)
        if not use_cache:
            return None
        return EncoderDecoderCache(DynamicCache(), DynamicCache()) if kind is EncoderDecoderCache else DynamicCache()

    def _embed(
        self,
        packing: Packing | None,
        input_ids: Tensor | None,
        inputs_embeds: Tensor | None,
        token_type_ids: Tensor | None,
        position_ids: Tensor | None,
        cache_position: Tensor,
    ) -> Tensor:
        """Embed the tokens: all of them, or only the real ones of a packed batch."""
        positions = cache_position[None] if position_ids is None else position_ids
        if packing is None:
            return self.embeddings(
                input_ids=input_ids, inputs_embeds=inputs_embeds, token_type_ids=token_type_ids, position_ids=positions
            )
        pick = packing.indices
        positions = positions.expand(packing.shape) if positions.shape[0] == 1 else positions
        return self.embeddings(
            input_ids=None if input_ids is None else input_ids.reshape(-1)[pick],
            inputs_embeds=None if inputs_embeds is None else packing.pack(inputs_embeds),
            token_type_ids=None if token_type_ids is None else token_type_ids.reshape(-1)[pick],
            position_ids=positions.reshape(-1)[pick],
        )
