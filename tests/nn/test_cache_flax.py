"""The cache of generation in JAX: rows that change places, without moving what they wrote."""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from longspan.nn.flax.cache import extend_rows, for_rows, is_for_rows, rows_mask, tokens_before

BATCH, ROWS, ROOM, HEADS, SIZE = 2, 3, 6, 2, 4
#: tokens of the prompts
PROMPT = 2


class Attention(nn.Module):
    """Only its cache."""

    @nn.compact
    def __call__(self, key, value):
        assert is_for_rows(self)
        return extend_rows(self, key, value)


def test_each_row_sees_what_its_ancestors_wrote():
    """Against a cache of every row that is moved in every step."""
    rng = np.random.default_rng(0)

    def draw(rows, length):
        return rng.normal(size=(rows, length, HEADS, SIZE)).astype(np.float32)

    prompts = [np.pad(draw(BATCH, PROMPT), ((0, 0), (0, ROOM - PROMPT), (0, 0), (0, 0))) for _ in range(2)]
    cache = dict(zip(("cached_key", "cached_value", "cache_index"), (*prompts, np.int32(PROMPT)), strict=True))
    cache = for_rows({name: jnp.asarray(leaf) for name, leaf in cache.items()}, ROWS)
    moved = [prompt[:, :PROMPT].repeat(ROWS, axis=0) for prompt in prompts]
    ancestors = np.zeros((BATCH, ROWS, ROOM), int)
    for step in range(3):
        origin = rng.integers(0, ROWS, (BATCH, ROWS))
        rows = (origin + np.arange(BATCH)[:, None] * ROWS).reshape(-1)
        new = [draw(BATCH * ROWS, 1) for _ in range(2)]
        moved = [np.concatenate([old[rows], token], axis=1) for old, token in zip(moved, new, strict=True)]
        ancestors = np.take_along_axis(ancestors, origin[..., None], axis=1)
        ancestors[:, :, PROMPT + step] = np.arange(ROWS)
        mask = np.asarray(rows_mask(jnp.asarray(ancestors), tokens_before(cache)))
        stored, changed = Attention().apply({"cache": cache}, *map(jnp.asarray, new), mutable=["cache"])
        cache = changed["cache"]
        assert mask.shape == (BATCH, 1, ROWS, ROOM * ROWS)
        for everything, expected in zip(stored, moved, strict=True):
            for row in range(BATCH * ROWS):
                seen = np.asarray(everything)[row // ROWS][:, :, mask[row // ROWS, 0, row % ROWS]]
                np.testing.assert_array_equal(seen.transpose(2, 0, 1), expected[row])
    assert int(tokens_before(cache)) == PROMPT + 3
