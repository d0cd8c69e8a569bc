"""Batches of sequences of like length under a budget of tokens."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from longspan.errors import InputError
from longspan.pipelines.backends.base import Backend, Result

_SHORTEST = 16
#: Rows of a batch of fixed shape that is not full, if they are enough.
_FEW_ROWS = (1, 8)
#: budgets of tokens from which on batches run side by side: the last one of them may run alone
_ROUNDS = 2


@dataclass(frozen=True)
class Batch:
    """Sequences that run together.

    Attributes:
        indices: Which sequences, longest first.
        shape: Rows and positions to pad to.
    """

    indices: npt.NDArray[np.int64]
    shape: tuple[int, int]


def plan_batches(
    lengths: Sequence[int],
    batch_tokens: int,
    *,
    fixed_shapes: bool = False,
    max_length: int | None = None,
    max_rows: int | None = None,
) -> list[Batch]:
    """Group sequences by length, longest first, so that no batch holds more than `batch_tokens` positions.

    A batch of B sequences of at most S tokens holds B · S positions, padding included. A sequence longer than the
    budget gets a batch of its own. The same lengths always give the same batches.

    Args:
        lengths: Tokens of each sequence.
        batch_tokens: Most positions of a batch.
        fixed_shapes: Round S up to one of 16, 24, 32, 48, 64, 96, ... and B to that of a full batch, 8 or 1, so that
            few shapes occur.
        max_length: Most positions that the model takes.
        max_rows: Most sequences of a batch; None for no limit but the budget.

    Returns:
        The batches; together they hold each index once.

    Raises:
        InputError: `batch_tokens` or `max_rows` is not positive.
    """
    if batch_tokens < 1:
        raise InputError(f"batch_tokens must be at least 1. Received: batch_tokens={batch_tokens}")
    if max_rows is not None and max_rows < 1:
        raise InputError(f"batch_size must be at least 1. Received: batch_size={max_rows}")
    order = np.argsort(-np.asarray(lengths, np.int64), kind="stable")
    batches = []
    start = 0
    while start < len(order):
        longest = lengths[order[start]]
        length = round_length(longest, max_length) if fixed_shapes else longest
        num_rows = max(1, batch_tokens // max(1, length))
        num_rows = num_rows if max_rows is None else min(num_rows, max_rows)
        indices = order[start : start + num_rows]
        start += num_rows
        if fixed_shapes:
            num_rows = next((few for few in _FEW_ROWS if len(indices) <= few < num_rows), num_rows)
        else:
            num_rows = len(indices)
        batches.append(Batch(indices, (num_rows, length)))
    return batches


@dataclass(frozen=True)
class Plan:
    """Batches, and how many of them run side by side."""

    batches: list[Batch]
    lanes: int = 1


def plan_for(
    backend: Backend, lengths: Sequence[int], batch_tokens: int | None, *, max_rows: int | None = None
) -> Plan:
    """The batches of `plan_batches` as they suit a backend.

    Where it runs some side by side they share the budget, if there is work for several rounds and the longest sequence
    fits into a share.

    Args:
        backend: What runs them.
        lengths: Tokens of each sequence.
        batch_tokens: Most positions at a time; None for what suits the machine, which is found out where that pays.
        max_rows: Most sequences of a batch; None for no limit but the budget.

    Raises:
        InputError: `batch_tokens` or `max_rows` is not positive.
    """
    if batch_tokens is None:
        backend.measure_batches(sum(lengths))
        batch_tokens = backend.batch_tokens
    budget = batch_tokens
    # to find out whether a model may run so takes a while
    lanes = backend.num_lanes if sum(lengths) >= _ROUNDS * budget else 1
    lanes = lanes if max(lengths, default=0) <= budget // lanes else 1
    batches = plan_batches(
        lengths,
        budget // lanes,
        fixed_shapes=backend.fixed_shapes,
        max_length=backend.max_positions,
        max_rows=max_rows,
    )
    return Plan(batches, lanes)


def run_plan(backend: Backend, plan: Plan, run: Callable[[Batch], Result]) -> Iterator[tuple[Batch, Result]]:
    """Each batch of a plan and what `run` makes of it, in their order."""
    results = map(run, plan.batches) if plan.lanes == 1 else backend.side_by_side(run, plan.batches, plan.lanes)
    return zip(plan.batches, results, strict=True)


def round_length(length: int, limit: int | None) -> int:
    """The least of 16, 24, 32, 48, 64, 96, 128, ... that is not below `length`, but at most `limit`."""
    rounded = _SHORTEST
    while rounded < length:
        is_power_of_two = rounded & (rounded - 1) == 0
        rounded = rounded * 3 // 2 if is_power_of_two else rounded * 4 // 3
    return rounded if limit is None else max(length, min(rounded, limit))


def pad(sequences: Sequence[npt.NDArray[np.int32]], shape: tuple[int, int], pad_token_id: int) -> npt.NDArray[np.int64]:
    """Token ids of `shape`: each sequence padded on the right, and rows of padding alone after the last."""
    padded = np.full(shape, pad_token_id, np.int64)
    for row, sequence in zip(padded, sequences, strict=False):
        row[: len(sequence)] = sequence
    return padded
