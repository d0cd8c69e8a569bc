"""Exact nearest passages, without overlapping ones."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from longspan.errors import InputError
from longspan.search.passages import FileRecord, IndexInfo, PassageStore

#: Most scores that are held at once.
_MAX_SCORES = 1 << 26


@dataclass(frozen=True)
class Hit:
    """A passage found.

    Attributes:
        score: Cosine of query and passage, from -1 to 1.
        row: Row of the passage in its index.
        file: The file that it is from.
        document: Which document of the file, from 0.
        char_start: First character in the document's text.
        char_end: One past the last character.
        line_start: Line (or page) of the first character, from 1.
        line_end: Line (or page) of the last character.
        text: The passage.
    """

    score: float
    row: int
    file: FileRecord
    document: int
    char_start: int
    char_end: int
    line_start: int
    line_end: int
    text: str


def rank(store: PassageStore, queries: npt.NDArray[np.float32], top_k: int) -> list[list[Hit]]:
    """Best passages for each query by cosine, compared with every passage (no approximation).

    Of passages of one document that overlap only the best is kept.

    Args:
        store: The index.
        queries: (Q, D) embeddings.
        top_k: Most passages a query gets.

    Returns:
        For each query at most `top_k` hits, best first; equal scores in the order of the index.

    Raises:
        InputError: `top_k` is not positive, or the queries' length is not that of the index.
    """
    if top_k < 1:
        raise InputError(f"top_k must be at least 1. Received: top_k={top_k}")
    if queries.shape[1] != store.info.dimension:
        raise InputError(
            f"Queries must have the {store.info.dimension} dimensions of the index. Received: {queries.shape[1]}"
        )
    num_rows = store.info.num_passages
    if num_rows == 0:
        return [[] for _ in queries]
    group = max(1, _MAX_SCORES // num_rows)
    results: list[list[Hit]] = []
    for start in range(0, len(queries), group):
        scores = _scores(store, unit_rows(queries[start : start + group]))
        results.extend(_best(store, row, top_k) for row in scores)
    return results


def unit_rows(vectors: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    """`vectors` (N, D) scaled to length 1; zero vectors stay zero."""
    norms = np.linalg.norm(vectors, axis=1, keepdims=True)
    scaled: npt.NDArray[np.float32] = vectors / np.maximum(norms, 1e-12)
    return scaled


def _scores(store: PassageStore, queries: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    """Cosines (Q, N) of unit queries with every passage; vectors that the index holds at length 1 stay as they are."""
    scores = np.empty((len(queries), store.info.num_passages), np.float32)
    is_unit = store.info.settings.get("normalized") is True
    for start, block in store.embedding_blocks():
        part = scores[:, start : start + len(block)]
        np.matmul(queries, block.T, out=part)
        if not is_unit:
            part /= np.maximum(np.sqrt(np.einsum("nd,nd->n", block, block)), 1e-12)
    return scores


def _best(store: PassageStore, scores: npt.NDArray[np.float32], top_k: int) -> list[Hit]:
    """Best hits of one query; looks at ever more candidates until enough of them do not overlap."""
    num_candidates = min(len(scores), 4 * top_k)
    files = _FileOfRow(store.info)
    while True:
        hits = _without_overlaps(store, files, scores, _top(scores, num_candidates))
        if len(hits) >= top_k or num_candidates == len(scores):
            return hits[:top_k]
        num_candidates = min(len(scores), 4 * num_candidates)


def _top(scores: npt.NDArray[np.float32], count: int) -> npt.NDArray[np.int64]:
    """Rows of the `count` highest scores, best first, equal scores by row."""
    threshold = np.partition(scores, len(scores) - count)[len(scores) - count]
    rows = np.flatnonzero(scores >= threshold)
    return rows[np.argsort(-scores[rows], kind="stable")][:count]


def _without_overlaps(
    store: PassageStore, files: _FileOfRow, scores: npt.NDArray[np.float32], rows: npt.NDArray[np.int64]
) -> list[Hit]:
    passages = store.take(rows.tolist())
    hits: list[Hit] = []
    taken: dict[tuple[int, int], list[tuple[int, int]]] = {}
    for index, row in enumerate(rows.tolist()):
        start, end = int(passages.char_start[index]), int(passages.char_end[index])
        file, document = files.find(row), int(passages.document[index])
        spans = taken.setdefault((file, document), [])
        if any(start < other_end and other_start < end for other_start, other_end in spans):
            continue
        spans.append((start, end))
        lines = int(passages.line_start[index]), int(passages.line_end[index])
        record = store.info.files[file]
        hits.append(Hit(float(scores[row]), row, record, document, start, end, *lines, passages.text[index]))
    return hits


class _FileOfRow:
    def __init__(self, info: IndexInfo) -> None:
        self._ends = np.cumsum([record.rows for record in info.files])

    def find(self, row: int) -> int:
        return int(np.searchsorted(self._ends, row, side="right"))
