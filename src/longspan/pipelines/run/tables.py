"""The rows of a table that results of a task become, and tables as JSON lines, csv or Parquet."""

from __future__ import annotations

import csv
import io
import json
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import IO, Any

import numpy as np

from longspan.documents.document import Document
from longspan.errors import InputError
from longspan.search.parquet import import_pyarrow
from longspan.search.shards import atomic_write

#: Where a row is from: its file, record of the file (from 0), and line or page of the file.
PLACE_COLUMNS = {"path": "string", "record": "int64", "line": "int64", "page": "int64"}


@dataclass(frozen=True)
class FileTask:
    """How a task works on files.

    Attributes:
        task: Name of the task.
        columns: Columns of its rows after those of the place, with their types.
        item: Makes an input of the pipeline of a document and the extra arguments of the run.
        rows: Makes rows of a result.
    """

    task: str
    columns: dict[str, str]
    item: Callable[[Document, Mapping[str, Any]], Any]
    rows: Callable[[Any], list[dict[str, Any]]]

    def table(self, document: Document, path: str, record: int, result: Any) -> list[dict[str, Any]]:
        """The rows of one document, with their places: that of a span where it begins, else of the document."""
        rows = []
        for values in self.rows(result):
            character = np.array([values.get("start", 0)], np.int64)
            number = int(document.lines.numbers_at(character)[0])
            place = {"path": path, "record": record, document.unit: number}
            if "start" in values and "text" in self.columns:
                values = {**values, "text": document.text[values["start"] : values["end"]]}
            rows.append(place | {name: values[name] for name in self.columns})
        return rows


_GROUP_ROWS = 4096
#: Characters that control a terminal and that JSON leaves as they are.
_CONTROLS = re.compile("[\x7f-\x9f\u202a-\u202e\u2066-\u2069]")
#: Beginnings of cells that programs for tables take for formulas.
_FORMULAS = ("=", "+", "-", "@", "\t", "\r")
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
    """A row as one line of JSON, in which no character controls a terminal."""
    return _CONTROLS.sub(lambda found: f"\\u{ord(found[0]):04x}", json.dumps(row, ensure_ascii=False))


def _write_json_lines(file: IO[bytes], columns: dict[str, str], rows: Iterable[Row]) -> None:
    for row in rows:
        file.write(json_line(row).encode("utf-8") + b"\n")


def _write_csv(file: IO[bytes], columns: dict[str, str], rows: Iterable[Row]) -> None:
    text = io.TextIOWrapper(file, encoding="utf-8", newline="")
    writer = csv.DictWriter(text, list(columns), lineterminator="\n")
    writer.writeheader()
    writer.writerows({name: _as_cell(value) for name, value in row.items()} for row in rows)
    text.detach()


def _as_cell(value: Any) -> Any:
    """A value as csv; text that a program for tables would take for a formula begins with an apostrophe there."""
    return f"'{value}" if isinstance(value, str) and value.startswith(_FORMULAS) else value


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
