"""Opening an index, whatever its format."""

from __future__ import annotations

import os
from pathlib import Path

from longspan.errors import InputError
from longspan.search.directory import MANIFEST, DirectoryIndex
from longspan.search.journal import SHARD
from longspan.search.npz import NpzIndex
from longspan.search.parquet import ParquetIndex, import_pyarrow
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


def _is_begun(folder: Path) -> bool:
    """True if a folder is empty, or holds what a run leaves that is killed before its journal is there.

    With `--no-resume`, shards of the run before may lie there as well.
    """
    names = {child.name for child in folder.iterdir()}
    shards = list((folder / "shards").iterdir()) if (folder / "shards").is_dir() else []
    if not names <= {"lock", "shards"} or (shards and "lock" not in names):
        return False
    return "shards" not in names or all(SHARD.fullmatch(path.name.partition(".")[0]) for path in shards)


def check_output(path: Path) -> None:
    """Make sure, before any work is done, that an index can be written to `path`.

    Raises:
        InputError: the name does not say which format is wanted.
        IndexFileError: something else is there already.
        MissingFrameworkError: a Parquet file is wanted and `pyarrow` is not installed.
    """
    is_file = path.suffix in {".parquet", ".npz"}
    if path.is_dir() if is_file else path.is_file():
        raise IndexFileError(
            f"An output must be a new path or an index. Received: {path}, a {'folder' if is_file else 'file'}"
        )
    if not is_file and path.suffix not in {".index", ""} and not path.is_dir():
        raise InputError(
            f"An output must be a .parquet file, an .npz file, or a folder (no suffix, or .index). Received: {path}"
        )
    if path.is_dir() and not is_index(path) and not _is_begun(path):
        raise IndexFileError(
            f"An output folder must be new, empty or an index. Received: {path}, which holds other files"
        )
    if path.suffix == ".parquet":
        import_pyarrow()
