"""The readable text of an HTML page, with the source line of every piece."""

from __future__ import annotations

import re
from html.parser import HTMLParser

import numpy as np

from longspan.documents.document import LineMap

_HIDDEN = frozenset({"script", "style", "template", "svg", "math", "object", "iframe", "canvas"})
_BLOCK_NAMES = (
    "address article aside blockquote body br caption center dd details dialog div dl dt fieldset figcaption figure "
    "footer form h1 h2 h3 h4 h5 h6 header hr li main nav ol option p pre section select summary table tbody tfoot "
    "thead title tr ul"
)
_BLOCKS = frozenset(_BLOCK_NAMES.split())
_CELLS = frozenset({"td", "th"})
_SPACE = re.compile(r"\s+")


def html_text(markup: str) -> tuple[str, LineMap]:
    """Text of an HTML page as a browser would show it, block elements on lines of their own.

    Scripts, styles and drawings are left out; white space is collapsed except in `<pre>`.

    Args:
        markup: The page.

    Returns:
        The text, and the map from its characters to lines of `markup`.
    """
    parser = _TextParser()
    parser.feed(markup)
    parser.close()
    return parser.result()


class _TextParser(HTMLParser):
    def __init__(self) -> None:
        super().__init__(convert_charrefs=True)
        self._pieces: list[str] = []
        self._starts: list[int] = [0]
        self._numbers: list[int] = [1]
        self._length = 0
        self._hidden_depth = 0
        self._pre_depth = 0
        self._wants_break = False
        self._wants_space = False

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self._hidden_depth += tag in _HIDDEN
        self._pre_depth += tag == "pre"
        self._separate(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self._separate(tag)

    def handle_endtag(self, tag: str) -> None:
        self._hidden_depth = max(0, self._hidden_depth - (tag in _HIDDEN))
        self._pre_depth = max(0, self._pre_depth - (tag == "pre"))
        self._separate(tag)

    def handle_data(self, data: str) -> None:
        if self._hidden_depth:
            return
        first_line = self.getpos()[0]
        for offset, line in enumerate(data.split("\n")):
            if offset:
                self._wants_break |= self._pre_depth > 0
                self._wants_space = True
            self._add_line(line, first_line + offset)

    def _separate(self, tag: str) -> None:
        self._wants_break |= tag in _BLOCKS
        self._wants_space |= tag in _CELLS

    def _add_line(self, line: str, number: int) -> None:
        if not self._pre_depth:
            line = _SPACE.sub(" ", line)
            self._wants_space |= line.startswith(" ")
            ends_with_space = line.endswith(" ")
            line = line.strip(" ")
        if not line:
            return
        separator = "\n" if self._wants_break else " " if self._wants_space else ""
        if self._length:
            self._append(separator)
        self._wants_break = False
        self._wants_space = not self._pre_depth and ends_with_space
        if number != self._numbers[-1]:
            self._starts.append(self._length)
            self._numbers.append(number)
        self._append(line)

    def _append(self, piece: str) -> None:
        self._pieces.append(piece)
        self._length += len(piece)

    def result(self) -> tuple[str, LineMap]:
        lines = LineMap(np.asarray(self._starts, np.int64), np.asarray(self._numbers, np.int64))
        return "".join(self._pieces), lines
