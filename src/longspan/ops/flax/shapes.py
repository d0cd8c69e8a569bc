"""Checks of the shapes that operations get."""

from __future__ import annotations

from jax import Array

from longspan.errors import InputError


def check_shape(array: Array | None, expected: tuple[int, ...], *, name: str, axes: str) -> None:
    """Check the shape of an optional argument.

    Args:
        array: The argument, or None.
        expected: The shape that it must have.
        name: Name of the argument.
        axes: What the axes mean, e.g. `"(batch, tokens)"`.

    Raises:
        InputError: naming both shapes.
    """
    if array is not None and tuple(array.shape) != expected:
        raise InputError(f"{name} must have the shape {axes} = {expected}. Received: {tuple(array.shape)}")


def num_blocks(length: int, rows: int) -> int:
    """Blocks of R tokens that hold S tokens, at least one; S may be a symbolic length of `jax.export`, R not."""
    return max(-(-length // rows), 1) if isinstance(length, int) else -(-length // rows)
