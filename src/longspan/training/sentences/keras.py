"""Sentence encoders in training in Keras: a layer that holds the transformer and the weights behind pooling."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import keras
import numpy as np
from keras import ops

from longspan.checkpoints.keras import to_numpy
from longspan.embeddings.modules import Layer
from longspan.embeddings.pooling import LAYER_NORM_EPSILON, Dense, LayerNorm, mode_places
from longspan.pipelines.backends.keras import pool
from longspan.training.backends.keras import call_settings
from longspan.training.options import TrainOptions


class SentenceModel(keras.layers.Layer):
    """A Keras encoder with what comes behind it.

    Args:
        encoder: The `SentenceEncoder`.

    Attributes:
        config: Settings of the transformer.
    """

    def __init__(self, encoder: Any) -> None:
        super().__init__(name="sentence_model", autocast=False)
        self.transformer = encoder._backend.model
        self.config = self.transformer.config
        if getattr(self.transformer, "pooler", None) is not None:
            self.transformer.pooler.trainable = False  # vectors do not depend on it
        self._places = mode_places(encoder._modules.pooling)
        self._after = encoder._modules.layers
        self.behind: dict[str, Any] = {}
        for place, layer in enumerate(self._after):
            for name, value in vars(layer).items() if isinstance(layer, Dense | LayerNorm) else ():
                if isinstance(value, np.ndarray):
                    variable = self.add_weight(shape=value.shape, dtype="float32", name=f"{place}_{name}")
                    variable.assign(value)
                    self.behind[f"{place}_{name}"] = variable
        self.built = True

    def call(
        self,
        input_ids: Any,
        attention_mask: Any = None,
        pooling: Any = None,
        shares: Any = None,
        max_mask: Any = None,
        training: bool | None = None,
    ) -> Any:
        """Vectors of length 1 of all texts, (B, T, D); arguments as `EmbedTask.arrays` gives them."""
        settings = call_settings(self.transformer)
        output = self.transformer(input_ids, attention_mask=attention_mask, training=training, **settings)
        pooled = pool(output.last_hidden_state, pooling, None if max_mask is None else ops.cast(max_mask, "bool"))
        vectors = ops.concatenate([pooled[:, place] for place in self._places], axis=-1)
        for place, layer in enumerate(self._after):
            vectors = self._apply(layer, place, vectors)
        return _unit(ops.einsum("btr,rd->btd", shares, vectors))

    def _apply(self, layer: Layer, place: int, vectors: Any) -> Any:
        """(N, D) -> (N, out), as `longspan.embeddings.pooling` defines it."""
        weight, bias = (self.behind.get(f"{place}_{name}") for name in ("weight", "bias"))
        if isinstance(layer, Dense):
            projected = ops.matmul(vectors, ops.transpose(weight))
            activation = keras.activations.get({"Identity": "linear"}.get(layer.activation, layer.activation.lower()))
            return activation(projected if bias is None else projected + bias)
        if isinstance(layer, LayerNorm):
            mean, variance = ops.moments(vectors, axes=-1, keepdims=True)
            return (vectors - mean) * ops.rsqrt(variance + LAYER_NORM_EPSILON) * weight + bias
        return _unit(vectors)


def model_of(encoder: Any, options: TrainOptions) -> SentenceModel:
    """What is trained of an encoder."""
    del options
    return SentenceModel(encoder)


def layers_of(model: SentenceModel, layers: tuple[Layer, ...]) -> tuple[Layer, ...]:
    """The layers behind pooling with the weights that they have now."""
    found = []
    for place, layer in enumerate(layers):
        weights = {name: model.behind.get(f"{place}_{name}") for name in ("weight", "bias")}
        values: dict[str, Any] = {name: to_numpy(value).copy() for name, value in weights.items() if value is not None}
        found.append(replace(layer, **values) if isinstance(layer, Dense | LayerNorm) else layer)
    return tuple(found)


def detach(model: SentenceModel) -> Any:
    """The transformer alone."""
    return model.transformer


def _unit(vectors: Any) -> Any:
    """Vectors scaled to length 1; shorter than 1e-12 they are divided by 1e-12."""
    squares = ops.sum(ops.square(vectors), axis=-1, keepdims=True)
    return vectors * ops.rsqrt(ops.maximum(squares, 1e-24))
