"""Shards: the passages of one stretch of work in one safetensors file, written whole or not at all."""

from __future__ import annotations

import os
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

from longspan.search.passages import INTEGER_COLUMNS, IndexFileError, Passages, pack_texts, unpack_texts


@contextmanager
def atomic_write(path: Path, scratch: Path) -> Iterator[IO[bytes]]:
    """A file that appears under `path` only when it is complete and on disk.

    Args:
        path: Name of the finished file.
        scratch: Name to write under meanwhile, on the same file system; what an earlier try left there is replaced. It
            goes again if anything fails, such as a disk that is full.
    """
    try:
        with scratch.open("wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        scratch.replace(path)
    except BaseException:
        scratch.unlink(missing_ok=True)
        raise
    sync_folder(path.parent)


def sync_folder(folder: Path) -> None:
    """Make renames inside `folder` durable, where the system can (not on Windows)."""
    if os.name == "nt":
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_shard(path: Path, passages: Passages) -> int:
    """Write `passages` to `path` and return the CRC-32 of the file."""
    text, text_ends = pack_texts(passages.text)
    data = save({**passages.integers(), "text": text, "text_ends": text_ends, "embedding": passages.embedding})
    with atomic_write(path, path.with_suffix(".partial")) as file:
        file.write(data)
    return zlib.crc32(data)


def file_checksum(path: Path) -> int | None:
    """CRC-32 of a file, or None if there is no such file."""
    checksum = 0
    try:
        with path.open("rb") as file:
            while block := file.read(1 << 20):
                checksum = zlib.crc32(block, checksum)
    except FileNotFoundError:
        return None
    return checksum


class ShardReader:
    """Reads rows of one shard; embeddings stay on disk until they are asked for.

    Args:
        path: File written by `write_shard`.

    Raises:
        IndexFileError: the file is missing or damaged.
    """

    def __init__(self, path: Path) -> None:
        try:
            file: Any = safe_open(path, framework="numpy")
            self._text_ends = file.get_tensor("text_ends")
            self._columns = {name: file.get_tensor(name) for name in INTEGER_COLUMNS}
            self._text = file.get_slice("text")
            self._embedding = file.get_slice("embedding")
        except (OSError, SafetensorError) as error:
            raise IndexFileError(
                f"A shard of an index must be a whole safetensors file. Received: {path} ({error})"
            ) from error

    def rows(self, start: int, stop: int) -> Passages:
        """Passages `start` to `stop` (not included)."""
        ends = self._text_ends[start : stop + 1]
        # safetensors refuses an empty slice at the end of a tensor
        data = self._text[int(ends[0]) : int(ends[-1])] if ends[0] < ends[-1] else np.empty(0, np.uint8)
        return Passages(
            text=unpack_texts(data, ends - ends[0]),
            embedding=self.embeddings(start, stop),
            **{name: column[start:stop] for name, column in self._columns.items()},
        )

    def embeddings(self, start: int, stop: int) -> np.ndarray[Any, np.dtype[np.float32]]:
        """Embeddings (stop - start, D) of these rows."""
        embeddings: np.ndarray[Any, np.dtype[np.float32]] = self._embedding[start:stop]
        return embeddings
