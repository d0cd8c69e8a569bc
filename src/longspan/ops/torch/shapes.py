"""Checks of shapes."""

from __future__ import annotations

from torch import Tensor

from longspan.errors import InputError


def check_shape(tensor: Tensor | None, expected: tuple[int, ...], *, name: str, axes: str) -> None:
    """Check the shape of an optional argument.

    Args:
        tensor: The argument, or None.
        expected: The shape that it must have.
        name: Name of the argument.
        axes: What the axes mean, e.g. `"(batch, tokens)"`.

    Raises:
        InputError: naming both shapes.
    """
    if tensor is not None and tuple(tensor.shape) != tuple(expected):
        raise InputError(f"{name} must have the shape {axes} = {expected}. Received: {tuple(tensor.shape)}")
