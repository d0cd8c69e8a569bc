"""Parameter trees in another dtype, or with more or fewer rows."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from flax.core import FrozenDict, unfreeze
from jax import Array

from longspan.checkpoints.flax import Params, flatten
from longspan.errors import InputError


def cast_floating(params: Mapping[str, Any], dtype: Any, mask: Mapping[str, Any] | None = None) -> Params:
    """A new tree with floating-point leaves in another dtype.

    Args:
        params: Parameter tree.
        dtype: The dtype.
        mask: Tree of the same structure; True at the leaves to cast. None casts all.

    Raises:
        InputError: `mask` has another structure.
    """
    tree = thaw(params)
    if mask is None:
        return jax.tree_util.tree_map(lambda leaf: _cast(leaf, dtype), tree)
    chosen = thaw(mask)
    wanted, given = flatten(tree).keys(), flatten(chosen).keys()
    if wanted != given:
        odd = ".".join(sorted(wanted ^ given)[0])
        raise InputError(f"mask must have the structure of params. Received: one that differs in {odd}")
    return jax.tree_util.tree_map(lambda leaf, cast: _cast(leaf, dtype) if cast else leaf, tree, chosen)


def narrow(leaf: Array, like: Any) -> Array:
    """An array in the dtype of another, without new infinities."""
    if like.dtype == jnp.float16 and leaf.dtype == jnp.float32:
        limit = float(jnp.finfo(jnp.float16).max)
        leaf = jnp.clip(leaf, -limit, limit)
    return leaf.astype(like.dtype)


def _cast(leaf: Any, dtype: Any) -> Any:
    return leaf.astype(dtype) if jnp.issubdtype(leaf.dtype, jnp.floating) else leaf


def thaw(tree: Mapping[str, Any]) -> Params:
    """A tree of plain dicts."""
    return unfreeze(tree) if isinstance(tree, FrozenDict) else dict(tree)


def resize_axis(old: Array, axis: int, size: int, drawn: Array | None) -> Array:
    """An array whose `axis` has `size` entries and begins with those of `old`.

    Args:
        old: Array to grow or shrink.
        axis: Its axis that changes.
        size: New number of entries.
        drawn: Random array of the new shape, from which new entries are taken; None makes them the mean of the old.
    """
    kept = jax.lax.slice_in_dim(old, 0, min(size, old.shape[axis]), axis=axis)
    if size <= old.shape[axis]:
        return kept
    if drawn is None:
        mean = old.astype(jnp.float32).mean(axis=axis, keepdims=True).astype(old.dtype)
        new = jnp.repeat(mean, size - old.shape[axis], axis=axis)
    else:
        new = jax.lax.slice_in_dim(drawn, old.shape[axis], size, axis=axis).astype(old.dtype)
    return jnp.concatenate([kept, new], axis=axis)
