"""Tokens of whole texts, of any length, with the characters they come from."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt
from tokenizers import Encoding, Tokenizer

#: Texts above this length are tokenized piece by piece, so that memory stays bounded.
SEGMENT_CHARACTERS = 1 << 18
#: At least so many are tokenized at a time, where there are as many, for the cores of a machine.
_LEAST_SEGMENTS = 16
#: A place to cut is looked for among so many characters.
_CUT_CHARACTERS = 4096


@dataclass(frozen=True)
class Tokens:
    """Tokens of one text, without special tokens.

    Attributes:
        ids: (T,) int32 vocabulary indices.
        starts: (T,) int64: first character of each token; empty if offsets were not asked for.
        ends: (T,) int64: one past the last character of each token; empty likewise.
        words: (T,) int64: word that each token is part of, as the tokenizer splits words, -1 for tokens that are
            matched as units; empty if words were not asked for.
    """

    ids: npt.NDArray[np.int32]
    starts: npt.NDArray[np.int64]
    ends: npt.NDArray[np.int64]
    words: npt.NDArray[np.int64] = field(default_factory=lambda: np.empty(0, np.int64))

    def span(self, start: int, stop: int) -> tuple[int, int]:
        """First character and one past the last character of tokens `start` to `stop` (not included)."""
        return int(self.starts[start:stop].min()), int(self.ends[start:stop].max())


def tokenize(
    tokenizer: Tokenizer,
    texts: Sequence[str],
    *,
    with_offsets: bool = True,
    with_words: bool = False,
    segment_characters: int = SEGMENT_CHARACTERS,
) -> list[Tokens]:
    """Tokenize texts, each exactly once and in one batch, without special tokens, truncation or padding.

    Very long texts are cut into segments before a white-space character that follows other text, where the tokenizers
    of all five families split anyway; only where thousands of characters hold no white space they are cut elsewhere.

    Args:
        tokenizer: Tokenizer with truncation and padding switched off.
        texts: Texts of any length.
        with_offsets: Whether the tokens' characters are wanted (slower).
        with_words: Whether the tokens' words are wanted, besides their characters.
        segment_characters: Length above which a text is cut.

    Returns:
        The tokens of each text, in order.
    """
    segments: list[str] = []
    shifts: list[int] = []
    counts: list[int] = []
    for text in texts:
        cuts = list(_segments(text, segment_characters))
        counts.append(len(cuts))
        shifts.extend(start for start, _ in cuts)
        segments.extend(text[start:stop] for start, stop in cuts)
    encode = tokenizer.encode_batch if with_offsets else tokenizer.encode_batch_fast
    parts: list[Tokens] = []
    for some in _batches(segments):
        encodings = encode(segments[some], add_special_tokens=False)
        parts += [
            _to_arrays(encoding, shift, with_offsets, with_words)
            for encoding, shift in zip(encodings, shifts[some], strict=True)
        ]
    results = []
    first = 0
    for count in counts:
        results.append(_join(parts[first : first + count]))
        first += count
    return results


def _batches(segments: Sequence[str]) -> Iterator[slice]:
    """Neighbours that are encoded at a time: an encoding holds far more than the arrays that are taken from it."""
    start = size = 0
    for stop, segment in enumerate(segments, start=1):
        size += len(segment)
        if size >= SEGMENT_CHARACTERS and stop - start >= _LEAST_SEGMENTS:
            yield slice(start, stop)
            start, size = stop, 0
    if start < len(segments):
        yield slice(start, len(segments))


def _segments(text: str, limit: int) -> Iterator[tuple[int, int]]:
    start = 0
    while len(text) - start > limit:
        stop = _last_cut(text, start + max(1, limit - _CUT_CHARACTERS), start + limit)
        yield start, stop
        start = stop
    yield start, len(text)


def _last_cut(text: str, low: int, high: int) -> int:
    """Last position in `[low, high]` where white space follows other text, or `high` if there is none."""
    for position in range(high, low - 1, -1):
        if text[position].isspace() and not text[position - 1].isspace():
            return position
    return high


def _to_arrays(encoding: Encoding, shift: int, with_offsets: bool, with_words: bool) -> Tokens:
    ids = np.asarray(encoding.ids, np.int32)
    if not with_offsets:
        empty = np.empty(0, np.int64)
        return Tokens(ids, empty, empty)
    offsets = np.asarray(encoding.offsets, np.int64).reshape(-1, 2) + shift
    if not with_words:
        return Tokens(ids, offsets[:, 0], offsets[:, 1])
    words = np.array([-1 if word is None else word for word in encoding.word_ids], np.int64)
    return Tokens(ids, offsets[:, 0], offsets[:, 1], words)


def _join(parts: list[Tokens]) -> Tokens:
    if len(parts) == 1:
        return parts[0]
    return Tokens(
        np.concatenate([part.ids for part in parts]),
        np.concatenate([part.starts for part in parts]),
        np.concatenate([part.ends for part in parts]),
        _join_words([part.words for part in parts]),
    )


def _join_words(parts: list[npt.NDArray[np.int64]]) -> npt.NDArray[np.int64]:
    """Words of the segments of a text, numbered through."""
    joined, shift = [], 0
    for words in parts:
        joined.append(np.where(words >= 0, words + shift, words))
        shift += int(words.max(initial=-1)) + 1
    return np.concatenate(joined)
