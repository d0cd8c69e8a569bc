"""Comparing shapes, some of whose sizes are known only when a graph runs."""

from __future__ import annotations

from collections.abc import Sequence

from longspan.ops.keras import Tensor


def differ(tensor: Tensor, expected: Sequence[int | None]) -> bool:
    """True if the shape cannot be the expected one; sizes that are None fit all."""
    shape = tuple(tensor.shape)
    return len(shape) != len(expected) or any(
        None not in pair and pair[0] != pair[1] for pair in zip(shape, expected, strict=True)
    )
