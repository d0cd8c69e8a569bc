"""The passages that come first for a query, by whatever measure: all sources of them answer the same call."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from longspan.products import product
from longspan.search.passages import Mask, PassageStore

Rows = npt.NDArray[np.int64]
Scores = npt.NDArray[np.float32]
#: Rows, best first and equal scores by row, and their scores.
Candidates = tuple[Rows, npt.NDArray[Any]]
#: Least candidates that each query keeps of the pass over the index that all share.
_KEPT = 64


class Source(Protocol):
    """Where candidates for the queries of a search come from.

    Attributes:
        size: Most candidates that a query can have.
    """

    size: int

    def best(self, query: int, count: int) -> Candidates:
        """The best `count` passages for a query; fewer only if there are no more."""
        ...


class Exact:
    """Candidates by cosine, compared with every passage, block by block.

    Args:
        store: The index.
        queries: (Q, D) unit vectors.
        wanted: (N,) which rows may be found; None: all.
    """

    def __init__(self, store: PassageStore, queries: Scores, wanted: Mask | None = None) -> None:
        self.size = store.info.num_passages if wanted is None else int(wanted.sum())
        self._store = store
        self._queries = queries
        self._wanted = wanted
        self._kept: list[Candidates] = []
        self._num_kept = 0

    def best(self, query: int, count: int) -> Candidates:
        """See `Source`."""
        count = min(count, self.size)
        if not self._kept:
            self._num_kept = min(max(count, _KEPT), self.size)
            self._kept = self._pass(self._queries, self._num_kept)
        if count > self._num_kept:  # so many passages overlap that more are looked at
            return self._pass(self._queries[query : query + 1], count)[0]
        rows, scores = self._kept[query]
        return rows[:count], scores[:count]

    def _pass(self, queries: Scores, count: int) -> list[Candidates]:
        """The best `count` passages of each query; as many scores as a block has rows are held for each."""
        best: list[Candidates] = [(np.empty(0, np.int64), np.empty(0, np.float32))] * len(queries)
        for first, scores in self._scores(queries):
            for query, (rows, kept) in enumerate(best):
                least = kept[-1] if len(kept) == count else -np.inf
                new = np.flatnonzero(scores[query] > least)  # of equal scores the earlier row stays
                if len(new):
                    every = np.concatenate([kept, scores[query, new]])
                    chosen = top(every, min(count, len(every)))
                    best[query] = np.concatenate([rows, first + new])[chosen], every[chosen]
        return best

    def _scores(self, queries: Scores) -> Iterator[tuple[int, Scores]]:
        """First row of each block, and the cosines (Q, n) with its passages; -inf for those that are not wanted.

        Vectors that the index holds at length 1 stay as they are.
        """
        for first, block in self._store.embedding_blocks(self._wanted):
            scores = product(queries, block)
            if not is_unit(self._store):
                scores /= np.maximum(row_norms(block), 1e-12)
            if self._wanted is not None:
                scores[:, ~self._wanted[first : first + len(block)]] = -np.inf
            yield first, scores


def row_norms(vectors: Scores) -> Scores:
    """Lengths of the rows, (N, D) -> (N,), without a copy of them."""
    norms: Scores = np.sqrt(np.einsum("nd,nd->n", vectors, vectors))
    return norms


def is_unit(store: PassageStore) -> bool:
    """Whether the index holds its vectors at length 1."""
    return store.info.settings.get("normalized") is True


def unit_rows(vectors: Scores) -> Scores:
    """`vectors` (N, D) scaled to length 1; zero vectors stay zero."""
    norms = np.linalg.norm(vectors, axis=1, keepdims=True)
    scaled: Scores = vectors / np.maximum(norms, 1e-12)
    return scaled


def top(scores: npt.NDArray[Any], count: int) -> Rows:
    """Rows of the `count` highest scores, best first, equal scores by row."""
    threshold = np.partition(scores, len(scores) - count)[len(scores) - count]
    rows = np.flatnonzero(scores >= threshold)
    return rows[np.argsort(-scores[rows], kind="stable")][:count]
