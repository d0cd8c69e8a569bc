"""How one call of a PyTorch DiffLlama attends: positions, masks, documents, cache.

Axes: B batch, S tokens, T keys, D head size, K key/value heads.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from longspan.errors import InputError
from longspan.models.diffllama.config import DiffLlamaConfig
from longspan.nn.torch.cache import Cache, DynamicCache, LegacyCache, as_cache
from longspan.nn.torch.checks import check_shape, values_visible
from longspan.nn.torch.masks import extend_mask


@dataclass(frozen=True)
class AttentionPlan:
    """How all layers of one call attend.

    Attributes:
        cos: Rotary table, (B or 1, S, 1, D).
        sin: Signed rotary table, (B or 1, S, 1, D).
        position: Place of each query among the keys, (S,); None: the queries are the last keys.
        key_mask: Boolean, (B, T), True = attend; None for all.
        segment_ids: Segment of each token of packed documents, (B, S); None for one segment.
        implementation: `"auto"` or the name of an implementation.
        output_weights: The maps are returned.
    """

    cos: Tensor
    sin: Tensor
    position: Tensor | None
    key_mask: Tensor | None
    segment_ids: Tensor | None
    implementation: str
    output_weights: bool


@dataclass(frozen=True)
class Positions:
    """Where the tokens of a call stand.

    Attributes:
        position_ids: For the rotary tables, (B or 1, S).
        cache_position: Places in the sequence, (S,).
        query_position: The same, or None if the queries are simply the last keys.
        segment_ids: Documents of a packed batch, (B, S), or None.
    """

    position_ids: Tensor
    cache_position: Tensor
    query_position: Tensor | None
    segment_ids: Tensor | None


def make_positions(
    *,
    batch: int,
    length: int,
    device: torch.device,
    position_ids: Tensor | None,
    cache_position: Tensor | None,
    attention_mask: Tensor | None,
    cache: Cache | None,
) -> Positions:
    """Complete the positions of a call; arguments as in `DiffLlamaModel.forward`.

    Raises:
        InputError: a shape does not fit.
    """
    check_shape(cache_position, (length,), name="cache_position", axes="(tokens,)")
    if position_ids is not None and tuple(position_ids.shape) not in ((batch, length), (1, length)):
        raise InputError(
            f"position_ids must have the shape (batch, tokens) = ({batch}, {length}), or (1, tokens). "
            f"Received: {tuple(position_ids.shape)}"
        )
    places = cache_position
    if places is None:
        past = 0 if cache is None else cache.get_seq_length()
        places = past + torch.arange(length, device=device)
    fixed_size = cache is not None and cache.get_max_cache_shape() is not None
    packed = position_ids is not None and attention_mask is None and cache is None
    return Positions(
        position_ids=places[None] if position_ids is None else position_ids,
        cache_position=places,
        query_position=places if fixed_size else cache_position,
        segment_ids=_documents(position_ids).expand(batch, -1) if packed and position_ids is not None else None,
    )


def _documents(position_ids: Tensor) -> Tensor:
    """Number the documents of packed rows: a position that does not follow the one before starts a new document."""
    starts = position_ids[:, 1:] != position_ids[:, :-1] + 1
    return torch.cat((torch.zeros_like(position_ids[:, :1]), starts.cumsum(dim=-1)), dim=-1)


def make_key_mask(attention_mask: Tensor | None, *, batch: int, length: int, cache: Cache | None) -> Tensor | None:
    """Bring a padding mask to the keys of a call.

    Args:
        attention_mask: (B, past + S), nonzero = attend; None for all.
        batch: B.
        length: S.
        cache: Keys of earlier tokens.

    Returns:
        Boolean, (B, T), or None if nothing is known to be hidden.

    Raises:
        InputError: the shape does not fit.
    """
    if attention_mask is None:
        return None
    capacity = None if cache is None else cache.get_max_cache_shape()
    num_keys = attention_mask.shape[-1]
    if capacity is None:
        num_keys = length if cache is None else length + int(cache.get_seq_length())
    if tuple(attention_mask.shape) != (batch, num_keys) or (capacity is not None and num_keys > capacity):
        raise InputError(
            "attention_mask must have the shape (batch, tokens in the cache + new tokens) = "
            f"({batch}, {num_keys if capacity is None else f'up to {capacity}'}). "
            f"Received: {tuple(attention_mask.shape)}"
        )
    mask = attention_mask if attention_mask.dtype == torch.bool else attention_mask != 0
    if _readable(mask) and bool(mask.all()):
        return None
    return mask if capacity is None else extend_mask(mask, capacity)


def _readable(mask: Tensor) -> bool:
    """True if the values may be looked at. On an accelerator that is one wait, which the leaner kernels repay."""
    if mask.is_cuda:
        return not torch.compiler.is_compiling() and not torch.cuda.is_current_stream_capturing()
    return values_visible(mask)


def make_cache(
    past_key_values: Cache | LegacyCache | None, *, use_cache: bool, config: DiffLlamaConfig
) -> Cache | None:
    """The cache that a call reads and fills: the given one, one that shares the given tuples, a new one, or none.

    Raises:
        InputError: the cache has another number of layers than the model.
    """
    past_key_values = as_cache(past_key_values)
    if past_key_values is None:
        return DynamicCache() if use_cache else None
    cache = past_key_values if isinstance(past_key_values, Cache) else DynamicCache.from_legacy_cache(past_key_values)
    if len(cache) not in (0, config.num_hidden_layers):
        raise InputError(
            f"past_key_values must hold one entry for each of the {config.num_hidden_layers} layers. "
            f"Received: {len(cache)}"
        )
    return cache
