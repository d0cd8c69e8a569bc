"""Keys and values of earlier tokens, as tuples of tensors: they grow with every call, or have a fixed size.

Axes: B batch, A heads, T new tokens, K tokens so far, L room, D head size.
"""

from __future__ import annotations

from collections.abc import Sequence

from keras import ops

from longspan.nn.keras.outputs import Tensors
from longspan.ops.keras import Tensor


def extend(past: Tensors | None, new: Sequence[Tensor], write_at: Tensor | None) -> Tensors:
    """Put new keys and values behind those of earlier tokens.

    Args:
        past: (B, A, K, D) each, of a fixed size (B, A, L, D); None for none.
        new: (B, A, T, D) each.
        write_at: Place of the first new token in tensors of a fixed size; None where they grow.

    Returns:
        (B, A, K + T, D) each, or of the fixed size.
    """
    if past is None:
        return tuple(new)
    if write_at is None:
        return tuple(ops.concatenate(pair, axis=2) for pair in zip(past, new, strict=True))
    return tuple(
        ops.slice_update(old, (0, 0, write_at, 0), ops.cast(part, old.dtype))
        for old, part in zip(past, new, strict=True)
    )
