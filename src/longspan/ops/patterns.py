"""Index patterns of sparse attention: who may see whom, and how far apart they are; few lengths. NumPy only.

S tokens. A *band* lets query i see keys i - left … i + right. Queries are taken in blocks of consecutive rows; the
keys that a block of R rows sees are its *span*, R + left + right consecutive positions that begin at `left` positions
before the block.
"""

from __future__ import annotations

import functools
import math

import numpy as np
from numpy.typing import NDArray

#: lengths are a multiple of this
SMALLEST = 64
#: up to this many buckets lie between a power of two and the next one, so that padding adds at most an eighth
_STEPS = 8


def bucket(length: int) -> int:
    """The length that `length` is padded to: a multiple of 64, or of an eighth of the power of two below it.

    Example:
        >>> [bucket(length) for length in (1, 65, 500, 4096, 4097)]
        [64, 128, 512, 4096, 4608]
    """
    step = max(SMALLEST, (1 << max(length - 1, 1).bit_length() - 1) // _STEPS)
    return -(-length // step) * step


def num_blocks(length: int, rows: int) -> int:
    """Blocks of R tokens that hold S tokens, at least one; S may be a symbolic length of `jax.export`, R not."""
    return max(-(-length // rows), 1) if isinstance(length, int) else -(-length // rows)


def band(rows: int, left: int, right: int) -> NDArray[np.bool_]:
    """Which keys of its span each query of a block sees.

    Args:
        rows: Queries of the block, R.
        left: Keys seen before the query.
        right: Keys seen after the query.

    Returns:
        Boolean, (R, R + left + right): row r sees columns r … r + left + right.

    Example:
        >>> band(2, 1, 1).astype(int)
        array([[1, 1, 1, 0],
               [0, 1, 1, 1]])
    """
    offset = np.arange(rows + left + right)[None, :] - np.arange(rows)[:, None]
    return (offset >= 0) & (offset <= left + right)


def band_pattern(length: int, left: int, right: int, global_positions: tuple[int, ...] = ()) -> NDArray[np.bool_]:
    """The whole attention pattern of a banded layer with global tokens, for pictures and tests.

    Args:
        length: Number of tokens S.
        left: Keys seen before each query.
        right: Keys seen after each query.
        global_positions: Tokens that see all and are seen by all.

    Returns:
        Boolean, (S, S): [i, j] is True if query i sees key j.

    Example:
        >>> band_pattern(4, 1, 0, global_positions=(3,)).astype(int)
        array([[1, 0, 0, 1],
               [1, 1, 0, 1],
               [0, 1, 1, 1],
               [1, 1, 1, 1]])
    """
    distance = np.arange(length)[None, :] - np.arange(length)[:, None]
    pattern = (distance >= -left) & (distance <= right)
    pattern[:, list(global_positions)] = True
    pattern[list(global_positions), :] = True
    return pattern


def with_summaries(pattern: NDArray[np.bool_], block_size: int) -> NDArray[np.bool_]:
    """A pattern whose queries also see one summary per full block of tokens.

    Args:
        pattern: (S, S).
        block_size: Tokens of a block.

    Returns:
        Boolean, (S, S + S // block_size), the summaries last.
    """
    length = pattern.shape[0]
    return np.concatenate([pattern, np.ones((length, length // block_size), dtype=np.bool_)], axis=1)


def picture(pattern: NDArray[np.bool_]) -> str:
    """Draw a pattern: one line per query, a filled square for each key that it sees.

    Args:
        pattern: (queries, keys).

    Example:
        >>> print(picture(band_pattern(4, 1, 1, global_positions=(0,))))
        ■ ■ ■ ■
        ■ ■ ■ ·
        ■ ■ ■ ■
        ■ · ■ ■
    """
    return "\n".join(" ".join("■" if seen else "·" for seen in row) for row in pattern.tolist())


def relative_position_buckets(
    relative_position: NDArray[np.integer], *, bidirectional: bool, num_buckets: int, max_distance: int
) -> NDArray[np.int64]:
    """T5's buckets of relative positions: exact near by, logarithmic up to `max_distance`, one bucket beyond.

    Args:
        relative_position: Position of the key minus position of the query, any shape.
        bidirectional: Keys after the query have buckets of their own (half of all); otherwise they share bucket 0.
        num_buckets: Number of buckets.
        max_distance: Distance from which all keys share the last bucket.

    Returns:
        Bucket indices in [0, num_buckets), of the same shape.

    Reference:
        Raffel et al., "Exploring the Limits of Transfer Learning with a Unified Text-to-Text Transformer", §2.1.
    """
    buckets = np.zeros_like(relative_position, dtype=np.int64)
    if bidirectional:
        num_buckets //= 2
        buckets += np.where(relative_position > 0, num_buckets, 0)
        distance = np.abs(relative_position)
    else:
        distance = np.maximum(-relative_position, 0)
    num_exact = num_buckets // 2
    # float32, and in this order: a bucket border must not move by a rounding error against the checkpoints' training
    ratio = np.log(np.maximum(distance, 1).astype(np.float32) / np.float32(num_exact))
    steps = ratio / np.float32(math.log(max_distance / num_exact)) * np.float32(num_buckets - num_exact)
    logarithmic = np.minimum(num_exact + steps.astype(np.int64), num_buckets - 1)
    buckets += np.where(distance < num_exact, distance, logarithmic)
    return buckets


@functools.cache
def bucket_table(*, bidirectional: bool, num_buckets: int, max_distance: int) -> tuple[int, ...]:
    """Buckets of the relative positions -max_distance … max_distance; farther keys share those of the two ends."""
    positions = np.arange(-max_distance, max_distance + 1)
    buckets = relative_position_buckets(
        positions, bidirectional=bidirectional, num_buckets=num_buckets, max_distance=max_distance
    )
    return tuple(buckets.tolist())
