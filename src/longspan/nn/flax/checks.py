"""Checks of inputs that give a clear error before work is lost.

Reading values costs a wait on an accelerator and is impossible while a function is traced, so rules on *values* are
checked for NumPy arrays and for JAX arrays on the CPU only; rules on *shapes* are always checked.
"""

from __future__ import annotations

from typing import Any, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from flax.linen import module as linen_module
from jax import Array

from longspan.errors import InputError
from longspan.ops.fast_paths import is_off

ArrayLike: TypeAlias = Array | np.ndarray


def values_visible(array: ArrayLike) -> bool:
    """True if looking at the values of `array` is possible and cheap."""
    if isinstance(array, np.ndarray):
        return True
    if isinstance(array, jax.core.Tracer) or not array.is_fully_addressable:
        return False
    return all(device.platform == "cpu" for device in array.devices())


def is_intercepted() -> bool:
    """True inside of `flax.linen.intercept_methods`.

    Adapters and quantisers work by it. It acts on Python code, so a program compiled outside of it would not show it,
    and one compiled inside would keep it: then the code itself has to run.
    """
    return len(linen_module._global_interceptor_stack) > 0  # Flax has no public name for it


def must_call_parts(module: nn.Module) -> bool:
    """True if a bound module computes by its definition: somebody makes, changes or looks at its parts, or wants it."""
    is_watched = module.is_initializing() or is_intercepted() or module.is_mutable_collection("intermediates")
    return is_watched or is_off()


def as_array(value: Any) -> ArrayLike:
    """A list or tuple as a NumPy array; arrays of NumPy and JAX (traced ones too) as they are."""
    return value if isinstance(value, jax.Array | np.ndarray) else np.asarray(value)


def as_indices(value: Any, *, name: str) -> ArrayLike:
    """Bring indices of any integer type to what `as_array` gives.

    Raises:
        InputError: the values are no integers.
    """
    array = as_array(value)
    if not jnp.issubdtype(array.dtype, jnp.integer):
        raise InputError(f"{name} must be integers. Received: {array.dtype}")
    return array


def check_ids(ids: ArrayLike, limit: int, *, name: str, limit_name: str) -> None:
    """Check that all ids lie in [0, limit).

    Raises:
        InputError: naming the range, the offending value and its place.
    """
    if not values_visible(ids) or ids.size == 0:
        return
    host = np.asarray(ids)
    wrong = (host < 0) | (host >= limit)
    if wrong.any():
        place = tuple(int(axis[0]) for axis in wrong.nonzero())
        raise InputError(
            f"{name} must lie in [0, {limit_name}={limit}). Received: {host[place].item()} at position {place}"
        )


def check_length(length: int, limit: int, *, limit_name: str = "max_position_embeddings") -> None:
    """Check that a sequence fits the positions of a model; a symbolic length of `jax.export` passes.

    Raises:
        InputError: naming the length, the limit and what to do.
    """
    if isinstance(length, int) and length > limit:
        raise InputError(
            f"the input must not be longer than {limit_name}={limit} tokens. Received: {length} tokens. "
            f"Truncate it (tokenizer(..., truncation=True, max_length={limit})), split it into windows "
            "(return_overflowing_tokens=True, stride=...), or use a model with more positions"
        )


def check_dropout_key(train: bool, dropout_rng: Any, *rates: float) -> None:
    """Check that there is a random key where something is dropped.

    Raises:
        InputError: there is none.
    """
    if train and dropout_rng is None and any(rates):
        raise InputError(
            "train=True drops activations, which needs a random key: dropout_rng=jax.random.key(0). "
            "Received: dropout_rng=None"
        )
