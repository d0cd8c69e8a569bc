"""Packing: run the layers of an encoder on the real tokens of a padded batch only.

The number of real tokens is known only when a graph runs, so this works with TensorFlow outside XLA and nowhere else.

Axes: B batch, S tokens with padding, N real tokens, H width.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass

import tensorflow as tf

from longspan.nn.keras.checks import Size
from longspan.ops.keras import Tensor
from longspan.ops.keras.attention import mask_to_bias, rows_that_attend

#: Rows are sorted by length and cut into so many groups, each padded to its longest row (measured: 2 to 8 are alike).
NUM_GROUPS = 4


@dataclass(frozen=True)
class TokenGroup:
    """Rows of like length, which attend together.

    Attributes:
        begin: Index of the group's first token among the packed tokens.
        end: Index after its last token.
        places: For each row and place the index of its token in the group, (rows, width); behind the end of a row any.
        real: Indices in the flattened (rows, width) that hold tokens, (end - begin,).
        bias: 0 at tokens that may be seen, a large negative number elsewhere, (rows, 1, 1, width).
        attends: 0 for rows in which no token may be seen, else 1, (rows, 1, 1, 1); None for all 1.
    """

    begin: Tensor
    end: Tensor
    places: Tensor
    real: Tensor
    bias: Tensor
    attends: Tensor | None

    def to_rows(self, packed: Tensor) -> Tensor:
        """(N, ...) -> (rows, width, ...)."""
        return tf.gather(packed[self.begin : self.end], self.places)

    def from_rows(self, rows: Tensor) -> Tensor:
        """(rows, width, ...) -> (end - begin, ...)."""
        flat = tf.reshape(rows, tf.concat([[-1], tf.shape(rows)[2:]], axis=0))
        flat.set_shape([None, *rows.shape[2:]])
        return tf.gather(flat, self.real)


@dataclass(frozen=True)
class Packing:
    """Where the real tokens of a padded batch are, longest row first.

    Attributes:
        indices: Index of each real token in the flattened batch, (N,).
        groups: Rows that attend together.
        shape: (B, S), as integers where they are known.
    """

    indices: Tensor
    groups: tuple[TokenGroup, ...]
    shape: tuple[Size, Size]

    @classmethod
    def from_mask(cls, mask: Tensor, shape: tuple[Size, Size], also: Tensor | None = None) -> Packing:
        """Find the real tokens of a boolean mask (B, S), and those of another mask: computed, but seen by none."""
        batch, width = tf.shape(mask)[0], tf.shape(mask)[1]
        kept = mask if also is None else tf.logical_or(mask, also)
        lengths = tf.reduce_sum(tf.cast(kept, tf.int32), axis=1)
        order = tf.argsort(lengths, direction="DESCENDING", stable=True)
        row, column = tf.unstack(tf.cast(tf.where(tf.gather(kept, order)), tf.int32), num=2, axis=1)
        indices = tf.gather(order, row) * width + column
        seen = None if also is None else tf.gather(tf.reshape(mask, [-1]), indices)
        lengths = tf.gather(lengths, order)
        ends = tf.cumsum(lengths)
        num_groups = min(NUM_GROUPS, shape[0]) if isinstance(shape[0], int) else NUM_GROUPS
        bounds = [batch * index // num_groups for index in range(num_groups + 1)]
        groups = [
            _make_group(lengths[first:last], ends[first:last], seen) for first, last in itertools.pairwise(bounds)
        ]
        return cls(indices, tuple(groups), shape)

    def take(self, values: Tensor) -> Tensor:
        """(B, S) -> (N,), or (B, S, H) -> (N, H)."""
        flat = tf.reshape(values, tf.concat([[-1], tf.shape(values)[2:]], axis=0))
        flat.set_shape([None, *values.shape[2:]])
        return tf.gather(flat, self.indices)

    def unpack(self, hidden_states: Tensor) -> Tensor:
        """(N, H) -> (B, S, H), with zeros at the padding."""
        batch, length = self.shape
        size = hidden_states.shape[-1]
        flat = tf.scatter_nd(self.indices[:, None], hidden_states, [batch * length, size])
        return tf.reshape(flat, [batch, length, size])


def _make_group(lengths: Tensor, ends: Tensor, seen: Tensor | None) -> TokenGroup:
    """The group of rows with these lengths, (rows,), whose last tokens lie before these indices, (rows,).

    `seen` says which packed tokens may be attended to, (N,); None for all.
    """
    begins = ends - lengths
    begin, end = tf.reduce_min(begins, keepdims=True), tf.reduce_max(ends, keepdims=True)
    begin, end = (tf.where(tf.size(ends) > 0, bound, 0)[0] for bound in (begin, end))  # a group may have no row
    width = tf.maximum(tf.reduce_max(lengths), 0)
    place = tf.range(width)[None, :]
    real = place < lengths[:, None]
    places = tf.minimum((begins - begin)[:, None] + place, end - begin - 1)
    keys = real[:, None, None, :]
    if seen is not None:
        keys = tf.logical_and(keys, tf.gather(seen[begin:end], places)[:, None, None, :])
    tokens = tf.cast(tf.where(tf.reshape(real, [-1]))[:, 0], tf.int32)
    attends = None if seen is None else rows_that_attend(keys)
    return TokenGroup(begin, end, places, tokens, mask_to_bias(keys), attends)
