"""`BatchEncoding`: what a tokenizer returns."""

from __future__ import annotations

import sys
from collections import UserDict
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from tokenizers import Encoding

from longspan.errors import InputError
from longspan.tokenization.tensors import tensor_converter, to_array


class CharSpan(NamedTuple):
    """Characters `start` to `end` (excluded) of the text that was tokenized."""

    start: int
    end: int


class TokenSpan(NamedTuple):
    """Tokens `start` to `end` (excluded) of a row."""

    start: int
    end: int


Encodings = list[Encoding] | Callable[[], list[Encoding]] | None


class BatchEncoding(UserDict[str, Any]):
    """Columns of a tokenized batch, and the alignment of its tokens with words and characters.

    It is a mapping (`**batch` calls a model), its columns are also attributes (`batch.input_ids`), and an integer
    index gives the `tokenizers.Encoding` of a row. Methods on tokens, words and characters take the row first; with
    a single row it may be left out: `token_to_chars(token)` or `token_to_chars(row, token)`.

    Args:
        data: Columns by name: `input_ids` and, as asked for, `token_type_ids`, `attention_mask`,
            `special_tokens_mask`, `offset_mapping`, `length`, `overflow_to_sample_mapping`, `labels`.
        encoding: Rows as `tokenizers.Encoding`, or a function that makes them when they are first needed.
        tensor_type: `"np"`, `"pt"`, `"tf"` or `"jax"` to turn the columns into tensors.
        prepend_batch_axis: Put a batch axis of length 1 in front of each column.
        n_sequences: Number of sequences in a row, 1 or 2; None asks the first row.

    Example:
        >>> from tokenizers import Tokenizer, models, pre_tokenizers
        >>> from longspan import PreTrainedTokenizer
        >>> words = Tokenizer(models.WordLevel({"long": 0, "text": 1}))
        >>> words.pre_tokenizer = pre_tokenizers.Whitespace()
        >>> batch = PreTrainedTokenizer(tokenizer_object=words)(["long text"])
        >>> batch.input_ids, batch.token_to_chars(0, 1)
        ([[0, 1]], CharSpan(start=5, end=9))
    """

    def __init__(
        self,
        data: Mapping[str, Any] | None = None,
        encoding: Encoding | Encodings = None,
        tensor_type: str | None = None,
        prepend_batch_axis: bool = False,
        n_sequences: int | None = None,
    ) -> None:
        super().__init__(data or {})
        self._encodings: Encodings = [encoding] if isinstance(encoding, Encoding) else encoding
        self._n_sequences = n_sequences
        self.convert_to_tensors(tensor_type, prepend_batch_axis)

    @property
    def encodings(self) -> list[Encoding] | None:
        """Rows as `tokenizers.Encoding`, padding included; None if the columns did not come from text."""
        if callable(self._encodings):
            self._encodings = self._encodings()
        return self._encodings

    @property
    def is_fast(self) -> bool:
        """True if tokens can be aligned with words and characters."""
        return self._encodings is not None

    @property
    def n_sequences(self) -> int | None:
        """Number of sequences in each row: 1 or 2 (a pair); None if unknown."""
        if self._n_sequences is None and self.encodings:
            self._n_sequences = self.encodings[0].n_sequences
        return self._n_sequences

    def __getitem__(self, item: str | int | slice) -> Any:
        """Column (string), row as `tokenizers.Encoding` (integer), or all columns cut to some rows (slice)."""
        if isinstance(item, str):
            return self.data[item]
        if isinstance(item, slice):
            return {key: value[item] for key, value in self.data.items()}
        return self._rows()[item]

    def __getattr__(self, name: str) -> Any:
        if name == "data" or name.startswith("__"):
            raise AttributeError(name)
        try:
            return self.data[name]
        except KeyError:
            columns = ", ".join(map(repr, self.data))
            raise AttributeError(f"BatchEncoding has no attribute or column {name!r}. Columns: {columns}") from None

    def __getstate__(self) -> dict[str, Any]:
        return {"data": self.data, "encodings": self.encodings, "n_sequences": self._n_sequences}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.data = state["data"]
        self._encodings = state["encodings"]
        self._n_sequences = state["n_sequences"]

    def tokens(self, batch_index: int = 0) -> list[str]:
        """Tokens of row `batch_index` as strings."""
        return list(self._rows()[batch_index].tokens)

    def sequence_ids(self, batch_index: int = 0) -> list[int | None]:
        """For each token: 0 or 1 for the first or second sequence, None for special tokens and padding."""
        return list(self._rows()[batch_index].sequence_ids)

    def word_ids(self, batch_index: int = 0) -> list[int | None]:
        """For each token: index of its word in its sequence, None for special tokens and padding."""
        return list(self._rows()[batch_index].word_ids)

    def words(self, batch_index: int = 0) -> list[int | None]:
        """The same as `word_ids`."""
        return self.word_ids(batch_index)

    def token_to_sequence(self, batch_or_token_index: int, token_index: int | None = None) -> int | None:
        """Sequence (0 or 1) that a token belongs to; None for a special token."""
        row, token = self._row_and_token(batch_or_token_index, token_index)
        sequence: int | None = row.token_to_sequence(token)
        return sequence

    def token_to_word(self, batch_or_token_index: int, token_index: int | None = None) -> int | None:
        """Index, in its sequence, of the word that a token belongs to; None for a special token."""
        row, token = self._row_and_token(batch_or_token_index, token_index)
        word: int | None = row.token_to_word(token)
        return word

    def token_to_chars(self, batch_or_token_index: int, token_index: int | None = None) -> CharSpan | None:
        """Characters, in its sequence, that a token stands for; None for a special token."""
        row, token = self._row_and_token(batch_or_token_index, token_index)
        span = row.token_to_chars(token)
        return None if span is None else CharSpan(*span)

    def word_to_tokens(
        self, batch_or_word_index: int, word_index: int | None = None, sequence_index: int = 0
    ) -> TokenSpan | None:
        """Tokens of a word of sequence `sequence_index`; None if the word has no token."""
        row, word = self._row_and_index(batch_or_word_index, word_index)
        span = row.word_to_tokens(word, sequence_index)
        return None if span is None else TokenSpan(*span)

    def word_to_chars(
        self, batch_or_word_index: int, word_index: int | None = None, sequence_index: int = 0
    ) -> CharSpan | None:
        """Characters of a word of sequence `sequence_index`; None if the word has no token."""
        row, word = self._row_and_index(batch_or_word_index, word_index)
        span = row.word_to_chars(word, sequence_index)
        return None if span is None else CharSpan(*span)

    def char_to_token(
        self, batch_or_char_index: int, char_index: int | None = None, sequence_index: int = 0
    ) -> int | None:
        """Token that holds a character of sequence `sequence_index`; None if no token does (blanks, truncation)."""
        row, char = self._row_and_index(batch_or_char_index, char_index)
        token: int | None = row.char_to_token(char, sequence_index)
        return token

    def char_to_word(
        self, batch_or_char_index: int, char_index: int | None = None, sequence_index: int = 0
    ) -> int | None:
        """Word that holds a character of sequence `sequence_index`; None if no word does."""
        row, char = self._row_and_index(batch_or_char_index, char_index)
        word: int | None = row.char_to_word(char, sequence_index)
        return word

    def convert_to_tensors(self, tensor_type: str | None = None, prepend_batch_axis: bool = False) -> BatchEncoding:
        """Turn every column into a tensor, in place.

        Args:
            tensor_type: `"np"`, `"pt"`, `"tf"` or `"jax"`; None leaves the columns as they are.
            prepend_batch_axis: Put a batch axis of length 1 in front of each column.

        Returns:
            This object.

        Raises:
            InputError: rows of a column differ in length, or hold something that is not a number.
            MissingFrameworkError: the framework is not installed.
        """
        if tensor_type is None:
            return self
        convert = tensor_converter(tensor_type)
        for key, value in self.data.items():
            array = to_array(key, value)
            self.data[key] = convert(array[None] if prepend_batch_axis else array)
        return self

    def to(self, device: Any, *, non_blocking: bool = False) -> BatchEncoding:
        """Move the PyTorch tensors to a device, in place.

        Args:
            device: What `torch.Tensor.to` takes: `"cuda"`, `"cpu"`, an index, a `torch.device`.
            non_blocking: Passed to `torch.Tensor.to`.

        Returns:
            This object.

        Raises:
            InputError: a column is not a PyTorch tensor.
        """
        torch: Any = sys.modules.get("torch")
        others = [key for key, value in self.data.items() if torch is None or not isinstance(value, torch.Tensor)]
        if others:
            raise InputError(
                "to(device) moves PyTorch tensors: tokenize with return_tensors='pt' first. "
                f"Received: {others[0]} of type {type(self.data[others[0]]).__name__}"
            )
        self.data = {key: value.to(device, non_blocking=non_blocking) for key, value in self.data.items()}
        return self

    def _rows(self) -> list[Encoding]:
        rows = self.encodings
        if rows is None:
            raise InputError(
                "Tokens are aligned with words and characters only in what a tokenizer made from text. "
                f"Received: a BatchEncoding of the columns {', '.join(self.data)}"
            )
        return rows

    def _row_and_index(self, first: int, second: int | None) -> tuple[Encoding, int]:
        rows = self._rows()
        return (rows[0], first) if second is None else (rows[first], second)

    def _row_and_token(self, first: int, second: int | None) -> tuple[Encoding, int]:
        row, token = self._row_and_index(first, second)
        length = len(row)
        if not -length <= token < length:
            raise InputError(f"The token index must be less than the row's {length} tokens. Received: {token}")
        return row, token + length if token < 0 else token
