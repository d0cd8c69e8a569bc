"""What devices that share one sequence say to each other: context parallelism for JAX.

Inside `longspan.parallel.flax.context_parallel`, device r of n along an axis of a mesh holds the tokens
r·S … (r + 1)·S − 1 of each row. Operations on tokens need nothing of the others; those that look further call the
functions below, which are plain array functions outside.

Which axis that is, is known while a function is traced, as JAX knows the axes of its meshes.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

import jax
import jax.numpy as jnp
from jax import Array, lax

from longspan.errors import InputError

_axis: ContextVar[str | None] = ContextVar("longspan_token_axis", default=None)


@contextmanager
def token_axis(name: str) -> Iterator[None]:
    """Let what is traced inside the block hold shares of sequences along an axis of the mesh of `jax.shard_map`."""
    token = _axis.set(name)
    try:
        yield
    finally:
        _axis.reset(token)


def shared_axis() -> str | None:
    """The axis of the mesh along which sequences are shared, if they are."""
    return _axis.get()


def num_shares() -> int:
    """Number of devices that share a sequence."""
    axis = _axis.get()
    return 1 if axis is None else int(lax.axis_size(axis))


def check_share(length: int, *, reach: int = 0, unit: int = 1, needs_weights: bool = False) -> None:
    """Raise `InputError` unless a share may have a length, and weights are not asked for; nothing if none is shared.

    Args:
        length: Tokens of a share.
        reach: Tokens of it that its neighbours see.
        unit: Tokens of a chunk, which lies on one device.
        needs_weights: Attention weights are to be returned.
    """
    if _axis.get() is None:
        return
    if needs_weights:
        raise InputError("a model that shares a sequence returns no attention weights. Received: output_attentions")
    if length < reach:
        raise InputError(
            f"the share of a device must have at least the {reach} tokens that its neighbours see. Received: {length} "
            f"tokens on each of {num_shares()} devices"
        )
    if length % unit:
        raise InputError(f"the share of a device must be a multiple of a chunk of {unit} tokens. Received: {length}")


def share() -> Array | int:
    """Number of this device along the axis."""
    axis = _axis.get()
    return 0 if axis is None else lax.axis_index(axis)


def token_places(length: int) -> Array:
    """Places of the tokens of a share in the sequence, (S,)."""
    return jnp.arange(length) if _axis.get() is None else share() * length + jnp.arange(length)


def total(array: Array) -> Array:
    """Sum over the devices."""
    axis = _axis.get()
    return array if axis is None else lax.psum(array, axis)


def of_all(array: Array) -> Array:
    """What each device holds, (n, ...)."""
    axis = _axis.get()
    return array[None] if axis is None else lax.all_gather(array, axis)


def whole(array: Array) -> Array:
    """The whole sequence (B, n·S, ...) of shares (B, S, ...)."""
    axis = _axis.get()
    return array if axis is None else lax.all_gather(array, axis, axis=1, tiled=True)


def count_all(mask: Array) -> Array:
    """How many tokens of each row are marked in a boolean mask (..., S), (..., 1)."""
    return total(mask.sum(axis=-1, keepdims=True))


def running_count(mask: Array) -> Array:
    """How many of the tokens so far, the present one included, are marked in a boolean mask (..., S)."""
    count = mask.cumsum(axis=-1)
    if _axis.get() is None:
        return count
    counts = of_all(count[..., -1:])
    is_before = jnp.arange(counts.shape[0]) < share()
    return count + jnp.where(is_before.reshape(-1, *[1] * count.ndim), counts, 0).sum(axis=0)


def first_state(hidden_states: Array) -> Array:
    """State of the first token of the sequence, (B, H), from states (B, S, H)."""
    first = hidden_states[:, 0]
    return first if _axis.get() is None else total(jnp.where(share() == 0, first, 0))


def softmax(scores: Array) -> Array:
    """Softmax over the last axis, whose keys are shared among the devices."""
    axis = _axis.get()
    if axis is None:
        return jax.nn.softmax(scores, axis=-1)
    weights = jnp.exp(scores - highest(scores.max(axis=-1, keepdims=True)))
    return weights / total(weights.sum(axis=-1, keepdims=True))


def highest(array: Array) -> Array:
    """Largest value over the devices, as a constant."""
    array = lax.stop_gradient(array)
    return array if _axis.get() is None else of_all(array).max(axis=0)


def with_neighbours(array: Array, left: int, right: int) -> Array:
    """Tokens (B, S, ...) with the `left` before them and the `right` behind them; 0 outside the sequence."""
    axis, length = _axis.get(), array.shape[1]
    assert axis is not None
    steps = [(device, device + 1) for device in range(num_shares() - 1)]
    before = lax.ppermute(array[:, length - left :], axis, steps)
    behind = lax.ppermute(array[:, :right], axis, [(later, earlier) for earlier, later in steps])
    return jnp.concatenate([before, array, behind], axis=1)
