"""The journal of a run: which stretches of work are safely on disk.

A work folder holds `shards/*.safetensors` and `journal.jsonl`. Its first line says what the run is; each further line
is added, and forced to disk, after the shard that it names. Whatever the moment of a crash, the lines that are whole
name shards that are whole: a later run takes these over and does the rest.
"""

from __future__ import annotations

import os
import re
import warnings
from collections.abc import Iterable
from dataclasses import asdict, astuple, dataclass, field, replace
from pathlib import Path
from typing import Any

from longspan.search.lines import append_line, parse_line
from longspan.search.passages import FileRecord, IndexFileError, Passages
from longspan.search.shards import file_checksum, sync_folder, write_shard

_VERSION = 1
#: Names of shards.
SHARD = re.compile(r"\d{6,12}", re.ASCII)


@dataclass(frozen=True)
class Slice:
    """Rows `start` to `stop` (not included) of one shard."""

    shard: str
    start: int
    stop: int


@dataclass(frozen=True)
class Part:
    """A slice that holds passages of a file.

    Attributes:
        path: The file.
        first_row: How many passages of the file come before; 0 starts the file anew.
        slice: Where they are.
    """

    path: str
    first_row: int
    slice: Slice


@dataclass(frozen=True)
class OpenFile:
    """A file that was not finished when a shard was full: where to go on.

    Attributes:
        path: The file.
        digest: Digest of its bytes.
        document: Index of the document to go on with.
        chunk: Index of the window to go on with.
        rows: Passages so far.
        tokens: Tokens of these.
    """

    path: str
    digest: str
    document: int
    chunk: int
    rows: int
    tokens: int


@dataclass(frozen=True)
class Step:
    """One line of the journal.

    Attributes:
        parts: Rows of the new shard by file, in order.
        finished: Files that are now complete.
        unfinished: The file that goes on in the next step, if there is one.
        shard: Name of the new shard, or None if the step holds no passages.
        checksum: CRC-32 of the shard.
    """

    parts: tuple[Part, ...]
    finished: tuple[FileRecord, ...]
    unfinished: OpenFile | None
    shard: str | None = None
    checksum: int = 0


@dataclass
class FileParts:
    """What is known of one file in a journal or an index.

    Attributes:
        slices: Where its passages are, in order.
        record: The file, once it is complete.
        unfinished: Where to go on, if it is not complete.
    """

    slices: list[Slice] = field(default_factory=list)
    record: FileRecord | None = None
    unfinished: OpenFile | None = None


class Journal:
    """The journal of the run that works in `folder`.

    Args:
        folder: Work folder; made if it does not exist.
        header: What the run is, as JSON values. `header["settings"]` must equal that of the run being resumed.
    """

    def __init__(self, folder: Path, header: dict[str, Any]) -> None:
        self.folder = folder
        self.shard_folder = folder / "shards"
        folder.mkdir(parents=True, exist_ok=True)
        self._path = folder / "journal.jsonl"
        self.header, self.steps, whole_bytes = _read(self._path, self.shard_folder)
        if not self.header:
            self.header = header
            self._begin()
        elif whole_bytes < self._path.stat().st_size:
            os.truncate(self._path, whole_bytes)
        self.shard_folder.mkdir(exist_ok=True)  # after the journal, which says whose folder it is
        self._next_shard = 1 + max((int(path.stem) for path in self._shard_paths()), default=-1)

    @staticmethod
    def read_header(folder: Path) -> dict[str, Any] | None:
        """First line of the journal in `folder`, or None if there is no journal."""
        return _read(folder / "journal.jsonl", None)[0] or None

    def append(self, step: Step, passages: Passages | None) -> None:
        """Write the passages of `step` to a new shard, and then the step itself, durably.

        Args:
            step: What was done. The shard's name and checksum are filled in here.
            passages: Rows of the new shard, or None if there are none.
        """
        if passages is not None:
            name = f"{self._next_shard:06d}"
            self._next_shard += 1
            checksum = write_shard(self.shard_path(name), passages)
            parts = tuple(replace(part, slice=replace(part.slice, shard=name)) for part in step.parts)
            step = Step(parts, step.finished, step.unfinished, name, checksum)
        append_line(self._path, {"number": len(self.steps) + 1, **_step_to_json(step)})
        self.steps.append(step)

    def files(self) -> dict[str, FileParts]:
        """Everything the journal knows of each file, by path."""
        files: dict[str, FileParts] = {}
        for step in self.steps:
            for part in step.parts:
                if part.first_row == 0:
                    files[part.path] = FileParts()
                files[part.path].slices.append(part.slice)
            if step.unfinished is not None:
                files[step.unfinished.path].unfinished = step.unfinished
            for record in step.finished:
                slices = files[record.path].slices if record.rows else []
                files[record.path] = FileParts(slices, record)
        return files

    def shard_path(self, name: str) -> Path:
        """File of the shard `name`."""
        return self.shard_folder / f"{name}.safetensors"

    def remove_shards(self, keep: Iterable[str]) -> None:
        """Remove all shards but those named, and what interrupted writes left behind."""
        kept = {f"{name}.safetensors" for name in keep}
        for path in self.shard_folder.iterdir():
            if path.name not in kept:
                path.unlink()

    def remove(self) -> None:
        """Remove the journal; the shards stay."""
        self._path.unlink()
        sync_folder(self.folder)

    def _begin(self) -> None:
        self._path.unlink(missing_ok=True)
        append_line(self._path, {"format": "longspan-journal", "version": _VERSION, **self.header})
        sync_folder(self.folder)

    def _shard_paths(self) -> list[Path]:
        return [
            path for path in self.shard_folder.iterdir() if path.suffix == ".safetensors" and SHARD.fullmatch(path.stem)
        ]


def _read(path: Path, shard_folder: Path | None) -> tuple[dict[str, Any], list[Step], int]:
    """Header, whole steps (only if `shard_folder` is given), and the bytes of the file that are whole."""
    header: dict[str, Any] = {}
    steps: list[Step] = []
    num_bytes = 0
    if not path.exists():
        return header, steps, num_bytes
    with path.open("rb") as file:
        for line in file:
            values = parse_line(line, needs_sum=bool(header))  # a foreign header is refused, not replaced
            if values is None or (header and values.pop("number", None) != len(steps) + 1):
                if line.endswith(b"\n") and shard_folder is not None:
                    number = len(steps) + 1 + bool(header)
                    warnings.warn(f"{path} is damaged at line {number}: what follows is done again", stacklevel=5)
                break
            if not header:
                header = _check_header(path, values)
            elif shard_folder is None:
                break
            else:
                step = _step_from_json(values)
                if not _is_whole(step, shard_folder):
                    break
                steps.append(step)
            num_bytes += len(line)
    return header, steps, num_bytes


def _check_header(path: Path, values: dict[str, Any]) -> dict[str, Any]:
    if values.pop("format", None) != "longspan-journal" or values.pop("version", None) != _VERSION:
        raise IndexFileError(f"A journal must be of format longspan-journal, version {_VERSION}. Received: {path}")
    return values


def _is_whole(step: Step, shard_folder: Path) -> bool:
    return step.shard is None or file_checksum(shard_folder / f"{step.shard}.safetensors") == step.checksum


def _step_to_json(step: Step) -> dict[str, Any]:
    return {
        "shard": step.shard,
        "checksum": step.checksum,
        "parts": [[part.path, part.first_row, *astuple(part.slice)] for part in step.parts],
        "finished": [record.to_json() for record in step.finished],
        "unfinished": None if step.unfinished is None else asdict(step.unfinished),
    }


def _step_from_json(values: dict[str, Any]) -> Step:
    return Step(
        parts=tuple(Part(path, row, Slice(shard, start, stop)) for path, row, shard, start, stop in values["parts"]),
        finished=tuple(FileRecord.from_json(record) for record in values["finished"]),
        unfinished=None if values["unfinished"] is None else OpenFile(**values["unfinished"]),
        shard=values["shard"],
        checksum=values["checksum"],
    )
