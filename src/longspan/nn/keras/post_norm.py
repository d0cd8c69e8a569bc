"""What the layers of BERT and Longformer share: they normalise after adding (Vaswani et al., 2017).

Axes: H width, F width of the feed-forward layers, D head size. `tokens` in a shape stands for (B, S), or for (N,) in a
packed batch.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from functools import partial
from typing import Any, ClassVar

import keras
from keras import ops

from longspan.errors import InputError
from longspan.nn.keras.activations import get_activation
from longspan.nn.keras.checks import Size, check_length
from longspan.nn.keras.layers import Block, embedding, layer_norm, linear, look_up
from longspan.nn.keras.resizing import keep_features, remaining_features, replace_layer
from longspan.nn.keras.runtime import is_concrete
from longspan.ops.keras import Tensor


class Embeddings(Block):
    """LayerNorm(word + position + segment), with dropout.

    Args:
        config: Settings of the model.
        adds_positions: Add the embedding of the position.
        position_padding: Row of the position table that padding takes; it starts as zeros and learns nothing.
        **kwargs: `name`, `dtype`, `trainable`.
    """

    def __init__(
        self, config: Any, *, adds_positions: bool = True, position_padding: int | None = None, **kwargs: Any
    ) -> None:
        super().__init__(config.hidden_size, **kwargs)
        policy = self.dtype_policy
        table = partial(embedding, width=config.hidden_size, stddev=config.initializer_range, dtype=policy)
        self.word_padding, self.position_padding = config.pad_token_id, position_padding
        self.word_embeddings = table(config.vocab_size, name="word_embeddings", padding_index=self.word_padding)
        size = config.max_position_embeddings
        self.position_embeddings = table(size, name="position_embeddings", padding_index=position_padding)
        self.token_type_embeddings = table(config.type_vocab_size, name="token_type_embeddings")
        self.LayerNorm = layer_norm(config.layer_norm_eps, dtype=policy, name="LayerNorm")
        self.dropout = keras.layers.Dropout(config.hidden_dropout_prob, dtype=policy)
        self.adds_positions = adds_positions

    def call(
        self,
        input_ids: Tensor | None = None,
        *,
        inputs_embeds: Tensor | None,
        token_type_ids: Tensor | None,
        position_ids: Tensor,
        training: bool | None = None,
    ) -> Tensor:
        """Embed ids (tokens) or embeddings (tokens, H) into (tokens, H)."""
        embeddings = inputs_embeds
        if embeddings is None:
            embeddings = look_up(self.word_embeddings, input_ids, padding_index=self.word_padding)
        if token_type_ids is None:
            token_type_ids = ops.zeros((1,) * (len(embeddings.shape) - 1), dtype="int32")
        embeddings = embeddings + self.token_type_embeddings(token_type_ids)
        if self.adds_positions:
            embeddings = embeddings + look_up(
                self.position_embeddings, position_ids, padding_index=self.position_padding
            )
        return self.dropout(self.LayerNorm(embeddings), training=training)


def positions_behind_padding(
    config: Any, input_ids: Tensor | None, *, length: Size, past_length: Size = 0
) -> tuple[Tensor, list[Any]]:
    """Positions that begin behind the padding id: of the tokens that are not padding, or of all embeddings.

    Args:
        config: Has `pad_token_id` and `max_length`.
        input_ids: (B, S), or None.
        length: S.
        past_length: Number of cached tokens.

    Returns:
        Rows of the position table, (B, S) or (1, S), and assertions as of `check_ids`.

    Raises:
        InputError: there are more tokens than positions.
    """
    padding = config.pad_token_id or 0
    longest: Size = past_length + length
    if input_ids is None:
        positions = past_length + ops.arange(length, dtype="int32")[None] + (padding + 1)
    else:
        is_token = ops.cast(ops.not_equal(input_ids, padding), "int32")
        count = (ops.cumsum(is_token, axis=1) + past_length) * is_token
        positions, longest = count + padding, ops.max(count, initial=0)
        longest = int(longest) if is_concrete(longest) else longest
    return positions, check_length(longest, config.max_length, limit_name="max_position_embeddings - pad_token_id - 1")


class Intermediate(Block):
    """activation(W x + b)."""

    def __init__(self, config: Any, **kwargs: Any) -> None:
        super().__init__(config.hidden_size, **kwargs)
        size, stddev = config.intermediate_size, config.initializer_range
        self.dense = linear(size, stddev=stddev, dtype=self.dtype_policy, name="dense")
        self.activation = get_activation(config.hidden_act)

    def call(self, hidden_states: Tensor) -> Tensor:
        """(tokens, H) -> (tokens, F)."""
        return self.activation(self.dense(hidden_states))


class AddAndNorm(Block):
    """LayerNorm(x + dropout(W c + b)) with c of `input_size` features."""

    def __init__(self, config: Any, *, input_size: int, **kwargs: Any) -> None:
        super().__init__(config.hidden_size, **kwargs)
        policy = self.dtype_policy
        self.dense = linear(config.hidden_size, stddev=config.initializer_range, dtype=policy, name="dense")
        self.LayerNorm = layer_norm(config.layer_norm_eps, dtype=policy, name="LayerNorm")
        self.dropout = keras.layers.Dropout(config.hidden_dropout_prob, dtype=policy)
        self.input_size = input_size

    def build(self, input_shape: Any = None) -> None:
        """Make the weights."""
        self.dense.build((None, self.input_size))
        super().build()

    def call(self, hidden_states: Tensor, residual: Tensor, *, training: bool | None = None) -> Tensor:
        """(tokens, input_size), (tokens, H) -> (tokens, H)."""
        hidden_states = self.dropout(self.dense(hidden_states), training=training)
        return self.LayerNorm(hidden_states + residual)


class PostNormAttention(Block):
    """Attention, `self`, and its output projection with residual and norm, `output_`; subclasses call them.

    Args:
        config: Settings of the model.
        attention: Maps (tokens, H) to a context (tokens, A·D); has `num_attention_heads` and `attention_head_size`.
        pruned_heads: Heads that are missing, by their original numbers.
        **kwargs: `name`, `dtype`, `trainable`.
    """

    #: the layers of the attention whose output features belong to heads
    projections: ClassVar[tuple[str, ...]] = ("query", "key", "value")

    def __init__(self, config: Any, attention: Any, *, pruned_heads: Iterable[int] = (), **kwargs: Any) -> None:
        super().__init__(config.hidden_size, **kwargs)
        self.pruned_heads = frozenset(pruned_heads)
        self.original_num_heads = config.num_attention_heads
        self.self = attention
        input_size = attention.num_attention_heads * attention.attention_head_size
        self.output_ = AddAndNorm(config, input_size=input_size, dtype=self.dtype_policy, name="output")

    def mask_of_remaining(self, head_mask: Tensor | None) -> Tensor | None:
        """A factor of each of the original heads, (1, A, 1, 1), for those that were not pruned."""
        if head_mask is None or not self.pruned_heads:
            return head_mask
        kept = [head for head in range(self.original_num_heads) if head not in self.pruned_heads]
        return ops.take(head_mask, kept, axis=1)

    def prune_heads(self, heads: Iterable[int]) -> None:
        """Remove heads, given by their original numbers, for good."""
        removed, features = remaining_features(
            heads,
            num_heads=self.original_num_heads,
            head_size=self.self.attention_head_size,
            already_pruned=self.pruned_heads,
        )
        for name in self.projections:
            replace_layer(self.self, name, keep_features(getattr(self.self, name), features, axis="output"))
        replace_layer(self.output_, "dense", keep_features(self.output_.dense, features, axis="input"))
        self.pruned_heads |= removed
        self.self.num_attention_heads = self.original_num_heads - len(self.pruned_heads)


def prune_layers(layers: Sequence[Any], heads_to_prune: Mapping[int, Iterable[int]]) -> None:
    """Remove heads of the `attention` of layers for good, `{layer: heads}`.

    Raises:
        InputError: a layer or head does not exist, or no head would be left.
    """
    for layer in heads_to_prune:
        if not 0 <= layer < len(layers):
            raise InputError(f"layers to prune must lie in [0, {len(layers)}). Received: {layer}")
    for layer, heads in heads_to_prune.items():
        layers[layer].attention.prune_heads(heads)


class PostNormFeedForward(Block):
    """The second half of a layer, LayerNorm(x + W₂ act(W₁ x)); subclasses add the first half."""

    def add_feed_forward(self, config: Any) -> None:
        """Make the layers, behind those of the attention."""
        policy, self.inner_size = self.dtype_policy, config.intermediate_size
        self.intermediate = Intermediate(config, dtype=policy, name="intermediate")
        self.output_ = AddAndNorm(config, input_size=config.intermediate_size, dtype=policy, name="output")

    def feed_forward(self, hidden_states: Tensor, *, training: bool | None) -> Tensor:
        """(tokens, H) -> (tokens, H)."""
        return self.output_(self.intermediate(hidden_states), hidden_states, training=training)
