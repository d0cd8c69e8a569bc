"""Opening an index, whatever its format."""

from __future__ import annotations

import os
from pathlib import Path

from longspan.errors import InputError
from longspan.search.directory import MANIFEST, DirectoryIndex
from longspan.search.npz import NpzIndex
from longspan.search.parquet import ParquetIndex
from longspan.search.passages import IndexFileError, PassageStore


def open_index(path: str | os.PathLike[str]) -> PassageStore:
    """Open an index that `longspan embed` wrote.

    Args:
        path: A `.parquet` or `.npz` file, or an index folder.

    Raises:
        IndexFileError: nothing is there, or it is damaged or no index.
        MissingFrameworkError: a Parquet file without `pyarrow` installed.
    """
    path = Path(path)
    if path.is_dir():
        return DirectoryIndex(path)
    if not path.exists():
        raise IndexFileError(f"An index must exist. Received: {path}")
    if path.suffix == ".parquet":
        return ParquetIndex(path)
    if path.suffix == ".npz":
        return NpzIndex(path)
    raise IndexFileError(f"An index must be a .parquet file, an .npz file or an index folder. Received: {path}")


def is_index(path: Path) -> bool:
    """True if `path` looks like an index, judged by its name and, for a folder, by its manifest or journal."""
    if path.is_dir():
        return (path / MANIFEST).exists() or (path / "journal.jsonl").exists()
    return path.suffix in {".parquet", ".npz"}


def check_output_name(path: Path) -> None:
    """Raise `InputError` unless an index can be written to `path`."""
    if path.suffix not in {".parquet", ".npz", ".index", ""} and not path.is_dir():
        raise InputError(
            f"The output must be a .parquet file, an .npz file, or a folder (no suffix, or .index). Received: {path}"
        )
