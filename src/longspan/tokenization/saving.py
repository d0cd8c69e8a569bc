"""Writing a tokenizer's files, which longspan and `transformers` load."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tokenizers import AddedToken

from longspan.checkpoints.update import DirectoryUpdate

if TYPE_CHECKING:
    from longspan.tokenization.tokenizer import PreTrainedTokenizer

#: Settings that say where a tokenizer came from: not written.
_PRIVATE = ("name_or_path", "vocab_file", "merges_file", "tokenizer_file", "special_tokens_map_file")
#: Settings that are written even if no file named them.
_ALWAYS = ("model_max_length", "clean_up_tokenization_spaces", "padding_side", "truncation_side")
#: Files whose content `tokenizer_config.json` now has, and which would win over it.
_SUPERSEDED = ("added_tokens.json", "chat_template.jinja")


def save_tokenizer(tokenizer: PreTrainedTokenizer, directory: Path) -> tuple[str, ...]:
    """Write the tokenizer's files into `directory`: a killed process leaves all old ones or all new ones.

    Args:
        tokenizer: The tokenizer.
        directory: Made if it does not exist.

    Returns:
        Paths of the files.

    Raises:
        CheckpointError: `directory` is a file.
    """
    texts = {
        "tokenizer.json": tokenizer.to_json(),
        "tokenizer_config.json": _json(_config(tokenizer)),
        "special_tokens_map.json": _json(_plain(_special_tokens(tokenizer), mark=False)),
    }
    with DirectoryUpdate(directory) as update:
        for name, text in texts.items():
            update.write(name, text.encode())
        for name in _SUPERSEDED:
            update.remove(name)
        vocabulary = tokenizer.save_vocabulary(update.path("tokenizer.json").parent)
    return tuple(str(directory / name) for name in (*texts, *(Path(path).name for path in vocabulary)))


def _special_tokens(tokenizer: PreTrainedTokenizer) -> dict[str, Any]:
    """Special tokens by name, as the `AddedToken` that the tokenizer finds in texts."""
    added = {token.content: token for token in tokenizer.added_tokens_decoder.values()}
    return {
        name: [added.get(text, text) for text in value] if isinstance(value, list) else added.get(value, value)
        for name, value in tokenizer.special_tokens_map.items()
    }


def _config(tokenizer: PreTrainedTokenizer) -> dict[str, Any]:
    """Content of `tokenizer_config.json`."""
    config = {key: value for key, value in tokenizer.init_kwargs.items() if key not in _PRIVATE}
    for key in (*config, *_ALWAYS):
        if key in vars(tokenizer):
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
