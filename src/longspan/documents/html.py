"""The readable text of an HTML page, with the source line of every piece.

No tree is built: text is where it stands in the source, which the libraries that build trees do not tell. Time is
linear in the length of any input: a search that met the end of the page is not begun again.
"""

from __future__ import annotations

import math
import re
import time
from collections.abc import Iterator
from html import unescape
from typing import NamedTuple

import numpy as np

from longspan.documents.document import LineMap, UnreadableError

_HIDDEN = frozenset({"script", "style", "template", "svg", "math", "object", "iframe", "canvas"})
_BLOCK_NAMES = (
    "address article aside blockquote body br caption center dd details dialog div dl dt fieldset figcaption figure "
    "footer form h1 h2 h3 h4 h5 h6 header hr li main nav ol option p pre section select summary table tbody tfoot "
    "thead title tr ul"
)
_BLOCKS = frozenset(_BLOCK_NAMES.split())
_CELLS = frozenset({"td", "th"})
#: Elements whose content is no markup.
_RAW = {name: re.compile(rf"</{name}(?=[\s/>])", re.IGNORECASE) for name in ("script", "style")}
_SPACE = re.compile(r"\s+")
_OPENING = re.compile(r"<(?:(?P<slash>/?)(?P<name>[a-zA-Z][^\s/>\0]*)|[!?/])")
#: The rest of a tag: quotes count only after an equals sign.
_REST = re.compile(r"""(?:[^>=]|=\s*+(?:"[^"]*+"|'[^']*+'|(?!["'])))*+>""")
#: Tags whose quotes never end that are looked through; after these, quotes count no more.
_MAX_UNFINISHED = 8
_TOKENS_PER_LOOK = 1000


def html_text(markup: str, *, max_seconds: float = math.inf) -> tuple[str, LineMap]:
    """Text of an HTML page as a browser would show it, block elements on lines of their own.

    Scripts, styles and drawings are left out; white space is collapsed except in `<pre>`.

    Args:
        markup: The page.
        max_seconds: Longest time that this may take.

    Returns:
        The text, and the map from its characters to lines of `markup`.

    Raises:
        UnreadableError: it takes longer.
    """
    text = _Text()
    line = counted = 0
    end = time.monotonic() + max_seconds
    for index, token in enumerate(_tokens(markup)):
        if index % _TOKENS_PER_LOOK == 0 and time.monotonic() > end:
            raise UnreadableError(f"takes longer than the limit of {max_seconds} seconds")
        line, counted = line + markup.count("\n", counted, token.start), token.start
        if not token.name:
            text.add(markup[token.start : token.stop], line + 1)
        elif token.is_end:
            text.end(token.name)
        else:
            text.start(token.name, is_empty=markup.startswith("/>", token.stop - 2))
    return text.result()


class _Token(NamedTuple):
    """Text (no name) or a tag between two places of the page."""

    start: int
    stop: int
    name: str = ""
    is_end: bool = False


def _tokens(markup: str) -> Iterator[_Token]:
    """Texts and tags of a page; what a tag or comment without end holds is no text."""
    scan = _Scan(markup)
    position = 0
    while True:
        found = _OPENING.search(markup, position)
        stop = len(markup) if found is None else found.start()
        if position < stop:
            yield _Token(position, stop)
        if found is None:
            return
        position = scan.end_of(found)
        if position < 0:
            return
        name, is_end = (found["name"] or "").lower(), bool(found["slash"])
        if not name:
            continue
        yield _Token(stop, position, name, is_end)
        if name in _RAW and not is_end and not markup.startswith("/>", position - 2):
            closing = _RAW[name].search(markup, position)
            if closing is None:
                return
            position = closing.start()


class _Scan:
    """Finds where tags and comments end."""

    def __init__(self, markup: str) -> None:
        self._markup = markup
        self._missing: set[str] = set()
        self._num_unfinished = 0

    def end_of(self, opening: re.Match[str]) -> int:
        """One past the last character of the tag or comment that begins with `opening`, or -1 if it has no end."""
        start = opening.start()
        if self._markup.startswith("<!--", start):
            return self._find("-->", start + 2)
        if self._markup.startswith("<![CDATA[", start) and (stop := self._find("]]>", start)) > 0:
            return stop
        if opening["name"] and not opening["slash"] and self._num_unfinished < _MAX_UNFINISHED:
            rest = _REST.match(self._markup, opening.end())
            if rest is not None:
                return rest.end()
            self._num_unfinished += 1
        return self._find(">", opening.end() - 1)

    def _find(self, end: str, position: int) -> int:
        index = -1 if end in self._missing else self._markup.find(end, position)
        if index < 0:
            self._missing.add(end)
            return -1
        return index + len(end)


class _Text:
    """The text so far, and the lines that it is from."""

    def __init__(self) -> None:
        self._pieces: list[str] = []
        self._starts: list[int] = [0]
        self._numbers: list[int] = [1]
        self._length = 0
        self._hidden_depth = 0
        self._pre_depth = 0
        self._wants_break = False
        self._wants_space = False

    def start(self, tag: str, *, is_empty: bool) -> None:
        """An element begins, or is there without content."""
        self._separate(tag)
        if not is_empty:
            self._hidden_depth += tag in _HIDDEN
            self._pre_depth += tag == "pre"

    def end(self, tag: str) -> None:
        """An element ends."""
        self._hidden_depth = max(0, self._hidden_depth - (tag in _HIDDEN))
        self._pre_depth = max(0, self._pre_depth - (tag == "pre"))
        self._separate(tag)

    def add(self, data: str, first_line: int) -> None:
        """Characters of the page, which begin on line `first_line`."""
        if self._hidden_depth:
            return
        for offset, line in enumerate(data.split("\n")):
            if offset:
                self._wants_break |= self._pre_depth > 0
                self._wants_space = True
            self._add_line(unescape(line), first_line + offset)

    def _separate(self, tag: str) -> None:
        if self._hidden_depth:
            return
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
        """The text and its map."""
        lines = LineMap(np.asarray(self._starts, np.int64), np.asarray(self._numbers, np.int64))
        return "".join(self._pieces), lines
