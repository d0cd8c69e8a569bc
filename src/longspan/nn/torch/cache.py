"""Key/value caches for incremental decoding.

Axes: B batch, H key/value heads, S cached tokens, D head size, L layers.

Every cache hands back and takes tensors of shape (B, H, S, D), indexes and iterates like the older nested tuples
(`cache[layer] -> (key, value)`), and converts to and from them. A model that was given tuples returns tuples.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, TypeAlias

import torch
from torch import Tensor

from longspan.errors import ConfigError, InputError

#: one tuple of tensors per layer: (key, value), or (self key, self value, cross key, cross value)
LegacyCache: TypeAlias = "tuple[tuple[Tensor, ...], ...]"


class Cache:
    """What a model may ask of a cache, whatever keeps the tensors."""

    def update(
        self, key: Tensor, value: Tensor, layer_index: int, cache_position: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """Store new keys and values of one layer and return all that the layer may attend to.

        Args:
            key: New keys, (B, H, S_new, D).
            value: New values, (B, H, S_new, D).
            layer_index: Index of the layer, from 0.
            cache_position: Positions of the new tokens in the sequence, (S_new,). Only a cache of fixed size needs
                them; without them the tokens follow those already stored.

        Returns:
            Keys and values of the layer, each (B, H, S, D).

        Raises:
            InputError: If the tensors do not fit what is stored.
        """
        raise NotImplementedError(f"{type(self).__name__} must define update")

    def get_seq_length(self, layer_index: int = 0) -> int | Tensor:
        """Return how many tokens a layer holds: an int, or a 0-d tensor where reading it would block."""
        raise NotImplementedError(f"{type(self).__name__} must define get_seq_length")

    def get_max_cache_shape(self) -> int | None:
        """Return the largest number of tokens that fit, or None if there is no limit."""
        return None

    def reorder_cache(self, beam_idx: Tensor) -> None:
        """Take the rows `beam_idx` (B,) of the batch in that order, as beam search needs."""
        raise NotImplementedError(f"{type(self).__name__} must define reorder_cache")

    def batch_repeat_interleave(self, repeats: int) -> None:
        """Repeat every row of the batch `repeats` times in place, keeping copies of one row together.

        Raises:
            InputError: If the cache cannot change its size.
        """
        raise _cannot_resize(self)

    def to_legacy_cache(self) -> LegacyCache:
        """Return the cache as nested tuples, one per layer."""
        return tuple(self)

    def __len__(self) -> int:
        raise NotImplementedError(f"{type(self).__name__} must define __len__")

    def __getitem__(self, layer_index: int) -> tuple[Tensor, ...]:
        raise NotImplementedError(f"{type(self).__name__} must define __getitem__")

    def __iter__(self) -> Iterator[tuple[Tensor, ...]]:
        for layer_index in range(len(self)):
            yield self[layer_index]


class DynamicCache(Cache):
    """A cache that grows with every update.

    Example:
        >>> import torch
        >>> cache = DynamicCache()
        >>> key, value = cache.update(torch.zeros(1, 2, 3, 4), torch.zeros(1, 2, 3, 4), layer_index=0)
        >>> key, value = cache.update(torch.ones(1, 2, 1, 4), torch.ones(1, 2, 1, 4), layer_index=0)
        >>> key.shape, cache.get_seq_length(), len(cache)
        (torch.Size([1, 2, 4, 4]), 4, 1)
    """

    def __init__(self) -> None:
        self._keys: list[Tensor] = []
        self._values: list[Tensor] = []

    @classmethod
    def from_legacy_cache(cls, past_key_values: Sequence[Sequence[Tensor]] | None = None) -> DynamicCache:
        """Build a cache from nested tuples, sharing their tensors.

        Args:
            past_key_values: One (key, value) pair per layer, each tensor (B, H, S, D). None gives an empty cache.

        Raises:
            InputError: If a layer does not hold exactly two 4-dimensional tensors of one length.
        """
        cache = cls()
        for layer_index, layer in enumerate(past_key_values or ()):
            if len(layer) != 2:
                raise InputError(
                    f"a layer of past_key_values must hold (key, value). Received: {len(layer)} tensors "
                    f"(layer {layer_index})"
                )
            cache.update(layer[0], layer[1], layer_index)
        return cache

    def update(
        self, key: Tensor, value: Tensor, layer_index: int, cache_position: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """Append new keys and values to a layer; see `Cache.update`. `cache_position` has no effect here."""
        _check_pair(key, value, layer_index)
        if layer_index > len(self._keys):
            raise InputError(
                f"layers of a cache must be filled in order. Received: layer {layer_index} while {len(self)} are filled"
            )
        if layer_index == len(self._keys):
            self._keys.append(key)
            self._values.append(value)
            return key, value
        stored = self._keys[layer_index]
        if stored.shape[:2] != key.shape[:2] or stored.shape[3] != key.shape[3]:
            raise InputError(
                "new keys must agree with the cache in batch, heads and head size. Received: "
                f"{tuple(key.shape)} for a cache of {tuple(stored.shape)} (layer {layer_index})"
            )
        self._keys[layer_index] = torch.cat((stored, key), dim=2)
        self._values[layer_index] = torch.cat((self._values[layer_index], value), dim=2)
        return self._keys[layer_index], self._values[layer_index]

    def get_seq_length(self, layer_index: int = 0) -> int:
        """Return how many tokens a layer holds; 0 for a layer that was never filled."""
        return self._keys[layer_index].shape[2] if layer_index < len(self._keys) else 0

    def crop(self, max_length: int) -> None:
        """Keep the first `max_length` tokens; a negative number removes that many from the end."""
        keep = max_length if max_length >= 0 else max(self.get_seq_length() + max_length, 0)
        self._apply(lambda tensor: tensor[:, :, :keep])

    def reorder_cache(self, beam_idx: Tensor) -> None:
        """Take the rows `beam_idx` (B,) of the batch in that order, as beam search needs."""
        self.batch_select_indices(beam_idx)

    def batch_repeat_interleave(self, repeats: int) -> None:
        """Repeat every row of the batch `repeats` times in place, keeping copies of one row together."""
        self._apply(lambda tensor: tensor.repeat_interleave(repeats, dim=0))

    def batch_select_indices(self, indices: Tensor) -> None:
        """Keep only the rows `indices` of the batch, in that order."""
        self._apply(lambda tensor: tensor.index_select(0, indices.to(tensor.device)))

    def reset(self) -> None:
        """Forget everything."""
        self._keys.clear()
        self._values.clear()

    def __len__(self) -> int:
        return len(self._keys)

    def __getitem__(self, layer_index: int) -> tuple[Tensor, Tensor]:
        return self._keys[layer_index], self._values[layer_index]

    def _apply(self, function: Any) -> None:
        self._keys = [function(tensor) for tensor in self._keys]
        self._values = [function(tensor) for tensor in self._values]


class StaticCache(Cache):
    """A cache of fixed size, written in place: shapes never change, so one compiled step serves every token.

    Layers hand back the whole buffer; what lies behind the last written position is zero and must be masked, which
    causal attention with `cache_position` does by itself.

    Args:
        config: Model configuration; gives the numbers of layers and key/value heads and the head size.
        max_batch_size: Rows to hold. Default: those of the first update.
        max_cache_len: Tokens to hold. Default: `config.max_position_embeddings`.
        device: Where the buffers live. Default: where the first update's tensors live.
        dtype: Of the buffers. Default: that of the first update's tensors.

    Raises:
        ConfigError: If a size is not positive.
    """

    def __init__(
        self,
        config: Any,
        max_batch_size: int | None = None,
        max_cache_len: int | None = None,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        self.num_layers, self.num_heads, self.head_dim = _cache_sizes(config)
        self.max_batch_size = max_batch_size
        self.max_cache_len: int = config.max_position_embeddings if max_cache_len is None else max_cache_len
        for name, size in (("max_batch_size", max_batch_size), ("max_cache_len", self.max_cache_len)):
            if size is not None and size <= 0:
                raise ConfigError(f"{name} must be positive. Received: {name}={size}")
        self._keys: list[Tensor] = []
        self._values: list[Tensor] = []
        self._lengths: list[Tensor] = []
        if None not in (max_batch_size, device, dtype):
            self._allocate(max_batch_size, torch.device(device), dtype)  # type: ignore[arg-type]  # none is None

    def update(
        self, key: Tensor, value: Tensor, layer_index: int, cache_position: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """Write new keys and values at `cache_position`; see `Cache.update`.

        Returns:
            The layer's whole buffers, each (B, H, max_cache_len, D).
        """
        _check_pair(key, value, layer_index)
        if not self._keys:
            self._allocate(self.max_batch_size or key.shape[0], key.device, key.dtype)
        self._check_fits(key, layer_index)
        length = self._lengths[layer_index]
        if cache_position is None:
            cache_position = length + torch.arange(key.shape[2], device=length.device)
        if layer_index == 0:
            self._check_room(cache_position)
        batch = key.shape[0]
        keys, values = self._keys[layer_index][:batch], self._values[layer_index][:batch]
        keys.index_copy_(2, cache_position, key)
        values.index_copy_(2, cache_position, value)
        length.copy_(cache_position[-1] + 1)
        return keys, values

    def get_seq_length(self, layer_index: int = 0) -> int | Tensor:
        """Return how many tokens a layer holds, as a 0-d tensor once there are buffers."""
        return self._lengths[layer_index].clone() if self._lengths else 0

    def get_max_cache_shape(self) -> int:
        """Return the number of tokens that fit."""
        return self.max_cache_len

    def reorder_cache(self, beam_idx: Tensor) -> None:
        """Take the rows `beam_idx` (B,) of the batch in that order, as beam search needs."""
        for tensor in (*self._keys, *self._values):
            tensor[: beam_idx.shape[0]] = tensor.index_select(0, beam_idx.to(tensor.device))

    def reset(self) -> None:
        """Empty the buffers without giving up their memory."""
        for tensor in (*self._keys, *self._values, *self._lengths):
            tensor.zero_()

    def __len__(self) -> int:
        return self.num_layers

    def __getitem__(self, layer_index: int) -> tuple[Tensor, Tensor]:
        if not self._keys:
            raise InputError("a StaticCache without device, dtype and max_batch_size is empty before its first update")
        return self._keys[layer_index], self._values[layer_index]

    def _allocate(self, batch: int, device: torch.device, dtype: torch.dtype) -> None:
        shape = (batch, self.num_heads, self.max_cache_len, self.head_dim)
        self.max_batch_size = batch
        self._keys = [torch.zeros(shape, device=device, dtype=dtype) for _ in range(self.num_layers)]
        self._values = [torch.zeros(shape, device=device, dtype=dtype) for _ in range(self.num_layers)]
        self._lengths = [torch.zeros((), device=device, dtype=torch.int64) for _ in range(self.num_layers)]

    def _check_fits(self, key: Tensor, layer_index: int) -> None:
        buffer = self._keys[layer_index]
        if key.shape[0] > buffer.shape[0] or key.shape[2] > buffer.shape[2]:
            raise InputError(
                f"a StaticCache of max_batch_size={buffer.shape[0]} and max_cache_len={buffer.shape[2]} cannot take "
                f"more rows or tokens. Received: keys of {tuple(key.shape)}"
            )
        if (key.shape[1], key.shape[3]) != (buffer.shape[1], buffer.shape[3]):
            raise InputError(
                f"new keys must agree with the cache in heads and head size. Received: {tuple(key.shape)} for a cache "
                f"of {tuple(buffer.shape)} (layer {layer_index})"
            )
        if key.dtype != buffer.dtype or key.device != buffer.device:
            raise InputError(
                f"new keys must have the cache's dtype and device. Received: {key.dtype} on {key.device} for a cache "
                f"of {buffer.dtype} on {buffer.device}"
            )

    def _check_room(self, cache_position: Tensor) -> None:
        """Refuse positions behind the end, where looking at them is possible (it is not while tracing)."""
        if torch.compiler.is_compiling() or (cache_position.is_cuda and torch.cuda.is_current_stream_capturing()):
            return
        last = int(cache_position[-1])
        if last >= self.max_cache_len:
            raise InputError(
                f"cache_position must stay below max_cache_len={self.max_cache_len}; make a longer StaticCache. "
                f"Received: position {last}"
            )


class EncoderDecoderCache(Cache):
    """The two caches of a decoder with cross-attention.

    Args:
        self_cache: Keys and values of the decoder's own tokens; grows.
        cross_cache: Keys and values made from the encoder's states; written once per layer.

    Attributes:
        is_updated: Per layer, whether its cross keys and values are there to be used again.
    """

    def __init__(self, self_cache: Cache, cross_cache: Cache) -> None:
        self.self_attention_cache = self_cache
        self.cross_attention_cache = cross_cache
        self.is_updated: dict[int, bool] = {}
        if isinstance(cross_cache, DynamicCache):
            self.is_updated = dict.fromkeys(range(len(cross_cache)), True)

    @classmethod
    def from_legacy_cache(cls, past_key_values: Sequence[Sequence[Tensor]] | None = None) -> EncoderDecoderCache:
        """Build the caches from nested tuples of two (self only) or four tensors per layer, sharing the tensors.

        Raises:
            InputError: If a layer holds another number of tensors.
        """
        layers = past_key_values or ()
        for layer_index, layer in enumerate(layers):
            if len(layer) not in (2, 4):
                raise InputError(
                    "a layer of past_key_values must hold (key, value) or (key, value, cross key, cross value). "
                    f"Received: {len(layer)} tensors (layer {layer_index})"
                )
        own = DynamicCache.from_legacy_cache([layer[:2] for layer in layers])
        cross = DynamicCache.from_legacy_cache([layer[2:] for layer in layers if len(layer) == 4])
        return cls(own, cross)

    def update(
        self, key: Tensor, value: Tensor, layer_index: int, cache_position: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """Store new keys and values of the decoder's own tokens; see `Cache.update`."""
        return self.self_attention_cache.update(key, value, layer_index, cache_position)

    def update_cross(self, key: Tensor, value: Tensor, layer_index: int) -> tuple[Tensor, Tensor]:
        """Store a layer's keys and values of the encoder's states, once, and return them."""
        key, value = self.cross_attention_cache.update(key, value, layer_index)
        self.is_updated[layer_index] = True
        return key, value

    def get_seq_length(self, layer_index: int = 0) -> int | Tensor:
        """Return how many of the decoder's own tokens a layer holds."""
        return self.self_attention_cache.get_seq_length(layer_index)

    def get_max_cache_shape(self) -> int | None:
        """Return how many of the decoder's own tokens fit, or None if there is no limit."""
        return self.self_attention_cache.get_max_cache_shape()

    def crop(self, max_length: int) -> None:
        """Shorten the decoder's own part as `DynamicCache.crop` does; the encoder's part stays."""
        self._dynamic(self.self_attention_cache).crop(max_length)

    def reorder_cache(self, beam_idx: Tensor) -> None:
        """Take the rows `beam_idx` (B,) of the batch in that order, in both parts."""
        for cache in (self.self_attention_cache, self.cross_attention_cache):
            cache.reorder_cache(beam_idx)

    def batch_repeat_interleave(self, repeats: int) -> None:
        """Repeat every row of the batch `repeats` times, in both parts."""
        for cache in (self.self_attention_cache, self.cross_attention_cache):
            cache.batch_repeat_interleave(repeats)

    def batch_select_indices(self, indices: Tensor) -> None:
        """Keep only the rows `indices` of the batch, in that order, in both parts."""
        for cache in (self.self_attention_cache, self.cross_attention_cache):
            self._dynamic(cache).batch_select_indices(indices)

    def __len__(self) -> int:
        return len(self.self_attention_cache)

    def __getitem__(self, layer_index: int) -> tuple[Tensor, ...]:
        own = self.self_attention_cache[layer_index]
        return (*own, *self.cross_attention_cache[layer_index]) if self.is_updated.get(layer_index) else own

    @staticmethod
    def _dynamic(cache: Cache) -> DynamicCache:
        if not isinstance(cache, DynamicCache):
            raise _cannot_resize(cache)
        return cache


def as_cache(past_key_values: Any) -> Any:
    """Bring a cache of the reference, which PEFT makes for prefix tuning, into a cache of this module.

    Args:
        past_key_values: A `Cache`, nested tuples or None, which come back as they are, or an object of the reference's
            class with `layers` of `keys` and `values`, whose tensors are shared.

    Raises:
        InputError: it is none of these.
    """
    if past_key_values is None or isinstance(past_key_values, Cache | tuple | list):
        return past_key_values
    own = _read_layers(getattr(past_key_values, "self_attention_cache", past_key_values))
    if not hasattr(past_key_values, "cross_attention_cache"):
        return own
    written = getattr(past_key_values, "is_updated", {})
    cross = past_key_values.cross_attention_cache if any(written.values()) else None
    return EncoderDecoderCache(own, DynamicCache() if cross is None else _read_layers(cross))


def _read_layers(cache: Any) -> DynamicCache:
    layers = getattr(cache, "layers", None)
    if not isinstance(layers, list):
        raise InputError(
            "past_key_values must be a Cache, nested tuples, or a cache of transformers. "
            f"Received: {type(cache).__name__}"
        )
    filled = [layer for layer in layers if getattr(layer, "keys", None) is not None and layer.keys.numel()]
    return DynamicCache.from_legacy_cache([(layer.keys, layer.values) for layer in filled])


def _cannot_resize(cache: Cache) -> InputError:
    return InputError(f"this needs a cache that can change its size. Received: {type(cache).__name__}")


def _check_pair(key: Tensor, value: Tensor, layer_index: int) -> None:
    if key.dim() != 4 or value.dim() != 4 or key.shape[:3] != value.shape[:3]:
        raise InputError(
            "keys and values of a cache must be (batch, heads, tokens, head size) and agree in the first three. "
            f"Received: {tuple(key.shape)} and {tuple(value.shape)} (layer {layer_index})"
        )


def _cache_sizes(config: Any) -> tuple[int, int, int]:
    """Return (layers, key/value heads, head size) under the names that the families' configs use."""
    num_layers = getattr(config, "num_decoder_layers", None) or config.num_hidden_layers
    num_heads = getattr(config, "num_key_value_heads", None) or config.num_attention_heads
    head_dim = getattr(config, "head_dim", None) or getattr(config, "d_kv", None)
    return num_layers, num_heads, head_dim or config.hidden_size // config.num_attention_heads
