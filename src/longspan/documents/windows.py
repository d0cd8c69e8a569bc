"""Splitting token sequences into overlapping windows."""

from __future__ import annotations

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
