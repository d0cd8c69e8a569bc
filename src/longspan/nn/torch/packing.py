"""Packing: run the layers of an encoder on the real tokens of a padded batch only.

Axes: B batch, S tokens with padding, N real tokens, H width.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Packing:
    """Where the real tokens of a padded batch are.

    Attributes:
        indices: Index of each real token in the flattened batch, (N,).
        lengths: Number of real tokens of each row that has any.
        shape: (B, S).
    """

    indices: Tensor
    lengths: tuple[int, ...]
    shape: tuple[int, int]

    @classmethod
    def from_mask(cls, mask: Tensor) -> Packing:
        """Find the real tokens of a boolean mask (B, S); this reads the mask on the host."""
        lengths = tuple(length for length in mask.sum(dim=1).tolist() if length > 0)
        return cls(mask.reshape(-1).nonzero().squeeze(1), lengths, (mask.shape[0], mask.shape[1]))

    def pack(self, hidden_states: Tensor) -> Tensor:
        """(B, S, H) -> (N, H)."""
        return hidden_states.reshape(-1, hidden_states.shape[-1]).index_select(0, self.indices)

    def unpack(self, hidden_states: Tensor) -> Tensor:
        """(N, H) -> (B, S, H), with zeros at the padding."""
        batch, length = self.shape
        padded = hidden_states.new_zeros(batch * length, hidden_states.shape[-1])
        return padded.index_copy(0, self.indices, hidden_states).view(batch, length, -1)


def has_padding(mask: Tensor) -> bool:
    """True if a boolean mask holds a False; reads it on the host."""
    return not bool(torch.all(mask))
