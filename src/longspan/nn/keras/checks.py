"""Checks of inputs that give a clear error before work is lost.

Rules on *shapes* are checked as far as the shapes are known. Rules on *values* are checked at once in eager
TensorFlow on a CPU; a TensorFlow graph checks them when it runs and stops with `InvalidArgumentError`; elsewhere (XLA,
JAX, accelerators in eager mode) looking at values is impossible or costs a wait, and they are not checked.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, TypeAlias

import numpy as np
from keras import ops

from longspan.errors import InputError
from longspan.inputs import get_input
from longspan.nn.keras.runtime import (
    assert_in_graph,
    in_graph,
    is_compiled_by_xla,
    is_symbolic,
    is_tensorflow,
    values_visible,
)
from longspan.ops.keras import Tensor
from longspan.shapes import differ

#: a length: an integer, or a 0-d integer tensor where it is only known when a graph runs
Size: TypeAlias = Any


def static_shape(tensor: Tensor) -> tuple[int | None, ...]:
    """The shape, None where it is only known when a graph runs."""
    return tuple(tensor.shape)


def check_ids(ids: Tensor, limit: int, *, name: str, limit_name: str) -> list[Any]:
    """Check that all ids lie in [0, limit).

    Returns:
        The assertion of a graph that is being traced, for `longspan.nn.keras.runtime.after`; else nothing.

    Raises:
        InputError: naming the range, the offending value and its place.
    """
    rule = f"{name} must lie in [0, {limit_name}={limit})"
    if values_visible(ids):
        check_values(np.asarray(ids), limit, name=name, limit_name=limit_name)
    elif in_graph(ids) and not is_compiled_by_xla():
        return [assert_in_graph(ops.all(ops.logical_and(ids >= 0, ids < limit)), rule)]
    return []


def check_values(values: Any, limit: int, *, name: str, limit_name: str) -> None:
    """As `check_ids`, of a NumPy array."""
    wrong = np.argwhere((values < 0) | (values >= limit))
    if len(wrong):
        place = tuple(wrong[0].tolist())
        rule = f"{name} must lie in [0, {limit_name}={limit})"
        raise InputError(f"{rule}. Received: {values[place]} at position {place}")


def check_input(tensor: Tensor | None, name: str, config: Any, **sizes: Size) -> list[Any]:
    """Check the shape and the range of an optional argument by its entry in `longspan.inputs`.

    Args:
        tensor: The argument.
        name: Its name.
        config: Has the limits.
        **sizes: Size of each of its axes, by name.

    Returns:
        As `check_ids`.

    Raises:
        InputError: the shape differs from the sizes, or a value is out of range.
    """
    if tensor is None:
        return []
    entry, rank = get_input(name), len(tensor.shape)
    expected = tuple(sizes[axis] for axis in entry.axes_of_rank(rank))
    check_shape(tensor, expected, name=name, axes=entry.shape_text(rank=rank))
    if entry.limit is None:
        return []
    return check_ids(tensor, getattr(config, entry.limit), name=name, limit_name=entry.limit)


def check_shape(tensor: Tensor | None, expected: Sequence[Size], *, name: str, axes: str) -> None:
    """Check the shape of an optional argument.

    Args:
        tensor: The argument, or None.
        expected: The shape that it must have; sizes that are no integers are unknown and fit all.
        name: Name of the argument.
        axes: What the axes mean, e.g. `"(batch, tokens)"`.

    Raises:
        InputError: naming both shapes.
    """
    known = tuple(size if isinstance(size, int) else None for size in expected)
    if tensor is not None and differ(tensor, known):
        raise InputError(f"{name} must have the shape {axes} = {known}. Received: {static_shape(tensor)}")


def input_shape(
    input_ids: Tensor | None, inputs_embeds: Tensor | None, *, prefix: str = "", advice: str = ""
) -> tuple[Size, Size]:
    """Batch size and length, from exactly one of ids (B, S) and embeddings (B, S, H): integers where they are known.

    Args:
        input_ids: (B, S), or None.
        inputs_embeds: (B, S, H), or None.
        prefix: What comes before both names.
        advice: What an error says of other ways to give them.

    Raises:
        InputError: neither or both were given, or the shape is wrong.
    """
    if (input_ids is None) == (inputs_embeds is None):
        given = "neither" if input_ids is None else "both"
        names = f"{prefix}input_ids and {prefix}inputs_embeds"
        raise InputError(f"exactly one of {names} must be given{advice}. Received: {given}")
    if input_ids is not None and len(input_ids.shape) != 2:
        raise InputError(f"{prefix}input_ids must have the shape (batch, tokens). Received: {static_shape(input_ids)}")
    if inputs_embeds is not None and len(inputs_embeds.shape) != 3:
        raise InputError(
            f"{prefix}inputs_embeds must have the shape (batch, tokens, width). Received: {static_shape(inputs_embeds)}"
        )
    shape = ops.shape(inputs_embeds if input_ids is None else input_ids)
    return shape[0], shape[1]


def check_length(length: Size, limit: int, *, limit_name: str = "max_position_embeddings") -> list[Any]:
    """Check that a sequence fits the positions of a model.

    Returns:
        As `check_ids`.

    Raises:
        InputError: naming the length, the limit and what to do.
    """
    rule = f"the input must not be longer than {limit_name}={limit} tokens"
    advice = (
        f"Truncate it (tokenizer(..., truncation=True, max_length={limit})), split it into windows "
        "(return_overflowing_tokens=True, stride=...), or use a model with more positions"
    )
    if is_symbolic() and not is_tensorflow():
        return []  # Keras tries a made-up length
    if isinstance(length, int):
        if length > limit:
            raise InputError(f"{rule}. Received: {length} tokens. {advice}")
    elif in_graph(length) and not is_compiled_by_xla():
        return [assert_in_graph(length <= limit, f"{rule}. {advice}")]
    return []
