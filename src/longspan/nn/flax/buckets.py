"""Few lengths for programs of fixed shapes: inputs are padded up to the next of them, outputs cut back.

A program of XLA serves one set of shapes. With padding to a bucket, one program serves all lengths of the bucket.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from longspan.nn.flax.checks import ArrayLike, values_visible
from longspan.nn.flax.outputs import OutputType
from longspan.ops.patterns import SMALLEST, bucket

__all__ = ["SMALLEST", "bucket", "cut_tokens", "is_traced", "pad_tokens", "real_tokens"]


def pad_tokens(array: ArrayLike, length: int, *, value: int = 0, axis: int = 1) -> ArrayLike:
    """Pad the tokens (B, S, ...) to (B, length, ...), on the host if the values are there."""
    missing = length - array.shape[axis]
    if missing == 0:
        return array
    padding = [(0, missing if number == axis else 0) for number in range(array.ndim)]
    if values_visible(array):
        return np.pad(np.asarray(array), padding, constant_values=value)
    return jnp.pad(array, padding, constant_values=value)


def cut_tokens(output: OutputType, length: int, *, rows: Collection[str] = ()) -> OutputType:
    """Cut the tokens of all fields (B, bucket, ...), or tuples of such arrays, back to their length.

    Args:
        output: Output of a model.
        length: Number of tokens.
        rows: Fields that stay as they are.
    """
    cut = jax.tree_util.tree_map(lambda array: array[:, :length], output)
    return type(output)(**{name: output[name] if name in rows else cut[name] for name in output})


def real_tokens(attention_mask: ArrayLike | None, shape: tuple[int, int]) -> ArrayLike:
    """The mask, or ones (B, S) in its place."""
    return np.ones(shape, np.int32) if attention_mask is None else attention_mask


def is_traced(*trees: Any) -> bool:
    """True if any array of the trees is traced: the caller's program has its own fixed shapes."""
    return any(isinstance(leaf, jax.core.Tracer) for leaf in jax.tree_util.tree_leaves(trees))
