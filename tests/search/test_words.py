"""Search by words beside vectors, filters by path, and the memory that a search takes."""

from __future__ import annotations

import sys
import tracemalloc
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from tests.search.stores import clustered, make_index

from longspan.errors import InputError, MissingFrameworkError
from longspan.search.candidates import Exact
from longspan.search.index import open_index
from longspan.search.parquet import ParquetIndex
from longspan.search.ranking import rank
from longspan.search.words import terms

TEXTS = ["start the server", "error E1234 on start", "", "数据库连接超时", "rotate_log_files(keep=5)", "the end"]
FILES = {"docs/a.txt": 2, "docs/b.md": 2, "src/log.py": 2}


@pytest.fixture
def store(tmp_path: Path) -> ParquetIndex:
    return make_index(tmp_path / "i.parquet", np.eye(6, dtype=np.float32), texts=TEXTS, files=FILES)


def test_terms():
    assert terms("Rotate_log_files(KEEP=5)") == ["rotate", "log", "files", "keep", "5"]
    assert terms("数据库 timeout超") == ["数据", "据库", "timeout", "超"]
    assert terms("Straße") == ["strasse"]
    assert terms(" ,;") == []


@pytest.mark.parametrize(("query", "row"), [("e1234", 1), ("连接", 3), ("log files", 4)])
def test_words_find_what_vectors_do_not(store: ParquetIndex, query: str, row: int):
    vector = np.eye(6, dtype=np.float32)[5:]
    [[by_words, *_]] = rank(store, vector, 6, texts=[query], word_weight=1.0)
    assert (by_words.row, by_words.ranks) == (row, {"words": 1})
    hits = {hit.row: hit for hit in rank(store, vector, 6, texts=[query])[0]}
    assert len(hits) == 6
    assert hits[5].ranks == {"vector": 1}
    cosine = hits[row].ranks["vector"]
    assert hits[row].ranks == {"words": 1, "vector": cosine}
    assert hits[row].score == pytest.approx(0.5 / 61 + 0.5 / (60 + cosine))
    assert rank(store, vector, 6, texts=[query], word_weight=0)[0][0].row == 5


def test_a_query_of_unknown_words(store: ParquetIndex):
    vector = np.eye(6, dtype=np.float32)[5:]
    assert [hit.row for hit in rank(store, vector, 1, texts=["zebra"])[0]] == [5]
    assert rank(store, vector, 1, texts=["?"], word_weight=1.0) == [[]]


def test_a_changed_index_has_new_words(tmp_path: Path, store: ParquetIndex):
    notes, vector = [], np.eye(6, dtype=np.float32)[:1]
    for texts, row in [(TEXTS, 1), (TEXTS, 1), (TEXTS[::-1], 4)]:
        store = make_index(tmp_path / "i.parquet", np.eye(6, dtype=np.float32), texts=texts, files=FILES)
        assert rank(store, vector, 1, texts=["E1234"], word_weight=1.0, note=notes.append)[0][0].row == row
    assert [note.split(": ", 1)[1] for note in notes] == [
        "building .i.parquet.words",
        "it has changed: building again .i.parquet.words",
    ]


@pytest.mark.parametrize("texts", [None, ["start the end"]])
@pytest.mark.parametrize(
    ("patterns", "rows"),
    [(["docs/*"], {0, 1, 2, 3}), (["*.md", "log.??"], {2, 3, 4, 5}), (["/base/src/*"], {4, 5}), (["a.txt"], {0, 1})],
)
def test_filters_by_path(store: ParquetIndex, patterns: list[str], rows: set[int], texts: list[str] | None):
    hits = rank(store, np.eye(6, dtype=np.float32)[5:], 6, paths=patterns, texts=texts)[0]
    assert {hit.row for hit in hits} == rows
    assert hits[0].row == (5 if 5 in rows else 0 if texts and 0 in rows else min(rows))


def test_what_is_wrong_is_said(store: ParquetIndex, monkeypatch: pytest.MonkeyPatch):
    vector = np.eye(6, dtype=np.float32)[:1]
    with pytest.raises(InputError, match=r"must match a file of the index, such as docs/a.txt. Received: \*.rst, x"):
        rank(store, vector, 1, paths=["*.rst", "x"])
    with pytest.raises(InputError, match=r"word_weight must lie in \[0, 1\]. Received: word_weight=1.5"):
        rank(store, vector, 1, texts=["x"], word_weight=1.5)
    monkeypatch.setitem(sys.modules, "bm25s", None)
    with pytest.raises(
        MissingFrameworkError, match=r"needs bm25s, which is not installed: pip install 'longspan\[search"
    ):
        rank(store, vector, 1, texts=["x"])


def test_blocks_of_other_files_are_not_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    vectors = clustered(20_000, 8)
    store = make_index(tmp_path / "i.parquet", vectors, files={"a": 9_000, "b": 2_000, "c": 9_000})
    read, original = [], ParquetIndex._to_matrix
    monkeypatch.setattr(ParquetIndex, "_to_matrix", lambda self, table: read.append(1) or original(self, table))
    wanted = np.zeros(20_000, bool)
    wanted[9_000:11_000] = True
    rows, scores = Exact(store, vectors[:1], wanted).best(0, 30)
    assert len(read) == 1
    order = np.argsort(-(vectors[9_000:11_000] @ vectors[0]), kind="stable")[:30] + 9_000
    assert rows.tolist() == order.tolist()
    assert scores == pytest.approx(vectors[rows] @ vectors[0], abs=1e-6)


def test_a_search_holds_a_block_and_not_the_index(tmp_path: Path):
    vectors = np.tile(clustered(1000, 384), (120, 1))
    make_index(tmp_path / "i.parquet", vectors)
    size = vectors.nbytes
    queries = vectors[:50].copy()
    del vectors
    pool = pa.system_memory_pool()
    before = pa.default_memory_pool()
    pa.set_memory_pool(pool)
    tracemalloc.start()
    try:
        store = open_index(tmp_path / "i.parquet")
        assert rank(store, queries, 5)[7][0].score == pytest.approx(1.0, abs=1e-5)
        peak = tracemalloc.get_traced_memory()[1] + pool.max_memory()
    finally:
        tracemalloc.stop()
        pa.set_memory_pool(before)
    assert size > 180e6
    assert peak < 40e6
