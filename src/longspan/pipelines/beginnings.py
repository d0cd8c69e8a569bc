"""Tokens of the beginnings of texts, without tokenizing what nobody reads."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from tokenizers import Tokenizer

from longspan.documents.tokens import Tokens, tokenize

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
