"""The records of csv, tsv and Parquet files."""

from __future__ import annotations

import csv
import io
import sys
from collections.abc import Iterator
from pathlib import PurePath
from typing import Any

from longspan.documents.decoding import decode
from longspan.documents.document import UnreadableError

_BATCH_ROWS = 1024
#: Cells beyond the header.
_TOO_MANY = "\0"


def csv_records(name: str, data: bytes) -> Iterator[tuple[int, dict[str, Any] | str]]:
    """Records of a csv file whose first line names the columns.

    Args:
        name: Name of the file; tabs separate cells if it says tsv.
        data: Its content.

    Yields:
        The line that each record ends at, and the record, or what is wrong with it.

    Raises:
        UnreadableError: the file is binary or has no header.
    """
    text = decode(data).text
    suffixes = [suffix.lower() for suffix in PurePath(name).suffixes]
    limit = csv.field_size_limit(sys.maxsize)  # the module knows only one limit, for all
    try:
        reader = csv.DictReader(io.StringIO(text, newline=""), delimiter="\t" if ".tsv" in suffixes else ",",
                                restkey=_TOO_MANY)  # fmt: skip
        if not reader.fieldnames:
            raise UnreadableError("a table without a header")
        rows = [(reader.line_num, row) for row in reader]
    except csv.Error as error:
        raise UnreadableError(f"no valid csv: {error}") from error
    finally:
        csv.field_size_limit(limit)
    for number, row in rows:
        if _TOO_MANY in row:
            yield number, f"more cells than the {len(row) - 1} columns of the header"
        else:
            yield number, {column: value for column, value in row.items() if value is not None}


def parquet_records(data: bytes) -> Iterator[tuple[int, dict[str, Any]]]:
    """Records of a Parquet file.

    Args:
        data: Content of the file.

    Yields:
        The number of each row, from 1, and the row; cells without a value are left out.

    Raises:
        UnreadableError: `pyarrow` is not installed, or the file is damaged.
    """
    try:
        import pyarrow as pa
        import pyarrow.parquet as pq
    except ModuleNotFoundError as error:
        raise UnreadableError("reading Parquet needs pyarrow: pip install 'longspan[documents]'") from error
    number = 0
    try:
        for batch in pq.ParquetFile(io.BytesIO(data)).iter_batches(_BATCH_ROWS):
            for row in batch.to_pylist():
                number += 1
                yield number, {column: value for column, value in row.items() if value is not None}
    except (pa.ArrowException, OSError) as error:
        reason = str(error).partition("\n")[0]
        raise UnreadableError(f"damaged Parquet file ({reason})") from error
