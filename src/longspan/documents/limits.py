"""What reading a file may cost: nothing in a document is trusted, least of all what it says of its own size."""

from __future__ import annotations

import dataclasses
import re
import time
from collections.abc import Sequence
from dataclasses import dataclass, fields

from longspan.documents.document import UnreadableError
from longspan.errors import InputError

_LINES_PER_LOOK = 1 << 14
_SUFFIXES = {"": 1, "k": 1 << 10, "m": 1 << 20, "g": 1 << 30}
_SETTING = re.compile(r"(\w+)=(\d+(?:\.\d+)?)([kmg]?)", re.IGNORECASE)


@dataclass(frozen=True)
class ReadLimits:
    """Limits of reading; a file or record that passes one is named, with the limit, and left out.

    Attributes:
        bytes: Largest document, after decompression; files of records (JSON lines, csv, Parquet) may be larger.
        record_bytes: Largest record: a line of JSON, a row of csv.
        expansion: A file of records may unfold to so many times its size, or to `bytes`, whichever is more.
        cells: Most cells of a row; a Parquet file may have so many, or `expansion` for each of its bytes, in all.
        pages: Most pages of a PDF file.
        seconds: Longest time that a PDF or HTML file, or a piece of a Parquet file, may take.
        memory: Most bytes of memory that reading a PDF or Parquet file may take, where the system can tell (Linux).
    """

    bytes: int = 64 << 20
    record_bytes: int = 16 << 20
    expansion: int = 100
    cells: int = 1_000_000
    pages: int = 10_000
    seconds: int = 60
    memory: int = 1 << 30

    def __post_init__(self) -> None:
        for one in fields(self):
            if getattr(self, one.name) < 1:
                raise InputError(f"A limit must be at least 1. Received: {one.name}={getattr(self, one.name)}")

    def unfolded(self, size: int) -> int:
        """Most bytes that the records of a file of `size` bytes may come to."""
        return max(self.bytes, self.expansion * size)


class BlankRun:
    """Lines without a record, one after the other, which may not go on for longer than the limit of time."""

    def __init__(self, limits: ReadLimits) -> None:
        self._limits = limits
        self._end: float | None = None

    def check(self, line: int) -> None:
        """Line number `line` holds no record.

        Raises:
            UnreadableError: the limit is passed.
        """
        if line % _LINES_PER_LOOK:
            return
        self._end = self._end or time.monotonic() + self._limits.seconds
        if time.monotonic() > self._end:
            raise UnreadableError(f"takes longer than the limit of {self._limits.seconds} seconds", line)


def parse_limits(settings: Sequence[str]) -> ReadLimits:
    """Limits as a command line gives them: `bytes=256M`, `seconds=120`.

    Raises:
        InputError: a setting is no number, or there is no such limit.
    """
    names = [one.name for one in fields(ReadLimits)]
    values: dict[str, int] = {}
    for setting in settings:
        match = _SETTING.fullmatch(setting)
        if match is None or match[1] not in names:
            raise InputError(f"A limit must be NAME=NUMBER, of {', '.join(names)}. Received: {setting}")
        values[match[1]] = int(float(match[2]) * _SUFFIXES[match[3].lower()])
    return dataclasses.replace(ReadLimits(), **values)
