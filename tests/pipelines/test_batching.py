from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

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
