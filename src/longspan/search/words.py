"""Passages that share words with a query: BM25 by bm25s (extra `search`), kept beside an index; fusion with vectors."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from longspan.errors import InputError, MissingFrameworkError
from longspan.search.ann import in_order
from longspan.search.candidates import Candidates, Source, top
from longspan.search.derived import Note, derived_folder
from longspan.search.passages import Mask, PassageStore

_SETTINGS = {"format": "longspan-words", "version": 1, "method": "lucene", "k1": 1.5, "b": 0.75}
#: Chinese characters and Japanese syllables, which are written without spaces.
_UNSPACED = "\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0003ffff"
_TERM = re.compile(rf"[{_UNSPACED}]+|[^\W_{_UNSPACED}]+")
_IS_UNSPACED = re.compile(f"[{_UNSPACED}]")
_BLOCK_ROWS = 4096
#: Ranks count less the larger this is (Cormack, Clarke and Büttcher 2009, "Reciprocal Rank Fusion").
_RANK_OFFSET = 60
_LEAST_DEPTH = 100


def terms(text: str) -> list[str]:
    """Words in small letters; of text without spaces the pairs of neighbouring characters."""
    found: list[str] = []
    for run in _TERM.findall(text.casefold()):
        if len(run) > 1 and _IS_UNSPACED.match(run):
            found += [run[start : start + 2] for start in range(len(run) - 1)]
        else:
            found.append(run)
    return found


class Words:
    """Candidates by BM25, from a table of words beside the index, which is built, or built again, if it does not fit.

    Args:
        store: The index.
        queries: What is looked for.
        wanted: (N,) which rows may be found; None: all.
        note: Told before something is built.

    Raises:
        MissingFrameworkError: bm25s is not installed.
    """

    def __init__(self, store: PassageStore, queries: Sequence[str], wanted: Mask | None, note: Note) -> None:
        self.size = store.info.num_passages if wanted is None else int(wanted.sum())
        self._wanted = wanted
        bm25s = import_bm25s()
        folder = derived_folder(store, "words", _SETTINGS, lambda made: _build(bm25s, store, made), note)
        self._index = bm25s.BM25.load(folder, mmap=True, load_corpus=False)
        self._terms = [[term for term in terms(query) if term in self._index.vocab_dict] for query in queries]

    def best(self, query: int, count: int) -> Candidates:
        """See `longspan.search.candidates.Source`; passages without a word of the query are none."""
        if not self._terms[query]:
            return np.empty(0, np.int64), np.empty(0, np.float32)
        scores = self._index.get_scores(self._terms[query])
        if self._wanted is not None:
            scores[~self._wanted] = 0
        rows = np.flatnonzero(scores > 0)
        chosen = rows[top(scores[rows], min(count, len(rows)))] if len(rows) else rows
        return chosen, scores[chosen]


class Fused:
    """Candidates of two sources by reciprocal rank fusion.

    A passage's score is `(1 - w) / (60 + r) + w / (60 + s)` with its ranks r and s in the sources, from 1; a source
    that does not have it adds nothing.

    Args:
        vectors: Candidates by cosine.
        words: Candidates by BM25.
        word_weight: w, from 0 to 1.

    Raises:
        InputError: `word_weight` is out of range.
    """

    def __init__(self, vectors: Source, words: Source, word_weight: float) -> None:
        if not 0 <= word_weight <= 1:
            raise InputError(f"word_weight must lie in [0, 1]. Received: word_weight={word_weight}")
        self.size = vectors.size
        self._sources = {"vector": vectors, "words": words}
        self._weights = {"vector": 1 - word_weight, "words": word_weight}
        self._ranks: dict[int, dict[str, dict[int, int]]] = {}

    def best(self, query: int, count: int) -> Candidates:
        """See `longspan.search.candidates.Source`."""
        depth = max(2 * count, _LEAST_DEPTH)
        scores: dict[int, float] = {}
        self._ranks[query] = {}
        for name, source in self._sources.items():
            rows = source.best(query, depth)[0].tolist() if self._weights[name] else []
            self._ranks[query][name] = {row: rank for rank, row in enumerate(rows, start=1)}
            for row, rank in self._ranks[query][name].items():
                scores[row] = scores.get(row, 0.0) + self._weights[name] / (_RANK_OFFSET + rank)
        rows, values = in_order(np.array([*scores], np.int64), np.array([*scores.values()]))
        return rows[:count], values[:count]

    def ranks(self, query: int, row: int) -> dict[str, int]:
        """Rank of a passage in each source that had it among its first ones, for the last call of `best`."""
        return {name: ranks[row] for name, ranks in self._ranks[query].items() if row in ranks}


def import_bm25s() -> Any:
    """The module `bm25s`, or `MissingFrameworkError`."""
    try:
        import bm25s
    except ModuleNotFoundError as error:
        raise MissingFrameworkError(
            "Search by words needs bm25s, which is not installed: pip install 'longspan[search]'"
        ) from error
    return bm25s


def _build(bm25s: Any, store: PassageStore, folder: Path) -> None:
    index = bm25s.BM25(method=_SETTINGS["method"], k1=_SETTINGS["k1"], b=_SETTINGS["b"])
    vocabulary = {"": 0}
    ids = [[vocabulary.setdefault(term, len(vocabulary)) for term in terms(text)] for text in _texts(store)]
    index.index((ids, vocabulary), show_progress=False)
    index.save(folder, show_progress=False)


def _texts(store: PassageStore) -> Iterator[str]:
    num_rows = store.info.num_passages
    for start in range(0, num_rows, _BLOCK_ROWS):
        yield from store.rows(start, min(start + _BLOCK_ROWS, num_rows)).text
