"""Batches of sequences of like length under a budget of tokens."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from longspan.errors import InputError


def plan_batches(lengths: Sequence[int], batch_tokens: int) -> list[npt.NDArray[np.int64]]:
    """Group sequences by length, longest first, so that no batch holds more than `batch_tokens` positions.

    A batch of B sequences of at most S tokens holds B · S positions, padding included. A sequence longer than the
    budget gets a batch of its own. The same lengths always give the same batches.

    Args:
        lengths: Tokens of each sequence.
        batch_tokens: Most positions of a batch.

    Returns:
        For each batch the indices of its sequences; together they hold each index once.

    Raises:
        InputError: `batch_tokens` is not positive.
    """
    if batch_tokens < 1:
        raise InputError(f"batch_tokens must be at least 1. Received: batch_tokens={batch_tokens}")
    order = np.argsort(-np.asarray(lengths, np.int64), kind="stable")
    batches = []
    start = 0
    while start < len(order):
        num_rows = max(1, batch_tokens // max(1, lengths[order[start]]))
        batches.append(order[start : start + num_rows])
        start += num_rows
    return batches


def pad(sequences: Sequence[npt.NDArray[np.int32]], pad_token_id: int) -> npt.NDArray[np.int64]:
    """Rows of token ids (B, S), padded on the right to the longest."""
    padded = np.full((len(sequences), max(map(len, sequences))), pad_token_id, np.int64)
    for row, sequence in zip(padded, sequences, strict=True):
        row[: len(sequence)] = sequence
    return padded
