"""From a checkpoint's files to a tokenizer: which files, which class, which settings."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tokenizers import AddedToken, Tokenizer

from longspan.checkpoints.hub import Source
from longspan.checkpoints.untrusted import read_json, reading
from longspan.errors import CheckpointError, CheckpointNotFoundError
from longspan.tokenization.files import library_errors, read_text, read_tokenizer_file
from longspan.tokenization.special_tokens import SPECIAL_TOKENS_ATTRIBUTES, text_of

if TYPE_CHECKING:
    from longspan.tokenization.tokenizer import PreTrainedTokenizer

#: Arguments of `transformers` that say nothing here: there is one implementation, and no code is run.
_IGNORED = ("use_fast", "trust_remote_code", "tokenizer_type", "from_slow")

#: Paths on another machine that old files name.
_PATHS = ("tokenizer_file", "vocab_file", "merges_file", "special_tokens_map_file", "name_or_path", "init_inputs")
_OLDER_TOKENS = "tokens of added_tokens.json"


def load_tokenizer(
    pretrained_model_name_or_path: str | os.PathLike[str],
    *,
    choose: Callable[[str | None, str], type[PreTrainedTokenizer]],
    config: Any = None,
    revision: str | None = None,
    subfolder: str = "",
    cache_dir: str | os.PathLike[str] | None = None,
    local_files_only: bool = False,
    force_download: bool = False,
    token: str | bool | None = None,
    **overrides: Any,
) -> PreTrainedTokenizer:
    """Load a tokenizer.

    Args:
        pretrained_model_name_or_path: Local directory, or hub repository id.
        choose: Gives the class to make for the name that the files give, if any, and the file that decides how text
            is split.
        config: The model's configuration, asked for the class if the tokenizer's files name none.
        revision: Branch, tag or commit of a hub repository.
        subfolder: Folder inside the directory or repository.
        cache_dir: Hub cache to use instead of the default one.
        local_files_only: Never reach for the network.
        force_download: Download again even if the file is cached.
        token: Access token of the hub.
        **overrides: Settings that win over the files'.

    Returns:
        The tokenizer.

    Raises:
        CheckpointNotFoundError: there is no such checkpoint, or it has no tokenizer files.
        CheckpointError: a file is damaged.
    """
    source = Source(
        pretrained_model_name_or_path,
        revision=revision,
        subfolder=subfolder,
        cache_dir=cache_dir,
        local_files_only=local_files_only,
        force_download=force_download,
        token=token,
    )
    for name in _IGNORED:
        overrides.pop(name, None)
    settings_file = source.find("tokenizer_config.json") or Path(source.name) / source.subfolder
    with reading(settings_file, "the settings of its tokenizer"), library_errors("A tokenizer's files must agree"):
        settings = read_settings(source, overrides)
        named = settings.pop("tokenizer_class", None)
        for name in _PATHS:
            settings.pop(name, None)
        files = _Files(source)
        cls = choose(named or _class_from_config(source, config), files.kind())
        paths = files.of(cls)
        tokenizer = None
        if "tokenizer_file" in paths:
            tokenizer = read_tokenizer_file(paths.pop("tokenizer_file"))
        finish_settings(settings, tokenizer)
        return cls(_loaded=tokenizer, name_or_path=str(pretrained_model_name_or_path), **paths, **settings)


class _Files:
    """Vocabulary files of a checkpoint, looked for once each."""

    def __init__(self, source: Source) -> None:
        self._source = source
        self._found: dict[str, Path | None] = {}

    def find(self, name: str) -> Path | None:
        if name not in self._found:
            self._found[name] = self._source.find(name)
        return self._found[name]

    def kind(self) -> str:
        """Name of the file that decides how text is split."""
        for name in ("tokenizer.json", "vocab.txt", "vocab.json", "spiece.model", "tokenizer.model"):
            if self.find(name) is not None:
                return name
        raise CheckpointNotFoundError(
            f"{self._source.name} has no tokenizer files: one of tokenizer.json, vocab.txt, vocab.json with "
            "merges.txt, spiece.model or tokenizer.model must be there."
        )

    def of(self, cls: type[PreTrainedTokenizer]) -> dict[str, Path]:
        """Arguments of `cls` that name files: `tokenizer.json` if there is one, else the vocabulary's."""
        path = self.find("tokenizer.json")
        if path is not None:
            return {"tokenizer_file": path}
        missing = [name for name in cls.vocabulary_files.values() if self.find(name) is None]
        if missing or not cls.vocabulary_files:
            names = " and ".join(cls.vocabulary_files.values()) or "tokenizer.json"
            raise CheckpointNotFoundError(
                f"{cls.__name__} needs tokenizer.json{f' or {names}' if cls.vocabulary_files else ''} in "
                f"{self._source.name}. It has neither{f' (missing: {missing[0]})' if missing else ''}."
            )
        return {key: path for key, name in cls.vocabulary_files.items() if (path := self.find(name)) is not None}


def read_settings(source: Source, overrides: Mapping[str, Any]) -> dict[str, Any]:
    """Settings of `tokenizer_config.json`, with what the older files and the caller say.

    `added_tokens_decoder` in `tokenizer_config.json` makes `special_tokens_map.json` and `added_tokens.json` void, as
    in the reference.

    Args:
        source: The checkpoint.
        overrides: Settings of the caller.

    Returns:
        Settings, to be completed by `finish_settings`.
    """
    path = source.find("tokenizer_config.json")
    settings = {} if path is None else read_json(path)
    template = source.find("chat_template.jinja")
    if template is not None:
        settings["chat_template"] = read_text(template)
    settings |= overrides
    if "added_tokens_decoder" in settings:
        settings["added_tokens_decoder"] = _added_tokens(settings["added_tokens_decoder"])
    else:
        _read_special_tokens_map(source, settings, overrides)
        settings[_OLDER_TOKENS] = _read_added_tokens(source, settings)
    return settings


def finish_settings(settings: dict[str, Any], tokenizer: Tokenizer | None) -> None:
    """Give the special tokens of `settings`, in place, the flags that the added tokens have.

    Args:
        settings: Settings as `read_settings` returns them.
        tokenizer: Content of `tokenizer.json`, whose flags win where `tokenizer_config.json` has no
            `added_tokens_decoder`; None if there is none.
    """
    older = settings.pop(_OLDER_TOKENS, None)
    if older is not None:
        in_file = {} if tokenizer is None else tokenizer.get_added_tokens_decoder()
        settings["added_tokens_decoder"] = older | in_file
    by_text = {token.content: token for token in settings["added_tokens_decoder"].values()}
    for name in (*SPECIAL_TOKENS_ATTRIBUTES, "extra_special_tokens"):
        if settings.get(name) is None:
            continue
        settings[name] = _as_tokens(settings[name])
        if name in SPECIAL_TOKENS_ATTRIBUTES[:-1]:
            settings[name] = by_text.get(text_of(settings[name]), settings[name])


def _as_tokens(value: Any, **flags: bool) -> Any:
    """`value` with the JSON form of tokens replaced by `AddedToken`."""
    if isinstance(value, list | tuple):
        return [_as_tokens(item, **flags) for item in value]
    if isinstance(value, Mapping) and "content" in value:
        state = {key: item for key, item in value.items() if key != "__type"}
        try:
            return AddedToken(**(state | flags))
        except TypeError as error:
            raise CheckpointError(f"A token is given by its content and flags. Received: {value!r} ({error})") from None
    if isinstance(value, Mapping):
        return {key: _as_tokens(item, **flags) for key, item in value.items()}
    return value


def _added_tokens(entries: Any) -> dict[int, AddedToken]:
    rule = "added_tokens_decoder in tokenizer_config.json must map ids to tokens"
    if not isinstance(entries, Mapping):
        raise CheckpointError(f"{rule}. Received: {entries!r}")
    tokens = {}
    for index, entry in entries.items():
        token = _as_tokens(entry)
        if not isinstance(token, AddedToken) or not str(index).isdecimal():
            raise CheckpointError(f"{rule}. Received: {index!r}: {entry!r}")
        tokens[int(index)] = token
    return tokens


def _read_special_tokens_map(source: Source, settings: dict[str, Any], overrides: Mapping[str, Any]) -> None:
    path = source.find("special_tokens_map.json")
    for name, value in ({} if path is None else read_json(path)).items():
        if overrides.get(name):
            continue
        tokens = _as_tokens(value, special=True)
        if name == "additional_special_tokens" and isinstance(tokens, list):
            present = _as_tokens(settings.get(name) or [])
            tokens = present + [token for token in tokens if token not in present]
        settings[name] = tokens


def _read_added_tokens(source: Source, settings: Mapping[str, Any]) -> dict[int, AddedToken]:
    path = source.find("added_tokens.json")
    if path is None:
        return {}
    special: set[str] = set()
    for name in SPECIAL_TOKENS_ATTRIBUTES:
        value = _as_tokens(settings.get(name) or [])
        special |= {text_of(token) for token in (value if isinstance(value, list) else [value])}
    tokens = {}
    for text, index in read_json(path).items():
        if not isinstance(index, int):
            raise CheckpointError(f"{path} must give each token an id. Received: {text!r}: {index!r}")
        is_special = text in special
        tokens[index] = AddedToken(
            text, single_word=False, lstrip=False, rstrip=False, normalized=not is_special, special=is_special
        )
    return tokens


def _class_from_config(source: Source, config: Any) -> str | None:
    """Class name or model type that the model's `config.json` names."""
    if config is not None:
        return getattr(config, "tokenizer_class", None) or getattr(config, "model_type", None)
    path = source.find("config.json")
    if path is None:
        return None
    content = read_json(path)
    return content.get("tokenizer_class") or content.get("model_type")
