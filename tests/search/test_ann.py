"""Approximate search: it finds what the exact one finds, looks at less, and never at an index that is no more."""

from __future__ import annotations

import sys
from pathlib import Path

import faiss
import numpy as np
import pytest
from tests.search.stores import clustered, make_index

from longspan.errors import InputError, MissingFrameworkError
from longspan.search.index import open_index
from longspan.search.parquet import ParquetIndex
from longspan.search.passages import IndexFileError
from longspan.search.ranking import Hit, rank

NUM_ROWS = 100_000
FILES = {"a.txt": 30_000, "folder/b.md": 1_000, "folder/c.txt": NUM_ROWS - 31_000}


def rows_of(results: list[list[Hit]]) -> list[list[int]]:
    return [[hit.row for hit in hits] for hits in results]


@pytest.fixture(scope="module")
def large(tmp_path_factory: pytest.TempPathFactory) -> ParquetIndex:
    return make_index(tmp_path_factory.mktemp("large") / "large.parquet", clustered(NUM_ROWS, 32), files=FILES)


@pytest.mark.parametrize("kind", ["hnsw", "ivf"])
def test_recall_on_a_hundred_thousand(large: ParquetIndex, kind: str):
    queries, notes = clustered(100, 32, seed=1), []
    exact = rank(large, queries, 10)
    stats = faiss.cvar.hnsw_stats if kind == "hnsw" else faiss.cvar.indexIVF_stats
    rank(large, queries[:1], 10, ann=kind, note=notes.append)
    assert [f"building .large.parquet.{kind}" in note for note in notes] == [True]
    stats.reset()
    found = rank(large, queries, 10, ann=kind, note=notes.append)
    assert len(notes) == 1
    assert 0 < stats.ndis < 0.2 * len(queries) * NUM_ROWS
    shared = [len({*one} & {*other}) for one, other in zip(rows_of(exact), rows_of(found), strict=True)]
    assert np.mean(shared) / 10 >= 0.95
    scores = {(query, hit.row): hit.score for query, hits in enumerate(exact) for hit in hits}
    for query, hits in enumerate(found):
        assert [hit.score for hit in hits] == sorted((hit.score for hit in hits), reverse=True)
        for hit in hits:
            assert hit.score == pytest.approx(scores.get((query, hit.row), hit.score), abs=1e-5)
    # many passages are found by faiss, few are all compared
    for pattern, names, least in [("a.txt", {"a.txt"}, 0.95), ("*.md", {"folder/b.md"}, 1.0)]:
        exact = rank(large, queries, 10, paths=[pattern])
        found = rank(large, queries, 10, paths=[pattern], ann=kind, note=notes.append)
        assert {hit.file.path for hits in found for hit in hits} == names
        shared = [len({*one} & {*other}) for one, other in zip(rows_of(exact), rows_of(found), strict=True)]
        assert np.mean(shared) / 10 >= least
    assert len(notes) == 1


@pytest.mark.parametrize("kind", ["hnsw", "ivf"])
def test_a_changed_index_is_built_again(tmp_path: Path, kind: str):
    vectors, notes = clustered(500, 8), []
    store = make_index(tmp_path / "i.parquet", vectors)
    assert rows_of(rank(store, vectors[:3], 1, ann=kind, note=notes.append)) == [[0], [1], [2]]
    store = make_index(tmp_path / "i.parquet", vectors[::-1].copy())  # equal files, sizes and settings
    assert rows_of(rank(store, vectors[:3], 1, ann=kind, note=notes.append)) == [[499], [498], [497]]
    assert [note.split(": ", 1)[1] for note in notes] == [
        f"building .i.parquet.{kind}",
        f"it has changed: building again .i.parquet.{kind}",
    ]
    [file] = tmp_path.glob(f".i.parquet.{kind}/vectors.faiss")
    file.write_bytes(file.read_bytes()[:-10])
    assert rows_of(rank(store, vectors[:1], 1, ann=kind, note=notes.append)) == [[499]]
    assert len(notes) == 3
    assert {path.name for path in tmp_path.iterdir()} == {"i.parquet", f".i.parquet.{kind}"}


def test_every_passage_can_be_asked_for(tmp_path: Path):
    vectors = clustered(300, 8)
    store = make_index(tmp_path / "i.parquet", vectors)
    for kind in ("hnsw", "ivf"):
        for paths in ([], ["all.txt"]):
            found = rank(store, vectors[:2], 300, ann=kind, paths=paths)
            assert rows_of(found) == rows_of(rank(store, vectors[:2], 300))


def test_what_is_wrong_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    vectors = clustered(50, 8)
    store = make_index(tmp_path / "i.parquet", vectors)
    with pytest.raises(InputError, match="ann must be one of hnsw, ivf. Received: ann='tree'"):
        rank(store, vectors[:1], 1, ann="tree")
    with monkeypatch.context() as patch:
        patch.setattr(Path, "mkdir", lambda *_: (_ for _ in ()).throw(OSError(28, "No space left on device")))
        with pytest.raises(
            IndexFileError, match="kept beside it, where there must be room for it. Received: .*No space"
        ):
            rank(store, vectors[:1], 1, ann="hnsw")
    assert [path.name for path in tmp_path.iterdir()] == ["i.parquet"]
    monkeypatch.setitem(sys.modules, "faiss", None)
    with pytest.raises(
        MissingFrameworkError, match=r"needs faiss, which is not installed: pip install 'longspan\[search"
    ):
        rank(store, vectors[:1], 1, ann="hnsw")


@pytest.mark.parametrize("name", ["i.npz", "i.index"])
def test_other_formats(tmp_path: Path, name: str):
    from longspan.search.merge import merge_indexes

    vectors, notes = clustered(400, 8), []
    make_index(tmp_path / "one.parquet", vectors)
    merge_indexes([tmp_path / "one.parquet"], tmp_path / name)
    for _ in range(2):
        store = open_index(tmp_path / name)
        assert rows_of(rank(store, vectors[5:7], 1, ann="hnsw", note=notes.append)) == [[5], [6]]
    assert len(notes) == 1
    make_index(tmp_path / "one.parquet", -vectors)
    merge_indexes([tmp_path / "one.parquet"], tmp_path / name)
    assert rows_of(rank(open_index(tmp_path / name), -vectors[5:7], 1, ann="hnsw", note=notes.append)) == [[5], [6]]
    assert len(notes) == 2
