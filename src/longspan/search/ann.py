"""Approximate nearest passages by faiss (extra `search`): graphs (HNSW) and inverted lists (IVF) beside an index."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
import numpy.typing as npt

from longspan.errors import InputError, MissingFrameworkError
from longspan.search.candidates import Candidates, Exact, Rows, Scores, is_unit, unit_rows
from longspan.search.derived import Note, derived_folder
from longspan.search.passages import Mask, PassageStore

Ann = Literal["hnsw", "ivf"]
_FILE = "vectors.faiss"
#: Neighbours that a passage has in the graph, and candidates that are looked at to choose them.
_HNSW = {"links": 32, "construction": 64}
#: Least passages that a query looks at in the graph, and least share of the lists that it reads.
_LEAST_BREADTH = 128
_LEAST_LISTS = 1 / 16
#: Vectors for each list from which the lists are learnt.
_TRAINING = 64
#: A choice of so few passages is compared in full.
_FEW_ROWS = 20_000
#: More candidates than these come from an exact search.
_MOST_CANDIDATES = 2048


class Approximate:
    """Candidates from a faiss index beside the index, which is built, or built again, when it does not fit.

    Scores are exact cosines; what is approximate is which passages are looked at. Where that finds fewer than it was
    asked for, or few passages may be found at all, all of these are compared.

    Args:
        store: The index.
        queries: (Q, D) unit vectors.
        wanted: (N,) which rows may be found; None: all.
        kind: `"hnsw"` or `"ivf"`.
        note: Told before something is built.

    Raises:
        InputError: there is no such kind.
        MissingFrameworkError: faiss is not installed.
    """

    def __init__(self, store: PassageStore, queries: Scores, wanted: Mask | None, kind: Ann, note: Note) -> None:
        if kind not in get_args(Ann):
            raise InputError(f"ann must be one of {', '.join(get_args(Ann))}. Received: ann={kind!r}")
        self._faiss = import_faiss()
        self._exact = Exact(store, queries, wanted)
        self.size = self._exact.size
        self._queries = queries
        self._kind = kind
        self._index: Any = None
        self._selector: Any = None
        self._share = self.size / max(store.info.num_passages, 1)
        if self.size > _FEW_ROWS or wanted is None:
            self._index = _open(self._faiss, store, kind, note)
            if wanted is not None:
                self._bits = np.packbits(wanted, bitorder="little")  # faiss keeps a pointer to them
                self._selector = self._faiss.IDSelectorBitmap(self._bits)

    def best(self, query: int, count: int) -> Candidates:
        """See `longspan.search.candidates.Source`."""
        if self._index is None or count > _MOST_CANDIDATES:
            return self._exact.best(query, count)
        scores, rows = self._index.search(self._queries[query : query + 1], count, params=self._parameters(count))
        found = rows[0] >= 0
        if int(found.sum()) < min(count, self.size):
            return self._exact.best(query, count)
        return in_order(rows[0][found], scores[0][found])

    def _parameters(self, count: int) -> Any:
        """How much of the index a query looks at: the more, the fewer of the passages may be found."""
        selector = {} if self._selector is None else {"sel": self._selector}
        if self._kind == "hnsw":
            breadth = max(_LEAST_BREADTH, 2 * count) / self._share
            return self._faiss.SearchParametersHNSW(efSearch=math.ceil(breadth), **selector)
        num_lists = self._index.nlist
        lists = max(16, num_lists * _LEAST_LISTS) / self._share
        return self._faiss.SearchParametersIVF(nprobe=min(num_lists, math.ceil(lists)), **selector)


def in_order(rows: Rows, scores: Scores) -> Candidates:
    """Candidates by score, equal scores by row."""
    order = np.lexsort((rows, -scores))
    return rows[order], scores[order]


def import_faiss() -> Any:
    """The module `faiss`, or `MissingFrameworkError`."""
    try:
        import faiss
    except ModuleNotFoundError as error:
        raise MissingFrameworkError(
            "Approximate search needs faiss, which is not installed: pip install 'longspan[search]'"
        ) from error
    return faiss


def _open(faiss: Any, store: PassageStore, kind: Ann, note: Note) -> Any:
    """The faiss index, by memory map."""
    settings = {"format": "longspan-ann", "version": 1, **(_HNSW if kind == "hnsw" else _ivf(store))}

    def build(folder: Path) -> None:
        make = _make_hnsw if kind == "hnsw" else _make_ivf
        faiss.write_index(make(faiss, store, settings), str(folder / _FILE))

    folder = derived_folder(store, kind, settings, build, note)
    return faiss.read_index(str(folder / _FILE), faiss.IO_FLAG_MMAP_IFC)


def _ivf(store: PassageStore) -> dict[str, int]:
    """Two lists for each square root of passages, none with fewer than 39 passages on average, as faiss wants."""
    num_rows = store.info.num_passages
    return {"lists": max(1, min(2 * math.isqrt(num_rows), num_rows // 39)), "rounds": 10}


def _make_hnsw(faiss: Any, store: PassageStore, settings: dict[str, Any]) -> Any:
    index = faiss.IndexHNSWFlat(store.info.dimension, settings["links"], faiss.METRIC_INNER_PRODUCT)
    index.hnsw.efConstruction = settings["construction"]
    for _, block in store.embedding_blocks():
        index.add(_units(store, block))
    return index


def _make_ivf(faiss: Any, store: PassageStore, settings: dict[str, Any]) -> Any:
    lists = settings["lists"]
    centres = faiss.IndexFlatIP(store.info.dimension)
    index = faiss.IndexIVFFlat(centres, store.info.dimension, lists, faiss.METRIC_INNER_PRODUCT)
    index.cp.niter = settings["rounds"]
    every = max(1, store.info.num_passages // (lists * _TRAINING))
    sample = [_units(store, block[-first % every :: every]) for first, block in store.embedding_blocks()]
    index.train(np.concatenate(sample))
    for _, block in store.embedding_blocks():
        index.add(_units(store, block))
    return index


def _units(store: PassageStore, block: Scores) -> npt.NDArray[np.float32]:
    """Vectors (n, D) at length 1."""
    return np.ascontiguousarray(block) if is_unit(store) else unit_rows(block)
