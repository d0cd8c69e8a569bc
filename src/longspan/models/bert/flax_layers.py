"""The layers of BERT in Flax (Devlin et al., 2018, https://arxiv.org/abs/1810.04805).

Axes: B batch, S tokens, T keys, H width, A heads, D head size. In a packed batch B and S stand for packed rows and
their length.
"""

from __future__ import annotations

import math
from typing import Any, ClassVar

import jax.numpy as jnp
from flax import linen as nn
from jax import Array

from longspan.models.bert.config import BertConfig
from longspan.models.bert.flax_attention import AttentionPlan
from longspan.nn.flax.cache import extend_cache
from longspan.nn.flax.layers import Dense, Dtype, Embedding, LayerNorm, Part, Stack
from longspan.nn.flax.outputs import Arrays
from longspan.nn.flax.packing import Packing
from longspan.nn.flax.parameters import kernel_init
from longspan.nn.flax.post_norm import AddAndNorm, PostNormFeedForward
from longspan.ops.flax.attention import eager_attention, sdpa_attention


class FlaxBertEmbeddings(Part):
    """LayerNorm(word + position + segment), with dropout."""

    config: BertConfig
    #: padding has a position of its own, which learns nothing
    pads_positions: ClassVar[bool] = False

    def setup(self) -> None:
        """Make the parts."""
        config, padding = self.config, self.config.pad_token_id
        self.word_embeddings = self._table(config.vocab_size, padding)
        self.position_embeddings = self._table(config.max_position_embeddings, padding if self.pads_positions else None)
        self.token_type_embeddings = self._table(config.type_vocab_size)
        self.LayerNorm = LayerNorm(eps=config.layer_norm_eps, dtype=self.dtype)
        self.dropout = nn.Dropout(config.hidden_dropout_prob)

    def __call__(
        self, input_ids: Array, token_type_ids: Array | None, position_ids: Array, *, deterministic: bool
    ) -> Array:
        """Embed ids (B, S) into (B, S, H)."""
        token_type_ids = jnp.zeros((1, 1), jnp.int32) if token_type_ids is None else token_type_ids
        embeddings = self.word_embeddings(input_ids) + self.token_type_embeddings(token_type_ids)
        # the table exists, and is part of checkpoints, with relative positions as well
        positions = self.position_embeddings(position_ids)
        if self.config.position_embedding_type == "absolute":
            embeddings = embeddings + positions
        return self.dropout(self.LayerNorm(embeddings), deterministic=deterministic)

    def _table(self, num_embeddings: int, padding_idx: int | None = None) -> Embedding:
        return Embedding(
            num_embeddings,
            self.config.hidden_size,
            embedding_init=kernel_init(self.config),
            padding_idx=padding_idx,
            dtype=self.dtype,
        )


class FlaxBertSelfAttention(nn.Module):
    """Multi-head attention without its output projection: softmax(QKᵀ/√D)V.

    With `relative_key` positions the scores gain q·e(i−j) (Shaw et al., 2018); `relative_key_query` adds k·e(i−j) as
    well (Huang et al., 2020).

    Attributes:
        config: Settings of the model.
        num_heads: Heads that were not pruned.
        position_embedding_type: As in the configuration; cross-attention is always `"absolute"`.
    """

    config: BertConfig
    num_heads: int
    position_embedding_type: str
    dtype: Dtype = jnp.float32

    def setup(self) -> None:
        """Make the parts."""
        config = self.config
        self.head_size = config.hidden_size // config.num_attention_heads
        features = self.num_heads * self.head_size
        self.query = Dense(features, kernel_init=kernel_init(config), dtype=self.dtype)
        self.key = Dense(features, kernel_init=kernel_init(config), dtype=self.dtype)
        self.value = Dense(features, kernel_init=kernel_init(config), dtype=self.dtype)
        if self.position_embedding_type != "absolute":
            self.distance_embedding = Embedding(
                2 * config.max_position_embeddings - 1,
                self.head_size,
                embedding_init=kernel_init(config),
                dtype=self.dtype,
            )

    def __call__(
        self,
        hidden_states: Array,
        plan: AttentionPlan,
        head_mask: Array | None,
        encoder_hidden_states: Array | None = None,
        *,
        init_cache: bool = False,
    ) -> tuple[Array, Array | None]:
        """Attend from (B, S, H) to themselves or to encoder states (B, T, H).

        Returns:
            The context (B, S, A·D) and the weights (B, A, S, T) if the plan needs them.
        """
        source = hidden_states if encoder_hidden_states is None else encoder_hidden_states
        query, key, value = self._split(self.query(hidden_states)), self._split(self.key(source)), self.value(source)
        value = self._split(value)
        mask = plan.mask if encoder_hidden_states is None else plan.encoder_mask
        if encoder_hidden_states is None and (init_cache or self.has_variable("cache", "cached_key")):
            key, value = self._extend_cache(key, value)
        rate = 0.0 if plan.deterministic else self.config.attention_probs_dropout_prob
        dropout: dict[str, Any] = {"dropout": rate, "dropout_rng": self.make_rng("dropout") if rate > 0.0 else None}
        if plan.implementation in ("sdpa", "packed"):
            context, weights = sdpa_attention(query, key, value, mask=mask, **dropout), None
            context = context if head_mask is None else context * head_mask.astype(context.dtype)[:, None]
        else:
            bias = self._relative_bias(query, key, plan.positions)
            context, weights = eager_attention(query, key, value, mask=mask, bias=bias, head_mask=head_mask, **dropout)
        return context.reshape(*context.shape[:2], -1), weights if plan.needs_weights else None

    def _split(self, states: Array) -> Array:
        """(B, S, A·D) -> (B, S, A, D)."""
        return states.reshape(*states.shape[:2], self.num_heads, self.head_size)

    @nn.compact
    def _extend_cache(self, key: Array, value: Array) -> tuple[Array, Array]:
        """Write new keys and values (B, S, A, D) behind those of the cache; returns all of them, (B, T, A, D)."""
        return extend_cache(self, key, value)

    def _relative_bias(self, query: Array, key: Array, positions: Array) -> Array | None:
        """Scores of the distances, already scaled, (B, A, S, T), or None for absolute positions."""
        if self.position_embedding_type == "absolute":
            return None
        distance = positions[:, None] - jnp.arange(key.shape[1])[None, :]  # (S, T)
        limit = self.config.max_position_embeddings - 1
        embedding = self.distance_embedding(jnp.clip(distance, -limit, limit) + limit)  # (S, T, D)
        product = {"preferred_element_type": jnp.float32}
        scores = jnp.einsum("blhd,lrd->bhlr", query, embedding, **product)
        if self.position_embedding_type == "relative_key_query":
            scores = scores + jnp.einsum("brhd,lrd->bhlr", key, embedding, **product)
        return scores / math.sqrt(self.head_size)


class FlaxBertAttention(nn.Module):
    """Attention with output projection, residual and norm.

    Attributes:
        config: Settings of the model.
        pruned_heads: Heads that were removed, by their original numbers.
        position_embedding_type: As in the configuration.
    """

    config: BertConfig
    pruned_heads: tuple[int, ...]
    position_embedding_type: str
    dtype: Dtype = jnp.float32

    def setup(self) -> None:
        """Make the parts."""
        num_heads = self.config.num_attention_heads
        self.kept_heads = tuple(head for head in range(num_heads) if head not in self.pruned_heads)
        self.self = FlaxBertSelfAttention(
            self.config, len(self.kept_heads), self.position_embedding_type, dtype=self.dtype
        )
        self.output = AddAndNorm(self.config, dtype=self.dtype)

    def __call__(
        self, hidden_states: Array, plan: AttentionPlan, head_mask: Array | None, *arguments: Any, **options: Any
    ) -> tuple[Array, Array | None]:
        """(B, S, H) -> (B, S, H) and the weights; arguments of `FlaxBertSelfAttention`."""
        if head_mask is not None and self.pruned_heads:
            head_mask = head_mask[jnp.array(self.kept_heads)]
        context, weights = self.self(hidden_states, plan, head_mask, *arguments, **options)
        return self.output(context, hidden_states, deterministic=plan.deterministic), weights


class FlaxBertLayer(PostNormFeedForward):
    """One transformer layer: self-attention, cross-attention in a decoder, feed-forward.

    Attributes:
        config: Settings of the model.
        pruned_heads: Heads that were removed from the self-attention.
        init_cache: This call shapes the cache.
    """

    config: BertConfig
    pruned_heads: tuple[int, ...]
    dtype: Dtype = jnp.float32

    def setup(self) -> None:
        """Make the parts."""
        config = self.config
        self.attention = FlaxBertAttention(config, self.pruned_heads, config.position_embedding_type, dtype=self.dtype)
        if config.add_cross_attention:
            self.crossattention = FlaxBertAttention(config, (), "absolute", dtype=self.dtype)
        super().setup()

    def __call__(
        self,
        hidden_states: Array,
        plan: AttentionPlan,
        head_mask: Array | None,
        encoder_hidden_states: Array | None,
        init_cache: bool = False,
    ) -> tuple[Array, Array | None, Array | None]:
        """(B, S, H) -> (B, S, H), self-attention weights, cross-attention weights."""
        hidden_states, weights = self.attention(hidden_states, plan, head_mask, init_cache=init_cache)
        cross_weights = None
        if encoder_hidden_states is not None:
            hidden_states, cross_weights = self.crossattention(hidden_states, plan, head_mask, encoder_hidden_states)
        return self.feed_forward(hidden_states, deterministic=plan.deterministic), weights, cross_weights


class FlaxBertLayerCollection(Stack):
    """The layers, named by their index as in checkpoint keys."""

    config: BertConfig

    def setup(self) -> None:
        """Make the parts."""
        config = self.config
        layer_class = nn.remat(FlaxBertLayer, static_argnums=(5,)) if self.gradient_checkpointing else FlaxBertLayer
        self.layers = [
            layer_class(config, tuple(config.pruned_heads.get(index, ())), dtype=self.dtype, name=str(index))
            for index in range(config.num_hidden_layers)
        ]

    def __call__(
        self,
        hidden_states: Array,
        plan: AttentionPlan,
        head_mask: Array | None,
        encoder_hidden_states: Array | None,
        init_cache: bool,
    ) -> tuple[Arrays, Arrays, Arrays]:
        """(B, S, H) -> states (the given ones first), self-attention weights, cross-attention weights, by layer."""
        states, attentions, cross_attentions = [hidden_states], [], []
        for index, layer in enumerate(self.layers):
            hidden_states, weights, cross_weights = layer(
                hidden_states, plan, None if head_mask is None else head_mask[index], encoder_hidden_states, init_cache
            )
            states.append(hidden_states)
            attentions.append(weights)
            cross_attentions.append(cross_weights)
        return tuple(states), tuple(attentions), tuple(cross_attentions)  # type: ignore[arg-type]  # None if not wanted


class FlaxBertEncoder(Stack):
    """The stack of layers."""

    config: BertConfig

    def setup(self) -> None:
        """Make the parts."""
        self.layer = FlaxBertLayerCollection(self.config, self.dtype, self.gradient_checkpointing)

    def __call__(
        self,
        hidden_states: Array,
        *,
        plan: AttentionPlan,
        packing: Packing | None,
        head_mask: Array | None,
        encoder_hidden_states: Array | None,
        init_cache: bool,
        output_hidden_states: bool,
    ) -> tuple[Array, Arrays | None, Arrays | None, Arrays | None]:
        """(B, S, H) -> last states, hidden states, attentions, cross-attentions."""
        states, attentions, cross_attentions = self.layer(
            hidden_states, plan, head_mask, encoder_hidden_states, init_cache
        )
        if not output_hidden_states:
            states = states[-1:]
        if packing is not None:
            states = tuple(packing.unpack(state) for state in states)
        has_cross = plan.needs_weights and encoder_hidden_states is not None
        return (
            states[-1],
            states if output_hidden_states else None,
            attentions if plan.needs_weights else None,
            cross_attentions if has_cross else None,
        )
