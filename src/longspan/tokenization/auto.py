"""`AutoTokenizer`: the right tokenizer for a checkpoint."""

from __future__ import annotations

import os
from typing import Any

from longspan.tokenization.families import class_of
from longspan.tokenization.loading import load_tokenizer
from longspan.tokenization.tokenizer import PreTrainedTokenizer


class AutoTokenizer:
    """Finds a checkpoint's tokenizer class; it is not instantiated itself."""

    def __init__(self) -> None:
        raise TypeError("AutoTokenizer is used by AutoTokenizer.from_pretrained(name_or_path)")

    @staticmethod
    def from_pretrained(
        pretrained_model_name_or_path: str | os.PathLike[str],
        *,
        config: Any = None,
        revision: str | None = None,
        subfolder: str = "",
        cache_dir: str | os.PathLike[str] | None = None,
        local_files_only: bool = False,
        force_download: bool = False,
        token: str | bool | None = None,
        **overrides: Any,
    ) -> PreTrainedTokenizer:
        """Load the tokenizer of a local directory or a hub repository.

        It is read from `tokenizer.json`; else from `vocab.txt` (WordPiece: BERT), `vocab.json` with `merges.txt`
        (byte-level BPE: Longformer, MEGA) or `spiece.model` (unigram: LongT5). Its class is the one that
        `tokenizer_config.json` names, else the one of `config.json`, else the one of the file.

        Args:
            pretrained_model_name_or_path: Directory, or repository id such as `"allenai/longformer-base-4096"`.
            config: The model's configuration, asked for the class if the tokenizer's files name none.
            revision: Branch, tag or commit of a hub repository.
            subfolder: Folder inside the directory or repository.
            cache_dir: Hub cache to use instead of the default one.
            local_files_only: Never reach for the network.
            force_download: Download again even if the file is cached.
            token: Access token of the hub.
            **overrides: Settings that win over the files' (`model_max_length=4096`, `padding_side="left"`). What
                chooses an implementation in `transformers` (`use_fast`, `from_slow`) has no effect, and no code of a
                checkpoint is run (`trust_remote_code`).

        Returns:
            The tokenizer.

        Raises:
            CheckpointNotFoundError: there is no such checkpoint, or it has no tokenizer files.
            CheckpointError: a file is damaged.

        Example:
            >>> import tempfile
            >>> from tokenizers import Tokenizer, models
            >>> from longspan import PreTrainedTokenizer
            >>> tokenizer = PreTrainedTokenizer(tokenizer_object=Tokenizer(models.WordLevel({"long": 0, "text": 1})))
            >>> with tempfile.TemporaryDirectory() as directory:
            ...     _ = tokenizer.save_pretrained(directory)
            ...     again = AutoTokenizer.from_pretrained(directory)
            >>> again("text").input_ids
            [1]
        """
        return load_tokenizer(
            pretrained_model_name_or_path,
            choose=class_of,
            config=config,
            revision=revision,
            subfolder=subfolder,
            cache_dir=cache_dir,
            local_files_only=local_files_only,
            force_download=force_download,
            token=token,
            **overrides,
        )
