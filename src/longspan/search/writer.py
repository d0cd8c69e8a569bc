"""Writing an index step by step, so that a crash loses one step at most and what exists is reused."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from types import TracebackType
from typing import IO, Any, Self

from longspan.documents.walk import absolute_path
from longspan.search.directory import MANIFEST, DirectoryIndex, write_manifest
from longspan.search.index import check_output, open_index
from longspan.search.journal import FileParts, Journal, Slice, Step
from longspan.search.npz import write_npz
from longspan.search.parquet import write_parquet
from longspan.search.passages import FileRecord, IndexFileError, IndexInfo, Passages, PassageStore
from longspan.search.shards import ShardReader

try:
    import fcntl
except ModuleNotFoundError:  # Windows, where two runs on one output are not kept apart
    fcntl = None  # type: ignore[assignment]

#: Stands for the finished index among the names of shards.
_FINISHED = ""
_MAX_ROWS = 4096
_OPEN_SHARDS = 4
_LOCK = "lock"
_JOURNAL = "journal.jsonl"
#: Settings that only describe others.
_LABELS = frozenset({"model", "listing"})


@dataclass(frozen=True)
class FinalFile:
    """A file of the finished index: what is known of it, and where its passages are."""

    record: FileRecord
    slices: Sequence[Slice]


class IndexWriter:
    """Builds the index at `output`; use it as a context manager.

    Work goes to a folder beside `output` (for an index folder, to itself) and becomes the index in `finish`, all at
    once. Files are known by their absolute paths meanwhile.

    Args:
        output: A `.parquet` or `.npz` file, or a folder.
        settings: Everything that embeddings depend on, as JSON values.
        dimension: Length of an embedding.
        shard_tokens: Tokens of a shard; a resumed run keeps the number that it began with.
        identity: What vectors depend on besides: version, framework, device, implementation. An interrupted run goes on
            with the same only; a finished index may be updated with another, whose vectors differ by rounding.
        resume: Reuse what earlier runs left. False starts over; the finished index stays until it is replaced.

    Attributes:
        known: What can be reused, by absolute path.
        shard_tokens: Tokens of a shard.

    Raises:
        InputError: the name of `output` is no good, or another run is writing to it.
        IndexFileError: `output` exists and is no index, or was made with other settings.
        MissingFrameworkError: a Parquet file is wanted and `pyarrow` is not installed.
    """

    def __init__(
        self,
        output: Path,
        *,
        settings: dict[str, Any],
        dimension: int,
        shard_tokens: int,
        identity: dict[str, Any] | None = None,
        resume: bool = True,
    ) -> None:
        check_output(output)
        self.output = output
        self.known: dict[str, FileParts] = {}
        self.shard_tokens = shard_tokens
        self._settings = settings
        self._identity = identity or {}
        self._dimension = dimension
        self._resume = resume
        self._folder = work_folder(output)
        self._finished: PassageStore | None = None
        self._lock: IO[bytes] | None = None

    def __enter__(self) -> Self:
        self._folder.mkdir(parents=True, exist_ok=True)
        self._lock = lock_file(self._folder / _LOCK, self.output)
        try:
            self._load()
        except BaseException:
            self._close()
            raise
        self._shard = lru_cache(maxsize=_OPEN_SHARDS)(self._open_shard)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._close()

    def append(self, step: Step, passages: Passages | None) -> None:
        """Make one step durable; see `Journal.append`."""
        self._journal.append(step, passages)

    def files(self) -> dict[str, FileParts]:
        """Everything known now, by absolute path: what could be reused, and the steps of this run."""
        return {**self.known, **self._journal.files()}

    def finish(self, files: Sequence[FinalFile], *, base: str | None = None) -> IndexInfo:
        """Turn what was done into the index, atomically, and remove what it does not need.

        Args:
            files: Its files, in order; paths of the records as they should stand in the index.
            base: Folder that relative paths start from; default the current one.
        """
        info = IndexInfo(self._settings, self._dimension, base or str(Path.cwd()), [file.record for file in files])
        scratch = self._folder / "finished.partial"
        if not self._is_up_to_date(info, files):
            if self.output.suffix == ".parquet":
                write_parquet(self.output, scratch, info, self._blocks(files))
            elif self.output.suffix == ".npz":
                write_npz(self.output, scratch, info, lambda: self._blocks(files))
            else:
                write_manifest(self.output, info, [file.slices for file in files])
        self._journal.remove()
        if self._folder == self.output:
            self._journal.remove_shards({piece.shard for file in files for piece in file.slices})
        return info

    # What earlier runs left

    def _load(self) -> None:
        if not self._resume:
            (self._folder / _JOURNAL).unlink(missing_ok=True)
        header = Journal.read_header(self._folder)
        if header is not None:
            began = {**header["settings"], **header.get("identity", {})}
            self._check_settings(began, {**self._settings, **self._identity}, "The interrupted run that writes")
        fresh = not self._resume if header is None else header["fresh"]
        if not fresh and self._has_index():
            self._finished = open_index(self.output)
            self._check_settings(self._finished.info.settings, self._settings, "The index")
            self._know_finished(self._finished)
        self._journal = Journal(
            self._folder,
            {
                "settings": self._settings,
                "shard_tokens": self.shard_tokens,
                "fresh": fresh,
                **({"identity": self._identity} if self._identity else {}),
            },
        )
        self.shard_tokens = self._journal.header["shard_tokens"]
        self.known.update(self._journal.files())

    def _has_index(self) -> bool:
        return (self.output / MANIFEST).exists() if self._folder == self.output else self.output.exists()

    def _know_finished(self, index: PassageStore) -> None:
        row = 0
        for number, record in enumerate(index.info.files):
            key = absolute_path(Path(index.info.base) / record.path)
            slices = [Slice(_FINISHED, row, row + record.rows)] if record.rows else []
            row += record.rows
            if isinstance(index, DirectoryIndex):
                slices = index.slices[number]
            self.known[key] = FileParts(slices, replace(record, path=key))

    def _check_settings(self, found: dict[str, Any], wanted: dict[str, Any], what: str) -> None:
        if differing := differing_settings(found, wanted):
            differences = [f"{name} was {found.get(name)!r}, is now {wanted.get(name)!r}" for name in differing]
            raise IndexFileError(
                f"{what} {self.output} must have been made with the same settings. Received: {'; '.join(differences)}. "
                "Use the same settings, another output, or start over (--no-resume, resume=False)"
            )

    # Passages, wherever they are

    def _blocks(self, files: Sequence[FinalFile]) -> Iterator[tuple[FileRecord, Passages]]:
        for file in files:
            for piece in file.slices:
                for start in range(piece.start, piece.stop, _MAX_ROWS):
                    stop = min(piece.stop, start + _MAX_ROWS)
                    yield file.record, self._shard(piece.shard).rows(start, stop)

    def _open_shard(self, name: str) -> ShardReader | PassageStore:
        if name == _FINISHED and self._finished is not None:
            return self._finished
        return ShardReader(self._journal.shard_path(name))

    def _is_up_to_date(self, info: IndexInfo, files: Sequence[FinalFile]) -> bool:
        if self._finished is None or self._finished.info != info:
            return False
        from_finished = all(piece.shard == _FINISHED for file in files for piece in file.slices)
        return from_finished or (isinstance(self._finished, DirectoryIndex) and not self._journal.steps)

    def _close(self) -> None:
        """Give the lock back; a work folder that holds no work goes."""
        if self._lock is None:
            return
        if not (self._folder / _JOURNAL).exists() and self._folder != self.output:
            shutil.rmtree(self._folder)
        elif self._folder == self.output and [path.name for path in self._folder.iterdir()] == [_LOCK]:
            (self._folder / _LOCK).unlink()
            self._folder.rmdir()
        self._lock.close()
        self._lock = None


def differing_settings(found: dict[str, Any], wanted: dict[str, Any]) -> list[str]:
    """Names of the settings that differ; none if only labels do."""
    differing = [name for name in dict.fromkeys([*found, *wanted]) if found.get(name) != wanted.get(name)]
    return [] if _LABELS.issuperset(differing) else differing


def work_folder(output: Path) -> Path:
    """Where the work on `output` goes: an index folder is its own work folder."""
    if output.suffix in {".parquet", ".npz"} and not output.is_dir():
        return output.with_name(f".{output.name}.work")
    return output


def lock_file(path: Path, output: Path) -> IO[bytes]:
    """Lock `path` for the one run that may write `output`; closing the file, or the end of the process, frees it.

    Raises:
        IndexFileError: another run holds the lock.
    """
    while True:
        path.parent.mkdir(parents=True, exist_ok=True)
        file = path.open("wb")
        if fcntl is None:
            return file
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            file.close()
            raise IndexFileError(
                f"Only one run at a time may write an index. Another one is writing {output}"
            ) from error
        except OSError:  # a file system without locks
            return file
        try:
            if os.path.samestat(os.fstat(file.fileno()), path.stat()):
                return file
        except FileNotFoundError:
            pass
        file.close()  # the run that held it has removed it: what is locked is no longer there
