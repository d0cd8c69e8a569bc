"""Index patterns: bands, pictures, relative buckets against their formula and against the reference."""

from pathlib import Path

import numpy as np
import pytest
import torch
from transformers.models.longt5.modeling_longt5 import LongT5Attention

from longspan.ops import patterns

DOCS = Path(__file__).parents[2] / "docs"


@pytest.mark.parametrize(("rows", "left", "right"), [(1, 0, 0), (4, 2, 1), (3, 0, 5), (5, 7, 7)])
def test_band(rows, left, right):
    band = patterns.band(rows, left, right)
    assert band.shape == (rows, rows + left + right)
    for row in range(rows):
        assert np.flatnonzero(band[row]).tolist() == list(range(row, row + left + right + 1))


def test_band_pattern_is_what_each_token_sees():
    pattern = patterns.band_pattern(9, 2, 1, global_positions=(6,))
    for i in range(9):
        for j in range(9):
            assert pattern[i, j] == (6 in (i, j) or -2 <= j - i <= 1)


@pytest.mark.parametrize("bidirectional", [True, False])
@pytest.mark.parametrize(
    ("num_buckets", "max_distance"), [(4, 8), (8, 11), (10, 100), (32, 128), (32, 129), (64, 800), (128, 1000)]
)
def test_buckets_are_the_references(bidirectional, num_buckets, max_distance):
    positions = np.arange(-2000, 2000)
    settings = {"bidirectional": bidirectional, "num_buckets": num_buckets, "max_distance": max_distance}
    buckets = patterns.relative_position_buckets(positions, **settings)
    expected = LongT5Attention._relative_position_bucket(torch.from_numpy(positions), **settings)
    assert buckets.tolist() == expected.tolist()
    table = np.array(patterns.bucket_table(**settings))
    assert table[np.clip(positions, -max_distance, max_distance) + max_distance].tolist() == buckets.tolist()


@pytest.mark.parametrize(
    ("document", "pattern"),
    [
        ("longformer.md", patterns.band_pattern(16, 2, 2, global_positions=(0,))),
        ("longt5.md", patterns.band_pattern(16, 3, 3)),
        ("longt5.md", patterns.with_summaries(patterns.band_pattern(16, 3, 3), block_size=4)),
    ],
)
def test_pictures_in_the_documents_are_drawn_by_the_library(document, pattern):
    assert patterns.picture(pattern) in (DOCS / document).read_text(encoding="utf-8")
