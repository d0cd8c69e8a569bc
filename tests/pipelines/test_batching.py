from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from longspan import machine
from longspan.documents import tokens
from longspan.errors import InputError
from longspan.pipelines.run.batching import pad, plan_batches, round_length

lengths = st.lists(st.integers(0, 512), max_size=200)


@given(lengths, st.integers(1, 4000), st.booleans())
def test_every_sequence_is_in_one_batch_within_the_budget(lengths: list[int], budget: int, fixed_shapes: bool):
    batches = plan_batches(lengths, budget, fixed_shapes=fixed_shapes, max_length=512)
    assert sorted(index for batch in batches for index in batch.indices) == list(range(len(lengths)))
    longest = [lengths[batch.indices[0]] for batch in batches]
    assert longest == sorted(longest, reverse=True)
    for batch in batches:
        rows, length = batch.shape
        assert len(batch.indices) <= rows
        assert length >= lengths[batch.indices[0]] == max(lengths[index] for index in batch.indices)
        assert rows == 1 or rows * length <= budget
        if not fixed_shapes:
            assert batch.shape == (len(batch.indices), lengths[batch.indices[0]])


@given(lengths, lengths, st.integers(1, 4000))
def test_fixed_shapes_are_few(first: list[int], second: list[int], budget: int):
    plans = [plan_batches(lengths, budget, fixed_shapes=True, max_length=512) for lengths in (first, second)]
    shapes = {batch.shape for plan in plans for batch in plan}
    assert {length for _, length in shapes} <= {16, 24, 32, 48, 64, 96, 128, 192, 256, 384, 512}
    assert all(len({rows for rows, length in shapes if length == each}) <= 3 for _, each in shapes)


def test_rounding():
    assert [round_length(n, None) for n in (0, 1, 16, 17, 24, 25, 33, 50, 65, 100, 513)] == [
        16, 16, 16, 24, 24, 32, 48, 64, 96, 128, 768,
    ]  # fmt: skip
    assert round_length(300, 350) == 350
    assert round_length(400, 350) == 400


def test_padding():
    rows = [np.array([5, 6, 7], np.int32), np.array([8], np.int32)]
    assert pad(rows, (3, 4), 1).tolist() == [[5, 6, 7, 1], [8, 1, 1, 1], [1, 1, 1, 1]]


def test_bad_budget():
    with pytest.raises(InputError, match="batch_tokens must be at least 1. Received: batch_tokens=0"):
        plan_batches([1], 0)


def test_freed_memory_goes_back_unless_a_user_says_how_much_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[int] = []
    monkeypatch.setattr(machine, "_malloc_trim", lambda: calls.append)
    monkeypatch.delenv("MALLOC_TRIM_THRESHOLD_", raising=False)
    machine.return_freed_memory()
    monkeypatch.setenv("MALLOC_TRIM_THRESHOLD_", "4294967296")
    machine.return_freed_memory()
    assert calls == [0]
    monkeypatch.setattr(machine, "_malloc_trim", lambda: None)
    monkeypatch.delenv("MALLOC_TRIM_THRESHOLD_")
    machine.return_freed_memory()


@given(st.lists(st.integers(0, 1 << 19), max_size=60))
def test_segments_are_encoded_in_parts_that_hold_each_once(sizes: list[int]) -> None:
    segments = ["a" * size for size in sizes]
    parts = list(tokens._batches(segments))
    assert [one for part in parts for one in segments[part]] == segments
    assert all(part.stop - part.start >= 16 for part in parts[:-1])
