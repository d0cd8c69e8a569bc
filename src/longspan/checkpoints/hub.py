"""From a name to files on disk, the way `huggingface_hub` resolves them.

A name is a local directory, or a repository on the hub (`owner/name`) with its cache, offline mode and revisions.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from longspan.errors import CheckpointNotFoundError, UnsafeCheckpointError


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

    @property
    def is_local(self) -> bool:
        """True if the name is a directory on this machine."""
        return Path(self.name).is_dir()

    def find(self, filename: str) -> Path | None:
        """Path of `filename` on disk (downloaded if need be), or None if the checkpoint has no such file.

        Args:
            filename: File name relative to the checkpoint, e.g. `"config.json"`.

        Returns:
            The path, or None if the checkpoint exists but has no such file.

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
            path = Path(self.name) / relative
            return path if path.is_file() else None
        return self._find_on_hub(relative.as_posix())

    def require(self, filename: str) -> Path:
        """Like `find`, but a missing file raises `CheckpointNotFoundError`."""
        path = self.find(filename)
        if path is None:
            raise CheckpointNotFoundError(f"{self.name} has no file {filename!r}")
        return path

    def _find_on_hub(self, filename: str) -> Path | None:
        from huggingface_hub import hf_hub_download
        from huggingface_hub.errors import (
            EntryNotFoundError,
            HFValidationError,
            LocalEntryNotFoundError,
            RepositoryNotFoundError,
            RevisionNotFoundError,
        )

        try:
            path = hf_hub_download(
                str(self.name),
                filename,
                revision=self.revision,
                cache_dir=self.cache_dir,
                local_files_only=self.local_files_only,
                force_download=self.force_download,
                token=self.token,
            )
        except LocalEntryNotFoundError as error:
            if self._is_cached():
                return None
            raise CheckpointNotFoundError(
                f"{self.name!r} is neither a local directory nor in the hub cache, and the hub cannot be reached "
                f"(offline={self.local_files_only or _offline()})."
            ) from error
        except EntryNotFoundError:
            return None
        except RevisionNotFoundError as error:
            raise CheckpointNotFoundError(f"{self.name!r} has no revision {self.revision!r} on the hub.") from error
        except (RepositoryNotFoundError, HFValidationError) as error:
            raise CheckpointNotFoundError(
                f"{str(self.name)!r} is neither a local directory nor a repository on the hub."
            ) from error
        return Path(path)

    def _is_cached(self) -> bool:
        """True if the cache holds a snapshot of this repository and revision, so that a missing file is just absent."""
        from huggingface_hub import scan_cache_dir
        from huggingface_hub.errors import CacheNotFound

        try:
            cache = scan_cache_dir(self.cache_dir)
        except CacheNotFound:
            return False
        wanted = self.revision or "main"
        return any(
            repo.repo_id == str(self.name)
            and any(wanted in revision.refs or revision.commit_hash == wanted for revision in repo.revisions)
            for repo in cache.repos
        )


def _offline() -> bool:
    from huggingface_hub import constants

    return bool(constants.HF_HUB_OFFLINE)
