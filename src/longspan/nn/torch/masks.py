"""Boolean attention masks, True = attend.

Axes: B batch, T queries, S keys.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from longspan.shapes import check_head_mask, check_key_mask


def key_mask(attention_mask: Tensor, *, batch: int, num_keys: int, name: str = "attention_mask") -> Tensor:
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
    check_key_mask(attention_mask, batch=batch, num_keys=num_keys, name=name)
    mask = attention_mask if attention_mask.dtype == torch.bool else attention_mask != 0
    if mask.dim() == 2:
        return mask[:, None, None, :]
    return mask[:, None] if mask.dim() == 3 else mask


def causal_mask(query_positions: Tensor, num_keys: int) -> Tensor:
    """Query at position p sees keys 0…p.

    Args:
        query_positions: Positions of the queries among the keys, (T,).
        num_keys: S.

    Returns:
        Boolean, (T, S).
    """
    keys = torch.arange(num_keys, device=query_positions.device)
    return keys[None, :] <= query_positions[:, None]


def extend_mask(mask: Tensor, num_keys: int) -> Tensor:
    """Pad the key axis of a boolean mask with False up to `num_keys` (the unused end of a static cache)."""
    return F.pad(mask, (0, num_keys - mask.shape[-1]), value=False) if mask.shape[-1] < num_keys else mask


def expand_head_mask(head_mask: Tensor | None, *, num_layers: int, num_heads: int) -> Tensor | None:
    """Bring a head mask, 1 keeps and 0 removes a head, to (L, 1, H, 1, 1); `check_head_mask` says what fits."""
    if head_mask is None:
        return None
    check_head_mask(head_mask, num_layers=num_layers, num_heads=num_heads)
    return head_mask.expand(num_layers, num_heads)[:, None, :, None, None]


def finite_at_padding(inputs_embeds: Tensor | None, attention_mask: Tensor | None) -> Tensor | None:
    """Embeddings (B, S, H) with 0 for NaN and infinity at padding, where 0 · NaN would reach real tokens.

    Args:
        inputs_embeds: (B, S, H), or None.
        attention_mask: (B, S), or (B, T) with the S new tokens last; None, and masks of other shapes, change nothing.
    """
    if inputs_embeds is None or attention_mask is None or attention_mask.dim() != 2 or inputs_embeds.dim() != 3:
        return inputs_embeds
    length = inputs_embeds.shape[1]
    if attention_mask.shape[0] != inputs_embeds.shape[0] or attention_mask.shape[1] < length:
        return inputs_embeds
    real = attention_mask[:, attention_mask.shape[1] - length :, None] != 0
    return inputs_embeds.where(real | inputs_embeds.isfinite(), 0.0)
