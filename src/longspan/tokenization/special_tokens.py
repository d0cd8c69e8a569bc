"""Special tokens of a tokenizer: their names, their ids, and the files' forms of them."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterable
from typing import Any, TypeAlias, overload

from tokenizers import AddedToken

from longspan.errors import ConfigError, InputError

SPECIAL_TOKENS_ATTRIBUTES = (
    "bos_token",
    "eos_token",
    "unk_token",
    "sep_token",
    "pad_token",
    "cls_token",
    "mask_token",
    "additional_special_tokens",
)

Token: TypeAlias = str | AddedToken


def text_of(token: Token) -> str:
    """The token's text."""
    return token.content if isinstance(token, AddedToken) else token


def as_added(token: Token, *, special: bool) -> AddedToken:
    """The token as a new `AddedToken`, made special if `special` says so."""
    if isinstance(token, str):
        return AddedToken(token, special=special)
    return AddedToken(
        token.content,
        single_word=token.single_word,
        lstrip=token.lstrip,
        rstrip=token.rstrip,
        normalized=token.normalized,
        special=token.special or special,
    )


class _TokenAttribute:
    """`tokenizer.pad_token`: text of a special token, None if it is not set."""

    def __set_name__(self, owner: type, name: str) -> None:
        self.name = name

    @overload
    def __get__(self, instance: None, owner: type) -> _TokenAttribute: ...
    @overload
    def __get__(self, instance: SpecialTokens, owner: type) -> str | None: ...
    def __get__(self, instance: SpecialTokens | None, owner: type) -> _TokenAttribute | str | None:
        if instance is None:
            return self
        token = instance._special_tokens.get(self.name)
        return None if token is None else text_of(token)

    def __set__(self, instance: SpecialTokens, value: Token | None) -> None:
        instance._set_special_token(self.name, value)


class _TokenIdAttribute:
    """`tokenizer.pad_token_id`: id of a special token, None if it is not set."""

    def __set_name__(self, owner: type, name: str) -> None:
        self.name = name.removesuffix("_id")

    @overload
    def __get__(self, instance: None, owner: type) -> _TokenIdAttribute: ...
    @overload
    def __get__(self, instance: SpecialTokens, owner: type) -> int | None: ...
    def __get__(self, instance: SpecialTokens | None, owner: type) -> _TokenIdAttribute | int | None:
        if instance is None:
            return self
        token = instance._special_tokens.get(self.name)
        return None if token is None else instance._token_to_id(text_of(token))

    def __set__(self, instance: SpecialTokens, value: int | None) -> None:
        token = None if value is None else instance._id_to_token(value)
        if value is not None and token is None:
            raise InputError(f"{self.name}_id must be an id of the vocabulary. Received: {value!r}")
        instance._set_special_token(self.name, token)


class SpecialTokens:
    """The special tokens of a tokenizer.

    Attributes:
        bos_token: Begins a sequence.
        eos_token: Ends a sequence.
        unk_token: Stands for what is not in the vocabulary.
        sep_token: Separates sequences.
        pad_token: Fills shorter rows of a batch.
        cls_token: Its state is read by classification heads.
        mask_token: Stands for a token that is to be predicted.
    """

    _special_tokens: dict[str, Token]
    _additional_special_tokens: list[Token]
    _model_specific_tokens: tuple[str, ...]

    bos_token = _TokenAttribute()
    eos_token = _TokenAttribute()
    unk_token = _TokenAttribute()
    sep_token = _TokenAttribute()
    pad_token = _TokenAttribute()
    cls_token = _TokenAttribute()
    mask_token = _TokenAttribute()
    bos_token_id = _TokenIdAttribute()
    eos_token_id = _TokenIdAttribute()
    unk_token_id = _TokenIdAttribute()
    sep_token_id = _TokenIdAttribute()
    pad_token_id = _TokenIdAttribute()
    cls_token_id = _TokenIdAttribute()
    mask_token_id = _TokenIdAttribute()

    def _init_special_tokens(self, tokens: dict[str, Any], model_specific: dict[str, Any]) -> None:
        """Take the special tokens out of a tokenizer's settings.

        Args:
            tokens: Settings; those that name a special token are read.
            model_specific: `extra_special_tokens`: further names and their tokens.
        """
        self._special_tokens = {}
        self._additional_special_tokens = []
        self._model_specific_tokens = tuple(model_specific)
        for name in SPECIAL_TOKENS_ATTRIBUTES[:-1]:
            if tokens.get(name) is not None:
                self._set_special_token(name, tokens[name])
        for name, token in model_specific.items():
            self._set_special_token(name, token)
        self.additional_special_tokens = tokens.get("additional_special_tokens") or []

    def __getattr__(self, name: str) -> Any:
        names = self.__dict__.get("_model_specific_tokens", ())
        if name in names:
            return text_of(self._special_tokens[name])
        if name.removesuffix("_id") in names:
            return self._token_to_id(text_of(self._special_tokens[name.removesuffix("_id")]))
        raise AttributeError(f"{type(self).__name__} has no attribute {name!r}")

    @property
    def special_token_names(self) -> tuple[str, ...]:
        """Names of special tokens, set or not."""
        return (*SPECIAL_TOKENS_ATTRIBUTES, *self._model_specific_tokens)

    @property
    def additional_special_tokens(self) -> list[str]:
        """Special tokens without a role of their own, such as the sentinels of LongT5."""
        return [text_of(token) for token in self._additional_special_tokens]

    @additional_special_tokens.setter
    def additional_special_tokens(self, tokens: Iterable[Token]) -> None:
        if not isinstance(tokens, list | tuple):
            raise ConfigError(f"additional_special_tokens must be a list of tokens. Received: {tokens!r}")
        self._additional_special_tokens = [_checked("additional_special_tokens", token) for token in tokens]

    @property
    def additional_special_tokens_ids(self) -> list[int | None]:
        """Ids of `additional_special_tokens`."""
        return [self._token_to_id(token) for token in self.additional_special_tokens]

    @property
    def special_tokens_map(self) -> dict[str, str | list[str]]:
        """Special tokens that are set, by name, as text."""
        return {
            name: [text_of(token) for token in value] if isinstance(value, list) else text_of(value)
            for name, value in self.special_tokens_map_extended.items()
        }

    @property
    def special_tokens_map_extended(self) -> dict[str, Token | list[Token]]:
        """Special tokens that are set, by name, as `AddedToken` where they were given so."""
        tokens: dict[str, Token | list[Token]] = {
            name: self._special_tokens[name] for name in SPECIAL_TOKENS_ATTRIBUTES[:-1] if name in self._special_tokens
        }
        if self._additional_special_tokens:
            tokens["additional_special_tokens"] = list(self._additional_special_tokens)
        return tokens | {name: self._special_tokens[name] for name in self._model_specific_tokens}

    @property
    def all_special_tokens_extended(self) -> list[Token]:
        """Every special token once, as `AddedToken` where it was given so."""
        tokens: dict[str, Token] = {}
        for value in self.special_tokens_map_extended.values():
            for token in value if isinstance(value, list) else [value]:
                tokens.setdefault(text_of(token), token)
        return list(tokens.values())

    @property
    def all_special_tokens(self) -> list[str]:
        """Every special token once, as text."""
        return [text_of(token) for token in self.all_special_tokens_extended]

    @property
    def all_special_ids(self) -> list[int | None]:
        """Ids of `all_special_tokens`."""
        return [self._token_to_id(token) for token in self.all_special_tokens]

    def _set_special_token(self, name: str, token: Token | None) -> None:
        if token is None:
            self._special_tokens.pop(name, None)
        else:
            self._special_tokens[name] = _checked(name, token)

    @abstractmethod
    def _token_to_id(self, token: str) -> int | None:
        """Id of a token, the unknown token's if the vocabulary lacks it."""

    @abstractmethod
    def _id_to_token(self, index: int) -> str | None:
        """Token of an id, None if the vocabulary has no such id."""


def _checked(name: str, token: Any) -> Token:
    if not isinstance(token, str | AddedToken):
        raise ConfigError(f"{name} must be a string or AddedToken. Received: {token!r}")
    return token
