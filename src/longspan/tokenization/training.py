"""A vocabulary of the same kind as a tokenizer's, learned from other texts."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from tokenizers import AddedToken, Tokenizer, pre_tokenizers, trainers

from longspan.errors import ConfigError
from longspan.tokenization.special_tokens import Token

_TRAINERS: Mapping[str, Any] = {
    "BPE": trainers.BpeTrainer,
    "Unigram": trainers.UnigramTrainer,
    "WordLevel": trainers.WordLevelTrainer,
    "WordPiece": trainers.WordPieceTrainer,
}


def train_like(
    tokenizer: Tokenizer,
    texts: Iterable[str] | Iterable[Sequence[str]],
    *,
    vocab_size: int,
    length: int | None,
    new_tokens: Sequence[Token],
    renamed: Mapping[str, str],
    options: Mapping[str, Any],
) -> Tokenizer:
    """Learn a vocabulary for the same normalizer, pre-tokenizer, kind of model, special tokens and layout of rows.

    Args:
        tokenizer: What to take those from.
        texts: Texts, or batches of them.
        vocab_size: Number of tokens, special ones included.
        length: Number of texts, for the progress bar.
        new_tokens: Further special tokens.
        renamed: Other texts for special tokens.
        options: Further arguments of the library's trainer.

    Returns:
        The new tokenizer.

    Raises:
        ConfigError: the library has no trainer for this kind of model.
    """
    state = json.loads(tokenizer.to_str())
    kind = state["model"]["type"]
    if kind not in _TRAINERS:
        raise ConfigError(f"A vocabulary is learned for one of {', '.join(_TRAINERS)}. Received: {kind}")
    added, processor = state.pop("added_tokens"), state.pop("post_processor")
    unknown = _empty_model(state["model"], renamed)
    fresh = Tokenizer.from_str(json.dumps({**state, "added_tokens": [], "post_processor": None}))
    special = [_token(entry, renamed) for entry in added if entry["special"] or kind == "Unigram"]
    trainer = _TRAINERS[kind](
        vocab_size=vocab_size,
        special_tokens=[*special, *new_tokens],
        **_trainer_options(state, unknown),
        **options,
    )
    fresh.train_from_iterator(texts, trainer=trainer, length=length)
    if processor is not None:
        state = json.loads(fresh.to_str())
        state["post_processor"] = _with_ids(processor, fresh, renamed)
        fresh = Tokenizer.from_str(json.dumps(state))
    return fresh


def _empty_model(model: dict[str, Any], renamed: Mapping[str, str]) -> str | None:
    """Take the vocabulary out of a model's state, in place; returns the unknown piece of a unigram model."""
    unknown = None
    if model["type"] == "Unigram":
        if model["unk_id"] is not None:
            unknown = model["vocab"][model["unk_id"]][0]
            unknown = renamed.get(unknown, unknown)
            model |= {"unk_id": 0, "vocab": [[unknown, 0.0]]}
        return unknown
    model["vocab"] = {}
    if model["type"] == "BPE":
        model["merges"] = []
    if model.get("unk_token") in renamed:
        model["unk_token"] = renamed[model["unk_token"]]
    return None


def _token(entry: Mapping[str, Any], renamed: Mapping[str, str]) -> AddedToken:
    state = {key: value for key, value in entry.items() if key not in ("id", "content")}
    return AddedToken(renamed.get(entry["content"], entry["content"]), **state)


def _trainer_options(state: Mapping[str, Any], unknown: str | None) -> dict[str, Any]:
    model, splitter = state["model"], state["pre_tokenizer"] or {}
    options: dict[str, Any] = {"show_progress": False}
    for name in ("continuing_subword_prefix", "end_of_word_suffix"):
        if model["type"] in ("BPE", "WordPiece") and model.get(name) is not None:
            options[name] = model[name]
    if unknown is not None:
        options["unk_token"] = unknown
    parts = splitter.get("pretokenizers", [splitter])
    if any(part.get("type") == "ByteLevel" for part in parts):
        options["initial_alphabet"] = pre_tokenizers.ByteLevel.alphabet()
    return options


def _with_ids(processor: Any, tokenizer: Tokenizer, renamed: Mapping[str, str]) -> Any:
    """The state of a post-processor with the new texts and ids of its special tokens."""
    if isinstance(processor, list):
        return [_with_ids(item, tokenizer, renamed) for item in processor]
    if not isinstance(processor, dict):
        return processor
    changed = {key: _with_ids(value, tokenizer, renamed) for key, value in processor.items()}
    if isinstance(changed.get("special_tokens"), dict):
        named = {}
        for entry in changed["special_tokens"].values():
            tokens = [renamed.get(token, token) for token in entry["tokens"]]
            text = renamed.get(entry["id"], entry["id"])
            named[text] = {"id": text, "ids": [tokenizer.token_to_id(token) for token in tokens], "tokens": tokens}
        changed["special_tokens"] = named
    if isinstance(changed.get("SpecialToken"), dict):
        changed["SpecialToken"]["id"] = renamed.get(changed["SpecialToken"]["id"], changed["SpecialToken"]["id"])
    for name in ("cls", "sep"):
        if isinstance(changed.get(name), list) and len(changed[name]) == 2:
            text = renamed.get(changed[name][0], changed[name][0])
            changed[name] = [text, tokenizer.token_to_id(text)]
    return changed
