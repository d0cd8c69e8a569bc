"""Finding the files to read below the given paths, in a fixed order."""

from __future__ import annotations

import os
import stat
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from pathlib import Path

from longspan.documents.document import Problem
from longspan.documents.kinds import Kind, kind_of
from longspan.errors import InputError


@dataclass(frozen=True)
class SourceFile:
    """A file to read.

    Attributes:
        path: Where it is, as the caller named it or its folder.
        name: The path as text that every format can hold (bytes that are no UTF-8 become backslash escapes).
        kind: How to read it.
        size: Bytes.
        modified: Time of the last change, in nanoseconds.
    """

    path: Path
    name: str
    kind: Kind
    size: int
    modified: int = 0


@dataclass
class Found:
    """What a walk found.

    Attributes:
        files: Files to read, in order.
        problems: Paths that cannot be read.
        ignored: How many files were left out because their name says that they are no text, by suffix.
    """

    files: list[SourceFile] = field(default_factory=list)
    problems: list[Problem] = field(default_factory=list)
    ignored: Counter[str] = field(default_factory=Counter)


@dataclass(frozen=True)
class Filters:
    """Which files of a folder are taken.

    A pattern without `/` is compared with the file's name, one with `/` with the path below the folder that was given.
    `*` also matches `/`. Hidden files and folders (leading dot) are skipped unless named themselves.

    Attributes:
        include: If not empty, only files that match one of these patterns, whatever their kind.
        exclude: Files and folders that match one of these patterns are left out.
        follow_links: Enter folders behind symbolic links (each real folder once, so loops end).
        skip: Absolute paths never entered, such as the output of the run itself.
        tables: Take csv, tsv and parquet files, as tables of records.
    """

    include: tuple[str, ...] = ()
    exclude: tuple[str, ...] = ()
    follow_links: bool = False
    skip: frozenset[str] = frozenset()
    tables: bool = False


def display_name(path: str | os.PathLike[str]) -> str:
    """`path` as text that any file format can hold: bytes of a name that are no UTF-8 become backslash escapes."""
    return os.fsencode(path).decode("utf-8", "backslashreplace")


def absolute_path(path: str | os.PathLike[str]) -> str:
    """`path` from the root, without `..`, links left as they are: the identity of a file."""
    return os.path.abspath(path)  # noqa: PTH100 - `Path.resolve` would follow links, `Path.absolute` keeps `..`


def find_files(paths: Sequence[str | os.PathLike[str]], filters: Filters | None = None) -> Found:
    """Find the files to read: those named, and those below the folders named, sorted by name within a folder.

    Files named directly are always taken, whatever their suffix; below folders only known kinds of text (or what
    `filters.include` matches). A file reached twice is taken once.

    Args:
        paths: Files and folders.
        filters: Which files of the folders to take; default all known kinds.

    Raises:
        InputError: no path was given, or one of them does not exist.
    """
    if not paths:
        raise InputError("At least one file or folder must be given. Received: none")
    walk = _Walk(filters or Filters())
    for path in map(Path, paths):
        if not os.path.lexists(path):
            raise InputError(f"Each path must exist. Received: {display_name(path)}")
        walk.add_named(path)
    return walk.found


class _Walk:
    def __init__(self, filters: Filters) -> None:
        self.found = Found()
        self._filters = filters
        self._seen_files: set[str] = set()
        self._seen_folders: set[tuple[int, int]] = set()

    def add_named(self, path: Path) -> None:
        if path.is_dir():
            self._add_folder(path, prefix="")
        else:
            self._add_file(path, kind_of(path.name, tables=self._filters.tables) or "text")

    def _add_folder(self, folder: Path, prefix: str) -> None:
        """Walk `folder` depth first with a stack of iterators, so that deep trees need no deep recursion."""
        stack: list[tuple[str, Iterator[os.DirEntry[str]]]] = [(prefix, self._entries(folder))]
        while stack:
            prefix, entries = stack[-1]
            entry = next(entries, None)
            if entry is None:
                stack.pop()
            elif not self._is_skipped(entry, prefix):
                if not _is_folder(entry):
                    self._add_entry(entry, prefix)
                elif self._filters.follow_links or not entry.is_symlink():
                    stack.append((f"{prefix}{entry.name}/", self._entries(Path(entry.path))))

    def _entries(self, folder: Path) -> Iterator[os.DirEntry[str]]:
        """Sorted entries of a folder; none if it was seen before or cannot be listed (which is reported)."""
        try:
            status = folder.stat()
            if (status.st_dev, status.st_ino) in self._seen_folders:
                return iter(())
            self._seen_folders.add((status.st_dev, status.st_ino))
            with os.scandir(folder) as entries:
                return iter(sorted(entries, key=lambda entry: os.fsencode(entry.name)))
        except OSError as error:
            self._report(folder, f"folder cannot be listed: {error.strerror or error}")
            return iter(())

    def _is_skipped(self, entry: os.DirEntry[str], prefix: str) -> bool:
        if entry.name.startswith(".") or entry.name == "__pycache__" or absolute_path(entry.path) in self._filters.skip:
            return True
        return matches(self._filters.exclude, entry.name, prefix + entry.name)

    def _add_entry(self, entry: os.DirEntry[str], prefix: str) -> None:
        kind = kind_of(entry.name, tables=self._filters.tables)
        if self._filters.include:
            if matches(self._filters.include, entry.name, prefix + entry.name):
                self._add_file(Path(entry.path), kind or "text")
        elif kind is None:
            self.found.ignored[Path(entry.name).suffix.lower() or entry.name] += 1
        else:
            self._add_file(Path(entry.path), kind)

    def _add_file(self, path: Path, kind: Kind) -> None:
        key = absolute_path(path)
        if key in self._seen_files or key in self._filters.skip:
            return
        self._seen_files.add(key)
        try:
            status = path.stat()
        except OSError as error:
            reason = "link to nothing" if path.is_symlink() else f"cannot be read: {error.strerror or error}"
            self._report(path, reason)
            return
        if not stat.S_ISREG(status.st_mode):
            self._report(path, "not a regular file")
            return
        self.found.files.append(SourceFile(path, display_name(path), kind, status.st_size, status.st_mtime_ns))

    def _report(self, path: Path, reason: str) -> None:
        self.found.problems.append(Problem(display_name(path), reason))


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a link that leads to itself; reported when the file is looked at
        return False


def matches(patterns: Sequence[str], name: str, relative: str) -> bool:
    """Whether a pattern fits: one with a slash the path `relative`, any other the name."""
    return any(fnmatchcase(relative if "/" in pattern else name, pattern) for pattern in patterns)
