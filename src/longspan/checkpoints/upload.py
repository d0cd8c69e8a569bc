"""What models of all frameworks say about where they come from, and how they go to a hub."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from longspan.errors import InputError

if TYPE_CHECKING:
    from longspan.configuration import PretrainedConfig

_UPLOAD_ARGUMENTS = ("commit_message", "commit_description", "revision", "create_pr")


class HubSupport:
    """Mix-in of models: the name that they were loaded by, and uploading them."""

    #: settings of generation; None of a model without `generate`
    generation_config: Any = None

    if TYPE_CHECKING:

        @property
        def config(self) -> PretrainedConfig:
            """The configuration."""
            raise NotImplementedError

        save_pretrained: Any

    @property
    def name_or_path(self) -> str:
        """Where the model was loaded from."""
        name: str = self.config.name_or_path
        return name

    def push_to_hub(
        self, repo_id: str, *, private: bool | None = None, token: str | bool | None = None, **kwargs: Any
    ) -> Any:
        """Save the model into a new commit of a hub repository, which is made if need be.

        Args:
            repo_id: The repository, `"owner/name"`.
            private: Make a new repository private.
            token: Access token of the hub.
            **kwargs: `commit_message`, `revision`, `create_pr` are of `huggingface_hub.upload_folder`, the others of
                `save_pretrained`.

        Returns:
            What `huggingface_hub.upload_folder` returns, the commit.
        """
        import huggingface_hub

        upload = {name: kwargs.pop(name) for name in _UPLOAD_ARGUMENTS if name in kwargs}
        repo = huggingface_hub.create_repo(repo_id, private=private, token=token, exist_ok=True)
        with tempfile.TemporaryDirectory() as directory:
            self.save_pretrained(directory, **kwargs)
            upload.setdefault("commit_message", f"Upload {type(self).__name__}")
            return huggingface_hub.upload_folder(
                repo_id=repo.repo_id, folder_path=Path(directory), token=token, **upload
            )

    def _push_saved(self, save_directory: str | os.PathLike[str], repo_id: str | None = None, **kwargs: Any) -> None:
        """What `save_pretrained(push_to_hub=True)` does at its end."""
        given = {name: value for name, value in kwargs.items() if value is not None}
        self.push_to_hub(repo_id or Path(save_directory).name, **given)

    @classmethod
    def register_for_auto_class(cls, auto_class: str = "AutoModel") -> None:
        """The reference saves code beside a model with it; a longspan checkpoint holds no code.

        Raises:
            InputError: always.
        """
        raise InputError(f"checkpoints hold no code: import longspan to load them. Received: auto_class={auto_class!r}")


def check_save_arguments(safe_serialization: bool, push_to_hub: bool, further: Mapping[str, Any]) -> None:
    """Raise `InputError` for arguments of `save_pretrained` that ask for what it does not do."""
    if not safe_serialization:
        raise InputError("checkpoints are written as safetensors only. Received: safe_serialization=False")
    unknown = [name for name, value in further.items() if value is not None]
    if unknown and not push_to_hub:
        raise InputError(f"save_pretrained has no such keywords. Received: {', '.join(unknown)}")
