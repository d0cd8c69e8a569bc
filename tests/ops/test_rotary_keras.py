"""Rotary embeddings in `keras.ops` against the PyTorch functions, which other tests compare with the reference."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from tests.keras.setting import import_keras
from tests.ops.test_rotary_flax import SCALINGS
from tests.tolerances import assert_close

import longspan
from longspan.ops.torch import rotary

keras = import_keras()


@pytest.mark.parametrize("kind", SCALINGS)
def test_turned_heads_equal_pytorchs_below_and_above_the_limit(kind):
    from longspan.ops.keras import rotary as ours

    table = longspan.DiffLlamaConfig(head_dim=8, max_position_embeddings=16, rope_scaling=SCALINGS[kind]).rotary_table()
    rng = np.random.default_rng(0)
    long = table.long_frequencies
    theirs = {
        "frequencies": torch.tensor(table.frequencies),
        "long_frequencies": None if long is None else torch.tensor(long),
    }
    factor = {"attention_factor": table.attention_factor}
    for length in (16, 23):
        positions, heads = np.arange(length)[None], rng.normal(size=(2, length, 3, 8)).astype("f")
        expected = rotary.select_frequencies(table, torch.from_numpy(positions), **theirs)
        tables = rotary.rotary_cos_sin(expected, torch.from_numpy(positions), **factor)
        frequencies = ours.select_frequencies(table, keras.ops.array(positions))
        assert_close(frequencies, expected)
        mine = ours.apply_rotary(heads, *ours.rotary_cos_sin(frequencies, positions, **factor))
        assert_close(mine, rotary.apply_rotary(torch.from_numpy(heads), *tables))
