"""Search in a Parquet index of a million vectors: seconds, memory, and what approximate search finds of the exact.

`python -m benchmarks.vector_search` writes `benchmarks/results/vector_search.json`. With a million vectors of 384
numbers it needs 4 GB of disk and 3 GB of memory (the lists hold a copy while they are built), and about six minutes on
two quiet cores; `--ann hnsw` builds for a quarter of an hour more; `--ann none` needs little of either.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
import tracemalloc
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np

from benchmarks.machine import Setting, machine
from longspan.search.candidates import unit_rows
from longspan.search.index import open_index
from longspan.search.parquet import write_parquet
from longspan.search.passages import INTEGER_COLUMNS, FileRecord, IndexInfo, Passages
from longspan.search.ranking import Hit, rank

RESULTS = Path(__file__).parent / "results" / "vector_search.json"
ROWS_OF_FILE = 1000
TOP_K = 10


def clustered(count: int, dimension: int, seed: int) -> np.ndarray:
    """Unit vectors around 2,000 centres, which are the same for every seed."""
    draw = np.random.default_rng(seed)
    noise = draw.standard_normal((count, dimension), np.float32)
    return unit_rows(centres(dimension)[draw.integers(0, 2000, count)] + noise)


@cache
def centres(dimension: int) -> np.ndarray:
    return np.random.default_rng(0).standard_normal((2000, dimension), np.float32)


def write(path: Path, rows: int, dimension: int) -> None:
    """An index of `rows` passages that do not overlap."""
    records = [
        FileRecord(f"{number:06}.txt", digest=str(number), size=1, documents=1, rows=ROWS_OF_FILE)
        for number in range(rows // ROWS_OF_FILE)
    ]

    def blocks() -> Iterator[tuple[FileRecord, Passages]]:
        for number, record in enumerate(records):
            columns = {name: np.zeros(ROWS_OF_FILE, kind) for name, kind in INTEGER_COLUMNS.items()}
            columns["char_start"] = np.arange(ROWS_OF_FILE) * 2
            columns["char_end"] = columns["char_start"] + 1
            vectors = clustered(ROWS_OF_FILE, dimension, number + 1)
            yield record, Passages(text=["a passage"] * ROWS_OF_FILE, embedding=vectors, **columns)

    info = IndexInfo({"normalized": True}, dimension, str(path.parent), records)
    write_parquet(path, path.with_suffix(".partial"), info, blocks())


def search(path: Path, queries: np.ndarray, **options: Any) -> tuple[list[list[Hit]], float, float]:
    """Hits, seconds, and the most megabytes that NumPy and Arrow held for it."""
    import pyarrow as pa

    pool = pa.system_memory_pool()
    pa.set_memory_pool(pool)
    tracemalloc.start()
    start = time.perf_counter()
    found = rank(open_index(path), queries, TOP_K, **options)
    seconds = time.perf_counter() - start
    peak = tracemalloc.get_traced_memory()[1] + pool.max_memory()
    tracemalloc.stop()
    return found, seconds, peak / 1e6


def measure(path: Path, dimension: int, kinds: list[str]) -> dict[str, Any]:
    queries = clustered(100, dimension, seed=10**9)
    found: dict[str, Any] = {}
    for name, some in (("one query", queries[:1]), ("100 queries", queries)):
        exact, seconds, peak = search(path, some)
        found[f"exact, {name}"] = {"seconds": seconds, "megabytes": peak}
    for kind in kinds:
        start = time.perf_counter()
        rank(open_index(path), queries[:1], TOP_K, ann=kind)
        built = time.perf_counter() - start
        hits, seconds, peak = search(path, queries, ann=kind)
        pairs = zip(exact, hits, strict=True)
        shared = [len({hit.row for hit in one} & {hit.row for hit in other}) for one, other in pairs]
        recall = float(np.mean(shared)) / TOP_K
        found[f"{kind}, 100 queries"] = {
            "seconds": seconds, "megabytes of NumPy and Arrow": peak, "recall at 10": recall, "seconds to build": built
        }  # fmt: skip
    return found


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--dimension", type=int, default=384)
    parser.add_argument("--ann", choices=["none", "ivf", "hnsw", "both"], default="ivf")
    parser.add_argument("--folder", type=Path, help="where there is room; default the folder for temporary files")
    asked = parser.parse_args()
    kinds = {"none": [], "both": ["ivf", "hnsw"]}.get(asked.ann, [asked.ann])
    with TemporaryDirectory(prefix="longspan-", dir=asked.folder) as scratch:
        path = Path(scratch, "index.parquet")
        write(path, asked.rows, asked.dimension)
        found = measure(path, asked.dimension, kinds)
    stored = {"machine": machine(Setting()), "rows": asked.rows, "dimension": asked.dimension, "results": found}
    RESULTS.write_text(json.dumps(stored, indent=1) + "\n")
    print(json.dumps(found, indent=1))
    return 0


if __name__ == "__main__":
    sys.exit(main())
