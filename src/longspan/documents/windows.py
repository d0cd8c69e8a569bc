"""Splitting token sequences into overlapping windows."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise

from longspan.errors import InputError


def plan_windows(num_tokens: int, capacity: int, overlap: int) -> list[tuple[int, int]]:
    """Windows over `num_tokens` tokens: as few as possible, of nearly equal size, neighbours sharing `overlap` tokens.

    With C the capacity and O the overlap, T tokens need `n = ceil((T - O) / (C - O))` windows, which together hold
    `T + (n - 1) O` tokens; sizes differ by at most one.

    Args:
        num_tokens: Tokens of the text, special tokens not counted.
        capacity: Most tokens a window may hold.
        overlap: Tokens that a window shares with the one before it.

    Returns:
        `(start, stop)` of each window, in order. They cover every token; none if there are no tokens.

    Raises:
        InputError: `capacity` is not positive, or `overlap` is not in `[0, capacity)`.
    """
    check_windows(capacity, overlap)
    if num_tokens <= capacity:
        return [(0, num_tokens)] if num_tokens else []
    num_windows = -(-(num_tokens - overlap) // (capacity - overlap))
    size, longer = divmod(num_tokens + (num_windows - 1) * overlap, num_windows)
    windows = []
    start = 0
    for index in range(num_windows):
        stop = start + size + (index < longer)
        windows.append((start, stop))
        start = stop - overlap
    return windows


def check_windows(capacity: int, overlap: int) -> None:
    """Raise `InputError` unless windows of `capacity` tokens that share `overlap` tokens can cover a text."""
    if capacity < 1:
        raise InputError(
            "A window must hold at least one token besides the special tokens and the prompt. "
            f"Received: room for {capacity}"
        )
    if not 0 <= overlap < capacity:
        raise InputError(
            f"overlap must be at least 0 and below the {capacity} tokens of a window. Received: overlap={overlap}"
        )


def context_borders(windows: Sequence[tuple[int, int]]) -> list[float]:
    """Where one window after the other has the most context.

    A span of tokens from s to e (included) is best seen by the window whose centre is nearest, for there the lesser of
    its left and right context is greatest. With windows of equal size a window that is nearest to a span holds it, if
    any does.

    Args:
        windows: `(start, stop)` of each window, as `plan_windows` gives them.

    Returns:
        N + 1 ascending borders: window n is nearest to the spans with `borders[n] < s + e <= borders[n + 1]`.
    """
    centers = [start + stop - 1 for start, stop in windows]
    between = [(left + right) / 2 for left, right in pairwise(centers)]
    return [-math.inf, *between, math.inf]


def owned_ranges(windows: Sequence[tuple[int, int]]) -> list[tuple[int, int]]:
    """The tokens `(start, stop)` that each window sees with the most context; together they are all tokens, once."""
    borders = context_borders(windows)
    ranges = []
    for index, (start, stop) in enumerate(windows):
        first = start if index == 0 else math.floor(borders[index] / 2) + 1
        last = stop if index == len(windows) - 1 else math.floor(borders[index + 1] / 2) + 1
        ranges.append((first, last))
    return ranges
