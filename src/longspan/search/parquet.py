"""Indexes as Parquet files (extra `documents`): one row a passage, the table of files in the schema's metadata."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from longspan.checkpoints.untrusted import parse_json
from longspan.errors import MissingFrameworkError
from longspan.search.passages import (
    INTEGER_COLUMNS,
    FileRecord,
    IndexFileError,
    IndexInfo,
    Mask,
    Passages,
    pack_texts,
)
from longspan.search.shards import atomic_write

#: Rows of a row group, whatever the sizes of the blocks that come in: the same passages give the same file.
_GROUP_ROWS = 4096
_METADATA_KEY = b"longspan"
#: Digest of the passages, so that the footer tells whether anything changed.
_DIGEST_KEY = b"longspan.digest"
_READ_BYTES = 1 << 20
_FORMAT = {"format": "longspan-index", "version": 1}


def write_parquet(path: Path, scratch: Path, info: IndexInfo, blocks: Iterable[tuple[FileRecord, Passages]]) -> None:
    """Write an index as one Parquet file, atomically, a row group at a time.

    Columns: `path`, the integer columns of `Passages`, `unit`, `text`, `embedding` (fixed-size list of float32, which
    neither zstd nor a dictionary makes smaller: a search reads it as it lies in the map).

    Args:
        path: File to write.
        scratch: Name to write under meanwhile.
        info: What the index says about itself.
        blocks: Passages with the file that they are from, in the order of `info.files`.
    """
    pa, pq = import_pyarrow()
    schema = _schema(pa, info)
    packed = [name for name in schema.names if name != "embedding"]
    compression = {**dict.fromkeys(packed, "zstd"), "embedding.list.element": "none"}
    with (
        atomic_write(path, scratch) as file,
        pq.ParquetWriter(file, schema, compression=compression, use_dictionary=packed) as writer,
    ):
        pending: list[Any] = []
        num_pending = 0
        digest = _Digest()
        for record, passages in blocks:
            digest.add(passages)
            pending.append(_to_table(pa, schema, record, passages))
            num_pending += len(passages)
            if num_pending >= _GROUP_ROWS:
                table = pa.concat_tables(pending)
                whole = num_pending - num_pending % _GROUP_ROWS
                writer.write_table(table.slice(0, whole), row_group_size=_GROUP_ROWS)
                pending, num_pending = [table.slice(whole)], num_pending - whole
        if num_pending:
            writer.write_table(pa.concat_tables(pending), row_group_size=_GROUP_ROWS)
        writer.add_key_value_metadata({_DIGEST_KEY: digest.value().encode()})


class _Digest:
    """Digest of passages that come in blocks, whatever the blocks: one for each column first."""

    def __init__(self) -> None:
        self._columns: dict[str, Any] = {}

    def add(self, passages: Passages) -> None:
        text, ends = pack_texts(passages.text)
        columns = {"text": text, "lengths": np.diff(ends), "embedding": passages.embedding, **passages.integers()}
        for name, values in columns.items():
            found = self._columns.setdefault(name, hashlib.blake2b(digest_size=16))
            found.update(np.ascontiguousarray(values).data)

    def value(self) -> str:
        sums = "".join(f"{name} {found.hexdigest()}\n" for name, found in self._columns.items())
        return hashlib.blake2b(sums.encode(), digest_size=16).hexdigest()


class ParquetIndex:
    """An index in a Parquet file, read by memory map a row group at a time.

    Args:
        path: The file.

    Raises:
        IndexFileError: the file is damaged, or is no index of longspan.
        MissingFrameworkError: `pyarrow` is not installed.
    """

    def __init__(self, path: Path) -> None:
        pa, pq = import_pyarrow()
        self.path = path
        try:
            self._source = pa.memory_map(str(path))
            self._file = pq.ParquetFile(self._source)
        except (OSError, pa.ArrowInvalid) as error:
            raise IndexFileError(f"An index must be a whole Parquet file. Received: {path} ({error})") from error
        metadata = (self._file.schema_arrow.metadata or {}).get(_METADATA_KEY)
        if metadata is None:
            raise IndexFileError(f"A Parquet index must be written by `longspan embed`. Received: {path}, which is not")
        try:
            self.info = IndexInfo.from_json(parse_json(metadata)["index"])
        except (ValueError, KeyError, TypeError) as error:
            if isinstance(error, IndexFileError):
                raise
            raise IndexFileError(f"An index must be a whole Parquet file. Received: {path} ({error})") from error
        groups = [self._file.metadata.row_group(i).num_rows for i in range(self._file.num_row_groups)]
        self._starts = np.concatenate([[0], np.cumsum(groups, dtype=np.int64)])
        if self._starts[-1] != self.info.num_passages:
            raise IndexFileError(
                f"A Parquet index must hold the {self.info.num_passages} passages of the files that it names. "
                f"Received: {path}, which has {self._starts[-1]} rows"
            )

    @cached_property
    def fingerprint(self) -> str:
        """Digest of the footer, which holds one of the passages; of the whole file, if it is an older one without."""
        size = self._source.size()
        start = 0
        if _DIGEST_KEY in self._file.metadata.metadata:
            start = size - 8 - int.from_bytes(self._source.read_at(4, size - 8), "little")
        digest = hashlib.blake2b(digest_size=16)
        for offset in range(start, size, _READ_BYTES):
            digest.update(self._source.read_at(min(_READ_BYTES, size - offset), offset))
        return digest.hexdigest()

    def rows(self, start: int, stop: int) -> Passages:
        """Passages `start` to `stop` (not included), with their embeddings."""
        parts = []
        first, last = np.searchsorted(self._starts, [start, stop - 1], side="right") - 1
        for group in range(first, last + 1):
            offset = int(self._starts[group])
            table = self._file.read_row_group(group).slice(max(0, start - offset))
            parts.append(self._to_passages(table.slice(0, stop - max(start, offset))))
        return Passages.concatenate(parts)

    def take(self, rows: Sequence[int]) -> Passages:
        """Passages of the given rows, in that order, without embeddings."""
        columns = [*INTEGER_COLUMNS, "text"]
        order = np.argsort(np.asarray(rows), kind="stable")
        parts = []
        groups = np.searchsorted(self._starts, np.asarray(rows)[order], side="right") - 1
        for group in np.unique(groups):
            inside = np.asarray(rows)[order[groups == group]] - self._starts[group]
            parts.append(self._to_passages(self._file.read_row_group(group, columns=columns), inside))
        found = Passages.concatenate(parts)
        back = np.argsort(order, kind="stable")
        return Passages(
            text=[found.text[i] for i in back],
            embedding=found.embedding[back],
            **{name: column[back] for name, column in found.integers().items()},
        )

    def embedding_blocks(self, wanted: Mask | None = None) -> Iterator[tuple[int, npt.NDArray[np.float32]]]:
        """First row and embeddings (n, D) of each row group that holds a `wanted` row."""
        for group in range(self._file.num_row_groups):
            if wanted is not None and not wanted[self._starts[group] : self._starts[group + 1]].any():
                continue
            table = self._file.read_row_group(group, columns=["embedding"])
            yield int(self._starts[group]), self._to_matrix(table)

    def _to_passages(self, table: Any, rows: npt.NDArray[Any] | None = None) -> Passages:
        text = table["text"]
        return Passages(
            text=text.to_pylist() if rows is None else [text[int(row)].as_py() for row in rows],
            embedding=self._to_matrix(table) if rows is None else np.empty((len(rows), 0), np.float32),
            **{name: _numbers(table[name].chunks)[slice(None) if rows is None else rows] for name in INTEGER_COLUMNS},
        )

    def _to_matrix(self, table: Any) -> npt.NDArray[np.float32]:
        size = self.info.dimension
        lists = table["embedding"].chunks
        values = _numbers([part.values.slice(part.offset * size, len(part) * size) for part in lists])
        return np.asarray(values, np.float32).reshape(len(table), size)


def _numbers(arrays: Sequence[Any]) -> npt.NDArray[Any]:
    """Arrow arrays as one of NumPy. Arrow's own conversion imports pandas, which takes longer than many a search."""
    if any(array.null_count for array in arrays):
        raise IndexFileError("Columns of a Parquet index must hold a number in each row")
    kinds = [np.dtype(array.type.to_pandas_dtype()) for array in arrays]
    parts = [
        np.frombuffer(array.buffers()[1], kind, len(array), array.offset * kind.itemsize)
        for array, kind in zip(arrays, kinds, strict=True)
        if len(array)
    ]
    return parts[0] if len(parts) == 1 else np.concatenate(parts or [np.empty(0, np.int64)])


def import_pyarrow() -> tuple[Any, Any]:
    """The modules `pyarrow` and `pyarrow.parquet`, or `MissingFrameworkError`."""
    try:
        import pyarrow as pa
        import pyarrow.parquet as pq
    except ModuleNotFoundError as error:
        raise MissingFrameworkError(
            "Parquet files need pyarrow, which is not installed: pip install 'longspan[documents]' "
            "(or write .npz or an index folder)"
        ) from error
    return pa, pq


def _schema(pa: Any, info: IndexInfo) -> Any:
    element = pa.field("element", pa.float32(), nullable=False)
    fields = [
        pa.field("path", pa.dictionary(pa.int32(), pa.string()), nullable=False),
        *(pa.field(name, pa.from_numpy_dtype(dtype), nullable=False) for name, dtype in INTEGER_COLUMNS.items()),
        pa.field("unit", pa.dictionary(pa.int32(), pa.string()), nullable=False),
        pa.field("text", pa.string(), nullable=False),
        pa.field("embedding", pa.list_(element, info.dimension), nullable=False),
    ]
    return pa.schema(fields, metadata={_METADATA_KEY: json.dumps({**_FORMAT, "index": info.to_json()})})


def _to_table(pa: Any, schema: Any, record: FileRecord, passages: Passages) -> Any:
    zeros = pa.array(np.zeros(len(passages), np.int32))
    columns = {
        "path": pa.DictionaryArray.from_arrays(zeros, pa.array([record.path])),
        "unit": pa.DictionaryArray.from_arrays(zeros, pa.array([record.unit])),
        "text": pa.array(passages.text, pa.string()),
        "embedding": pa.FixedSizeListArray.from_arrays(
            pa.array(passages.embedding.reshape(-1)), type=schema.field("embedding").type
        ),
        **{name: pa.array(column) for name, column in passages.integers().items()},
    }
    return pa.Table.from_arrays([columns[name] for name in schema.names], schema=schema)
