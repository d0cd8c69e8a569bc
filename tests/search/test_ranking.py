"""Exact search, against the definition."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from longspan.errors import InputError
from longspan.search.passages import INTEGER_COLUMNS, FileRecord, IndexInfo, Passages
from longspan.search.ranking import Hit, rank


def passages(spans: Sequence[tuple[int, int, int]], embedding: np.ndarray) -> Passages:
    """Passages with (document, char_start, char_end) and vectors."""
    columns = {name: np.zeros(len(spans), dtype) for name, dtype in INTEGER_COLUMNS.items()}
    for row, (document, start, end) in enumerate(spans):
        columns["document"][row], columns["char_start"][row], columns["char_end"][row] = document, start, end
    return Passages(text=[str(row) for row in range(len(spans))], embedding=embedding, **columns)


class Store:
    """An index in memory, in blocks of three rows."""

    def __init__(self, rows: Passages, files: list[int]) -> None:
        self._rows = rows
        records = [FileRecord(path=str(i), digest="", size=0, rows=count) for i, count in enumerate(files)]
        self.info = IndexInfo({}, rows.embedding.shape[1], "/", records)

    def rows(self, start: int, stop: int) -> Passages:
        return self._rows.slice(start, stop)

    def take(self, rows: Sequence[int]) -> Passages:
        return Passages.concatenate([self._rows.slice(row, row + 1) for row in rows])

    def embedding_blocks(self, wanted: np.ndarray | None = None) -> Iterator[tuple[int, np.ndarray]]:
        for start in range(0, len(self._rows), 3):
            yield start, self._rows.embedding[start : start + 3]


def definition(store: Store, query: np.ndarray, top_k: int) -> list[tuple[int, float]]:
    """Walk all passages from the best, dropping those that overlap a better one of the same document."""
    rows = store.rows(0, store.info.num_passages)
    vectors = rows.embedding.astype(np.float64)
    norms = np.maximum(np.linalg.norm(vectors, axis=1), 1e-12)
    scores = vectors @ query / norms / max(np.linalg.norm(query), 1e-12)
    file_of = np.repeat(np.arange(len(store.info.files)), [record.rows for record in store.info.files])
    kept: list[int] = []
    for row in sorted(range(len(scores)), key=lambda row: (-scores[row], row)):
        same = [k for k in kept if file_of[k] == file_of[row] and rows.document[k] == rows.document[row]]
        if all(rows.char_end[k] <= rows.char_start[row] or rows.char_end[row] <= rows.char_start[k] for k in same):
            kept.append(row)
    return [(row, scores[row]) for row in kept[:top_k]]


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 2**32 - 1), st.integers(1, 60), st.integers(1, 20))
def test_equals_the_definition(seed: int, num_rows: int, top_k: int):
    draw = np.random.default_rng(seed)
    starts = draw.integers(0, 50, num_rows)
    spans = [(int(draw.integers(0, 2)), int(s), int(s + draw.integers(1, 30))) for s in starts]
    first = int(draw.integers(0, num_rows + 1))
    store = Store(passages(spans, draw.standard_normal((num_rows, 5)).astype(np.float32)), [first, 0, num_rows - first])
    queries = draw.standard_normal((3, 5)).astype(np.float32)
    for query, hits in zip(queries, rank(store, queries, top_k), strict=True):
        expected = definition(store, query.astype(np.float64), top_k)
        assert [hit.row for hit in hits] == [row for row, _ in expected]
        np.testing.assert_allclose([hit.score for hit in hits], [score for _, score in expected], rtol=0, atol=1e-6)


def test_vectors_of_length_one_are_used_as_they_are(monkeypatch: pytest.MonkeyPatch):
    draw = np.random.default_rng(1)
    vectors = draw.standard_normal((50, 8)).astype(np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    store = Store(passages([(0, 3 * i, 3 * i + 2) for i in range(50)], vectors), [50])
    expected = rank(store, vectors[:3], 5)
    store.info.settings["normalized"] = True
    monkeypatch.setattr("longspan.search.candidates.row_norms", None)  # no norm of a stored vector is taken
    found = rank(store, vectors[:3], 5)
    assert [[hit.row for hit in hits] for hits in found] == [[hit.row for hit in hits] for hits in expected]
    assert found[0][0].score == pytest.approx(1.0, abs=1e-6)


def test_equal_scores_come_in_the_order_of_the_index():
    store = Store(passages([(i, 0, 1) for i in range(40)], np.ones((40, 2), np.float32)), [40])
    assert [hit.row for hit in rank(store, np.ones((1, 2), np.float32), 25)[0]] == list(range(25))


def test_zero_vectors_score_zero():
    store = Store(passages([(0, 0, 1), (1, 0, 1)], np.array([[0, 0], [-1, 0]], np.float32)), [2])
    assert [hit.score for hit in rank(store, np.array([[1, 0]], np.float32), 2)[0]] == [0.0, -1.0]


def test_many_queries_are_scored_in_groups(monkeypatch: pytest.MonkeyPatch):
    draw = np.random.default_rng(0)
    store = Store(passages([(i, 0, 1) for i in range(10)], draw.standard_normal((10, 4)).astype(np.float32)), [10])
    queries = draw.standard_normal((7, 4)).astype(np.float32)

    def keys(results: list[list[Hit]]) -> list[list[int]]:
        return [[hit.row for hit in hits] for hits in results]

    together = keys(rank(store, queries, 3))
    monkeypatch.setattr("longspan.search.ranking._MAX_QUERIES", 2)
    assert keys(rank(store, queries, 3)) == together


def test_bad_arguments():
    store = Store(passages([(0, 0, 1)], np.ones((1, 3), np.float32)), [1])
    with pytest.raises(InputError, match="top_k must be at least 1. Received: top_k=0"):
        rank(store, np.ones((1, 3), np.float32), 0)
    with pytest.raises(InputError, match="Queries must have the 3 dimensions of the index. Received: 4"):
        rank(store, np.ones((1, 4), np.float32), 1)


def test_an_empty_index_has_no_answers():
    store = Store(passages([], np.ones((0, 3), np.float32)), [0])
    assert rank(store, np.ones((2, 3), np.float32), 5) == [[], []]
