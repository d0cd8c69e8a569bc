"""Embeddings with more or fewer rows, dense layers with other features, and putting them in the place of the old.

Keras locks the sub-layers of a layer that is built. `replace_layer` is the one place that opens that lock.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Set
from contextlib import contextmanager
from typing import Any, Literal

import keras
import numpy as np
import numpy.typing as npt

from longspan.checkpoints.keras import to_numpy
from longspan.shapes import remaining_heads

Values = npt.NDArray[Any]


@contextmanager
def _replacing(parent: keras.layers.Layer, old: Any, tracked: list[Any]) -> Iterator[None]:
    """Let the block put something in the place of `old`, which lies in `tracked`; the order of weights stays."""
    tracker = parent._tracker
    place = next(index for index, item in enumerate(tracked) if item is old)
    tracker.unlock()
    try:
        tracker.untrack(old)
        yield
        tracked.insert(place, tracked.pop())
    finally:
        tracker.lock()


def replace_layer(parent: keras.layers.Layer, attribute: str, layer: keras.layers.Layer) -> None:
    """Put a built layer in the place of one of `parent`'s sub-layers."""
    with _replacing(parent, getattr(parent, attribute), parent._layers):
        setattr(parent, attribute, layer)


def replace_variable(layer: keras.layers.Layer, attribute: str, values: Values) -> None:
    """Put a trainable variable with these values in the place of one of `layer`'s own."""
    old = getattr(layer, attribute)
    with _replacing(layer, old, layer._trainable_variables):
        new = layer.add_weight(shape=values.shape, initializer="zeros", dtype=old.dtype, name=old.name)
        setattr(layer, attribute, new)
    new.assign(values)
    new.trainable = old.trainable


def resize_rows(old: Values, size: int, *, initialise: Any, mean_resizing: bool) -> Values:
    """Copy the rows that both have; new rows become the mean of the old ones, or what `initialise(shape)` draws."""
    kept = min(len(old), size)
    new = np.empty((size, *old.shape[1:]), old.dtype)
    new[:kept] = old[:kept]
    if size > kept and mean_resizing:
        new[kept:] = old.astype(np.float32).mean(axis=0)
    elif size > kept:
        new[kept:] = to_numpy(initialise((size - kept, *old.shape[1:])))
    return new


def resize_embedding(old: keras.layers.Embedding, size: int, *, mean_resizing: bool) -> keras.layers.Embedding:
    """A built embedding of `size` rows that begins with those of `old`.

    Args:
        old: Embedding to grow or shrink.
        size: Number of rows.
        mean_resizing: New rows are the mean of the old ones; otherwise they are drawn as the old ones were.
    """
    config = {**old.get_config(), "input_dim": size}
    new = keras.layers.Embedding.from_config(config)
    new.build((None, None))
    values = to_numpy(old.embeddings)
    new.embeddings.assign(resize_rows(values, size, initialise=old.embeddings_initializer, mean_resizing=mean_resizing))
    new.trainable = old.trainable
    return new


def resize_linear(old: keras.layers.Dense, size: int, *, mean_resizing: bool) -> keras.layers.Dense:
    """A built dense layer of `size` output features that begins with those of `old`; see `resize_embedding`."""
    rows = resize_rows(
        to_numpy(old.kernel).T,
        size,
        initialise=lambda shape: to_numpy(old.kernel_initializer(shape[::-1])).T,
        mean_resizing=mean_resizing,
    )
    bias = None
    if old.use_bias:
        bias = resize_rows(to_numpy(old.bias), size, initialise=old.bias_initializer, mean_resizing=mean_resizing)
    return _dense_like(old, rows.T, bias)


def keep_features(
    old: keras.layers.Dense, indices: npt.NDArray[np.int64], *, axis: Literal["input", "output"]
) -> keras.layers.Dense:
    """A built dense layer with only the named input or output features of `old`."""
    kernel = to_numpy(old.kernel).take(indices, axis=0 if axis == "input" else 1)
    bias = to_numpy(old.bias) if old.use_bias else None
    return _dense_like(old, kernel, bias if bias is None or axis == "input" else bias[indices])


def _dense_like(old: keras.layers.Dense, kernel: Values, bias: Values | None) -> keras.layers.Dense:
    new = keras.layers.Dense.from_config({**old.get_config(), "units": kernel.shape[1]})
    new.build((None, kernel.shape[0]))
    new.kernel.assign(kernel)
    if bias is not None:
        new.bias.assign(bias)
    new.trainable = old.trainable
    return new


def remaining_features(
    heads: Iterable[int], *, num_heads: int, head_size: int, already_pruned: Set[int]
) -> tuple[set[int], npt.NDArray[np.int64]]:
    """The heads that are removed now, and the features (`head_size` a head) to keep; see `remaining_heads`."""
    removed, kept = remaining_heads(heads, num_heads=num_heads, already_pruned=already_pruned)
    return removed, (np.array(kept)[:, None] * head_size + np.arange(head_size)).reshape(-1)
