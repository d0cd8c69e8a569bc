"""Packing: run the layers of an encoder on full rows that hold several sequences of a padded batch each.

Axes: B batch, S tokens with padding, R packed rows, P tokens of a packed row, H width.

Programs of XLA have fixed shapes, so packed rows come in few sizes: P is a multiple of 64, R one of 1, 2, 3, 4, 6, 8,
12, 16, ... Which token lies where is data, not shape: one program serves every batch of the same sizes.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
from flax import struct
from jax import Array

#: P is a multiple of this
_ROW_STEP = 64


@struct.dataclass
class Packing:
    """Where the real tokens of a padded batch lie in packed rows.

    Attributes:
        indices: Index of each packed token in the flattened batch, 0 where a row is empty, (R, P).
        segments: Number of its sequence within the row, from 1; 0 where the row is empty, (R, P).
        keys: The same, and 0 where a token is computed but seen by none, (R, P).
        places: Index of each token in the flattened rows, R·P at padding, (B, S).
    """

    indices: Array
    segments: Array
    keys: Array
    places: Array

    def pack(self, values: Array) -> Array:
        """(B, S, ...) -> (R, P, ...)."""
        return values.reshape(-1, *values.shape[2:])[self.indices]

    def unpack(self, hidden_states: Array) -> Array:
        """(R, P, H) -> (B, S, H), with zeros at the padding."""
        tokens = hidden_states.reshape(-1, hidden_states.shape[-1])
        return tokens.at[self.places].get(mode="fill", fill_value=0)


def plan_packing(mask: npt.NDArray[np.bool_], *, first_states: bool = False) -> Packing:
    """Put the sequences of a batch into as few rows as their lengths allow (first fit, longest first).

    Args:
        mask: True at real tokens, (B, S).
        first_states: Compute the state of each row's first token even if it is padding.

    Returns:
        The packing, of NumPy arrays.
    """
    computed = mask.copy()
    computed[:, :1] |= first_states
    lengths = computed.sum(axis=1)
    capacity = _row_length(int(lengths.max(initial=0)))
    rows = _first_fit(lengths, capacity)
    num_rows = _rounded_rows(len(rows))
    indices = np.zeros((num_rows, capacity), np.int32)
    segments = np.zeros((num_rows, capacity), np.int32)
    places = np.full(mask.shape, num_rows * capacity, np.int32)
    for row, sequences in enumerate(rows):
        start = 0
        for segment, sequence in enumerate(sequences, start=1):
            tokens = np.flatnonzero(computed[sequence])
            stop = start + len(tokens)
            indices[row, start:stop] = sequence * mask.shape[1] + tokens
            segments[row, start:stop] = segment
            places[sequence, tokens] = row * capacity + np.arange(start, stop)
            start = stop
    keys = np.where(mask.reshape(-1)[indices], segments, 0) if mask.size else segments
    arrays: Any = {"indices": indices, "segments": segments, "keys": keys, "places": places}  # NumPy arrays will do
    return Packing(**arrays)


def packed_size(packing: Packing) -> int:
    """Positions that the layers process: R·P."""
    return int(np.prod(packing.indices.shape))


def _first_fit(lengths: npt.NDArray[np.int64], capacity: int) -> list[list[int]]:
    """The sequences of each row."""
    rows: list[list[int]] = []
    room: list[int] = []
    for sequence in np.argsort(-lengths, kind="stable"):
        length = int(lengths[sequence])
        if length == 0:
            continue
        row = next((index for index, free in enumerate(room) if free >= length), len(rows))
        if row == len(rows):
            rows.append([])
            room.append(capacity)
        rows[row].append(int(sequence))
        room[row] -= length
    return rows


def _row_length(longest: int) -> int:
    return max(1, -(-longest // _ROW_STEP)) * _ROW_STEP


def _rounded_rows(count: int) -> int:
    """The next of 1, 2, 3, 4, 6, 8, 12, 16, 24, ..."""
    power = 1
    while power < count:
        if power >= 2 and power + power // 2 >= count:
            return power + power // 2
        power *= 2
    return power
