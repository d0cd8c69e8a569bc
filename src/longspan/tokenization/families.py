"""Tokenizers of the models: which vocabulary they read, and the settings they start from."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

from tokenizers import AddedToken, Tokenizer

from longspan.errors import CheckpointError, ConfigError, InputError
from longspan.tokenization.assembly import (
    bos_eos_processor,
    byte_level_tokenizer,
    llama_tokenizer,
    set_bert_normalizer,
    set_byte_level_offsets,
    set_prepend_scheme,
    unigram_tokenizer,
    wordpiece_tokenizer,
)
from longspan.tokenization.files import read_bpe, read_wordpiece
from longspan.tokenization.sentencepiece import read_sentencepiece
from longspan.tokenization.special_tokens import SPECIAL_TOKENS_ATTRIBUTES, text_of
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
        >>> import tempfile
        >>> with tempfile.NamedTemporaryFile("w", suffix="vocab.txt") as file:
        ...     _ = file.write("\n".join(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "long", "##er", "text"]))
        ...     file.flush()
        ...     tokenizer = BertTokenizer(vocab_file=file.name)
        >>> tokenizer.tokenize("Longer texts")
        ['long', '##er', '[UNK]']
        >>> tokenizer("Longer text", "text").input_ids
        [2, 5, 6, 7, 3, 7, 3]
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
    absent_settings: ClassVar[Mapping[str, Any]] = {
        **PreTrainedTokenizer.absent_settings,
        "never_split": None,
        "do_basic_tokenize": True,
    }
    vocabulary_files: ClassVar[Mapping[str, str]] = {"vocab_file": "vocab.txt"}
    saved_class_name: ClassVar[str] = "BertTokenizer"

    @classmethod
    def _build(cls, settings: dict[str, Any]) -> Tokenizer:
        settings.setdefault("clean_up_tokenization_spaces", True)
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
    def _build(cls, settings: dict[str, Any]) -> Tokenizer:
        for name in SPECIAL_TOKENS_ATTRIBUTES[:-1]:
            if isinstance(settings.get(name), str):
                settings[name] = AddedToken(settings[name], normalized=True)
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


class T5Tokenizer(PreTrainedTokenizer):
    """SentencePiece unigram, as LongT5 reads it: `A </s> B </s>`.

    The last ids of the vocabulary are sentinels, which stand for masked spans: with 32,000 pieces and 100 sentinels,
    `<extra_id_0>` is 32,099 and `<extra_id_99>` is 32,000.

    Args:
        vocab_file: `spiece.model`.
        tokenizer_file: `tokenizer.json`, read instead of `vocab_file`.
        extra_ids: Number of sentinels.
        additional_special_tokens: Further special tokens; if sentinels are among them, all must be.
        add_prefix_space: Read a text as if a blank stood before it.
        legacy: Do so after each special token inside the text, too.
        **settings: Further settings, as in `PreTrainedTokenizer`.
    """

    default_settings: ClassVar[Mapping[str, Any]] = {
        "eos_token": "</s>",
        "unk_token": "<unk>",
        "pad_token": "<pad>",
        "extra_ids": 100,
        "add_prefix_space": None,
        "legacy": True,
    }
    default_model_input_names: ClassVar[tuple[str, ...]] = ("input_ids", "attention_mask")
    vocabulary_files: ClassVar[Mapping[str, str]] = {"vocab_file": "spiece.model"}
    saved_class_name: ClassVar[str] = "T5Tokenizer"

    def __init__(self, **settings: Any) -> None:
        count = settings.get("extra_ids", self.default_settings["extra_ids"])
        if not isinstance(count, int) or count < 0:
            raise ConfigError(f"extra_ids must be the number of sentinels. Received: {count!r}")
        others = list(settings.get("additional_special_tokens") or [])
        sentinels = [token for token in others if _SENTINEL.fullmatch(text_of(token))]
        if not sentinels:
            others += [f"<extra_id_{index}>" for index in range(count)]
        elif count > 0 and len(sentinels) != count:
            raise ConfigError(
                "If additional_special_tokens holds sentinels, it must hold as many as extra_ids says. "
                f"Received: {len(sentinels)} sentinels, extra_ids={count}"
            )
        super().__init__(**(settings | {"additional_special_tokens": others}))

    @classmethod
    def _build(cls, settings: dict[str, Any]) -> Tokenizer:
        return unigram_tokenizer(
            read_sentencepiece(_file(cls, settings, "vocab_file")),
            extra_ids=settings["extra_ids"],
            **_texts(settings, "eos_token"),
            prepend_scheme=cls._prepend_scheme(settings),
        )

    @classmethod
    def _configure(cls, tokenizer: Tokenizer, settings: Mapping[str, Any]) -> None:
        if settings["add_prefix_space"] is not None:
            set_prepend_scheme(tokenizer, cls._prepend_scheme(settings))

    @staticmethod
    def _prepend_scheme(settings: Mapping[str, Any]) -> str:
        if settings["add_prefix_space"] is False:
            return "never"
        return "first" if settings["legacy"] is False else "always"

    def get_sentinel_tokens(self) -> list[str]:
        """Sentinels: `<extra_id_0>` and so on."""
        return [token for token in self.additional_special_tokens if _SENTINEL.fullmatch(token)]

    def get_sentinel_token_ids(self) -> list[int | None]:
        """Ids of the sentinels."""
        return self.convert_tokens_to_ids(self.get_sentinel_tokens())


class T5TokenizerFast(T5Tokenizer):
    """The same as `T5Tokenizer`."""


class LlamaTokenizer(PreTrainedTokenizer):
    """Tokenizer of Llama's kind, as DiffLlama checkpoints have it: `<s> A <s> B`, padded on the left.

    Args:
        vocab_file: `tokenizer.model`, a SentencePiece BPE (or unigram) model.
        tokenizer_file: `tokenizer.json`, read instead of `vocab_file`.
        add_bos_token: Put `bos_token` before each sequence.
        add_eos_token: Put `eos_token` after each sequence.
        **settings: Further settings, as in `PreTrainedTokenizer`.
    """

    default_settings: ClassVar[Mapping[str, Any]] = {
        "unk_token": "<unk>",
        "bos_token": "<s>",
        "eos_token": "</s>",
        "add_bos_token": True,
        "add_eos_token": False,
        "add_prefix_space": None,
        "legacy": True,
        "padding_side": "left",
    }
    default_model_input_names: ClassVar[tuple[str, ...]] = ("input_ids", "attention_mask")
    vocabulary_files: ClassVar[Mapping[str, str]] = {"vocab_file": "tokenizer.model"}
    saved_class_name: ClassVar[str] = "LlamaTokenizerFast"

    def __init__(self, **settings: Any) -> None:
        super().__init__(**settings)
        added = [self._end(name) for name in ("bos_token", "eos_token")]
        self._backend = self._backend.with_post_processor(bos_eos_processor(*added))

    @classmethod
    def _build(cls, settings: dict[str, Any]) -> Tokenizer:
        return llama_tokenizer(
            read_sentencepiece(_file(cls, settings, "vocab_file")),
            legacy=settings["legacy"] is not False,
            add_prefix_space=settings["add_prefix_space"] is not False,
        )

    def _end(self, name: str) -> tuple[str, int] | None:
        """Token and id of `bos_token` or `eos_token` if it is added to sequences."""
        if not self.init_kwargs[f"add_{name}"]:
            return None
        token = self._special_tokens.get(name)
        if token is None:
            raise ConfigError(f"add_{name}=True needs {name}. Received: {name}=None")
        index: int = self._backend.tokenizer.token_to_id(text_of(token))
        return text_of(token), index


class LlamaTokenizerFast(LlamaTokenizer):
    """The same as `LlamaTokenizer`."""


_SENTINEL = re.compile(r"<extra_id_\d+>")

_CLASSES: Mapping[str, type[PreTrainedTokenizer]] = {
    "BertTokenizer": BertTokenizer,
    "RobertaTokenizer": RobertaTokenizer,
    "LongformerTokenizer": LongformerTokenizer,
    "T5Tokenizer": T5Tokenizer,
    "LlamaTokenizer": LlamaTokenizer,
    "PreTrainedTokenizer": PreTrainedTokenizerFast,
    "bert": BertTokenizer,
    "longformer": LongformerTokenizer,
    "mega": RobertaTokenizer,
    "roberta": RobertaTokenizer,
    "longt5": T5Tokenizer,
    "t5": T5Tokenizer,
    "diffllama": LlamaTokenizer,
}
_CLASS_OF_FILE: Mapping[str, type[PreTrainedTokenizer]] = {
    "tokenizer.json": PreTrainedTokenizerFast,
    "vocab.txt": BertTokenizer,
    "vocab.json": RobertaTokenizer,
    "spiece.model": T5Tokenizer,
    "tokenizer.model": LlamaTokenizer,
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
    for name in names:
        if settings[name] is None:
            raise ConfigError(f"{name} must be set to lay out rows. Received: {name}=None")
    return {name: text_of(settings[name]) for name in names}


def _reading(settings: Mapping[str, Any]) -> dict[str, Any]:
    return {name: settings[name] for name in ("do_lower_case", "strip_accents", "tokenize_chinese_chars")}


def _blanks(settings: Mapping[str, Any]) -> dict[str, Any]:
    return {name: bool(settings[name]) for name in ("add_prefix_space", "trim_offsets")}
