"""Meshes whose axes are explicit: there every array's type says how it is sharded, as `jax.make_mesh` makes them today.

Operations on such types fail where the sharding of a result is ambiguous, as it is for a lookup of rows. What is to
become of the parts of a model is XLA's to choose, as with automatic axes; the results are explicit again.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
from jax.sharding import NamedSharding, PartitionSpec


def explicit_mesh(*trees: Any) -> Any:
    """The mesh of the first array of the trees whose type names explicit axes, or None."""
    for leaf in jax.tree_util.tree_leaves(trees):
        mesh = jax.typeof(leaf).sharding.mesh if isinstance(leaf, jax.Array) else None
        if mesh is not None and mesh.explicit_axes:
            return mesh
    return None


def on_auto_axes(function: Callable[..., Any], *arguments: Any, rows: Any) -> Any:
    """Call a function of arrays with automatic axes in the place of explicit ones.

    Args:
        function: Pure function of the arguments.
        *arguments: Trees of arrays.
        rows: Array whose first axis is that of the batch.

    Returns:
        What the function returns. Arrays whose first axis is a multiple of the batch are sharded along it as `rows`
        are; all others are on every device.
    """
    mesh = explicit_mesh(arguments, rows)
    if mesh is None:
        return function(*arguments)
    shapes = jax.eval_shape(function, *jax.tree_util.tree_map(_shape, arguments))
    spec: Any = jax.typeof(rows).sharding.spec if isinstance(rows, jax.Array) else ()

    def place(leaf: Any) -> NamedSharding:
        is_batched = bool(spec) and bool(leaf.shape) and leaf.shape[0] % rows.shape[0] == 0
        return NamedSharding(mesh, PartitionSpec(spec[0]) if is_batched else PartitionSpec())

    places = jax.tree_util.tree_map(place, shapes)
    return jax.sharding.auto_axes(function, out_sharding=places)(*arguments)


def _shape(leaf: Any) -> Any:
    return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype) if hasattr(leaf, "dtype") else leaf
