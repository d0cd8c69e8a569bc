"""The cache of incremental decoding: linen's "cache" collection, a nested dict of arrays.

Axes: B batch, T tokens that fit, A heads, D head size.

Each self-attention holds `cached_key` and `cached_value` (B, T, A, D) and `cache_index`, the number of tokens written.
The dict goes in as `past_key_values` and comes out filled further; shapes never change, so one compiled step serves
every token.

Generation goes on with a cache for K rows of each prompt, `rows_key` and `rows_value` (B, A, D, T · K). Beams change
places, but what they wrote stays where it is: `ancestors` (B, K, T) say which row wrote the entries that each row
continues. All K rows attend to the entries of all, behind a mask, which costs less than to move them.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax import Array, lax

from longspan.checkpoints.flax import flatten, unflatten
from longspan.errors import InputError
from longspan.nn.flax.checks import ArrayLike, values_visible
from longspan.nn.flax.outputs import FlaxCache
from longspan.shapes import check_key_mask

_INDEX = "cache_index"
_KEY, _VALUE = "cached_key", "cached_value"
_OF_ROWS = {_KEY: "rows_key", _VALUE: "rows_value"}


def empty_cache(shapes: Mapping[str, Any]) -> FlaxCache:
    """Zeros of the given shapes and dtypes; nothing is written yet."""
    cache: FlaxCache = jax.tree_util.tree_map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), dict(shapes))
    return cache


def extend_cache(module: nn.Module, key: Array, value: Array) -> tuple[Array, Array]:
    """Write new keys and values behind those of a module's cache, or make the cache if it has none.

    Args:
        module: The attention; it calls this from a compact method.
        key: (B, T_new, A, D).
        value: (B, T_new, A, D).

    Returns:
        All keys and values, (B, T, A, D), in the dtype of the new ones.
    """
    exists = module.has_variable("cache", _KEY)
    cached_key = module.variable("cache", _KEY, jnp.zeros, key.shape, key.dtype)
    cached_value = module.variable("cache", _VALUE, jnp.zeros, value.shape, value.dtype)
    cache_index = module.variable("cache", _INDEX, lambda: jnp.array(0, dtype=jnp.int32))
    if exists:
        start = (0, cache_index.value, 0, 0)
        cached_key.value = lax.dynamic_update_slice(cached_key.value, key.astype(cached_key.value.dtype), start)
        cached_value.value = lax.dynamic_update_slice(cached_value.value, value.astype(cached_value.value.dtype), start)
        cache_index.value = cache_index.value + key.shape[1]
    return cached_key.value.astype(key.dtype), cached_value.value.astype(value.dtype)


def for_rows(cache: Mapping[str, Any], rows: int) -> FlaxCache:
    """A cache for K rows of each prompt that go on from what B rows have written.

    Args:
        cache: The cache of the prompts.
        rows: K.
    """
    flat: dict[tuple[str, ...], Any] = {}
    for path, leaf in flatten(cache).items():
        if path[-1] in _OF_ROWS:
            written = leaf.transpose(0, 2, 3, 1)[..., None]  # by the first row
            padded = jnp.pad(written, ((0, 0),) * 4 + ((0, rows - 1),))
            leaf = padded.reshape(*padded.shape[:3], -1)
        flat[(*path[:-1], _OF_ROWS.get(path[-1], path[-1]))] = leaf
    return unflatten(flat)


def is_for_rows(module: nn.Module) -> bool:
    """True if the module's cache is one of `for_rows`."""
    return module.has_variable("cache", _OF_ROWS[_KEY])


def extend_rows(module: nn.Module, key: Array, value: Array) -> tuple[Array, Array]:
    """Write one token of every row into a module's cache of `for_rows`.

    Args:
        module: The attention.
        key: (B · K, 1, A, D).
        value: (B · K, 1, A, D).

    Returns:
        All keys and values, (B, A, D, T · K), in the dtype of the new ones; see `rows_mask`.
    """
    index: Array = module.get_variable("cache", _INDEX)
    stored: list[Array] = []
    for name, new in ((_KEY, key), (_VALUE, value)):
        old: Array = module.get_variable("cache", _OF_ROWS[name])
        batch, heads, size, _ = old.shape
        column = new.reshape(batch, -1, heads, size).transpose(0, 2, 3, 1)
        # any other shape of what is kept would make XLA copy it
        place = index * column.shape[-1]
        stored.append(lax.dynamic_update_slice_in_dim(old, column.astype(old.dtype), place, axis=3))
        module.put_variable("cache", _OF_ROWS[name], stored[-1])
    module.put_variable("cache", _INDEX, index + 1)
    return stored[0].astype(key.dtype), stored[1].astype(value.dtype)


def rows_mask(ancestors: Array, past: Array | int) -> Array:
    """What each row may see of the entries of all rows: those of its ancestors, up to the newest.

    Args:
        ancestors: (B, K, T).
        past: Number of tokens before the newest.

    Returns:
        Boolean, (B, 1, K, T · K).
    """
    batch, rows, room = ancestors.shape
    own = (ancestors[..., None] == jnp.arange(rows)) & (jnp.arange(room)[:, None] <= past)
    return own.reshape(batch, 1, rows, room * rows)


def tokens_and_room(cache: Mapping[str, Any] | None) -> tuple[Array | int, int | None]:
    """How many tokens a cache holds, and how many fit; (0, None) without a cache.

    Args:
        cache: The cache of a model or of a part of it; its attentions are filled alike.
    """
    flat = flatten(cache or {})
    path = next((path for path in flat if path[-1] == _KEY), None)
    if path is None:
        return 0, None
    return flat[(*path[:-1], _INDEX)], flat[path].shape[1]


def tokens_before(cache: Mapping[str, Any]) -> Array:
    """How many tokens of each row a cache of `for_rows` holds."""
    count: Array = next(leaf for path, leaf in flatten(cache).items() if path[-1] == _INDEX)
    return count


def check_cache(cache: Any, expected: Mapping[str, Any], *, num_new: int) -> None:
    """Check that a cache fits the model and the batch, and that the new tokens fit the cache.

    Args:
        cache: What the caller passed as `past_key_values`.
        expected: Tree of the shapes that it must have.
        num_new: Number of new tokens.

    Raises:
        InputError: saying what differs.
    """
    if not isinstance(cache, Mapping):
        raise InputError(f"past_key_values must be the dict of init_cache. Received: {type(cache).__name__}")
    wanted, given = _shapes(expected), _shapes(cache)
    if wanted.keys() != given.keys():
        odd = sorted(wanted.keys() ^ given.keys())[0]
        fault = "lacks" if odd in wanted else "holds"
        raise InputError(
            "past_key_values must come from init_cache of a model of the same class and configuration. "
            f"Received: a cache that {fault} {odd}"
        )
    for name, shape in wanted.items():
        if given[name] != shape:
            raise InputError(
                f"past_key_values must fit the batch: {name} must have the shape {shape}. Received: {given[name]}"
            )
    past, room = tokens_and_room(cache)
    assert room is not None
    if (isinstance(past, int) or values_visible(past)) and int(past) + num_new > room:
        raise InputError(
            f"the cache must have room for the new tokens: make it with a larger max_length. Received: {num_new} new "
            f"tokens for a cache of max_length={room} that holds {int(past)}"
        )


def check_cached_mask(attention_mask: ArrayLike, cache: Mapping[str, Any], *, batch: int, num_new: int) -> None:
    """Check that a mask covers the cached and the new tokens, and no more than fit the cache.

    Args:
        attention_mask: (B, T), for all tokens that fit or for those up to the new ones; or (B, T_new, T).
        cache: The cache, already checked.
        batch: B.
        num_new: Number of new tokens.

    Raises:
        InputError: the shape does not fit.
    """
    past, room = tokens_and_room(cache)
    assert room is not None
    covered = attention_mask.shape[-1]
    least = int(past) + num_new if isinstance(past, int) or values_visible(past) else num_new
    if not least <= covered <= room:
        raise InputError(
            f"with a cache of max_length={room}, attention_mask must describe the tokens up to the new ones, or all "
            f"that fit: between {least} and {room}. Received: the shape {tuple(attention_mask.shape)}"
        )
    check_key_mask(attention_mask, batch=batch, num_keys=covered)


def _shapes(cache: Mapping[str, Any]) -> dict[str, tuple[int, ...]]:
    return {".".join(path): tuple(leaf.shape) for path, leaf in flatten(cache).items()}
