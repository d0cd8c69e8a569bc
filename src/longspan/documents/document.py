"""What a file is read into: documents, and the problems met on the way.

A *file* holds one document (text, HTML, PDF, source code) or one a record (JSON lines). Every document keeps a map from
its characters to the lines of the file it came from, so that a span of text can be shown where it stands.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from longspan.errors import InputError

#: What the numbers of a `LineMap` count.
Unit = Literal["line", "page"]

_BLOCK_CHARACTERS = 1 << 20
_SURROGATES = re.compile("[\ud800-\udfff]")


class UnreadableError(InputError):
    """A file, or one line of it, cannot be read as text.

    Attributes:
        reason: What is wrong, without the file's name.
        line: Line of the file, counted from 1, or None if it concerns the whole file.
    """

    def __init__(self, reason: str, line: int | None = None) -> None:
        super().__init__(reason)
        self.reason = reason
        self.line = line


@dataclass(frozen=True)
class Problem:
    """Something that could not be read and was left out.

    Attributes:
        path: The file, as the run names it.
        reason: What is wrong with it.
        line: Line of the file, counted from 1, or None if it concerns the whole file.
    """

    path: str
    reason: str
    line: int | None = None

    def __str__(self) -> str:
        place = self.path if self.line is None else f"{self.path}:{self.line}"
        return f"{place}: {self.reason}"


@dataclass(frozen=True)
class LineMap:
    """Which line (or page) of the file each character of a document comes from.

    Attributes:
        starts: (n,) int64, ascending from 0: first character of each stretch of text.
        numbers: (n,) int64: line or page, counted from 1, that the stretch comes from.
    """

    starts: npt.NDArray[np.int64]
    numbers: npt.NDArray[np.int64]

    @classmethod
    def of_text(cls, text: str) -> LineMap:
        r"""Lines of `text` itself. A line ends with `\n`, `\r\n` or a lone `\r`."""
        parts = [np.zeros(1, np.int64)]
        for start in range(0, len(text), _BLOCK_CHARACTERS):
            block = text[start : start + _BLOCK_CHARACTERS + 1]  # one more, to see where a pair of ends is cut
            codes = np.frombuffer(block.encode("utf-32-le", "surrogatepass"), dtype="<u4")
            feeds = codes == ord("\n")
            returns = codes == ord("\r")
            returns[:-1] &= ~feeds[1:]
            parts.append(np.flatnonzero((feeds | returns)[:_BLOCK_CHARACTERS]) + start + 1)
        starts = np.concatenate(parts)
        return cls(starts, np.arange(1, len(starts) + 1, dtype=np.int64))

    @classmethod
    def constant(cls, number: int) -> LineMap:
        """Every character comes from line `number`."""
        return cls(np.zeros(1, np.int64), np.full(1, number, np.int64))

    def numbers_at(self, characters: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
        """Line (or page) of each character position, counted from 1; same shape as `characters`."""
        return self.numbers[np.searchsorted(self.starts, characters, side="right") - 1]


@dataclass(frozen=True)
class Document:
    """One text to embed.

    Attributes:
        text: The text. For plain text and source code it is the decoded file, line ends untouched.
        lines: Map from characters to lines or pages of the file.
        unit: What `lines` counts.
        notes: Remarks for the user that cost nothing, such as a fallback encoding.
        record: The record that the text is a field of, if it is one.
    """

    text: str
    lines: LineMap
    unit: Unit = "line"
    notes: tuple[str, ...] = field(default=())
    record: Mapping[str, Any] | None = None


def replace_surrogates(text: str) -> str:
    """`text` with each lone surrogate, which no tokenizer or file format accepts, replaced by U+FFFD.

    Lengths and positions stay as they are.
    """
    return _SURROGATES.sub("\ufffd", text)
