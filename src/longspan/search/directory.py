"""Indexes as folders: shards that stay where the run wrote them, and a manifest that says which rows count."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import astuple
from functools import cached_property, lru_cache
from itertools import accumulate
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from longspan.checkpoints.untrusted import parse_json
from longspan.search.journal import SHARD, Slice
from longspan.search.passages import IndexFileError, IndexInfo, Mask, Passages
from longspan.search.shards import ShardReader, atomic_write

MANIFEST = "manifest.json"
_FORMAT = {"format": "longspan-index", "version": 1}
#: Rows of a block that is compared at once; slices of small files are joined up to it.
_BLOCK_ROWS = 8192
_OPEN_SHARDS = 16


def write_manifest(folder: Path, info: IndexInfo, slices: Sequence[Sequence[Slice]]) -> None:
    """Make the shards in `folder` an index, atomically.

    Args:
        folder: Index folder.
        info: What the index says about itself.
        slices: For each file of `info`, where its passages are.
    """
    values = {**_FORMAT, "index": info.to_json(), "slices": [[astuple(piece) for piece in parts] for parts in slices]}
    with atomic_write(folder / MANIFEST, folder / f"{MANIFEST}.partial") as file:
        file.write(json.dumps(values, indent=1).encode())


def _slices_of(folder: Path, info: IndexInfo, values: Any) -> list[list[Slice]]:
    """Where the passages of each file are; nothing outside `folder` is named."""
    try:
        slices = [[Slice(*piece) for piece in parts] for parts in values]
        for record, parts in zip(info.files, slices, strict=True):
            sizes = [piece.stop - piece.start for piece in parts if 0 <= piece.start < piece.stop]
            if len(sizes) < len(parts) or sum(sizes) != record.rows or not all(SHARD.fullmatch(p.shard) for p in parts):
                raise ValueError(f"{record.path} has other passages")
    except (TypeError, ValueError) as error:
        raise IndexFileError(
            f"{MANIFEST} of an index must say where its passages are. Received: {folder} ({error})"
        ) from error
    return slices


class DirectoryIndex:
    """An index in a folder.

    Args:
        folder: The folder that `longspan embed` wrote.

    Raises:
        IndexFileError: the folder is no index, its run was interrupted, or a shard is missing or damaged.
    """

    def __init__(self, folder: Path) -> None:
        self.path = folder
        try:
            values = parse_json((folder / MANIFEST).read_bytes())
        except FileNotFoundError as error:
            unfinished = (folder / "journal.jsonl").exists()
            reason = "its run was interrupted; run `longspan embed` again to finish it" if unfinished else "it has none"
            raise IndexFileError(f"An index folder must hold {MANIFEST}. Received: {folder} ({reason})") from error
        except (OSError, ValueError) as error:
            raise IndexFileError(f"{MANIFEST} of an index must be whole JSON. Received: {folder} ({error})") from error
        if not isinstance(values, dict) or {key: values.get(key) for key in _FORMAT} != _FORMAT:
            raise IndexFileError(
                f"An index folder must be written by `longspan embed`. Received: {folder}, which is not"
            )
        self.info = IndexInfo.from_json(values.get("index", {}))
        self.slices = _slices_of(folder, self.info, values.get("slices"))
        self._pieces = [piece for parts in self.slices for piece in parts]
        sizes = (piece.stop - piece.start for piece in self._pieces)
        self._starts = np.fromiter(accumulate(sizes, initial=0), np.int64, len(self._pieces) + 1)
        self._shard = lru_cache(maxsize=_OPEN_SHARDS)(self._open_shard)

    @cached_property
    def fingerprint(self) -> str:
        """Digest of the manifest and of the shards' sizes and times."""
        digest = hashlib.blake2b((self.path / MANIFEST).read_bytes(), digest_size=16)
        for name in sorted({piece.shard for piece in self._pieces}):
            status = self._shard_path(name).stat()
            digest.update(f"{name} {status.st_size} {status.st_mtime_ns}\n".encode())
        return digest.hexdigest()

    def rows(self, start: int, stop: int) -> Passages:
        """Passages `start` to `stop` (not included), with their embeddings."""
        first, last = np.searchsorted(self._starts, [start, stop - 1], side="right") - 1
        parts = []
        for index in range(first, last + 1):
            piece, offset = self._pieces[index], int(self._starts[index])
            low, high = max(start - offset, 0), min(stop - offset, piece.stop - piece.start)
            parts.append(self._shard(piece.shard).rows(piece.start + low, piece.start + high))
        return Passages.concatenate(parts)

    def take(self, rows: Sequence[int]) -> Passages:
        """Passages of the given rows, in that order, with their embeddings."""
        return Passages.concatenate([self.rows(row, row + 1) for row in rows])

    def embedding_blocks(self, wanted: Mask | None = None) -> Iterator[tuple[int, npt.NDArray[np.float32]]]:
        """First row and embeddings (n, D) of consecutive blocks that hold a `wanted` row."""
        pending: list[npt.NDArray[np.float32]] = []
        first = num_pending = 0
        for piece, start in zip(self._pieces, self._starts.tolist(), strict=False):  # one more start than pieces
            stop = start + piece.stop - piece.start
            is_wanted = wanted is None or bool(wanted[start:stop].any())
            if is_wanted:
                pending.append(self._shard(piece.shard).embeddings(piece.start, piece.stop))
                num_pending += len(pending[-1])
            if num_pending and (not is_wanted or num_pending >= _BLOCK_ROWS):
                yield first, np.concatenate(pending)
                pending, num_pending = [], 0
            if not num_pending:
                first = stop
        if pending:
            yield first, np.concatenate(pending)

    def _open_shard(self, name: str) -> ShardReader:
        return ShardReader(self._shard_path(name))

    def _shard_path(self, name: str) -> Path:
        return self.path / "shards" / f"{name}.safetensors"
