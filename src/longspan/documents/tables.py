"""The records of csv, tsv and Parquet files."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Iterator
from pathlib import Path, PurePath
from typing import Any

from longspan.documents.document import UnreadableError
from longspan.documents.limits import BlankRun, ReadLimits

_BATCH_ROWS = 256
#: Cells beyond the header.
_TOO_MANY = "\0"


def csv_records(
    name: str, lines: Iterable[str], limits: ReadLimits
) -> Iterator[tuple[int, dict[str, Any] | UnreadableError]]:
    """Records of a csv file whose first line names the columns.

    Args:
        name: Name of the file; tabs separate cells if it says tsv.
        lines: Its lines, ends included.
        limits: What it may cost.

    Yields:
        The line that each record ends at, and the record, or what is wrong with it.

    Raises:
        UnreadableError: the file has no header, is no csv, or passes a limit.
    """
    suffixes = [suffix.lower() for suffix in PurePath(name).suffixes]
    reader = csv.reader(lines, delimiter="\t" if ".tsv" in suffixes else ",")
    header: list[str] = []
    blank = BlankRun(limits)
    while row := _next_row(reader, limits):
        cells = row[0]
        if not cells:
            blank.check(reader.line_num)
            continue
        blank = BlankRun(limits)
        if len(cells) > limits.cells:
            raise UnreadableError(f"more cells in a row than the limit of {limits.cells:,} cells", reader.line_num)
        if not header:
            header = cells
        elif len(cells) > len(header):
            yield reader.line_num, UnreadableError(f"more cells than the {len(header)} columns of the header")
        else:
            yield reader.line_num, dict(zip(header, cells, strict=False))
    if not header:
        raise UnreadableError("a table without a header")


def _next_row(reader: Any, limits: ReadLimits) -> tuple[list[str]] | None:
    """The next row, in a tuple, or None at the end."""
    before = csv.field_size_limit(limits.record_bytes)  # the module knows only one limit, for all
    try:
        return (next(reader),)
    except StopIteration:
        return None
    except csv.Error as error:
        raise UnreadableError(f"no valid csv: {error}", reader.line_num) from error
    finally:
        csv.field_size_limit(before)


def parquet_rows(file: bytes | str, limits: ReadLimits) -> Iterator[list[dict[str, Any]]]:
    """Rows of a Parquet file, in batches.

    Args:
        file: Its content, or its path.
        limits: What it may cost.

    Yields:
        The rows of each batch; cells without a value are left out, values that JSON lacks become strings.

    Raises:
        UnreadableError: the file is damaged, or unfolds beyond a limit.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    pa.set_cpu_count(1)
    pa.set_io_thread_count(1)
    num_bytes = num_cells = 0
    try:
        parquet = pq.ParquetFile(io.BytesIO(file) if isinstance(file, bytes) else file)
        size = len(file) if isinstance(file, bytes) else Path(file).stat().st_size
        max_cells = max(limits.cells, limits.expansion * size)
        for batch in parquet.iter_batches(_BATCH_ROWS, use_threads=False):
            num_bytes += batch.nbytes
            num_cells += max(1, batch.num_columns) * batch.num_rows
            if num_bytes > limits.unfolded(size):
                raise UnreadableError(f"unfolds to more than the limit of {limits.unfolded(size):,} bytes")
            if num_cells > max_cells:
                raise UnreadableError(f"unfolds to more than the limit of {max_cells:,} cells")
            yield [{column: value for column, value in row.items() if value is not None} for row in batch.to_pylist()]
    except (pa.ArrowException, OSError, ValueError) as error:
        if isinstance(error, UnreadableError | pa.ArrowMemoryError):
            raise
        reason = str(error).partition("\n")[0]
        raise UnreadableError(f"damaged Parquet file ({reason})") from error
