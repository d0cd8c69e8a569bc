"""Walks a Flax model's own parameter tree and fills it from a checkpoint, or writes it to one.

Paths in the tree give the canonical keys; only leaves differ (see `longspan.checkpoints.formats_flax`). An unknown kind
of leaf is an error.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict

from longspan.checkpoints.dtypes import Array
from longspan.checkpoints.files import CheckpointReader, LazyTensor
from longspan.checkpoints.formats_flax import canonical_name
from longspan.checkpoints.names import ParameterNames
from longspan.checkpoints.report import LoadReport, plan_load

Path = tuple[str, ...]
Params = dict[str, Any]


def flatten(params: Mapping[str, Any]) -> dict[Path, Any]:
    """Path of every parameter to its array (or what else the tree holds)."""
    flat: dict[Path, Any] = flatten_dict(dict(params))  # type: ignore[no-untyped-call]  # Flax has no types here
    return flat


def unflatten(flat: Mapping[Path, Any]) -> Params:
    """The tree of plain dicts that `flatten` took apart."""
    params: Params = unflatten_dict(dict(flat))  # type: ignore[no-untyped-call]  # Flax has no types here
    return params


@dataclass(frozen=True)
class Leaf:
    """A parameter of the tree and its place in a checkpoint.

    Attributes:
        path: Names from the root of the tree to the parameter.
        key: Canonical key.
        transposed: The two axes change places in the checkpoint.
        shape: Shape in the checkpoint.
    """

    path: Path
    key: str
    transposed: bool
    shape: tuple[int, ...]


def walk(params: Mapping[str, Any], raw: Collection[str] = ()) -> dict[str, Leaf]:
    """Find the place of every parameter in a checkpoint.

    Args:
        params: Tree of arrays or of their shapes.
        raw: Names of leaves that keep name and orientation, besides `weight` and `bias`.

    Returns:
        Canonical key to leaf, in the order of the tree.

    Raises:
        CheckpointError: there is no rule for a leaf.
    """
    leaves = {}
    for path, array in flatten(params).items():
        shape = tuple(array.shape)
        if path[-1] in raw:
            key, transposed = ".".join(path), False
        else:
            place = canonical_name("/".join(path), len(shape))
            key, transposed = place.key, place.transposed
        leaves[key] = Leaf(path, key, transposed, shape[::-1] if transposed else shape)
    return leaves


def fill(
    shapes: Mapping[str, Any],
    reader: CheckpointReader,
    *,
    names: ParameterNames,
    config: object,
    initialise: Callable[[Collection[Path]], Mapping[Path, Any]],
    raw: Collection[str] = (),
    strict: bool = True,
    ignore_mismatched_sizes: bool = False,
    dtype: Any = None,
) -> tuple[Params, LoadReport]:
    """Make a parameter tree from a checkpoint, one array at a time.

    Args:
        shapes: Tree of the shapes of all parameters, as `jax.eval_shape` gives it.
        reader: The open checkpoint.
        names: Facts about the family's parameter names.
        config: Configuration of the model; it switches ties on and off.
        initialise: Draws the parameters at the given paths, which lack values in the checkpoint.
        raw: As in `walk`.
        strict: Missing and unexpected keys raise.
        ignore_mismatched_sizes: Arrays of another shape are initialised instead of raising.
        dtype: Dtype of the parameters; None keeps the stored one. Numbers that are not floating-point ones keep theirs.

    Returns:
        The tree, and what became of every key.

    Raises:
        CheckpointError: listing every key that is missing, unexpected or of another shape.
    """
    leaves = walk(shapes, raw)
    plan = plan_load(
        {key: leaf.shape for key, leaf in leaves.items()},
        reader,
        names,
        config,
        strict=strict,
        ignore_mismatched_sizes=ignore_mismatched_sizes,
    )
    drawn = initialise([leaves[key].path for key in leaves if key in plan.fresh])
    flat: dict[Path, Any] = {path: value if dtype is None else value.astype(dtype) for path, value in drawn.items()}
    # where the tree holds both of a tied pair, both get the value
    tied = {key: plan.sources[owner] for key, owner in plan.report.tied.items() if owner in plan.sources}
    for key, stored in {**plan.sources, **tied}.items():
        leaf = leaves[key]
        flat[leaf.path] = _from_stored(reader.read(stored), leaf, dtype)
    return unflatten(flat), plan.report


def _from_stored(stored: Array, leaf: Leaf, dtype: Any) -> jax.Array:
    keeps = dtype is None or not jnp.issubdtype(stored.dtype, jnp.floating)
    array = stored if keeps else stored.astype(dtype, copy=False)
    return jnp.asarray(np.ascontiguousarray(array.T) if leaf.transposed else array)


def tensors_to_save(params: Mapping[str, Any], raw: Collection[str] = ()) -> dict[str, LazyTensor]:
    """The parameters by canonical key, each made when it is written.

    Args:
        params: The parameter tree.
        raw: As in `walk`.
    """
    flat = flatten(params)
    return {key: _lazy(flat[leaf.path], leaf) for key, leaf in walk(params, raw).items()}


def _lazy(array: Any, leaf: Leaf) -> LazyTensor:
    def read() -> Array:
        host: Array = np.asarray(array)
        return host.T if leaf.transposed else host

    return LazyTensor(leaf.shape, np.dtype(array.dtype).name, read)
