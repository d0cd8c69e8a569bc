"""Indexes as `.npz` files: the columns as NumPy arrays, no library besides NumPy needed to read them."""

from __future__ import annotations

import hashlib
import json
import os
import zipfile
import zlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from longspan.checkpoints.untrusted import parse_json
from longspan.search.passages import (
    INTEGER_COLUMNS,
    FileRecord,
    IndexFileError,
    IndexInfo,
    Mask,
    Passages,
    pack_texts,
    unpack_texts,
)
from longspan.search.shards import atomic_write

_FORMAT = {"format": "longspan-index", "version": 1}
_BLOCK_ROWS = 8192
#: Bytes of a zip archive before the name of a member.
_LOCAL_HEADER = 30
#: Fixed date of every member, so that equal passages give equal files.
_DATE = (1980, 1, 1, 0, 0, 0)

Blocks = Callable[[], Iterable[tuple[FileRecord, Passages]]]


def write_npz(path: Path, scratch: Path, info: IndexInfo, blocks: Blocks) -> None:
    """Write an index as one `.npz` file, atomically, an array at a time so that memory stays bounded.

    Arrays: the integer columns of `Passages`; `file` (N,), index into `paths`; `paths`, `units`; `embedding` (N, D);
    `text`, the UTF-8 bytes of all texts, and `text_ends` (N + 1,), where each starts and ends; `metadata`, JSON.

    Args:
        path: File to write.
        scratch: Name to write under meanwhile.
        info: What the index says about itself.
        blocks: Gives the passages with the file that they are from, in the order of `info.files`; called three times.
    """
    num_rows = info.num_passages
    integers: dict[str, list[npt.NDArray[Any]]] = {name: [] for name in INTEGER_COLUMNS}
    sizes = [np.zeros(1, np.int64)]
    for _, passages in blocks():
        sizes.append(np.diff(pack_texts(passages.text)[1]))
        for name, column in passages.integers().items():
            integers[name].append(column)
    text_ends = np.cumsum(np.concatenate(sizes))
    with atomic_write(path, scratch) as file, zipfile.ZipFile(file, "w", allowZip64=True) as archive:
        _write_member(archive, "metadata", [np.array(json.dumps({**_FORMAT, "index": info.to_json()}))])
        _write_member(archive, "paths", [np.array([record.path for record in info.files], dtype=np.str_)])
        _write_member(archive, "units", [np.array([record.unit for record in info.files], dtype=np.str_)])
        _write_member(
            archive, "file", [np.repeat(np.arange(len(info.files), dtype=np.int32), [r.rows for r in info.files])]
        )
        for name, dtype in INTEGER_COLUMNS.items():
            _write_member(archive, name, integers[name], (num_rows,), dtype)
        _write_member(archive, "text_ends", [text_ends])
        text = (pack_texts(passages.text)[0] for _, passages in blocks())
        _write_member(archive, "text", text, (int(text_ends[-1]),), np.uint8)
        shape = (num_rows, info.dimension)
        _write_member(archive, "embedding", (passages.embedding for _, passages in blocks()), shape, np.float32)


class NpzIndex:
    """An index in an `.npz` file.

    Args:
        path: The file.

    Raises:
        IndexFileError: the file is damaged, or is no index of longspan.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            with path.open("rb") as file, np.load(file, allow_pickle=False) as arrays:
                if "metadata" not in arrays:
                    raise IndexFileError(
                        f"An npz index must be written by `longspan embed`. Received: {path}, which is not"
                    )
                self.info = IndexInfo.from_json(parse_json(str(arrays["metadata"]).encode())["index"])
                self._columns = {name: arrays[name] for name in INTEGER_COLUMNS}
                self._text, self._text_ends = arrays["text"], arrays["text_ends"]
            self._embedding = _map_member(path, "embedding.npy")
        except (OSError, ValueError, EOFError, zipfile.BadZipFile, KeyError, TypeError) as error:
            if isinstance(error, IndexFileError):
                raise
            raise IndexFileError(f"An index must be a whole npz file. Received: {path} ({error})") from error

    @cached_property
    def fingerprint(self) -> str:
        """Digest of the checksums of all arrays."""
        with zipfile.ZipFile(self.path) as archive:
            sums = [(entry.filename, entry.CRC, entry.file_size) for entry in archive.infolist()]
        return hashlib.blake2b(repr(sums).encode(), digest_size=16).hexdigest()

    def rows(self, start: int, stop: int) -> Passages:
        """Passages `start` to `stop` (not included), with their embeddings."""
        return Passages(
            text=unpack_texts(self._text, self._text_ends[start : stop + 1]),
            embedding=self._embedding[start:stop],
            **{name: column[start:stop] for name, column in self._columns.items()},
        )

    def take(self, rows: Sequence[int]) -> Passages:
        """Passages of the given rows, in that order, without embeddings."""
        chosen = np.asarray(rows, np.int64)
        return Passages(
            text=[unpack_texts(self._text, self._text_ends[row : row + 2])[0] for row in rows],
            embedding=np.empty((len(rows), 0), np.float32),
            **{name: column[chosen] for name, column in self._columns.items()},
        )

    def embedding_blocks(self, wanted: Mask | None = None) -> Iterator[tuple[int, npt.NDArray[np.float32]]]:
        """First row and embeddings (n, D) of consecutive blocks that hold a `wanted` row."""
        for start in range(0, len(self._embedding), _BLOCK_ROWS):
            if wanted is not None and not wanted[start : start + _BLOCK_ROWS].any():
                continue
            yield start, self._embedding[start : start + _BLOCK_ROWS]


def _map_member(path: Path, name: str) -> npt.NDArray[np.float32]:
    """An array of the archive by memory map, after its checksum was compared; members are stored, not compressed."""
    with zipfile.ZipFile(path) as archive, path.open("rb") as file:
        entry = archive.getinfo(name)
        file.seek(entry.header_offset)
        header = file.read(_LOCAL_HEADER)
        file.seek(int.from_bytes(header[26:28], "little") + int.from_bytes(header[28:30], "little"), os.SEEK_CUR)
        start = file.tell()
        if entry.compress_type != zipfile.ZIP_STORED:
            raise ValueError(f"{name} is compressed")
        checksum, remaining = 0, entry.file_size
        while block := file.read(min(1 << 20, remaining)):
            checksum, remaining = zlib.crc32(block, checksum), remaining - len(block)
        if checksum != entry.CRC:
            raise ValueError(f"checksum of {name}")
        file.seek(start)
        read_header = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}
        shape, fortran_order, dtype = read_header[np.lib.format.read_magic(file)](file)
        if dtype != np.float32 or fortran_order or len(shape) != 2:
            raise ValueError(f"{name} must be a matrix of float32")
        if not np.prod(shape):
            return np.empty(shape, np.float32)
        return np.memmap(path, np.float32, "r", file.tell(), shape)


def _write_member(
    archive: zipfile.ZipFile,
    name: str,
    parts: Iterable[npt.NDArray[Any]],
    shape: tuple[int, ...] | None = None,
    dtype: npt.DTypeLike | None = None,
) -> None:
    """Write one array from parts along its first axis; shape and type are those of the first part unless given."""
    parts = iter(parts)
    if shape is None:
        only = next(parts)
        shape, dtype, parts = only.shape, only.dtype, iter([only])
    header = {"descr": np.lib.format.dtype_to_descr(np.dtype(dtype)), "fortran_order": False, "shape": shape}
    with archive.open(zipfile.ZipInfo(f"{name}.npy", _DATE), "w", force_zip64=True) as member:
        np.lib.format.write_array_header_2_0(member, header)
        for part in parts:
            member.write(np.ascontiguousarray(part, dtype).tobytes())
