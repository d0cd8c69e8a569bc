"""The weight-bearing layers of Keras as the families use them: initialised, named, with a dtype policy."""

from __future__ import annotations

from typing import Any

import keras

from longspan.nn.keras.initializers import Normal, NormalWithPadding


def linear(units: int, *, stddev: float, dtype: Any, name: str, use_bias: bool = True) -> keras.layers.Dense:
    """`x W + b` with normally distributed W.

    Args:
        units: Output width.
        stddev: Standard deviation of the first values.
        dtype: Dtype policy.
        name: Name of the layer; part of the path of its weights.
        use_bias: Have b.
    """
    return keras.layers.Dense(
        units, use_bias=use_bias, kernel_initializer=Normal(stddev=stddev), dtype=dtype, name=name
    )


def embedding(
    size: int, width: int, *, stddev: float, dtype: Any, name: str, padding_index: int | None = None
) -> keras.layers.Embedding:
    """A table of `size` vectors, normally distributed; that of the padding token starts as zeros."""
    initializer = (
        Normal(stddev=stddev)
        if padding_index is None
        else NormalWithPadding(stddev=stddev, padding_index=padding_index)
    )
    return keras.layers.Embedding(size, width, embeddings_initializer=initializer, dtype=dtype, name=name)


def layer_norm(epsilon: float, *, dtype: Any, name: str) -> keras.layers.LayerNormalization:
    """Layer normalisation over the last axis."""
    return keras.layers.LayerNormalization(epsilon=epsilon, dtype=dtype, name=name)
