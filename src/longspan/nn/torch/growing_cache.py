"""A key/value cache for generation: it grows in place.

Axes: B batch, H key/value heads, S cached tokens, D head size.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor

from longspan.nn.torch.cache import DynamicCache

#: tokens for which there is room at first behind those of the first update
_ROOM = 256


class GrowingCache(DynamicCache):
    """A `DynamicCache` that writes new tokens behind the old ones instead of copying all of them.

    The tensors that it hands back are views of its buffers, so it is for inference: a later update overwrites what a
    backward pass would read.

    Args:
        capacity: Tokens that will be stored at most, if known; no buffer is made larger.

    Example:
        >>> import torch
        >>> cache = GrowingCache(capacity=8)
        >>> key, value = cache.update(torch.zeros(1, 2, 3, 4), torch.zeros(1, 2, 3, 4), layer_index=0)
        >>> key, value = cache.update(torch.ones(1, 2, 1, 4), torch.ones(1, 2, 1, 4), layer_index=0)
        >>> key.shape, cache.get_seq_length()
        (torch.Size([1, 2, 4, 4]), 4)
    """

    def __init__(self, capacity: int | None = None) -> None:
        super().__init__()
        self.capacity = capacity
        self._key_buffers: list[Tensor] = []
        self._value_buffers: list[Tensor] = []

    def update(
        self, key: Tensor, value: Tensor, layer_index: int, cache_position: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """Append new keys and values to a layer; see `Cache.update`. `cache_position` has no effect here."""
        past = self.get_seq_length(layer_index)
        length = past + key.shape[2]
        if past == 0 or not self._fits(key, layer_index, length):
            key, value = super().update(key, value, layer_index)  # checks, and joins old and new
            self._move(layer_index, key, value)
        else:
            self._key_buffers[layer_index][:, :, past:length] = key
            self._value_buffers[layer_index][:, :, past:length] = value
        self._keys[layer_index] = self._key_buffers[layer_index][:, :, :length]
        self._values[layer_index] = self._value_buffers[layer_index][:, :, :length]
        return self._keys[layer_index], self._values[layer_index]

    def extend(self, layer_index: int) -> tuple[Tensor, Tensor]:
        """Make room for one more token in a layer that has some; the caller writes it.

        Returns:
            Keys and values with the new token as the last, whose values are arbitrary, each (B, H, S + 1, D).
        """
        length = self._keys[layer_index].shape[2] + 1
        if length > self._key_buffers[layer_index].shape[2]:
            self._move(layer_index, self._keys[layer_index], self._values[layer_index])
        key = self._key_buffers[layer_index].narrow(2, 0, length)
        value = self._value_buffers[layer_index].narrow(2, 0, length)
        self._keys[layer_index], self._values[layer_index] = key, value
        return key, value

    def reorder_cache(self, beam_idx: Tensor, start: int = 0) -> None:
        """Take the rows `beam_idx` (B,) of the batch in that order, as beam search needs.

        Args:
            beam_idx: Index of each row.
            start: Tokens before this one are equal in rows that change places, and stay.
        """
        if self._keys and beam_idx.shape[0] == self._keys[0].shape[0]:
            for tensor in (*self._keys, *self._values):
                tail = tensor[:, :, start:]
                tail.copy_(tail.index_select(0, beam_idx))
        else:
            self.batch_select_indices(beam_idx)

    def reset(self) -> None:
        """Forget everything, and give up the memory."""
        super().reset()
        self._key_buffers.clear()
        self._value_buffers.clear()

    def _fits(self, key: Tensor, layer_index: int, length: int) -> bool:
        """True if new keys (B, H, S, D) can be written behind the old ones."""
        buffer = self._key_buffers[layer_index]
        alike = buffer.shape[:2] == key.shape[:2] and buffer.shape[3] == key.shape[3] and buffer.dtype == key.dtype
        return alike and length <= buffer.shape[2]

    def _move(self, layer_index: int, key: Tensor, value: Tensor) -> None:
        """Give a layer buffers with room, which begin with the tensors (B, H, S, D)."""
        length = key.shape[2]
        size = length + max(length // 2, _ROOM)
        if self.capacity is not None and length < self.capacity:
            size = min(size, self.capacity)
        for tensor, buffers in ((key, self._key_buffers), (value, self._value_buffers)):
            buffer = tensor.new_empty(*tensor.shape[:2], size, tensor.shape[3])
            buffer[:, :, :length] = tensor
            buffers[layer_index : layer_index + 1] = [buffer]

    def _apply(self, function: Any) -> None:
        super()._apply(function)
        for layer_index, (key, value) in enumerate(zip(self._keys, self._values, strict=True)):
            self._move(layer_index, key, value)
            length = key.shape[2]
            self._keys[layer_index] = self._key_buffers[layer_index][:, :, :length]
            self._values[layer_index] = self._value_buffers[layer_index][:, :, :length]
