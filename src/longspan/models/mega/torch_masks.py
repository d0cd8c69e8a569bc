"""Masks of a call of MEGA in PyTorch, of new tokens and of those that a cache holds, and what they say of chunks.

Axes: B batch, S new tokens, L tokens that the cache holds.
"""

from __future__ import annotations

import torch
from torch import Tensor

from longspan.errors import InputError
from longspan.models.mega.torch_cache import MegaCache
from longspan.nn.torch.checks import values_visible


def as_mask(mask: Tensor | None, shape: tuple[int, int], name: str) -> Tensor | None:
    """A boolean mask of a shape, or None if there is nothing to mask.

    Raises:
        InputError: the mask has another shape.
    """
    if mask is None:
        return None
    if tuple(mask.shape) != shape:
        raise InputError(f"{name} must have the shape (batch, tokens) = {shape}. Received: {tuple(mask.shape)}")
    mask = mask if mask.dtype == torch.bool else mask != 0
    return None if values_visible(mask) and bool(mask.all()) else mask


def split_mask(
    attention_mask: Tensor | None, shape: tuple[int, int], cache: MegaCache | None
) -> tuple[Tensor | None, Tensor | None]:
    """The masks of the new tokens, (B, S), and of those that the cache holds, (B, L).

    Args:
        attention_mask: As the caller gave it: of the new tokens, or of all tokens.
        shape: (B, S).
        cache: What earlier tokens left.

    Raises:
        InputError: the mask has another shape.
    """
    if cache is None:
        return as_mask(attention_mask, shape, "attention_mask"), None
    (batch, length), past = shape, cache.num_tokens
    if attention_mask is None or attention_mask.shape[-1] == length:
        return as_mask(attention_mask, shape, "attention_mask"), cache.mask
    if tuple(attention_mask.shape) != (batch, past + length):
        raise InputError(
            f"with past_key_values, attention_mask must have the shape of the new tokens, {shape}, or of all tokens, "
            f"{(batch, past + length)}. Received: {tuple(attention_mask.shape)}"
        )
    held = cache.layers[0].key.shape[1]
    new = as_mask(attention_mask[:, past:], shape, "attention_mask")
    return new, as_mask(attention_mask[:, past - held : past], (batch, held), "attention_mask")


def first_real_tokens(mask: Tensor | None, cache: MegaCache | None, length: int) -> Tensor | None:
    """First real token of each row, (B,), or the number of tokens read if none was real; None if all are 0.

    Args:
        mask: Which of the new tokens are real, (B, S); None for all.
        cache: What earlier tokens left.
        length: New tokens S.
    """
    if cache is not None:
        if cache.starts is None or mask is None:
            return cache.starts
        return torch.where((cache.starts == cache.num_tokens) & ~mask[:, 0], cache.starts + 1, cache.starts)
    if mask is None or (values_visible(mask) and bool(mask[:, 0].all())):
        return None
    return torch.where(mask.any(dim=1), mask.int().argmax(dim=1), length)


def in_open_chunk(starts: Tensor | None, chunk_size: int, *, read: int, held: int) -> Tensor | None:
    """Which of the last `held` of `read` tokens lie in the chunk that the next token continues, (B, held)."""
    if starts is None:
        return None
    begun = torch.remainder(read - starts, chunk_size)
    return torch.arange(held, 0, -1, device=starts.device) <= begun.unsqueeze(1)


def append_mask(held: Tensor | None, new: Tensor | None, num_held: int) -> Tensor | None:
    """The mask of `num_held` held tokens and one new token together, (B, L + 1), or None if all are real."""
    known = held if new is None else new
    if known is None:
        return None
    held = known.new_ones(known.shape[0], num_held) if held is None else held
    new = known.new_ones(known.shape[0], 1) if new is None else new
    return torch.cat([held, new], dim=1)
