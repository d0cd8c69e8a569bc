"""Answering queries from an index, with the lines that fit best."""

from __future__ import annotations

import re
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from longspan.embeddings.sentence_encoder import SentenceEncoder
from longspan.errors import CheckpointNotFoundError, InputError
from longspan.search.passages import IndexFileError, IndexInfo, PassageStore
from longspan.search.ranking import Hit, rank

if TYPE_CHECKING:
    from longspan.search.ann import Ann
    from longspan.search.derived import Note

_LINE_END = re.compile(r"\r\n|\n|\r")
_WORD = re.compile(r"\w")
#: Longest part of a line, and most lines of a passage, that are compared with the query.
_MAX_LINE_CHARACTERS = 400
_MAX_LINES = 100


@dataclass(frozen=True)
class Match:
    """An answer to a query.

    Attributes:
        hit: The passage.
        lines: The lines of its text.
        best: Which of `lines` fits the query best.
        line: Number of that line in the file, or the passage's first line (page) where text and file have other lines.
    """

    hit: Hit
    lines: tuple[str, ...]
    best: int
    line: int

    @property
    def has_line_numbers(self) -> bool:
        """Whether line i of `lines` is line `hit.line_start + i` of the file."""
        return has_line_numbers(self.hit, len(self.lines))


def search_index(
    store: PassageStore,
    queries: Sequence[str],
    *,
    encoder: SentenceEncoder,
    top_k: int = 5,
    paths: Sequence[str] = (),
    ann: Ann | None = None,
    hybrid: bool = False,
    word_weight: float = 0.5,
    note: Note = lambda line: None,
) -> list[list[Match]]:
    """Find the passages that are nearest to each query.

    All passages are compared by cosine, unless `ann` says otherwise. In each passage found, the line nearest to the
    query is marked.

    Args:
        store: An open index.
        queries: What is looked for.
        encoder: The model that made the index.
        top_k: Most answers a query gets.
        paths: Patterns of files, of which passages are taken; see `longspan.search.ranking.matching_rows`.
        ann: `"hnsw"` or `"ivf"`: approximate search by faiss (extra `search`), with a file kept beside the index.
        hybrid: Find by words too, with BM25 (extra `search`), and fuse the ranks; see `longspan.search.words.Fused`.
        word_weight: What words weigh beside vectors in that, from 0 to 1.
        note: Told before anything is built beside the index.

    Returns:
        For each query its answers, best first.

    Raises:
        InputError: a query is empty, or another argument breaks a rule.
        IndexFileError: the index was made by another model.
        MissingFrameworkError: faiss or bm25s is needed and not installed.
    """
    for query in queries:
        if not query.strip():
            raise InputError(f"A query must hold text. Received: {query!r}")
    with ThreadPoolExecutor(1) as beside:  # weights are summed while the queries are encoded
        fingerprint = beside.submit(lambda: encoder.fingerprint)
        vectors = encoder.encode_query(list(queries), normalize=True) if queries else None
    if store.info.settings.get("weights") != fingerprint.result():
        raise IndexFileError(
            f"Queries must be encoded by the model of the index, {store.info.settings.get('model')}. "
            f"Received: {encoder.name}, whose weights or settings differ"
        )
    if vectors is None:
        return []
    texts = list(queries) if hybrid else None
    results = rank(store, vectors, top_k, paths=paths, ann=ann, texts=texts, word_weight=word_weight, note=note)
    lines = [[tuple(_LINE_END.split(hit.text)) for hit in hits] for hits in results]
    best = _best_lines(encoder, vectors, lines)
    return [[_match(hit, lines[i][j], best[i][j]) for j, hit in enumerate(hits)] for i, hits in enumerate(results)]


def load_encoder_of(info: IndexInfo, name_or_path: str | None = None, **settings: Any) -> SentenceEncoder:
    """The model that made an index.

    Args:
        info: What the index says about itself.
        name_or_path: Where the model is, if not where it was then.
        **settings: Further arguments of `SentenceEncoder`, such as `device`.

    Raises:
        CheckpointNotFoundError: the model is not there.
    """
    made_by = info.settings
    try:
        return SentenceEncoder(name_or_path or made_by["model"], dtype=made_by["dtype"], **settings)
    except CheckpointNotFoundError as error:
        if name_or_path is not None:
            raise
        raise CheckpointNotFoundError(f"{error} The index names this model; --model says where it is now") from error


def has_line_numbers(hit: Hit, num_lines: int) -> bool:
    """Whether a passage has as many lines as it spans in its file, so that they can be numbered."""
    return hit.file.unit == "line" and num_lines == hit.line_end - hit.line_start + 1


def _match(hit: Hit, lines: tuple[str, ...], best: int) -> Match:
    number = hit.line_start + best if has_line_numbers(hit, len(lines)) else hit.line_start
    return Match(hit, lines, best, number)


def _best_lines(
    encoder: SentenceEncoder,
    queries: np.ndarray[tuple[int, ...], np.dtype[np.float32]],
    lines: list[list[tuple[str, ...]]],
) -> list[list[int]]:
    """For each passage of each query the line nearest to the query; all lines are encoded together."""
    places = [
        (i, j, k)
        for i, passages in enumerate(lines)
        for j, passage in enumerate(passages)
        for k, line in enumerate(passage[:_MAX_LINES])
        if _WORD.search(line)
    ]
    best = [[0] * len(passages) for passages in lines]
    scores = [[-np.inf] * len(passages) for passages in lines]
    texts = [lines[i][j][k].strip()[:_MAX_LINE_CHARACTERS] for i, j, k in places]
    vectors = encoder.encode_document(texts, normalize=True)
    for (i, j, k), vector in zip(places, vectors, strict=True):
        score = float(queries[i] @ vector)
        if score > scores[i][j]:
            best[i][j], scores[i][j] = k, score
    return best
