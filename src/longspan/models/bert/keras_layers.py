"""Layers of BERT in Keras 3 (Devlin et al., 2018, https://arxiv.org/abs/1810.04805).

Axes: B batch, S tokens, T keys, N tokens of the batch that are computed, H width, A heads, D head size. Between the
embeddings and the end of the encoder the tokens of all sequences lie one after the other, (N, H).

`input` and `output` are properties of every Keras layer, so the sub-layer whose checkpoint name is `output` is the
attribute `output_` (see `longspan.checkpoints.keras`).
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from functools import partial
from typing import Any

import keras
from keras import ops

from longspan.models.bert.config import BertConfig
from longspan.models.bert.keras_attention import AttentionPlan
from longspan.nn.keras.activations import get_activation
from longspan.nn.keras.heads import PredictionHeadTransform
from longspan.nn.keras.layers import embedding, layer_norm, linear
from longspan.nn.keras.outputs import KeyValues, Tensors
from longspan.nn.keras.resizing import keep_features, remaining_features, replace_layer
from longspan.ops.keras import Tensor
from longspan.ops.keras.attention import eager_attention, packed_attention


class BertEmbeddings(keras.layers.Layer):
    """LayerNorm(word + position + segment), with dropout.

    Args:
        config: Settings of the model.
        **kwargs: `name`, `dtype`, `trainable`.
    """

    def __init__(self, config: BertConfig, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        width, policy = config.hidden_size, self.dtype_policy
        table = partial(embedding, width=width, stddev=config.initializer_range, dtype=policy)
        self.word_embeddings = table(config.vocab_size, name="word_embeddings", padding_index=config.pad_token_id)
        self.position_embeddings = table(config.max_position_embeddings, name="position_embeddings")
        self.token_type_embeddings = table(config.type_vocab_size, name="token_type_embeddings")
        self.LayerNorm = layer_norm(config.layer_norm_eps, dtype=policy, name="LayerNorm")
        self.dropout = keras.layers.Dropout(config.hidden_dropout_prob, dtype=policy)
        self.adds_positions = config.position_embedding_type == "absolute"
        self.width = width

    def build(self, input_shape: Any = None) -> None:
        """Make the weights."""
        for table in (self.word_embeddings, self.position_embeddings, self.token_type_embeddings):
            table.build((None, None))
        self.LayerNorm.build((None, self.width))

    def call(
        self,
        input_ids: Tensor | None = None,
        *,
        inputs_embeds: Tensor | None,
        token_type_ids: Tensor | None,
        position_ids: Tensor,
        training: bool | None = None,
    ) -> Tensor:
        """Embed ids (tokens) or embeddings (tokens, H) into (tokens, H); tokens stands for (B, S) or (N,)."""
        embeddings = self.word_embeddings(input_ids) if inputs_embeds is None else inputs_embeds
        if token_type_ids is None:
            segments = ops.cast(self.token_type_embeddings.embeddings[0], self.compute_dtype)
        else:
            segments = self.token_type_embeddings(token_type_ids)
        embeddings = embeddings + segments
        if self.adds_positions:
            embeddings = embeddings + self.position_embeddings(position_ids)
        return self.dropout(self.LayerNorm(embeddings), training=training)


class BertSelfAttention(keras.layers.Layer):
    """Multi-head attention without its output projection: softmax(QKᵀ/√D)V.

    With `relative_key` positions the scores gain q·e(i−j) (Shaw et al., 2018); `relative_key_query` adds k·e(i−j) as
    well (Huang et al., 2020).

    Args:
        config: Settings of the model.
        num_heads: Heads that are left after pruning.
        position_embedding_type: As in the configuration; cross-attention is always `"absolute"`.
        **kwargs: `name`, `dtype`, `trainable`.
    """

    def __init__(self, config: BertConfig, *, num_heads: int, position_embedding_type: str, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.num_attention_heads = num_heads
        self.attention_head_size = config.hidden_size // config.num_attention_heads
        project = partial(
            linear, num_heads * self.attention_head_size, stddev=config.initializer_range, dtype=self.dtype_policy
        )
        self.query, self.key, self.value = project(name="query"), project(name="key"), project(name="value")
        self.dropout = keras.layers.Dropout(config.attention_probs_dropout_prob, dtype=self.dtype_policy)
        self.width = config.hidden_size
        self.position_embedding_type = position_embedding_type
        self.max_position_embeddings = config.max_position_embeddings
        if position_embedding_type != "absolute":
            self.distance_embedding = embedding(
                2 * config.max_position_embeddings - 1,
                self.attention_head_size,
                stddev=config.initializer_range,
                dtype=self.dtype_policy,
                name="distance_embedding",
            )

    def build(self, input_shape: Any = None) -> None:
        """Make the weights."""
        for projection in (self.query, self.key, self.value):
            projection.build((None, self.width))
        if self.position_embedding_type != "absolute":
            self.distance_embedding.build((None, None))

    def call(
        self,
        hidden_states: Tensor,
        *,
        plan: AttentionPlan,
        head_mask: Tensor | None = None,
        encoder_hidden_states: Tensor | None = None,
        past: Tensors | None = None,
        training: bool | None = None,
    ) -> tuple[Tensor, Tensor | None, Tensors | None]:
        """Attend from (N, H) to themselves or to encoder states (B, T, H).

        Args:
            hidden_states: (N, H).
            plan: How to attend.
            head_mask: Factor of each head, broadcastable to (B, A, 1, 1).
            encoder_hidden_states: States to attend to instead, (B, T, H).
            past: Keys and values (B, A, T, D): of earlier tokens, or of the encoder's states.
            training: Apply dropout.

        Returns:
            The context (N, A·D), the weights (B, A, S, T) if the plan needs them, and the keys and values.
        """
        dropout = partial(self.dropout, training=training) if training else None
        if plan.packing is not None:
            return self._packed(hidden_states, plan, head_mask, dropout), None, None
        query = self._split(self.query(hidden_states), plan.shape)
        if encoder_hidden_states is None:
            key, value = self._own_keys(hidden_states, plan, past)
            bias, attends = plan.bias, plan.attends
        else:
            key, value = self._encoder_keys(encoder_hidden_states) if past is None else past
            bias, attends = plan.encoder_bias, plan.encoder_attends
        relative = self._relative_bias(query, key, plan.positions)
        if relative is not None:
            bias = relative if bias is None else bias + relative
        context, weights = eager_attention(
            query,
            key,
            value,
            bias=bias,
            attends=attends,
            head_mask=head_mask,
            dropout=dropout,
            needs_weights=plan.needs_weights,
        )
        return self._merge(ops.transpose(context, (0, 2, 1, 3))), weights, (key, value)

    def _split(self, states: Tensor, shape: tuple[Any, Any]) -> Tensor:
        """(B·S, A·D) -> (B, A, S, D)."""
        states = ops.reshape(states, (*shape, self.num_attention_heads, self.attention_head_size))
        return ops.transpose(states, (0, 2, 1, 3))

    def _merge(self, context: Tensor) -> Tensor:
        """(..., A, D) -> (N, A·D)."""
        return ops.reshape(context, (-1, self.num_attention_heads * self.attention_head_size))

    def _own_keys(self, hidden_states: Tensor, plan: AttentionPlan, past: Tensors | None) -> tuple[Tensor, Tensor]:
        key = self._split(self.key(hidden_states), plan.shape)
        value = self._split(self.value(hidden_states), plan.shape)
        if past is None:
            return key, value
        return ops.concatenate([past[0], key], axis=2), ops.concatenate([past[1], value], axis=2)

    def _encoder_keys(self, encoder_hidden_states: Tensor) -> tuple[Tensor, Tensor]:
        shape = ops.shape(encoder_hidden_states)
        flat = ops.reshape(encoder_hidden_states, (-1, encoder_hidden_states.shape[-1]))
        return self._split(self.key(flat), shape[:2]), self._split(self.value(flat), shape[:2])

    def _packed(self, hidden_states: Tensor, plan: AttentionPlan, head_mask: Tensor | None, dropout: Any) -> Tensor:
        """(N, H) -> (N, A·D), within each sequence."""
        assert plan.packing is not None
        heads = (-1, self.num_attention_heads, self.attention_head_size)
        query, key, value = (
            ops.reshape(projection(hidden_states), heads) for projection in (self.query, self.key, self.value)
        )
        context = packed_attention(query, key, value, groups=plan.packing.groups, dropout=dropout)
        if head_mask is not None:
            context = context * ops.cast(ops.reshape(head_mask, (-1, 1)), context.dtype)
        return self._merge(context)

    def _relative_bias(self, query: Tensor, key: Tensor, positions: Tensor) -> Tensor | None:
        """Scores of the distances, already scaled, (B, A, S, T), or None for absolute positions."""
        if self.position_embedding_type == "absolute":
            return None
        keys = ops.arange(ops.shape(key)[2], dtype="int32")
        limit = self.max_position_embeddings - 1
        distance = ops.clip(positions[:, None] - keys[None, :], -limit, limit)
        table = self.distance_embedding(distance + limit)  # (S, T, D)
        scores = ops.einsum("bhld,lrd->bhlr", query, table)
        if self.position_embedding_type == "relative_key_query":
            scores = scores + ops.einsum("bhrd,lrd->bhlr", key, table)
        return ops.cast(scores / math.sqrt(self.attention_head_size), "float32")


class BertSelfOutput(keras.layers.Layer):
    """LayerNorm(x + dropout(W c + b)).

    Args:
        config: Settings of the model.
        input_size: Width of c.
        **kwargs: `name`, `dtype`, `trainable`.
    """

    def __init__(self, config: BertConfig, *, input_size: int, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        policy = self.dtype_policy
        self.dense = linear(config.hidden_size, stddev=config.initializer_range, dtype=policy, name="dense")
        self.LayerNorm = layer_norm(config.layer_norm_eps, dtype=policy, name="LayerNorm")
        self.dropout = keras.layers.Dropout(config.hidden_dropout_prob, dtype=policy)
        self.input_size, self.width = input_size, config.hidden_size

    def build(self, input_shape: Any = None) -> None:
        """Make the weights."""
        self.dense.build((None, self.input_size))
        self.LayerNorm.build((None, self.width))

    def call(self, hidden_states: Tensor, residual: Tensor, *, training: bool | None = None) -> Tensor:
        """(N, input_size), (N, H) -> (N, H)."""
        hidden_states = self.dropout(self.dense(hidden_states), training=training)
        return self.LayerNorm(hidden_states + residual)


class BertAttention(keras.layers.Layer):
    """Attention with output projection, residual and norm.

    Args:
        config: Settings of the model.
        position_embedding_type: As in the configuration.
        pruned_heads: Heads that are missing, by their original numbers.
        **kwargs: `name`, `dtype`, `trainable`.
    """

    def __init__(
        self, config: BertConfig, *, position_embedding_type: str, pruned_heads: Iterable[int] = (), **kwargs: Any
    ) -> None:
        super().__init__(**kwargs)
        self.pruned_heads = frozenset(pruned_heads)
        self.original_num_heads = config.num_attention_heads
        num_heads = config.num_attention_heads - len(self.pruned_heads)
        head_size = config.hidden_size // config.num_attention_heads
        self.self = BertSelfAttention(
            config,
            num_heads=num_heads,
            position_embedding_type=position_embedding_type,
            dtype=self.dtype_policy,
            name="self",
        )
        self.output_ = BertSelfOutput(config, input_size=num_heads * head_size, dtype=self.dtype_policy, name="output")

    def build(self, input_shape: Any = None) -> None:
        """Make the weights."""
        self.self.build()
        self.output_.build()

    def call(
        self,
        hidden_states: Tensor,
        *,
        plan: AttentionPlan,
        head_mask: Tensor | None = None,
        encoder_hidden_states: Tensor | None = None,
        past: Tensors | None = None,
        training: bool | None = None,
    ) -> tuple[Tensor, Tensor | None, Tensors | None]:
        """(N, H) -> (N, H), the weights, and keys and values; arguments of `BertSelfAttention`."""
        context, weights, present = self.self(
            hidden_states,
            plan=plan,
            head_mask=head_mask,
            encoder_hidden_states=encoder_hidden_states,
            past=past,
            training=training,
        )
        return self.output_(context, hidden_states, training=training), weights, present

    def prune_heads(self, heads: Iterable[int]) -> None:
        """Remove heads, given by their original numbers, for good."""
        removed, features = remaining_features(
            heads,
            num_heads=self.original_num_heads,
            head_size=self.self.attention_head_size,
            already_pruned=self.pruned_heads,
        )
        for name in ("query", "key", "value"):
            replace_layer(self.self, name, keep_features(getattr(self.self, name), features, axis="output"))
        replace_layer(self.output_, "dense", keep_features(self.output_.dense, features, axis="input"))
        self.pruned_heads |= removed
        self.self.num_attention_heads = self.original_num_heads - len(self.pruned_heads)


class BertIntermediate(keras.layers.Layer):
    """activation(W x + b).

    Args:
        config: Settings of the model.
        **kwargs: `name`, `dtype`, `trainable`.
    """

    def __init__(self, config: BertConfig, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.dense = linear(
            config.intermediate_size, stddev=config.initializer_range, dtype=self.dtype_policy, name="dense"
        )
        self.activation = get_activation(config.hidden_act)
        self.width = config.hidden_size

    def build(self, input_shape: Any = None) -> None:
        """Make the weights."""
        self.dense.build((None, self.width))

    def call(self, hidden_states: Tensor) -> Tensor:
        """(N, H) -> (N, intermediate_size)."""
        return self.activation(self.dense(hidden_states))


class BertLayer(keras.layers.Layer):
    """One transformer layer: self-attention, cross-attention in a decoder, feed-forward.

    Args:
        config: Settings of the model.
        pruned_heads: Heads that are missing in self-attention.
        **kwargs: `name`, `dtype`, `trainable`.
    """

    def __init__(self, config: BertConfig, *, pruned_heads: Iterable[int] = (), **kwargs: Any) -> None:
        super().__init__(**kwargs)
        policy = self.dtype_policy
        self.attention = BertAttention(
            config,
            position_embedding_type=config.position_embedding_type,
            pruned_heads=pruned_heads,
            dtype=policy,
            name="attention",
        )
        if config.add_cross_attention:
            self.crossattention = BertAttention(
                config, position_embedding_type="absolute", dtype=policy, name="crossattention"
            )
        self.intermediate = BertIntermediate(config, dtype=policy, name="intermediate")
        self.output_ = BertSelfOutput(config, input_size=config.intermediate_size, dtype=policy, name="output")
        self.has_cross_attention = config.add_cross_attention

    def build(self, input_shape: Any = None) -> None:
        """Make the weights."""
        self.attention.build()
        if self.has_cross_attention:
            self.crossattention.build()
        self.intermediate.build()
        self.output_.build()

    def call(
        self,
        hidden_states: Tensor,
        *,
        plan: AttentionPlan,
        head_mask: Tensor | None,
        encoder_hidden_states: Tensor | None,
        past: Tensors | None,
        training: bool | None = None,
    ) -> tuple[Tensor, Tensor | None, Tensor | None, Tensors]:
        """(N, H) -> (N, H), self-attention weights, cross-attention weights, keys and values."""
        shared = {"plan": plan, "head_mask": head_mask, "training": training}
        own_past, cross_past = (None, None) if past is None else (past[:2], past[2:] or None)
        hidden_states, weights, present = self.attention(hidden_states, past=own_past, **shared)
        cross_weights, cross_present = None, None
        if encoder_hidden_states is not None:
            hidden_states, cross_weights, cross_present = self.crossattention(
                hidden_states, encoder_hidden_states=encoder_hidden_states, past=cross_past, **shared
            )
        hidden_states = self.output_(self.intermediate(hidden_states), hidden_states, training=training)
        return hidden_states, weights, cross_weights, (*(present or ()), *(cross_present or ()))


class BertEncoder(keras.layers.Layer):
    """The stack of layers.

    Args:
        config: Settings of the model.
        **kwargs: `name`, `dtype`, `trainable`.
    """

    def __init__(self, config: BertConfig, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.layer = [
            BertLayer(
                config,
                pruned_heads=config.pruned_heads.get(index, ()),
                dtype=self.dtype_policy,
                name=f"layer_{index}",
            )
            for index in range(config.num_hidden_layers)
        ]

    def build(self, input_shape: Any = None) -> None:
        """Make the weights."""
        for layer in self.layer:
            layer.build()

    def call(
        self,
        hidden_states: Tensor,
        *,
        plan: AttentionPlan,
        head_mask: Tensor | None,
        encoder_hidden_states: Tensor | None,
        past_key_values: KeyValues | None,
        output_hidden_states: bool,
        training: bool | None = None,
    ) -> tuple[Tensor, Tensors | None, Tensors | None, Tensors | None, KeyValues]:
        """(N, H) -> last states (B, S, H), hidden states, attentions, cross-attentions, keys and values."""
        states, attentions, cross_attentions, presents = [], [], [], []
        for index, layer in enumerate(self.layer):
            if output_hidden_states:
                states.append(plan.unpack(hidden_states))
            hidden_states, weights, cross_weights, present = layer(
                hidden_states,
                plan=plan,
                head_mask=None if head_mask is None else head_mask[index],
                encoder_hidden_states=encoder_hidden_states,
                past=None if past_key_values is None else past_key_values[index],
                training=training,
            )
            attentions.append(weights)
            cross_attentions.append(cross_weights)
            presents.append(present)
        hidden_states = plan.unpack(hidden_states)
        has_cross = plan.needs_weights and encoder_hidden_states is not None
        return (
            hidden_states,
            (*states, hidden_states) if output_hidden_states else None,
            tuple(attentions) if plan.needs_weights else None,
            tuple(cross_attentions) if has_cross else None,
            tuple(presents),
        )

    def prune_heads(self, heads_to_prune: Mapping[int, Iterable[int]]) -> None:
        """Remove heads of the named layers for good."""
        for layer, heads in heads_to_prune.items():
            self.layer[layer].attention.prune_heads(heads)


class BertLMPredictionHead(keras.layers.Layer):
    """Scores over the vocabulary: decoder(LayerNorm(act(W x + b))).

    The decoder is the word embedding, or a projection of its own if `tie_word_embeddings` is False.

    Args:
        config: Settings of the model.
        **kwargs: `name`, `dtype`, `trainable`.
    """

    def __init__(self, config: BertConfig, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        policy = self.dtype_policy
        self.transform = PredictionHeadTransform(
            hidden_size=config.hidden_size,
            activation=config.hidden_act,
            layer_norm_eps=config.layer_norm_eps,
            stddev=config.initializer_range,
            dtype=policy,
            name="transform",
        )
        self.is_tied = config.tie_word_embeddings
        if not self.is_tied:
            self.decoder = linear(
                config.vocab_size, stddev=config.initializer_range, dtype=policy, name="decoder", use_bias=False
            )
        self.size, self.width = config.vocab_size, config.hidden_size

    def build(self, input_shape: Any = None) -> None:
        """Make the weights."""
        self.transform.build()
        if not self.is_tied:
            self.decoder.build((None, self.width))
        self.bias = self.add_weight(shape=(self.size,), initializer="zeros", name="bias")

    def call(self, hidden_states: Tensor, *, word_embeddings: Tensor) -> Tensor:
        """(N, H), the word embedding (V, H) -> (N, V)."""
        states = self.transform(hidden_states)
        if self.is_tied:
            kernel = ops.cast(ops.transpose(word_embeddings), states.dtype)
            return ops.matmul(states, kernel) + ops.cast(self.bias, states.dtype)
        scores = self.decoder(states)
        return scores + ops.cast(self.bias, scores.dtype)


class BertHeads(keras.layers.Layer):
    """The heads of pre-training: masked language modelling, next sentence prediction, or both.

    Args:
        config: Settings of the model.
        predictions: Have the language modelling head.
        seq_relationship: Have the next sentence head.
        **kwargs: `name`, `dtype`, `trainable`.
    """

    def __init__(self, config: BertConfig, *, predictions: bool, seq_relationship: bool, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.has_predictions, self.has_seq_relationship = predictions, seq_relationship
        if predictions:
            self.predictions = BertLMPredictionHead(config, dtype=self.dtype_policy, name="predictions")
        if seq_relationship:
            self.seq_relationship = linear(
                2, stddev=config.initializer_range, dtype=self.dtype_policy, name="seq_relationship"
            )
        self.width = config.hidden_size

    def build(self, input_shape: Any = None) -> None:
        """Make the weights."""
        if self.has_predictions:
            self.predictions.build()
        if self.has_seq_relationship:
            self.seq_relationship.build((None, self.width))
