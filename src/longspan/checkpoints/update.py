"""Changing several files of a directory at once: a killed process leaves all old files or all new ones.

1. The new files are written and flushed into a staging folder inside the directory.
2. The folder is renamed to `.longspan-commit`. This one rename is the moment at which the new state holds.
3. The files are moved out of it, one rename each, files that the new state lacks are removed, and the folder goes.

A process killed before step 2 leaves the old state and a staging folder, which the next update clears away. One killed
in step 3 leaves `.longspan-commit`, and longspan reads files from there first (`current_path`), so it sees the new
state; the next update, or `recover`, finishes the moves. Other programs that read the directory after a kill inside
step 3 (a few renames) see a mix until then.

One process updates a directory at a time; a second one waits. A process that reads while another updates may find its
files a generation apart.
"""

from __future__ import annotations

import errno
import json
import os
import secrets
import shutil
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from longspan.checkpoints.untrusted import parse_json, shown
from longspan.errors import CheckpointError, UnsafeCheckpointError

_STAGED = ".longspan-new-"
_COMMITTED = ".longspan-commit"
_MANIFEST = "manifest.json"
_NO_LOCKS = (errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOSYS)


class DirectoryUpdate:
    """Files to write into a directory, and files to remove from it, all at once when the context ends well.

    Args:
        directory: The directory; made if need be.

    Raises:
        CheckpointError: if there is a file in place of the directory.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as directory:
        ...     with DirectoryUpdate(directory) as update:
        ...         update.write("config.json", b"{}")
        ...         update.remove("pytorch_model.bin")
        ...     sorted(path.name for path in Path(directory).iterdir())
        ['config.json']
    """

    def __init__(self, directory: str | os.PathLike[str]) -> None:
        self.directory = Path(directory)
        self._is_new = False
        self._stale: list[str] = []
        self._cleanup = ExitStack()

    def __enter__(self) -> Self:
        if self.directory.exists() and not self.directory.is_dir():
            raise CheckpointError(f"A checkpoint is saved into a directory. Received a file: {self.directory}")
        self._is_new = not self.directory.exists()
        self.directory.mkdir(parents=True, exist_ok=True)
        with ExitStack() as stack:
            stack.callback(self._leave_nothing)
            stack.enter_context(_locked(self.directory))
            _finish(self.directory)
            for leftover in self.directory.glob(_STAGED + "*"):
                shutil.rmtree(leftover)
            self._staging = self.directory / f"{_STAGED}{secrets.token_hex(8)}"
            self._staging.mkdir(parents=True)  # an update that failed meanwhile has taken the directory with it
            stack.callback(shutil.rmtree, self._staging, ignore_errors=True)
            self._cleanup = stack.pop_all()
        return self

    @property
    def staging(self) -> Path:
        """Folder whose files, and those of its folders, take their places when the context ends."""
        return self._staging

    def path(self, name: str) -> Path:
        """Where to write the new file `name`, which may be in a folder: it takes its place when the context ends."""
        path = self._staging / _plain(name)
        path.parent.mkdir(parents=True, exist_ok=True)
        return path

    def write(self, name: str, data: bytes) -> None:
        """Give the file `name` new contents."""
        self.path(name).write_bytes(data)

    def remove(self, name: str) -> None:
        """Remove the file `name`, if the directory has it and the update does not write it anew."""
        self._stale.append(_plain(name))

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with self._cleanup:
            if kind is None:
                self._commit()
                self._is_new = False
                _finish(self.directory)

    def _leave_nothing(self) -> None:
        """Remove a directory that was made for an update which failed."""
        if self._is_new:
            with suppress(OSError):  # somebody else has put something there
                self.directory.rmdir()

    def _commit(self) -> None:
        written = sorted(self._staging.rglob("*"))
        names = [path.relative_to(self._staging).as_posix() for path in written if path.is_file()]
        stale = [name for name in self._stale if name not in names]
        for path in written:
            _flush(path)
        manifest = self._staging / _MANIFEST
        manifest.write_text(json.dumps({"files": names, "remove": stale}), encoding="utf-8")
        _flush(manifest)
        _flush(self._staging)
        self._staging.rename(self.directory / _COMMITTED)
        _flush(self.directory)


def current_path(directory: Path, name: str) -> Path:
    """Where the file `name` of a directory is now, counting an update that was committed and not finished.

    Args:
        directory: The directory.
        name: Name of a file in it, or in a folder of it, which may have been updated by itself.

    Returns:
        The path; no file is there if the directory has no such file.
    """
    committed = directory / _COMMITTED
    try:
        manifest = _read_manifest(committed)
    except FileNotFoundError:
        manifest = {"files": [], "remove": []}
    staged = committed / name
    if name in manifest["remove"] or (name in manifest["files"] and staged.exists()):
        return staged
    folder, _, rest = name.partition("/")
    return current_path(directory / folder, rest) if rest else directory / name


def recover(directory: str | os.PathLike[str]) -> None:
    """Finish an update that a killed process left half done, so that programs other than longspan see it whole.

    Args:
        directory: The directory. Nothing happens if there is nothing to finish.
    """
    with _locked(Path(directory)):
        _finish(Path(directory))


def _finish(directory: Path) -> None:
    """Move committed files into place. Every step may have been done already."""
    committed = directory / _COMMITTED
    if not committed.is_dir():
        return
    try:
        manifest = _read_manifest(committed)
    except FileNotFoundError:
        manifest = {"files": [], "remove": []}
    for name in manifest["files"]:
        if (committed / name).exists():
            _check_folders(directory, name)
            (directory / name).parent.mkdir(parents=True, exist_ok=True)
            (committed / name).replace(directory / name)
    for name in manifest["remove"]:
        _check_folders(directory, name)
        (directory / name).unlink(missing_ok=True)
    for folder in {directory, *((directory / name).parent for name in manifest["files"])}:
        _flush(folder)
    (committed / _MANIFEST).unlink(missing_ok=True)
    shutil.rmtree(committed)


def _read_manifest(committed: Path) -> Mapping[str, list[str]]:
    path = committed / _MANIFEST
    text = path.read_bytes()
    try:
        manifest: Any = parse_json(text)
        return {part: [_plain(name) for name in manifest[part]] for part in ("files", "remove")}
    except (ValueError, TypeError, KeyError) as error:
        raise UnsafeCheckpointError(
            f"{path} must list plain file names under files and remove. Received: {shown(text)}"
        ) from error


def _check_folders(directory: Path, name: str) -> None:
    """Check that the folders of a file of an update are no links, which might lead out of the directory."""
    for folder in Path(name).parents:
        if (directory / folder).is_symlink() and folder != Path():
            raise UnsafeCheckpointError(f"A directory update follows no links to folders. Received: {shown(name)}")


def _plain(name: str) -> str:
    """Check that a name is that of a file inside the directory, and none of ours."""
    parts = name.split("/") if isinstance(name, str) else [""]
    plain = all(part == Path(part).name and 0 < len(part) < 256 and "\0" not in part for part in parts)
    if not plain or ".." in parts or name == _MANIFEST or any(part.startswith((_STAGED, _COMMITTED)) for part in parts):
        raise UnsafeCheckpointError(
            f"A directory update may only name files inside its directory. Received: {shown(name)}"
        )
    return name


def _flush(path: Path) -> None:
    """Bring a file or directory from the system's memory to the disk."""
    if os.name == "nt" and path.is_dir():
        return  # Windows cannot open directories, and orders renames itself
    descriptor = os.open(path, os.O_RDONLY if os.name != "nt" else os.O_RDWR)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextmanager
def _locked(directory: Path) -> Iterator[None]:
    """Hold the directory against other updates. The system frees the lock of a killed process."""
    try:
        import fcntl
    except ModuleNotFoundError:  # Windows
        yield
        return
    descriptor = os.open(directory, os.O_RDONLY)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX)
        except OSError as error:  # some network file systems have no locks
            if error.errno not in _NO_LOCKS:
                raise
        yield
    finally:
        os.close(descriptor)
