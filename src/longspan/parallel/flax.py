"""Context parallelism in JAX: each device along one axis of a mesh holds an equal share of every sequence."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
from jax.sharding import Mesh

from longspan.errors import InputError
from longspan.ops.flax.context import token_axis


def context_parallel(
    function: Callable[..., Any], *, mesh: Mesh, axis: str, in_specs: Any, out_specs: Any
) -> Callable[..., Any]:
    """`jax.shard_map` of a function that calls Longformers, LongT5s or MEGAs on shares of sequences.

    Inside, a model reads the tokens of one device, and gives their states and scores. Losses of
    `longspan.nn.flax.losses`, and scores of whole sequences, are the same on all devices. Positions that are given
    (`start_positions`) count from the first token of the sequence; a decoder's inputs and labels are whole. Take
    gradients of what this returns, outside: then those of parameters are complete.

    Args:
        function: Pure function of arrays.
        mesh: The devices.
        axis: Name of the axis of the mesh along which tokens are shared. Others may share batches.
        in_specs: Partition of each argument, as in `jax.shard_map`: tokens along `axis`, parameters on all devices.
        out_specs: Partition of the results.

    Returns:
        The function of whole arrays.

    Raises:
        InputError: the mesh has no such axis.

    Example:
        >>> import jax
        >>> from jax.sharding import PartitionSpec as P
        >>> from longspan import FlaxLongformerForTokenClassification, LongformerConfig
        >>> from longspan.parallel.flax import context_parallel
        >>> config = LongformerConfig(hidden_size=32, num_attention_heads=2, num_hidden_layers=1, attention_window=4)
        >>> model = FlaxLongformerForTokenClassification(config)
        >>> mesh = jax.make_mesh((1,), ("tokens",))
        >>> tokens = P(None, "tokens")
        >>> score = context_parallel(
        ...     lambda params, ids: model(ids, params=params).logits,
        ...     mesh=mesh, axis="tokens", in_specs=(P(), tokens), out_specs=tokens,
        ... )
        >>> score(model.params, jax.numpy.full((1, 8), 7)).shape
        (1, 8, 2)
    """
    mesh = Mesh(mesh.devices, mesh.axis_names)  # whose axes are all automatic
    if axis not in mesh.axis_names:
        raise InputError(f"axis must be one of the mesh, {', '.join(mesh.axis_names)}. Received: {axis!r}")

    def on_a_share(*arguments: Any) -> Any:
        with token_axis(axis):
            return function(*arguments)

    return jax.shard_map(on_a_share, mesh=mesh, in_specs=in_specs, out_specs=out_specs, check_vma=False)
