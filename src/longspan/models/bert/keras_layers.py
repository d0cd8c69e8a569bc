"""Attention and layers of BERT in Keras 3 (Devlin et al., 2018, https://arxiv.org/abs/1810.04805).

Axes: B batch, S tokens, T keys, N tokens of the batch that are computed, H width, A heads, D head size, V vocabulary.
Between the embeddings and the end of the encoder the tokens of all sequences lie one after the other, (N, H).

`input` and `output` are properties of every Keras layer, so the sub-layer whose checkpoint name is `output` is the
attribute `output_` (see `longspan.checkpoints.keras`).
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import keras
from keras import ops

from longspan.models.bert.config import BertConfig
from longspan.nn.keras.cache import extend
from longspan.nn.keras.checks import Size, check_shape
from longspan.nn.keras.heads import PredictionHeadTransform, VocabularyHead
from longspan.nn.keras.layers import Block, embedding, linear
from longspan.nn.keras.masks import as_boolean, causal_mask, key_mask
from longspan.nn.keras.outputs import KeyValues, Tensors
from longspan.nn.keras.post_norm import PostNormAttention, PostNormFeedForward
from longspan.nn.keras.runtime import in_graph, runs_on_cpu, shapes_may_depend_on_values, values_visible
from longspan.ops.dispatch import Dispatcher
from longspan.ops.keras import Tensor
from longspan.ops.keras.attention import eager_attention, mask_to_bias, packed_attention, rows_that_attend

if TYPE_CHECKING:
    from longspan.nn.keras.packing import Packing


# -- which implementation attends, with which masks ------------------------------------------------------------------


@dataclass(frozen=True)
class AttentionRequest:
    """What one call asks of BERT's attention.

    Attributes:
        needs_weights: Attention weights are returned.
        relative_positions: The scores depend on query and key through their distance.
        causal: A token does not see those after it.
        row_mask: The mask is one row per sequence, (B, S).
        dynamic_shapes: Shapes may depend on values.
        padding_states: The states at all padding are needed too.
        padded: The mask holds a False; None if that is known only when the graph runs.
        asked: The implementation was asked for by name.
        on_cpu: No accelerator takes part.
    """

    needs_weights: bool
    relative_positions: bool
    causal: bool
    row_mask: bool
    dynamic_shapes: bool
    padding_states: bool
    padded: bool | None
    asked: bool
    on_cpu: bool


def _packed_why_not(request: AttentionRequest) -> str | None:
    if request.needs_weights:
        return "attention weights are returned by 'eager' only"
    if request.relative_positions:
        return "relative position scores are computed by 'eager' only"
    if request.causal:
        return "packing works in an encoder, without a cache and without cross-attention"
    if request.padding_states:
        return "the states at padding are needed, as for the loss of question answering, which scores every position"
    if not request.row_mask:
        return "packing needs an attention_mask of the shape (batch, tokens)"
    if not request.dynamic_shapes:
        return "the number of real tokens is known only when a batch runs: this needs TensorFlow without XLA"
    if request.asked:
        return None
    if request.padded is False:
        return "nothing is padded"
    return None if request.on_cpu else "on an accelerator shapes that depend on values are not chosen unasked"


ATTENTION: Dispatcher[AttentionRequest] = Dispatcher(
    "BERT attention", {"packed": _packed_why_not, "eager": lambda request: None}
)


@dataclass(frozen=True)
class AttentionPlan:
    """How all layers of one call attend.

    Attributes:
        implementation: Name of the implementation.
        shape: (B, S), as integers where they are known.
        bias: Added to the scores, broadcastable to (B, A, S, T), or None.
        attends: 0 for queries that may attend to no key, else 1; None for all 1.
        encoder_bias: The same as `bias` for cross-attention.
        encoder_attends: The same as `attends` for cross-attention.
        packing: Where the tokens are that are computed, if the batch is packed.
        positions: Positions of the queries among the keys, (S,).
        needs_weights: Attention weights are returned.
        write_at: Place of the new tokens in a cache of a fixed size; None where a cache grows.
    """

    implementation: str
    shape: tuple[Size, Size]
    bias: Tensor | None
    attends: Tensor | None
    encoder_bias: Tensor | None
    encoder_attends: Tensor | None
    packing: Packing | None
    positions: Tensor
    needs_weights: bool
    write_at: Tensor | None

    def pack(self, hidden_states: Tensor) -> Tensor:
        """(B, S, H) -> (N, H): the tokens that the layers compute, one after the other."""
        if self.packing is not None:
            return self.packing.take(hidden_states)
        return ops.reshape(hidden_states, (-1, hidden_states.shape[-1]))

    def unpack(self, hidden_states: Tensor) -> Tensor:
        """(N, H) -> (B, S, H)."""
        if self.packing is not None:
            return self.packing.unpack(hidden_states)
        return ops.reshape(hidden_states, (*self.shape, hidden_states.shape[-1]))


def make_plan(
    config: BertConfig,
    *,
    shape: tuple[Size, Size],
    past_length: Size,
    num_keys: Size,
    write_at: Tensor | None,
    attention_mask: Tensor | None,
    encoder_hidden_states: Tensor | None,
    encoder_attention_mask: Tensor | None,
    needs_weights: bool,
    padding_states: bool | Tensor,
    first_states: bool,
) -> AttentionPlan:
    """Choose the implementation of one call and build the masks that all layers share.

    Args:
        config: Settings of the model.
        shape: (B, S).
        past_length: Number of cached tokens.
        num_keys: T.
        write_at: Place of the new tokens in a cache of a fixed size; None where a cache grows.
        attention_mask: (B, T) or (B, S, T), nonzero = attend; None for all.
        encoder_hidden_states: States that cross-attention reads, (B, S_enc, H).
        encoder_attention_mask: Their padding mask, (B, S_enc).
        needs_weights: Attention weights are returned.
        padding_states: States at padding are needed too: True for all, or a boolean (B, S).
        first_states: The state of each row's first token is needed, even if it is padding.

    Raises:
        InputError: a mask has the wrong shape, or the implementation that was asked for cannot serve.
    """
    request = _make_request(config, attention_mask, needs_weights, padding_states is True)
    tracing = attention_mask is not None and in_graph(attention_mask)
    implementation = ATTENTION.choose(config.attn_implementation, request, tracing=tracing)
    positions = past_length + ops.arange(shape[1], dtype="int32")
    packing = None
    if implementation == "packed":
        packing, bias, attends = _make_packing(attention_mask, shape, padding_states, first_states), None, None
    else:
        bias, attends = _self_masks(config, shape, num_keys, positions, attention_mask)
    encoder_bias, encoder_attends = _encoder_masks(encoder_hidden_states, encoder_attention_mask)
    return AttentionPlan(
        implementation=implementation,
        shape=shape,
        bias=bias,
        attends=attends,
        encoder_bias=encoder_bias,
        encoder_attends=encoder_attends,
        packing=packing,
        positions=positions,
        needs_weights=needs_weights,
        write_at=write_at,
    )


def _make_request(
    config: BertConfig, attention_mask: Tensor | None, needs_weights: bool, padding_states: bool
) -> AttentionRequest:
    dynamic = shapes_may_depend_on_values()
    padded: bool | None = attention_mask is not None
    if attention_mask is not None and values_visible(attention_mask):
        padded = not bool(ops.all(as_boolean(attention_mask)))
    elif attention_mask is not None:
        padded = None
    return AttentionRequest(
        needs_weights=needs_weights,
        relative_positions=config.position_embedding_type != "absolute",
        causal=config.is_decoder,
        row_mask=attention_mask is not None and len(attention_mask.shape) == 2,
        dynamic_shapes=dynamic,
        padding_states=padding_states,
        padded=padded,
        asked=config.attn_implementation != "auto",
        on_cpu=dynamic and runs_on_cpu(),
    )


def _make_packing(
    attention_mask: Tensor, shape: tuple[Size, Size], padding_states: bool | Tensor, first_states: bool
) -> Packing:
    from longspan.nn.keras.packing import Packing

    check_shape(attention_mask, shape, name="attention_mask", axes="(batch, tokens)")
    mask = as_boolean(attention_mask)
    also = None if isinstance(padding_states, bool) else padding_states
    if first_states and not (values_visible(mask) and bool(ops.all(mask[:, :1]))):
        first = ops.broadcast_to(ops.arange(shape[1]) == 0, shape)
        also = first if also is None else ops.logical_or(also, first)
    return Packing.from_mask(mask, shape, also)


def _self_masks(
    config: BertConfig,
    shape: tuple[Size, Size],
    num_keys: Size,
    positions: Tensor,
    attention_mask: Tensor | None,
) -> tuple[Tensor | None, Tensor | None]:
    """Bias and attending rows of self-attention."""
    padding = None if attention_mask is None else key_mask(attention_mask, batch=shape[0], num_keys=num_keys)
    if not config.is_decoder:
        return (None, None) if padding is None else (mask_to_bias(padding), rows_that_attend(padding))
    causal = causal_mask(positions, num_keys)
    if padding is None:
        return mask_to_bias(causal), None
    mask = ops.logical_and(padding, causal)
    return mask_to_bias(mask), rows_that_attend(mask)


def _encoder_masks(
    encoder_hidden_states: Tensor | None, encoder_attention_mask: Tensor | None
) -> tuple[Tensor | None, Tensor | None]:
    """Bias and attending rows of cross-attention."""
    if encoder_hidden_states is None or encoder_attention_mask is None:
        return None, None
    batch, num_keys, _ = ops.shape(encoder_hidden_states)
    mask = key_mask(encoder_attention_mask, batch=batch, num_keys=num_keys, name="encoder_attention_mask")
    return mask_to_bias(mask), rows_that_attend(mask)


# -- layers ----------------------------------------------------------------------------------------------------------


class BertSelfAttention(Block):
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
        super().__init__(config.hidden_size, **kwargs)
        self.num_attention_heads = num_heads
        self.attention_head_size = config.hidden_size // config.num_attention_heads
        shared = {"stddev": config.initializer_range, "dtype": self.dtype_policy}
        project = partial(linear, num_heads * self.attention_head_size, **shared)
        self.query, self.key, self.value = project(name="query"), project(name="key"), project(name="value")
        self.dropout = keras.layers.Dropout(config.attention_probs_dropout_prob, dtype=self.dtype_policy)
        self.position_embedding_type = position_embedding_type
        self.max_position_embeddings = config.max_position_embeddings
        if position_embedding_type != "absolute":
            size = 2 * config.max_position_embeddings - 1
            self.distance_embedding = embedding(size, self.attention_head_size, name="distance_embedding", **shared)

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
        key, value = extend(past, (key, value), plan.write_at)
        return key, value

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


class BertAttention(PostNormAttention):
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
        pruned, positions = frozenset(pruned_heads), position_embedding_type
        heads = config.num_attention_heads - len(pruned)
        attention = BertSelfAttention(
            config, num_heads=heads, position_embedding_type=positions, dtype=kwargs["dtype"], name="self"
        )
        super().__init__(config, attention, pruned_heads=pruned, **kwargs)

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
            head_mask=self.mask_of_remaining(head_mask),
            encoder_hidden_states=encoder_hidden_states,
            past=past,
            training=training,
        )
        return self.output_(context, hidden_states, training=training), weights, present


class BertLayer(PostNormFeedForward):
    """One transformer layer: self-attention, cross-attention in a decoder, feed-forward."""

    def __init__(self, config: BertConfig, *, pruned_heads: Iterable[int] = (), **kwargs: Any) -> None:
        super().__init__(config.hidden_size, **kwargs)
        policy, positions = self.dtype_policy, config.position_embedding_type
        self.attention = BertAttention(
            config, position_embedding_type=positions, pruned_heads=pruned_heads, dtype=policy, name="attention"
        )
        if config.add_cross_attention:
            self.crossattention = BertAttention(
                config, position_embedding_type="absolute", dtype=policy, name="crossattention"
            )
        self.add_feed_forward(config)

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
        hidden_states = self.feed_forward(hidden_states, training=training)
        return hidden_states, weights, cross_weights, (*(present or ()), *(cross_present or ()))


class BertEncoder(Block):
    """The stack of layers."""

    def __init__(self, config: BertConfig, **kwargs: Any) -> None:
        super().__init__(config.hidden_size, **kwargs)
        pruned, policy = config.pruned_heads, self.dtype_policy
        self.layer = [
            BertLayer(config, pruned_heads=pruned.get(index, ()), dtype=policy, name=f"layer_{index}")
            for index in range(config.num_hidden_layers)
        ]

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


# -- heads of pre-training -------------------------------------------------------------------------------------------


class BertLMPredictionHead(VocabularyHead):
    """Scores over the vocabulary: decoder(LayerNorm(act(W x + b))) + bias."""

    def __init__(self, config: BertConfig, **kwargs: Any) -> None:
        super().__init__(config, **kwargs)
        self.transform = PredictionHeadTransform(
            hidden_size=config.hidden_size,
            activation=config.hidden_act,
            layer_norm_eps=config.layer_norm_eps,
            stddev=config.initializer_range,
            dtype=self.dtype_policy,
            name="transform",
        )

    def prepare(self, hidden_states: Tensor) -> Tensor:
        """(N, H) -> (N, H)."""
        return self.transform(hidden_states)


class BertHeads(Block):
    """The heads of pre-training: masked language modelling, next sentence prediction, or both."""

    def __init__(self, config: BertConfig, *, predictions: bool, seq_relationship: bool, **kwargs: Any) -> None:
        super().__init__(config.hidden_size, **kwargs)
        policy = self.dtype_policy
        if predictions:
            self.predictions = BertLMPredictionHead(config, dtype=policy, name="predictions")
        if seq_relationship:
            self.seq_relationship = linear(2, stddev=config.initializer_range, dtype=policy, name="seq_relationship")
