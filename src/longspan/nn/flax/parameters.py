"""Parameters that can be drawn one by one.

`linen.Module.init` runs the whole model to draw its parameters. Here modules make theirs by `parameter`, which notes
how each is drawn while only shapes are computed; then any of them can be drawn alone: all for a new model, those of a
new head for a loaded one. Running statistics, which no gradient moves, are noted beside them by `statistic`.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any

import jax
from flax import linen as nn
from jax import Array
from jax.nn.initializers import normal

Path = tuple[str, ...]
#: draws a parameter from (random key, shape, dtype)
Initializer = Callable[..., Array]


def kernel_init(config: Any) -> Initializer:
    """Normal with the configured standard deviation."""
    return normal(config.initializer_range)


@dataclass(frozen=True)
class Recipe:
    """How one parameter is drawn.

    Attributes:
        init: Draws it from a random key, its shape and its dtype.
        shape: Its shape.
        dtype: Its dtype.
        collection: Collection of linen's variables that holds it: `"params"` or `"batch_stats"`.
    """

    init: Initializer
    shape: tuple[int, ...]
    dtype: Any
    collection: str = "params"


_open: ContextVar[dict[Path, Recipe] | None] = ContextVar("longspan_flax_recipes", default=None)


def parameter(module: nn.Module, name: str, init: Initializer, shape: tuple[int, ...], dtype: Any) -> Array:
    """`module.param(name, init, shape, dtype)`, noted where `recipes` asks for it."""
    noted = _open.get()
    if noted is not None:
        noted[(*module.path, name)] = Recipe(init, shape, dtype)
    return module.param(name, init, shape, dtype)


def statistic(module: nn.Module, name: str, init: Initializer, shape: tuple[int, ...], dtype: Any) -> nn.Variable:
    """A variable of the collection `batch_stats`, noted as `parameter` does; `init` needs no random key."""
    noted = _open.get()
    if noted is not None:
        noted[(*module.path, name)] = Recipe(init, shape, dtype, "batch_stats")
    return module.variable("batch_stats", name, init, None, shape, dtype)


@contextmanager
def _noting() -> Iterator[dict[Path, Recipe]]:
    noted: dict[Path, Recipe] = {}
    token = _open.set(noted)
    try:
        yield noted
    finally:
        _open.reset(token)


def recipes(initialise: Callable[[Array], Any]) -> dict[Path, Recipe]:
    """How every parameter is drawn that `initialise` makes; nothing is computed but shapes.

    Args:
        initialise: Function of a random key that runs `init` of a module.

    Returns:
        Path of each parameter and running statistic to its recipe.
    """
    with _noting() as noted:
        jax.eval_shape(initialise, jax.ShapeDtypeStruct((2,), "uint32"))
    return noted


def draw(chosen: Mapping[Path, Recipe], paths: Iterable[Path], rng: Array) -> dict[Path, Array]:
    """Draw the parameters at `paths`. Each depends on the key and on its own path, not on the others."""
    drawn = {}
    for path in paths:
        recipe = chosen[path]
        key = jax.random.fold_in(rng, zlib.crc32("/".join(path).encode()))
        drawn[path] = recipe.init(key, recipe.shape, recipe.dtype)
    return drawn
