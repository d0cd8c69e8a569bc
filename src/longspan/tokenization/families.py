"""Tokenizers of the models: which vocabulary they read, and the settings they start from."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

from tokenizers import AddedToken, Tokenizer

from longspan.errors import CheckpointError, ConfigError, InputError
from longspan.tokenization.assembly import (
    byte_level_tokenizer,
    set_bert_normalizer,
    set_byte_level_offsets,
    wordpiece_tokenizer,
)
from longspan.tokenization.files import read_bpe, read_wordpiece
from longspan.tokenization.special_tokens import text_of
from longspan.tokenization.tokenizer import PreTrainedTokenizer


class PreTrainedTokenizerFast(PreTrainedTokenizer):
    """The same as `PreTrainedTokenizer`, under the name that `transformers` gives to any `tokenizer.json`."""


class BertTokenizer(PreTrainedTokenizer):
    r"""WordPiece: `[CLS] A [SEP] B [SEP]`.

    Args:
        vocab_file: `vocab.txt`, one token a line.
        tokenizer_file: `tokenizer.json`, read instead of `vocab_file`.
        do_lower_case: Lower the text.
        strip_accents: Remove accents; None does so when lowering.
        tokenize_chinese_chars: Split at each CJK character.
        **settings: Further settings, as in `PreTrainedTokenizer`.

    Example:
        >>> from pathlib import Path
        >>> vocab = Path(tmp_path) / "vocab.txt"
        >>> _ = vocab.write_text("\n".join(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "long", "##er", "text"]))
        >>> BertTokenizer(vocab_file=vocab)("Longer text").input_ids
        [2, 5, 6, 7, 3]
    """

    default_settings: ClassVar[Mapping[str, Any]] = {
        "unk_token": "[UNK]",
        "sep_token": "[SEP]",
        "pad_token": "[PAD]",
        "cls_token": "[CLS]",
        "mask_token": "[MASK]",
        "do_lower_case": True,
        "strip_accents": None,
        "tokenize_chinese_chars": True,
    }
    vocabulary_files: ClassVar[Mapping[str, str]] = {"vocab_file": "vocab.txt"}
    saved_class_name: ClassVar[str] = "BertTokenizer"

    @classmethod
    def _build(cls, settings: Mapping[str, Any]) -> Tokenizer:
        vocab = read_wordpiece(_file(cls, settings, "vocab_file"))
        return wordpiece_tokenizer(
            vocab, **_texts(settings, "unk_token", "cls_token", "sep_token"), **_reading(settings)
        )

    @classmethod
    def _configure(cls, tokenizer: Tokenizer, settings: Mapping[str, Any]) -> None:
        super()._configure(tokenizer, settings)
        set_bert_normalizer(tokenizer, **_reading(settings))


class BertTokenizerFast(BertTokenizer):
    """The same as `BertTokenizer`."""


class RobertaTokenizer(PreTrainedTokenizer):
    """Byte-level BPE, as MEGA reads it: `<s> A </s></s> B </s>`.

    Args:
        vocab_file: `vocab.json`, ids of the tokens.
        merges_file: `merges.txt`, pairs of tokens in the order in which they are merged.
        tokenizer_file: `tokenizer.json`, read instead of the two.
        add_prefix_space: Read the first word as if a blank stood before it.
        trim_offsets: Leave blanks out of the characters of a token.
        **settings: Further settings, as in `PreTrainedTokenizer`.
    """

    default_settings: ClassVar[Mapping[str, Any]] = {
        "bos_token": "<s>",
        "eos_token": "</s>",
        "sep_token": "</s>",
        "cls_token": "<s>",
        "unk_token": "<unk>",
        "pad_token": "<pad>",
        "mask_token": "<mask>",
        "add_prefix_space": False,
        "trim_offsets": True,
        "errors": "replace",
    }
    default_model_input_names: ClassVar[tuple[str, ...]] = ("input_ids", "attention_mask")
    vocabulary_files: ClassVar[Mapping[str, str]] = {"vocab_file": "vocab.json", "merges_file": "merges.txt"}
    saved_class_name: ClassVar[str] = "RobertaTokenizer"

    def __init__(self, **settings: Any) -> None:
        mask = settings.get("mask_token", self.default_settings["mask_token"])
        if isinstance(mask, str):  # the mask stands for a word and the blank before it
            mask = AddedToken(mask, lstrip=True, rstrip=False, normalized=False)
        super().__init__(**(settings | {"mask_token": mask}))

    @classmethod
    def _build(cls, settings: Mapping[str, Any]) -> Tokenizer:
        vocab, merges = read_bpe(_file(cls, settings, "vocab_file"), _file(cls, settings, "merges_file"))
        return byte_level_tokenizer(vocab, merges, **_texts(settings, "cls_token", "sep_token"), **_blanks(settings))

    @classmethod
    def _configure(cls, tokenizer: Tokenizer, settings: Mapping[str, Any]) -> None:
        super()._configure(tokenizer, settings)
        set_byte_level_offsets(tokenizer, **_blanks(settings))

    def _check_words(self, is_split_into_words: bool) -> None:
        if is_split_into_words and not self.init_kwargs.get("add_prefix_space"):
            raise InputError(
                f"is_split_into_words=True needs a {type(self).__name__} made with add_prefix_space=True, "
                "so that each word is read like one that follows a blank. Received: add_prefix_space=False"
            )


class RobertaTokenizerFast(RobertaTokenizer):
    """The same as `RobertaTokenizer`."""


class LongformerTokenizer(RobertaTokenizer):
    """Byte-level BPE, as Longformer reads it: `<s> A </s></s> B </s>`. Arguments are those of `RobertaTokenizer`."""

    saved_class_name: ClassVar[str] = "LongformerTokenizer"


class LongformerTokenizerFast(LongformerTokenizer):
    """The same as `LongformerTokenizer`."""


_CLASSES: Mapping[str, type[PreTrainedTokenizer]] = {
    "BertTokenizer": BertTokenizer,
    "RobertaTokenizer": RobertaTokenizer,
    "LongformerTokenizer": LongformerTokenizer,
    "PreTrainedTokenizer": PreTrainedTokenizerFast,
    "bert": BertTokenizer,
    "longformer": LongformerTokenizer,
    "mega": RobertaTokenizer,
    "roberta": RobertaTokenizer,
}
_CLASS_OF_FILE: Mapping[str, type[PreTrainedTokenizer]] = {
    "tokenizer.json": PreTrainedTokenizerFast,
    "vocab.txt": BertTokenizer,
    "vocab.json": RobertaTokenizer,
}


def class_of(name: str | None, file: str) -> type[PreTrainedTokenizer]:
    """Class for a checkpoint.

    Args:
        name: Class name or model type that its files give, if any.
        file: The vocabulary file it has.

    Returns:
        The class. A name that is not known is fine with `tokenizer.json`, which says all by itself.

    Raises:
        CheckpointError: without `tokenizer.json`, the class is not one of longspan's.
    """
    known = None if name is None else _CLASSES.get(name.removesuffix("Fast"))
    if known is not None:
        return known
    if file in _CLASS_OF_FILE and (name is None or file == "tokenizer.json"):
        return _CLASS_OF_FILE[file]
    raise CheckpointError(
        f"Without tokenizer.json, the tokenizer must be one of {', '.join(sorted(_CLASSES))}. "
        f"Received: {name!r} with {file}"
    )


def _file(cls: type[PreTrainedTokenizer], settings: Mapping[str, Any], key: str) -> Path:
    if settings.get(key) is None:
        names = " and ".join(cls.vocabulary_files)
        raise ConfigError(f"{cls.__name__} needs {names}, or tokenizer_file. Received: {key}=None")
    return Path(settings[key])


def _texts(settings: Mapping[str, Any], *names: str) -> dict[str, Any]:
    return {name: text_of(settings[name]) for name in names}


def _reading(settings: Mapping[str, Any]) -> dict[str, Any]:
    return {name: settings[name] for name in ("do_lower_case", "strip_accents", "tokenize_chinese_chars")}


def _blanks(settings: Mapping[str, Any]) -> dict[str, Any]:
    return {name: bool(settings[name]) for name in ("add_prefix_space", "trim_offsets")}
