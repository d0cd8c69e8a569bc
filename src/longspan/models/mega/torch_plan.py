"""What all layers of MEGA need to know about a call, and how masks and caches fit together.

Axes: B batch, S new tokens, L tokens that a cache holds, T encoder tokens, Z width of queries and keys, V of values.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from longspan.errors import InputError
from longspan.models.mega.torch_cache import MegaCache, MegaLayerCache
from longspan.nn.torch.checks import values_visible


@dataclass(frozen=True)
class MegaPlan:
    """What all layers need to know about a call; made once.

    Attributes:
        implementation: Of the attention.
        causal: A token sees itself and those before it.
        chunk_size: Tokens of a chunk, or None for attention over all tokens.
        mask: Which tokens are real, (B, S); None for all.
        held_mask: Which of the tokens that a cache holds are real and of the chunk that goes on, (B, L); None for all.
        starts: First real token of each row, (B,), from which its chunks are counted; None for 0.
        table: Angles of the rotary bias in self-attention; None for the simple bias.
        cross_table: The same in cross-attention.
        encoder_hidden_states: (B, T, D), if the layers attend to an encoder.
        encoder_mask: Which of those are real, (B, T); None for all.
        offset: Tokens read before this call.
        needs_weights: Return attention weights.
        use_cache: Return what the next token needs.
    """

    implementation: str
    causal: bool
    chunk_size: int | None
    mask: Tensor | None
    held_mask: Tensor | None
    starts: Tensor | None
    table: tuple[Tensor, Tensor] | None
    cross_table: tuple[Tensor, Tensor] | None
    encoder_hidden_states: Tensor | None
    encoder_mask: Tensor | None
    offset: int
    needs_weights: bool
    use_cache: bool


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


def rotate_rows(tensor: Tensor, starts: Tensor, *, back: bool = False) -> Tensor:
    """Move token `starts` of each row to its beginning, and what stood before it to the end; or the way `back`.

    Args:
        tensor: (B, S) or (B, S, D).
        starts: (B,).
        back: Undo it.
    """
    length = tensor.shape[1]
    shift = -starts if back else starts
    places = torch.remainder(torch.arange(length, device=tensor.device) + shift.unsqueeze(1), length)
    if tensor.dim() == 3:
        places = places.unsqueeze(-1).expand(-1, -1, tensor.shape[-1])
    return tensor.gather(1, places)


def held_keys(key: Tensor, value: Tensor, plan: MegaPlan) -> tuple[Tensor, Tensor]:
    """What the next token may see of the tokens so far: all, or those of the chunk that it continues."""
    if plan.chunk_size is None:
        return key, value
    if plan.starts is not None:  # each row may be at another place of its chunk
        unseen = max(key.shape[1] - (plan.chunk_size - 1), 0)
        return key[:, unseen:], value[:, unseen:]
    begun = key.shape[1] - key.shape[1] % plan.chunk_size
    return key[:, begun:], value[:, begun:]


def append_mask(held: Tensor | None, new: Tensor | None, num_held: int) -> Tensor | None:
    """The mask of `num_held` held tokens and one new token together, (B, L + 1), or None if all are real."""
    known = held if new is None else new
    if known is None:
        return None
    held = known.new_ones(known.shape[0], num_held) if held is None else held
    new = known.new_ones(known.shape[0], 1) if new is None else new
    return torch.cat([held, new], dim=1)


def make_cache(
    layers: Sequence[MegaLayerCache | None], cache: MegaCache | None, plan: MegaPlan, length: int
) -> MegaCache:
    """Gather what the layers keep of one call.

    Args:
        layers: What each layer keeps.
        cache: What earlier tokens left.
        plan: What the layers shared.
        length: New tokens S.
    """
    kept = [layer for layer in layers if layer is not None]
    mask = plan.mask
    if cache is not None:
        mask = append_mask(plan.held_mask, plan.mask, cache.layers[0].key.shape[1])
    if mask is not None:
        mask = mask[:, mask.shape[1] - kept[0].key.shape[1] :]
    return MegaCache(kept, num_tokens=plan.offset + length, mask=mask, starts=plan.starts)
