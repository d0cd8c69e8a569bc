"""From the reference's Flax parameter names to the canonical ones.

The module tree is the same; only leaves differ: `kernel` (in, out) is `weight` (out, in), `scale` and `embedding` are
`weight`. Raw parameters (`weight` of LongT5's norms, `bias`) keep name and orientation.
"""

from __future__ import annotations

from longspan.checkpoints.renamed import Canonical
from longspan.errors import CheckpointError

_LEAVES = {"kernel": "weight", "scale": "weight", "embedding": "weight", "weight": "weight", "bias": "bias"}


def canonical_name(name: str, num_axes: int = 2) -> Canonical:
    """Translate one Flax name.

    Args:
        name: Path in the parameter tree, joined by slashes.
        num_axes: Number of axes of the array.

    Returns:
        The canonical key, and whether the array must be transposed.

    Raises:
        CheckpointError: if there is no rule for such a parameter.

    Example:
        >>> canonical_name("bert/encoder/layer/0/attention/self/query/kernel")
        Canonical(key='bert.encoder.layer.0.attention.self.query.weight', transposed=True)
    """
    *path, leaf = name.split("/")
    if leaf not in _LEAVES or (leaf == "kernel" and num_axes != 2):
        raise CheckpointError(
            f"A Flax parameter must be a kernel with 2 axes or one of {', '.join(sorted(_LEAVES))}. "
            f"Received: {name} with {num_axes} axes"
        )
    return Canonical(".".join([*path, _LEAVES[leaf]]), leaf == "kernel")
