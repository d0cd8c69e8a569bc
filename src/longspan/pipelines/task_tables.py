"""Writing rows as JSON lines, csv or Parquet."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Callable, Iterable, Iterator
from itertools import islice
from pathlib import Path
from typing import IO, Any

from longspan.errors import InputError
from longspan.pipelines.task_rows import PLACE_COLUMNS
from longspan.search.parquet import import_pyarrow
from longspan.search.shards import atomic_write

_GROUP_ROWS = 4096
Row = dict[str, Any]


def check_table_name(output: Path) -> None:
    """Raise `InputError` unless `output` has a known ending, and `MissingFrameworkError` if that needs pyarrow."""
    if output.suffix not in _WRITERS:
        raise InputError(f"The output must end in {', '.join(_WRITERS)}. Received: {output}")
    if output.suffix == ".parquet":
        import_pyarrow()


def write_table(output: Path, scratch: Path, columns: dict[str, str], rows: Callable[[], Iterable[Row]]) -> int:
    """Write rows, atomically.

    Args:
        output: A `.jsonl`, `.csv` or `.parquet` file.
        scratch: Name to write under meanwhile.
        columns: Columns after those of the place, with their types.
        rows: Gives the rows.

    Returns:
        The number of rows.
    """
    count = 0

    def counted() -> Iterator[Row]:
        nonlocal count
        for row in rows():
            count += 1
            yield row

    with atomic_write(output, scratch) as file:
        _WRITERS[output.suffix](file, {**PLACE_COLUMNS, **columns}, counted())
    return count


def json_line(row: Row) -> str:
    """A row as one line of JSON."""
    return json.dumps(row, ensure_ascii=False)


def _write_json_lines(file: IO[bytes], columns: dict[str, str], rows: Iterable[Row]) -> None:
    for row in rows:
        file.write(json_line(row).encode("utf-8") + b"\n")


def _write_csv(file: IO[bytes], columns: dict[str, str], rows: Iterable[Row]) -> None:
    text = io.TextIOWrapper(file, encoding="utf-8", newline="")
    writer = csv.DictWriter(text, list(columns), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    text.detach()


def _write_parquet(file: IO[bytes], columns: dict[str, str], rows: Iterable[Row]) -> None:
    pa, pq = import_pyarrow()
    schema = pa.schema([(name, getattr(pa, {"double": "float64"}.get(kind, kind))()) for name, kind in columns.items()])
    with pq.ParquetWriter(file, schema, compression="zstd") as writer:
        remaining = iter(rows)
        while group := list(islice(remaining, _GROUP_ROWS)):
            writer.write_table(pa.Table.from_pylist(group, schema))


_WRITERS: dict[str, Callable[[IO[bytes], dict[str, str], Iterable[Row]], None]] = {
    ".jsonl": _write_json_lines,
    ".csv": _write_csv,
    ".parquet": _write_parquet,
}
