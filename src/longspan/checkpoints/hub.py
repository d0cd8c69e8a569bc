"""From a name to files on disk, the way `huggingface_hub` resolves them.

A name is a local directory, or a repository on the hub (`owner/name`) with its cache, offline mode and revisions.
"""

from __future__ import annotations

import os
import socket
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import urlsplit

from longspan.checkpoints.update import current_path
from longspan.errors import CheckpointNotFoundError, UnsafeCheckpointError

#: seconds to wait for a connection to the hub
_PATIENCE = 5.0


@dataclass(frozen=True)
class Source:
    """Where the files of one checkpoint come from.

    Attributes:
        name: Local directory, or hub repository id such as `"allenai/longformer-base-4096"`.
        revision: Branch, tag or commit of a hub repository.
        subfolder: Folder inside the directory or repository.
        cache_dir: Hub cache to use instead of the default one.
        local_files_only: Never reach for the network (the environment variable `HF_HUB_OFFLINE=1` does the same).
        force_download: Download again even if the file is cached.
        token: Access token of the hub.
    """

    name: str | os.PathLike[str]
    revision: str | None = None
    subfolder: str = ""
    cache_dir: str | os.PathLike[str] | None = None
    local_files_only: bool = False
    force_download: bool = False
    token: str | bool | None = None

    #: what earlier look-ups taught: the commit that all files are taken from, and whether the hub is out of reach
    _learnt: dict[str, str] = field(default_factory=dict, init=False, repr=False, compare=False)

    @property
    def is_local(self) -> bool:
        """True if the name is a directory on this machine."""
        return Path(self.name).is_dir()

    @property
    def is_offline(self) -> bool:
        """True if files of a repository come from the cache alone: as asked, or because the hub is out of reach."""
        from huggingface_hub import constants

        return self.local_files_only or bool(constants.HF_HUB_OFFLINE) or "unreachable" in self._learnt

    def find(self, filename: str) -> Path | None:
        """Path of `filename` on disk (downloaded if need be), or None if the checkpoint has no such file.

        All files come from one commit: the one that the first file came from.

        Args:
            filename: File name relative to the checkpoint, e.g. `"config.json"`.

        Returns:
            The path, or None if the checkpoint exists but has no such file (offline: no such file in the cache).

        Raises:
            CheckpointNotFoundError: the directory or repository itself does not exist or cannot be reached.
            UnsafeCheckpointError: `filename` points outside the checkpoint.
        """
        relative = Path(self.subfolder) / filename
        if relative.is_absolute() or ".." in relative.parts:
            raise UnsafeCheckpointError(
                f"A checkpoint may only name files inside its own directory. Received: {filename!r} in {self.name}"
            )
        if self.is_local:
            path = current_path(Path(self.name), relative.as_posix())
            return path if path.is_file() else None
        if Path(self.name).is_file():
            raise CheckpointNotFoundError(f"A checkpoint is named by its directory. Received a file: {self.name}")
        return self._find_on_hub(relative.as_posix())

    def require(self, filename: str) -> Path:
        """Like `find`, but a missing file raises `CheckpointNotFoundError`."""
        path = self.find(filename)
        if path is None:
            where = " in the hub cache, and the hub was not asked" if not self.is_local and self.is_offline else ""
            raise CheckpointNotFoundError(f"{self.name} has no file {filename!r}{where}.")
        return path

    def _find_on_hub(self, filename: str) -> Path | None:
        from huggingface_hub import hf_hub_download
        from huggingface_hub.errors import EntryNotFoundError, LocalEntryNotFoundError

        if not self.is_offline and "commit" not in self._learnt:
            self._probe()
        if self.force_download and self.is_offline:
            raise self._not_found()
        commit = self._learnt.get("commit")
        if commit and not self.force_download and self._known_absent(filename, commit):
            return None
        try:
            path = hf_hub_download(
                str(self.name),
                filename,
                revision=commit or self.revision,
                cache_dir=self._cache,
                local_files_only=self.is_offline,
                force_download=self.force_download,
                token=self.token,
            )
        except LocalEntryNotFoundError as error:
            if not self.is_offline:
                self._learnt["unreachable"] = str(error.__cause__ or error)
            if self._is_cached():
                return None
            raise self._not_found() from error
        except EntryNotFoundError:
            return None
        except (OSError, ValueError) as error:
            raise self._translate(error) from error
        self._learnt["commit"] = _commit_of(path, filename)
        return Path(path)

    def _probe(self) -> None:
        """Note whether the hub is out of reach; `huggingface_hub` itself would retry for 20 seconds, file by file."""
        from huggingface_hub import constants

        try:
            socket.create_connection(_gateway(constants.ENDPOINT), timeout=_PATIENCE).close()
        except OSError as error:
            self._learnt["unreachable"] = f"{constants.ENDPOINT}: {error}"

    @property
    def _cache(self) -> str | None:
        return None if self.cache_dir is None else os.fspath(self.cache_dir)

    def _known_absent(self, filename: str, commit: str) -> bool:
        """True if an earlier look-up, perhaps of another process, noted that the commit has no such file."""
        from huggingface_hub import _CACHED_NO_EXIST, try_to_load_from_cache

        return try_to_load_from_cache(str(self.name), filename, self._cache, commit) is _CACHED_NO_EXIST

    def _is_cached(self) -> bool:
        """True if the cache holds files of this repository and revision, so that a missing file is just absent."""
        from huggingface_hub import constants

        folder = Path(self._cache or constants.HF_HUB_CACHE) / ("models--" + str(self.name).replace("/", "--"))
        revision = self.revision or "main"
        reference = folder / "refs" / revision
        commit = reference.read_text(encoding="utf-8") if reference.is_file() else revision
        return (folder / "snapshots" / commit).is_dir()

    def _not_found(self) -> CheckpointNotFoundError:
        revision = f" at revision {self.revision!r}" if self.revision else ""
        cached = f"{str(self.name)!r} is neither a local directory nor in the hub cache{revision}"
        if self.force_download:
            cached = f"{str(self.name)!r} cannot be downloaded again as force_download=True asks"
        if "unreachable" in self._learnt:
            return CheckpointNotFoundError(f"{cached}, and the hub cannot be reached: {self._learnt['unreachable']}")
        return CheckpointNotFoundError(
            f"{cached}, and the hub was not asked, because of local_files_only=True or HF_HUB_OFFLINE=1."
        )

    def _translate(self, error: Exception) -> CheckpointNotFoundError:
        """Say what an error of `huggingface_hub` means."""
        from huggingface_hub.errors import (
            GatedRepoError,
            HFValidationError,
            RepositoryNotFoundError,
            RevisionNotFoundError,
        )

        name = repr(str(self.name))
        if isinstance(error, GatedRepoError):
            message = f"{name} asks for its terms to be accepted on the hub, and for token=."
        elif isinstance(error, RevisionNotFoundError):
            message = f"{name} has no revision {self.revision!r} on the hub."
        elif isinstance(error, RepositoryNotFoundError | HFValidationError):
            message = f"{name} is neither a local directory nor a repository on the hub (a private one needs token=)."
        else:
            message = f"{name} cannot be fetched from the hub: {error}"
        return CheckpointNotFoundError(message)


def _gateway(url: str) -> tuple[str, int]:
    """Host and port that a request to `url` connects to: the proxy if the environment names one."""
    import urllib.request

    target = urlsplit(url)
    proxy = urllib.request.getproxies().get(target.scheme)
    if proxy and not urllib.request.proxy_bypass(target.hostname or ""):
        target = urlsplit(proxy if "://" in proxy else f"http://{proxy}")
    return target.hostname or "", target.port or (443 if target.scheme == "https" else 80)


def _commit_of(path: str, filename: str) -> str:
    """The commit in a path of the hub cache, `.../snapshots/<commit>/<filename>`."""
    return Path(path).parents[len(Path(filename).parts) - 1].name
