"""Sentence encoders in training in Flax: a model of parameters that are the transformer's and the layers'."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from longspan.embeddings.modules import Layer
from longspan.embeddings.pooling import LAYER_NORM_EPSILON, Dense, LayerNorm, order_modes
from longspan.pipelines.backends.flax import pool
from longspan.training.options import TrainOptions

_ACTIVATIONS = {"GELU": partial(jax.nn.gelu, approximate=False)}
_TRANSFORMER, _LAYERS, _UNUSED = "transformer", "layers", "pooler"
_PRECISION = jax.lax.Precision.HIGHEST


class SentenceModel:
    """A Flax encoder with what comes behind it.

    Args:
        encoder: The `SentenceEncoder`.

    Attributes:
        config: Settings of the transformer.
        batch_stats: Its running statistics.
        transformer: The model in the middle.
    """

    def __init__(self, encoder: Any) -> None:
        self._encoder = encoder
        self.transformer = encoder._backend.model
        self._layers: tuple[Layer, ...] = encoder._modules.layers
        self._modes: tuple[str, ...] = encoder._modules.pooling
        self.config = self.transformer.config
        self.batch_stats = self.transformer.batch_stats
        params = self.transformer.params
        self._unused = {name: value for name, value in params.items() if name == _UNUSED}
        weights = {
            str(place): {
                name: jnp.asarray(value) for name, value in vars(layer).items() if isinstance(value, np.ndarray)
            }
            for place, layer in enumerate(self._layers)
            if isinstance(layer, Dense | LayerNorm)
        }
        trained = {name: value for name, value in params.items() if name != _UNUSED}
        self._params: dict[str, Any] = {_TRANSFORMER: trained} | ({_LAYERS: weights} if weights else {})

    @property
    def params(self) -> dict[str, Any]:
        """The parameters that are trained; the transformer's pooler, on which no vector depends, is not."""
        return self._params

    @params.setter
    def params(self, params: dict[str, Any]) -> None:
        self._params = params
        self.transformer.params = {**params[_TRANSFORMER], **self._unused}
        self._encoder._backend.take(self.transformer.params)

    def program_settings(self, inputs: Mapping[str, Any]) -> dict[str, Any]:
        """Arguments of a call that follow from the values of its inputs."""
        tokens = {name: inputs[name] for name in ("input_ids", "attention_mask")}
        settings: dict[str, Any] = self.transformer.program_settings(tokens)
        return settings

    def __call__(
        self,
        input_ids: Array,
        attention_mask: Array,
        pooling: Array,
        shares: Array,
        max_mask: Array | None = None,
        *,
        params: Mapping[str, Any],
        **settings: Any,
    ) -> Array:
        """Vectors of length 1 of all texts, (B, T, D); arguments as `EmbedTask.arrays` gives them."""
        variables = {**params[_TRANSFORMER], **self._unused}
        states = self.transformer(input_ids, attention_mask=attention_mask, params=variables, **settings)
        vectors: Any = pool(states.last_hidden_state, pooling, None if max_mask is None else max_mask != 0)
        vectors = order_modes(self._modes, vectors)
        for place, layer in enumerate(self._layers):
            vectors = _apply(layer, params.get(_LAYERS, {}).get(str(place), {}), vectors)
        return _unit(jnp.einsum("btr,rd->btd", shares, vectors, precision=_PRECISION))


def model_of(encoder: Any, options: TrainOptions) -> SentenceModel:
    """What is trained of an encoder."""
    if options.gradient_checkpointing:
        encoder._backend.model.enable_gradient_checkpointing()
    return SentenceModel(encoder)


def layers_of(model: SentenceModel, layers: tuple[Layer, ...]) -> tuple[Layer, ...]:
    """The layers behind pooling with the weights that they have now."""
    weights = model.params.get(_LAYERS, {})
    found = []
    for place, layer in enumerate(layers):
        values: dict[str, Any] = {name: np.asarray(value) for name, value in weights.get(str(place), {}).items()}
        found.append(replace(layer, **values) if isinstance(layer, Dense | LayerNorm) else layer)
    return tuple(found)


def detach(model: SentenceModel) -> Any:
    """The transformer alone."""
    return model.transformer


def _apply(layer: Layer, weights: Mapping[str, Array], vectors: Array) -> Array:
    """(N, D) -> (N, out), as `longspan.embeddings.pooling` defines it."""
    if isinstance(layer, Dense):
        projected = jnp.matmul(vectors, weights["weight"].T, precision=_PRECISION)
        activation = _ACTIVATIONS.get(layer.activation) or getattr(jax.nn, layer.activation.lower())
        activated: Array = activation(projected + weights["bias"] if "bias" in weights else projected)
        return activated
    if isinstance(layer, LayerNorm):
        return jax.nn.standardize(vectors, epsilon=LAYER_NORM_EPSILON) * weights["weight"] + weights["bias"]
    return _unit(vectors)


def _unit(vectors: Array) -> Array:
    """Vectors scaled to length 1; shorter than 1e-12 they are divided by 1e-12."""
    squares = jnp.square(vectors).sum(-1, keepdims=True)
    return vectors * jax.lax.rsqrt(jnp.maximum(squares, 1e-24))
