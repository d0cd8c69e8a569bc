"""Derivatives of a definition by central differences in float64: gradients to trust without writing any."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]


def directional_derivative(
    function: Callable[..., Array],
    arguments: Sequence[Array],
    index: int,
    direction: Array,
    cotangent: Array,
    step: float = 1e-5,
) -> float:
    """Derivative of Σ cotangent · function(*arguments) when argument `index` moves along `direction`."""

    def value(distance: float) -> float:
        moved = list(arguments)
        moved[index] = moved[index] + distance * direction
        return float((function(*moved) * cotangent).sum())

    return (value(step) - value(-step)) / (2.0 * step)
