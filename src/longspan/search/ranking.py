"""The best passages of an index for each query, without overlapping ones."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from longspan.errors import InputError
from longspan.search.candidates import Candidates, Exact, Source, unit_rows
from longspan.search.passages import FileRecord, IndexInfo, Mask, PassageStore

if TYPE_CHECKING:
    from longspan.search.ann import Ann
    from longspan.search.derived import Note

#: Most queries whose scores with a block are held at once.
_MAX_QUERIES = 1024


@dataclass(frozen=True)
class Hit:
    """A passage found.

    Attributes:
        score: Cosine of query and passage, from -1 to 1; with words, the sum of `longspan.search.words.Fused`.
        row: Row of the passage in its index.
        file: The file that it is from.
        document: Which document of the file, from 0.
        char_start: First character in the document's text.
        char_end: One past the last character.
        line_start: Line (or page) of the first character, from 1.
        line_end: Line (or page) of the last character.
        text: The passage.
        ranks: In a search with words, its rank from 1 by `vector` and by `words`, where it was among the first there.
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
    ranks: Mapping[str, int] = field(default_factory=dict)


def rank(
    store: PassageStore,
    queries: npt.NDArray[np.float32],
    top_k: int,
    *,
    paths: Sequence[str] = (),
    ann: Ann | None = None,
    texts: Sequence[str] | None = None,
    word_weight: float = 0.5,
    note: Note = lambda line: None,
) -> list[list[Hit]]:
    """Best passages for each query.

    Of passages of one document that overlap only the best is kept.

    Args:
        store: The index.
        queries: (Q, D) embeddings.
        top_k: Most passages a query gets.
        paths: Patterns of files, as of `matching_rows`; only passages of these are ranked.
        ann: `"hnsw"` or `"ivf"`: look at a part of the index only, by faiss; default: compare every passage.
        texts: The queries in words; if given, passages that share words with them are found too, by BM25.
        word_weight: What words weigh beside vectors, from 0 to 1.
        note: Told before anything is built beside the index.

    Returns:
        For each query at most `top_k` hits, best first; equal scores in the order of the index.

    Raises:
        InputError: an argument breaks a rule, or the queries' length is not that of the index.
        MissingFrameworkError: faiss or bm25s is needed and not installed.
    """
    if top_k < 1:
        raise InputError(f"top_k must be at least 1. Received: top_k={top_k}")
    if queries.shape[1] != store.info.dimension:
        raise InputError(
            f"Queries must have the {store.info.dimension} dimensions of the index. Received: {queries.shape[1]}"
        )
    if store.info.num_passages == 0:
        return [[] for _ in queries]
    wanted = matching_rows(store.info, paths) if paths else None
    results: list[list[Hit]] = []
    for start in range(0, len(queries), _MAX_QUERIES):
        some = slice(start, start + _MAX_QUERIES)
        vectors = unit_rows(queries[some])
        source: Source = Exact(store, vectors, wanted)
        if ann is not None:
            from longspan.search.ann import Approximate

            source = Approximate(store, vectors, wanted, ann, note)
        if texts is not None:
            from longspan.search.words import Fused, Words

            source = Fused(source, Words(store, texts[some], wanted, note), word_weight)
        results += [_best(store, source, query, top_k) for query in range(len(vectors))]
    return results


def matching_rows(info: IndexInfo, patterns: Sequence[str]) -> Mask:
    """Which passages are from files that match one of `patterns`.

    Args:
        info: What the index says about itself.
        patterns: Patterns with `*`, `?` and `[...]`. One with a slash is compared with the path that the index has and
            with the absolute one, any other with the file's name.

    Raises:
        InputError: no file matches.
    """
    from longspan.documents.walk import matches

    chosen = [
        matches(patterns, Path(record.path).name, record.path)
        or matches(patterns, "", os.path.normpath(Path(info.base, record.path)))
        for record in info.files
    ]
    if not any(chosen):
        example = info.files[0].path if info.files else "none"
        raise InputError(f"A path must match a file of the index, such as {example}. Received: {', '.join(patterns)}")
    return np.repeat(np.array(chosen, np.bool_), [record.rows for record in info.files])


def _best(store: PassageStore, source: Source, query: int, top_k: int) -> list[Hit]:
    """Best hits of one query; looks at ever more candidates until enough of them do not overlap."""
    files = _FileOfRow(store.info)
    count = 4 * top_k
    while True:
        found = source.best(query, min(count, source.size))
        ranks = getattr(source, "ranks", None)
        hits = _without_overlaps(store, files, found)
        if len(hits) >= top_k or len(found[0]) < count:
            hits = hits[:top_k]
            return hits if ranks is None else [replace(hit, ranks=ranks(query, hit.row)) for hit in hits]
        count *= 4


def _without_overlaps(store: PassageStore, files: _FileOfRow, found: Candidates) -> list[Hit]:
    rows = found[0].tolist()
    if not rows:
        return []
    passages = store.take(rows)
    hits: list[Hit] = []
    taken: dict[tuple[int, int], list[tuple[int, int]]] = {}
    for index, (row, score) in enumerate(zip(rows, found[1].tolist(), strict=True)):
        start, end = int(passages.char_start[index]), int(passages.char_end[index])
        file, document = files.find(row), int(passages.document[index])
        spans = taken.setdefault((file, document), [])
        if any(start < other_end and other_start < end for other_start, other_end in spans):
            continue
        spans.append((start, end))
        lines = int(passages.line_start[index]), int(passages.line_end[index])
        record = store.info.files[file]
        hits.append(Hit(score, row, record, document, start, end, *lines, passages.text[index]))
    return hits


class _FileOfRow:
    def __init__(self, info: IndexInfo) -> None:
        self._ends = np.cumsum([record.rows for record in info.files])

    def find(self, row: int) -> int:
        return int(np.searchsorted(self._ends, row, side="right"))
