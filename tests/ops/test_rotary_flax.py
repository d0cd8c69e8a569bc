"""Rotary embeddings in JAX against the PyTorch functions, which other tests compare with the reference."""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np
import pytest
import torch
from tests.tolerances import assert_close

import longspan
from longspan.ops.flax import rotary as flax
from longspan.ops.torch import rotary

SCALINGS = {
    "default": None,
    "linear": {"rope_type": "linear", "factor": 2.0},
    "dynamic": {"rope_type": "dynamic", "factor": 3.0},
    "yarn": {"rope_type": "yarn", "factor": 4.0},
    "longrope": {"rope_type": "longrope", "factor": 2.0, "short_factor": [1, 1.5, 2, 3], "long_factor": [2, 3, 5, 7]},
}


@pytest.mark.parametrize("kind", SCALINGS)
def test_turned_heads_equal_pytorchs_below_and_above_the_limit(kind):
    config = longspan.DiffLlamaConfig(head_dim=8, max_position_embeddings=16, rope_scaling=SCALINGS[kind])
    table = config.rotary_table()
    rng = np.random.default_rng(0)
    for length in (16, 23):
        positions, heads = np.arange(length)[None], rng.normal(size=(2, length, 3, 8)).astype("f")
        long = table.long_frequencies
        expected = rotary.select_frequencies(
            table,
            torch.from_numpy(positions),
            frequencies=torch.tensor(table.frequencies),
            long_frequencies=None if long is None else torch.tensor(long),
        )
        factor = {"attention_factor": table.attention_factor}
        tables = rotary.rotary_cos_sin(expected, torch.from_numpy(positions), **factor)
        frequencies = flax.select_frequencies(table, jnp.asarray(positions))
        assert_close(frequencies, expected)
        ours = flax.rotary_cos_sin(frequencies, jnp.asarray(positions), **factor)
        assert_close(
            flax.apply_rotary(jnp.asarray(heads), *ours), rotary.apply_rotary(torch.from_numpy(heads), *tables)
        )
