"""Indexes with the vectors and texts that a test asks for."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from longspan.search.candidates import unit_rows
from longspan.search.parquet import ParquetIndex, write_parquet
from longspan.search.passages import INTEGER_COLUMNS, FileRecord, IndexInfo, Passages


def make_index(
    path: Path, vectors: np.ndarray, *, texts: Sequence[str] | None = None, files: dict[str, int] | None = None
) -> ParquetIndex:
    """A Parquet index of unit vectors (N, D); `files` says how many passages each file has. No passages overlap."""
    files = files or {"all.txt": len(vectors)}
    texts = texts or ["passage"] * len(vectors)
    records = [FileRecord(name, digest=name, size=1, documents=1, rows=rows) for name, rows in files.items()]
    info = IndexInfo({"normalized": True}, vectors.shape[1], "/base", records)

    def blocks():
        first = 0
        for record in records:
            rows = slice(first, first + record.rows)
            columns = {name: np.zeros(record.rows, kind) for name, kind in INTEGER_COLUMNS.items()}
            columns["char_start"], columns["char_end"] = np.arange(record.rows) * 2, np.arange(record.rows) * 2 + 1
            yield record, Passages(text=list(texts[rows]), embedding=vectors[rows], **columns)
            first += record.rows

    write_parquet(path, path.with_suffix(".partial"), info, blocks())
    return ParquetIndex(path)


def clustered(count: int, dimension: int, *, clusters: int = 200, spread: float = 0.8, seed: int = 0) -> np.ndarray:
    """Unit vectors (count, dimension) around `clusters` centres, which are the same for every `seed`."""
    centres = np.random.default_rng(7).standard_normal((clusters, dimension)).astype(np.float32)
    draw = np.random.default_rng(seed)
    noise = draw.standard_normal((count, dimension)).astype(np.float32)
    return unit_rows(centres[draw.integers(0, clusters, count)] + spread * noise)
