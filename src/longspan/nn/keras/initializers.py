"""First values of weights."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

import keras
from keras import ops

_skipping: ContextVar[bool] = ContextVar("longspan_skip_initialisation", default=False)


@contextmanager
def skip_initialisation() -> Iterator[None]:
    """Build layers without drawing random numbers: their values come from a file."""
    token = _skipping.set(True)
    try:
        yield
    finally:
        _skipping.reset(token)


@keras.saving.register_keras_serializable(package="longspan")
class Normal(keras.initializers.RandomNormal):
    """Normal random values with mean 0, or zeros inside `skip_initialisation()`."""

    def __call__(self, shape: Any, dtype: Any = None) -> Any:
        """Values of one weight."""
        return ops.zeros(shape, dtype=dtype) if _skipping.get() else super().__call__(shape, dtype=dtype)


@keras.saving.register_keras_serializable(package="longspan")
class NormalWithPadding(Normal):
    """Like `Normal`, with one row of zeros.

    Args:
        stddev: Standard deviation.
        padding_index: Row of the padding token.
    """

    def __init__(self, stddev: float = 0.02, padding_index: int = 0, seed: int | None = None) -> None:
        super().__init__(mean=0.0, stddev=stddev, seed=seed)
        self.padding_index = padding_index

    def __call__(self, shape: Any, dtype: Any = None) -> Any:
        """Values of one weight."""
        values = super().__call__(shape, dtype=dtype)
        is_padding = ops.arange(shape[0]) == self.padding_index
        return ops.where(is_padding[:, None], ops.zeros((), dtype=values.dtype), values)

    def get_config(self) -> dict[str, Any]:
        """Arguments of the constructor."""
        return {"stddev": self.stddev, "padding_index": self.padding_index, "seed": self._init_seed}
