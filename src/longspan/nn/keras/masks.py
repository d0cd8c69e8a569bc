"""Boolean attention masks, True = attend.

Axes: B batch, T queries, S keys.
"""

from __future__ import annotations

from keras import ops

from longspan.errors import InputError
from longspan.nn.keras.checks import Size, static_shape
from longspan.ops.keras import Tensor
from longspan.shapes import check_head_mask


def key_mask(attention_mask: Tensor, *, batch: Size, num_keys: Size, name: str = "attention_mask") -> Tensor:
    """Bring a padding mask to a form that broadcasts over (B, H, T, S).

    Args:
        attention_mask: (B, S), (B, T, S) or (B, 1, T, S); nonzero = attend.
        batch: B.
        num_keys: S.
        name: Name of the mask in errors.

    Returns:
        Boolean, (B, 1, 1, S) or (B, 1, T, S).

    Raises:
        InputError: the shape does not fit.
    """
    shape = static_shape(attention_mask)
    if len(shape) not in (2, 3, 4) or _differ(shape[0], batch) or _differ(shape[-1], num_keys):
        wanted = tuple(size if isinstance(size, int) else None for size in (batch, num_keys))
        raise InputError(
            f"{name} must have the shape (batch, keys) = {wanted}, or (batch, queries, keys). Received: {shape}"
        )
    mask = as_boolean(attention_mask)
    if len(shape) == 2:
        return mask[:, None, None, :]
    return mask[:, None] if len(shape) == 3 else mask


def _differ(size: Size, wanted: Size) -> bool:
    return isinstance(size, int) and isinstance(wanted, int) and size != wanted


def as_boolean(mask: Tensor) -> Tensor:
    """True where `mask` is not 0."""
    return ops.not_equal(mask, ops.cast(0, mask.dtype))


def causal_mask(query_positions: Tensor, num_keys: Size) -> Tensor:
    """Query at position p sees keys 0…p.

    Args:
        query_positions: Positions of the queries among the keys, (T,).
        num_keys: S.

    Returns:
        Boolean, (T, S).
    """
    keys = ops.arange(num_keys, dtype="int32")
    return keys[None, :] <= query_positions[:, None]


def expand_head_mask(head_mask: Tensor | None, *, num_layers: int, num_heads: int) -> Tensor | None:
    """Bring a head mask, 1 keeps and 0 removes a head, to (L, 1, H, 1, 1); `check_head_mask` says what fits."""
    if head_mask is None:
        return None
    check_head_mask(head_mask, num_layers=num_layers, num_heads=num_heads)
    return ops.broadcast_to(head_mask, (num_layers, num_heads))[:, None, :, None, None]


def drop_unseen_faults(states: Tensor, mask: Tensor | None) -> Tensor:
    """Set NaN and infinities to 0 where no query may see them: a weight of 0 times NaN would be NaN.

    Args:
        states: (B, S, H), the last S tokens of the mask.
        mask: Nonzero = attend, (B, past + S), (B, T, past + S) or (B, 1, T, past + S); None for all.
    """
    if mask is None:
        return states
    seen = as_boolean(mask)
    seen = seen if len(mask.shape) == 2 else ops.any(seen, axis=tuple(range(1, len(mask.shape) - 1)))
    seen = seen[:, ops.shape(seen)[1] - ops.shape(states)[1] :]
    return ops.where(ops.logical_or(seen[..., None], ops.isfinite(states)), states, ops.zeros((), states.dtype))
