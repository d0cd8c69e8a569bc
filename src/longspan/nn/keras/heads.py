"""Blocks of task heads that more than one family uses."""

from __future__ import annotations

from typing import Any

import keras
from keras import ops

from longspan.checkpoints.keras import to_numpy
from longspan.errors import InputError
from longspan.nn.keras.activations import get_activation
from longspan.nn.keras.checks import Size, static_shape
from longspan.nn.keras.layers import Block, layer_norm, linear, score_rows
from longspan.nn.keras.resizing import replace_layer, replace_variable, resize_linear, resize_rows
from longspan.ops.keras import Tensor


class Pooler(Block):
    """tanh(W h₀ + b) of the first token's state (BERT, Longformer).

    Args:
        hidden_size: Width H.
        stddev: Standard deviation of the first weights.
        **kwargs: `name`, `dtype`, `trainable`.
    """

    def __init__(self, *, hidden_size: int, stddev: float, **kwargs: Any) -> None:
        super().__init__(hidden_size, **kwargs)
        self.dense = linear(hidden_size, stddev=stddev, dtype=self.dtype_policy, name="dense")

    def call(self, hidden_states: Tensor) -> Tensor:
        """(B, S, H) -> (B, H)."""
        return ops.tanh(self.dense(hidden_states[:, 0]))


class PredictionHeadTransform(Block):
    """dense → activation → layer norm, before the vocabulary projection of BERT.

    Args:
        hidden_size: Width H.
        activation: Name of the activation.
        layer_norm_eps: Epsilon of the norm.
        stddev: Standard deviation of the first weights.
        **kwargs: `name`, `dtype`, `trainable`.
    """

    def __init__(
        self, *, hidden_size: int, activation: str, layer_norm_eps: float, stddev: float, **kwargs: Any
    ) -> None:
        super().__init__(hidden_size, **kwargs)
        self.dense = linear(hidden_size, stddev=stddev, dtype=self.dtype_policy, name="dense")
        self.activation = get_activation(activation)
        self.LayerNorm = layer_norm(layer_norm_eps, dtype=self.dtype_policy, name="LayerNorm")

    def call(self, hidden_states: Tensor) -> Tensor:
        """(tokens, H) -> (tokens, H)."""
        return self.LayerNorm(self.activation(self.dense(hidden_states)))


class VocabularyHead(Block):
    """Scores over the vocabulary, decoder(prepare(x)) + bias.

    The decoder is the word embedding, or a projection of its own if `tie_word_embeddings` is False.

    Args:
        config: Settings of the model.
        **kwargs: `name`, `dtype`, `trainable`.
    """

    def __init__(self, config: Any, **kwargs: Any) -> None:
        super().__init__(config.hidden_size, **kwargs)
        self.is_tied, self.size = config.tie_word_embeddings, config.vocab_size
        if not self.is_tied:
            policy, stddev = self.dtype_policy, config.initializer_range
            self.decoder = linear(self.size, stddev=stddev, dtype=policy, name="decoder", use_bias=False)

    def build(self, input_shape: Any = None) -> None:
        """Make the weights."""
        super().build()
        self.bias = self.add_weight(shape=(self.size,), initializer="zeros", name="bias")

    def prepare(self, hidden_states: Tensor) -> Tensor:
        """(N, H) -> (N, H): what comes before the projection."""
        raise NotImplementedError(f"{type(self).__name__} must say what comes before its projection: prepare")

    def call(self, hidden_states: Tensor, *, word_embeddings: keras.layers.Layer) -> Tensor:
        """(B, S, H), the layer of the word embeddings -> (B, S, V)."""
        shape = ops.shape(hidden_states)
        states = self.prepare(ops.reshape(hidden_states, (-1, shape[-1])))
        scores = score_rows(states, word_embeddings) if self.is_tied else self.decoder(states)
        scores = scores + ops.cast(self.bias, scores.dtype)
        return ops.reshape(scores, (*shape[:2], scores.shape[-1]))

    def resize(self, size: int, *, mean_resizing: bool) -> None:
        """Score `size` tokens; see `TFPreTrainedModel.resize_token_embeddings`."""
        bias = resize_rows(to_numpy(self.bias), size, initialise=ops.zeros, mean_resizing=mean_resizing)
        replace_variable(self, "bias", bias)
        if not self.is_tied:
            replace_layer(self, "decoder", resize_linear(self.decoder, size, mean_resizing=mean_resizing))


class LanguageModelHead(VocabularyHead):
    """Scores over the vocabulary, decoder(LayerNorm(gelu(W x + b))) + bias (Longformer, RoBERTa)."""

    def __init__(self, config: Any, **kwargs: Any) -> None:
        super().__init__(config, **kwargs)
        policy, stddev = self.dtype_policy, config.initializer_range
        self.dense = linear(config.hidden_size, stddev=stddev, dtype=policy, name="dense")
        self.layer_norm = layer_norm(config.layer_norm_eps, dtype=policy, name="layer_norm")

    def prepare(self, hidden_states: Tensor) -> Tensor:
        """(N, H) -> (N, H)."""
        return self.layer_norm(ops.gelu(self.dense(hidden_states), approximate=False))


class FirstTokenClassificationHead(Block):
    """dropout → dense → tanh → dropout → projection of the first token's state (Longformer, RoBERTa).

    Args:
        config: Settings of the model.
        dropout: Dropout probability.
        **kwargs: `name`, `dtype`, `trainable`.
    """

    def __init__(self, config: Any, *, dropout: float, **kwargs: Any) -> None:
        super().__init__(config.hidden_size, **kwargs)
        policy, stddev = self.dtype_policy, config.initializer_range
        self.dense = linear(config.hidden_size, stddev=stddev, dtype=policy, name="dense")
        self.dropout = keras.layers.Dropout(dropout, dtype=policy)
        self.out_proj = linear(config.num_labels, stddev=stddev, dtype=policy, name="out_proj")

    def call(self, hidden_states: Tensor, *, training: bool | None = None) -> Tensor:
        """(B, S, H) -> (B, N)."""
        pooled = self.dropout(hidden_states[:, 0], training=training)
        return self.out_proj(self.dropout(ops.tanh(self.dense(pooled)), training=training))


def fold_choices(*inputs: Tensor | None) -> tuple[Size, tuple[Tensor | None, ...]]:
    """Fold the axis of choices into the batch.

    Args:
        *inputs: Each None or of the shape (B, C, ...), with one C.

    Returns:
        C, and the inputs as (B·C, ...).

    Raises:
        InputError: an input lacks the axis, or the inputs disagree in B or C.
    """
    given = [tensor for tensor in inputs if tensor is not None]
    shapes = [static_shape(tensor) for tensor in given]
    sizes = [{shape[axis] for shape in shapes if len(shape) > axis} - {None} for axis in (0, 1)]
    if not given or any(len(shape) < 3 for shape in shapes) or any(len(found) > 1 for found in sizes):
        raise InputError(f"inputs of multiple choice must all have the shape (batch, choices, ...). Received: {shapes}")
    folded = (None if tensor is None else ops.reshape(tensor, (-1, *ops.shape(tensor)[2:])) for tensor in inputs)
    return ops.shape(given[0])[1], tuple(folded)
