"""Tokens of texts, and how they become the rows that a model reads: special tokens, segments, prompts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from tokenizers import Tokenizer

from longspan.documents.tokens import Tokens, tokenize
from longspan.errors import InputError

Ids = npt.NDArray[np.int32]


@dataclass(frozen=True, eq=False)
class Row:
    """One sequence for the model.

    Attributes:
        ids: (S,) token ids, special tokens included.
        segments: (S,) segment of each token, 0 or 1.
        is_global: (S,) tokens with global attention, for models that have it; None for the model's default.
        wanted: (P,) tokens whose outputs are wanted; None for all.
    """

    ids: Ids
    segments: Ids
    is_global: npt.NDArray[np.bool_] | None = None
    wanted: npt.NDArray[np.int64] | None = None

    def __len__(self) -> int:
        return len(self.ids)


class RowTemplate:
    """What a tokenizer puts before, between and after the one or two sequences of a row.

    Args:
        tokenizer: Tokenizer with truncation and padding switched off.
        is_pair: Whether rows have two sequences.

    Attributes:
        num_special: Special tokens of a row.

    Raises:
        InputError: the tokenizer gives no probe any token, so that its special tokens cannot be seen.
    """

    def __init__(self, tokenizer: Tokenizer, *, is_pair: bool = False) -> None:
        probe = _some_text(tokenizer)
        row = tokenizer.encode(probe, probe if is_pair else None)
        self._parts: list[tuple[int | None, int, int]] = []
        for part in zip(row.sequence_ids, row.ids, row.type_ids, strict=True):
            if part[0] is None or all(part[0] != known for known, _, _ in self._parts):
                self._parts.append(part)
        self.num_special = sum(sequence is None for sequence, _, _ in self._parts)

    def wrap(self, *sequences: Ids) -> tuple[Row, tuple[int, ...]]:
        """Put a row together.

        Args:
            *sequences: Token ids of each sequence.

        Returns:
            The row, and the position of the first token of each sequence.
        """
        ids = [np.asarray([token], np.int32) if part is None else sequences[part] for part, token, _ in self._parts]
        lengths = [len(piece) for piece in ids]
        segments = np.repeat(np.asarray([segment for _, _, segment in self._parts], np.int32), lengths)
        begins = np.cumsum([0, *lengths])
        starts = {part: int(begins[index]) for index, (part, _, _) in enumerate(self._parts) if part is not None}
        return Row(np.concatenate(ids), segments), tuple(starts[index] for index in range(len(sequences)))


def _some_text(tokenizer: Tokenizer) -> str:
    """A text that has tokens, whatever the vocabulary."""
    vocabulary: list[str] = list(tokenizer.get_vocab())[:1000]
    for text in ("a", "the", "1", ".", *vocabulary):
        if tokenizer.encode(text, add_special_tokens=False).ids:
            return text
    raise InputError("The tokenizer must give some text tokens. This one gives none to any entry of its vocabulary")


#: The first try reads so many characters for each token that is wanted; English has four to five.
_CHARACTERS_PER_TOKEN = 8
#: Tokens that end closer to a cut than this may depend on what comes behind it.
_MARGIN = 1024
#: White space is looked for among so many characters before.
_SEARCHED = 4096
_GROWTH = 4


def tokenize_beginnings(
    tokenizer: Tokenizer, texts: Sequence[str], most: int, *, with_offsets: bool = True, with_words: bool = False
) -> list[Tokens]:
    """The first tokens of texts, which are those that `longspan.documents.tokens.tokenize` gives for the whole texts.

    A text is cut, and the tokens before a white space well before the cut are taken: the tokenizers of all five
    families split words at white space, so that these words are whole. Where thousands of characters hold none, the
    tokens that end 1,024 characters before the cut are taken. If they are too few, four times as much is read.

    Args:
        tokenizer: Tokenizer with truncation and padding switched off.
        texts: Texts of any length.
        most: Tokens that are wanted of each text.
        with_offsets: Whether the tokens' characters are wanted; those of a text that is cut are there always.
        with_words: Whether the tokens' words are wanted.

    Returns:
        For each text at least its first `most` tokens, or all if it has fewer.
    """
    found: dict[int, Tokens] = {}
    waiting = list(range(len(texts)))
    length = most * _CHARACTERS_PER_TOKEN + _MARGIN
    while waiting:
        whole = [index for index in waiting if len(texts[index]) <= length]
        tokens = tokenize(
            tokenizer, [texts[index] for index in whole], with_offsets=with_offsets, with_words=with_words
        )
        found.update(zip(whole, tokens, strict=True))
        cut = [index for index in waiting if len(texts[index]) > length]
        tokens = tokenize(tokenizer, [texts[index][:length] for index in cut], with_words=with_words)
        found.update((index, _settled(each, texts[index], length)) for index, each in zip(cut, tokens, strict=True))
        waiting = [index for index in cut if len(found[index].ids) < most]
        length *= _GROWTH
    return [found[index] for index in range(len(texts))]


def _settled(tokens: Tokens, text: str, cut: int) -> Tokens:
    """The tokens of `text[:cut]` that are those of `text`."""
    last = cut - _MARGIN
    limit = next((place for place in range(last, max(0, last - _SEARCHED), -1) if text[place].isspace()), last)
    behind = np.flatnonzero(tokens.ends > limit)
    stop = int(behind[0]) if len(behind) else len(tokens.ids)
    return Tokens(tokens.ids[:stop], tokens.starts[:stop], tokens.ends[:stop], tokens.words[:stop])
