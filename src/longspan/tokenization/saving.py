"""Writing a tokenizer's files, which longspan and `transformers` load."""

from __future__ import annotations

import json
import os
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tokenizers import AddedToken

from longspan.errors import InputError

if TYPE_CHECKING:
    from longspan.tokenization.tokenizer import PreTrainedTokenizer

#: Settings that say where a tokenizer came from: not written.
_PRIVATE = ("name_or_path", "vocab_file", "merges_file", "tokenizer_file", "special_tokens_map_file")


def save_tokenizer(tokenizer: PreTrainedTokenizer, directory: Path) -> tuple[str, ...]:
    """Write the tokenizer's files into `directory`, each whole or not at all.

    Args:
        tokenizer: The tokenizer.
        directory: Made if it does not exist.

    Returns:
        Paths of the files.

    Raises:
        InputError: `directory` is a file.
    """
    if directory.is_file():
        raise InputError(f"save_directory must be a directory. Received: {directory}, which is a file")
    directory.mkdir(parents=True, exist_ok=True)
    texts = {
        "special_tokens_map.json": _json(_plain(tokenizer.special_tokens_map_extended, mark=False)),
        "tokenizer_config.json": _json(_config(tokenizer)),
        "tokenizer.json": tokenizer.to_json(),
    }
    with tempfile.TemporaryDirectory(dir=directory, prefix=".saving-") as scratch:
        for name, text in texts.items():
            _write(Path(scratch) / name, text)
        for name in texts:
            (Path(scratch) / name).replace(directory / name)
    return tuple(str(directory / name) for name in texts)


def _config(tokenizer: PreTrainedTokenizer) -> dict[str, Any]:
    """Content of `tokenizer_config.json`."""
    config = {key: value for key, value in tokenizer.init_kwargs.items() if key not in _PRIVATE}
    for key in (*config, "model_max_length", "clean_up_tokenization_spaces", "extra_special_tokens"):
        if hasattr(tokenizer, key):
            config[key] = getattr(tokenizer, key)
    for name in tokenizer.special_token_names:
        config.pop(name, None)
    config |= tokenizer.special_tokens_map
    config["added_tokens_decoder"] = {
        str(index): _plain(token, mark=False) | {"special": token.special}
        for index, token in tokenizer.added_tokens_decoder.items()
    }
    config["tokenizer_class"] = tokenizer.saved_class_name
    plain: dict[str, Any] = _plain(config, mark=True)
    return plain


def _plain(value: Any, *, mark: bool) -> Any:
    """`value` with each `AddedToken` in its JSON form; `mark` adds what tells it from other objects."""
    if isinstance(value, AddedToken):
        state = {
            "content": value.content,
            "lstrip": value.lstrip,
            "normalized": value.normalized,
            "rstrip": value.rstrip,
            "single_word": value.single_word,
        }
        return state | {"special": value.special, "__type": "AddedToken"} if mark else state
    if isinstance(value, dict):
        return {key: _plain(item, mark=mark) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item, mark=mark) for item in value]
    return value


def _json(content: Any) -> str:
    return json.dumps(content, indent=2, sort_keys=True, ensure_ascii=False) + "\n"


def _write(path: Path, text: str) -> None:
    with path.open("w", encoding="utf-8", newline="\n") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
