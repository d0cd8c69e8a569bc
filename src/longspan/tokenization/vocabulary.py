"""The vocabulary of a tokenizer: tokens, ids, and tokens added to it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, overload

from tokenizers import AddedToken, Tokenizer

from longspan.errors import InputError
from longspan.tokenization.backend import Backend
from longspan.tokenization.special_tokens import SpecialTokens, Token, text_of
from longspan.tokenization.tensors import to_lists


class Vocabulary(SpecialTokens):
    """Tokens and their ids."""

    _backend: Backend

    @property
    def is_fast(self) -> bool:
        """True: tokens can be aligned with words and characters."""
        return True

    @property
    def backend_tokenizer(self) -> Tokenizer:
        """The `tokenizers.Tokenizer`. Once it was read here, calls are slower, because it may be changed outside.

        `add_tokens` and `add_special_tokens` replace it: read it again after them.
        """
        self._backend.is_exposed = True
        return self._backend.tokenizer

    def to_json(self) -> str:
        """Content of a `tokenizer.json` of this tokenizer."""
        return str(self._backend.tokenizer.to_str(pretty=True))

    @property
    def vocab_size(self) -> int:
        """Number of tokens of the vocabulary without added ones."""
        return int(self._backend.tokenizer.get_vocab_size(with_added_tokens=False))

    def __len__(self) -> int:
        """Number of tokens of the vocabulary, added ones included: rows that an embedding needs."""
        return int(self._backend.tokenizer.get_vocab_size(with_added_tokens=True))

    def __bool__(self) -> bool:
        return True

    def get_vocab(self) -> dict[str, int]:
        """Ids of all tokens, added ones included."""
        return dict(self._backend.tokenizer.get_vocab(with_added_tokens=True))

    @property
    def vocab(self) -> dict[str, int]:
        """The same as `get_vocab()`."""
        return self.get_vocab()

    @property
    def added_tokens_decoder(self) -> dict[int, AddedToken]:
        """Tokens that are found as units before the vocabulary is applied, by id."""
        return dict(sorted(self._backend.tokenizer.get_added_tokens_decoder().items()))

    @property
    def added_tokens_encoder(self) -> dict[str, int]:
        """Ids of the tokens of `added_tokens_decoder`."""
        return {token.content: index for index, token in self.added_tokens_decoder.items()}

    def get_added_vocab(self) -> dict[str, int]:
        """The same as `added_tokens_encoder`."""
        return self.added_tokens_encoder

    def add_tokens(self, new_tokens: Token | Sequence[Token], special_tokens: bool = False) -> int:
        """Add tokens that are found as units.

        Args:
            new_tokens: One or several, as text or `AddedToken`.
            special_tokens: They are special: skipped by `decode(skip_special_tokens=True)`, never normalized.

        Returns:
            Number of tokens that were not added before. Those that the vocabulary has keep their id, so that a
            model's embeddings need `len(tokenizer)` rows.

        Raises:
            InputError: a token is neither text nor `AddedToken`.
        """
        tokens = [new_tokens] if isinstance(new_tokens, str | AddedToken) else list(new_tokens or [])
        for token in tokens:
            if not isinstance(token, str | AddedToken):
                raise InputError(f"new_tokens must be strings or AddedToken. Received: {token!r}")
        if not tokens:
            return 0
        self._backend, num_added = self._backend.with_tokens(tokens, special=special_tokens)
        return num_added

    def add_special_tokens(
        self,
        special_tokens_dict: Mapping[str, Token | Sequence[Token]],
        replace_additional_special_tokens: bool = True,
    ) -> int:
        """Set special tokens, adding those that the vocabulary lacks.

        Args:
            special_tokens_dict: Tokens by name (`{"pad_token": "[PAD]"}`); `additional_special_tokens` takes a list.
            replace_additional_special_tokens: False keeps the additional ones there are.

        Returns:
            Number of tokens that were not added before, as in `add_tokens`.

        Raises:
            InputError: a name is not that of a special token.
        """
        names = self.special_token_names
        for name, value in special_tokens_dict.items():
            if name not in names:
                raise InputError(f"Special tokens are named {', '.join(names)}. Received: {name!r}")
            if name == "additional_special_tokens" and not isinstance(value, list | tuple):
                raise InputError(f"additional_special_tokens must be a list of tokens. Received: {value!r}")
        to_add: list[Token] = []
        for name, value in special_tokens_dict.items():
            if name == "additional_special_tokens":
                to_add += self._extend_additional(value, replace=replace_additional_special_tokens)
            else:
                token = _special(name, value)
                self._set_special_token(name, token)
                to_add.append(token)
        return self.add_tokens(to_add, special_tokens=True)

    def _extend_additional(self, tokens: Any, *, replace: bool) -> list[Token]:
        kept = [] if replace else self._additional_special_tokens
        present = {text_of(token) for token in kept}
        new = [_special("additional_special_tokens", token) for token in tokens]
        new = [token for token in new if text_of(token) not in present]
        if new:
            self._additional_special_tokens = [*kept, *new]
        return new

    @overload
    def convert_tokens_to_ids(self, tokens: str) -> int | None: ...
    @overload
    def convert_tokens_to_ids(self, tokens: list[str] | tuple[str, ...]) -> list[int | None]: ...
    def convert_tokens_to_ids(self, tokens: str | list[str] | tuple[str, ...]) -> int | list[int | None] | None:
        """Id of a token, or ids of several; the unknown token's id (None without one) for what is not known."""
        if isinstance(tokens, str):
            return self._token_to_id(tokens)
        return [self._token_to_id(token) for token in tokens]

    def convert_ids_to_tokens(self, ids: Any, skip_special_tokens: bool = False) -> Any:
        """Token of an id, or tokens of several; None for ids that the vocabulary lacks."""
        numbers = to_lists(ids)
        if isinstance(numbers, int):
            return self._id_to_token(numbers)
        skipped = set(self.all_special_ids) if skip_special_tokens else set()
        return [self._id_to_token(index) for index in numbers if index not in skipped]

    def convert_tokens_to_string(self, tokens: Sequence[str]) -> str:
        """Text of tokens, as the vocabulary joins them."""
        decoder = self._backend.tokenizer.decoder
        return " ".join(tokens) if decoder is None else str(decoder.decode(list(tokens)))

    def _token_to_id(self, token: str) -> int | None:
        index: int | None = self._backend.tokenizer.token_to_id(token)
        unknown = self._special_tokens.get("unk_token")
        if index is None and unknown is not None:
            index = self._backend.tokenizer.token_to_id(text_of(unknown))
        return index

    def _id_to_token(self, index: int) -> str | None:
        check_ids([index])
        token: str | None = self._backend.tokenizer.id_to_token(index)
        return token


def check_ids(ids: Sequence[Any]) -> None:
    """Raise `InputError` unless all `ids` are integers that a vocabulary can have."""
    for index, number in enumerate(ids):
        if not isinstance(number, int):
            hint = " (batch_decode takes several rows)" if isinstance(number, list) else ""
            raise InputError(f"Token ids must be integers{hint}. Received: {number!r} at position {index}")
        if not 0 <= number < 2**32:
            raise InputError(
                "Token ids must not be negative (replace the -100 of ignored labels by pad_token_id) and be less "
                f"than 2**32. Received: {number} at position {index}"
            )


def _special(name: str, token: Any) -> AddedToken:
    if isinstance(token, AddedToken):
        return token
    if not isinstance(token, str):
        raise InputError(f"{name} must be a string or AddedToken. Received: {token!r}")
    return AddedToken(token, normalized=False, special=True)
