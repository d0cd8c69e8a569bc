"""Opening files whose size, kind and content are not to be trusted."""

from __future__ import annotations

import codecs
import gzip
import io
import os
import stat
from collections.abc import Iterator
from typing import IO, TYPE_CHECKING, Any

from longspan.documents.decoding import AS_WINDOWS, decode, is_binary, marked_encoding
from longspan.documents.document import UnreadableError

if TYPE_CHECKING:
    from longspan.documents.walk import SourceFile

_BLOCK_BYTES = 1 << 20


def open_file(source: SourceFile) -> IO[bytes]:
    """Open a file for reading; a pipe or device that took its place meanwhile does not block.

    Raises:
        UnreadableError: it is no regular file any more.
        OSError: it cannot be opened.
    """
    file = open(source.path, "rb", opener=_open_without_blocking)  # noqa: SIM115 - `Path.open` has no opener
    if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
        file.close()
        raise UnreadableError("not a regular file")
    return file


def open_content(source: SourceFile, max_bytes: int) -> io.BufferedReader:
    """The content of a file, decompressed if its name ends in `.gz`.

    Reading more than `max_bytes` bytes raises `UnreadableError`.
    """
    file: Any = open_file(source)
    if source.path.suffix.lower() == ".gz":
        file = gzip.GzipFile(fileobj=file, mode="rb")
    return io.BufferedReader(_Bounded(file, max_bytes), _BLOCK_BYTES)


def read_content(source: SourceFile, max_bytes: int) -> bytes:
    """All of the content of a file, which must not have more than `max_bytes` bytes."""
    with open_content(source, max_bytes) as file:
        return file.read()


def text_stream(source: SourceFile, max_bytes: int) -> tuple[io.TextIOWrapper, str]:
    """The content of a file as text, a piece at a time, and a note on its encoding (empty if it is UTF-8 or marked).

    The file is read once before, to find what is no UTF-8; the encoding is that of the place where this begins.
    Line ends stay as they are.

    Raises:
        UnreadableError: it is binary.
    """
    encoding, note = _encoding_of_stream(source, max_bytes)
    errors = AS_WINDOWS if encoding in ("utf-8-sig", "cp1252") else "replace"
    return io.TextIOWrapper(open_content(source, max_bytes), encoding, errors, newline=""), note


def _encoding_of_stream(source: SourceFile, max_bytes: int) -> tuple[str, str]:
    decoder = codecs.getincrementaldecoder("utf-8")()
    is_first = True
    with open_content(source, max_bytes) as file:
        while block := file.read(_BLOCK_BYTES):
            encoding = marked_encoding(block)[1] if is_first else None
            if encoding is not None:  # the codecs without an order take the mark off
                return ("utf-8-sig" if encoding == "utf-8" else encoding[:6].rstrip("-"), "")
            if is_first and is_binary(block):
                raise UnreadableError("binary file, not text")
            is_first = False
            try:
                decoder.decode(block)
            except UnicodeDecodeError:
                decoded = decode(block)
                return ("utf-8-sig" if decoded.encoding == "utf-8" else decoded.encoding), decoded.note
    return "utf-8-sig", ""


def text_lines(stream: io.TextIOWrapper, limit: int) -> Iterator[str]:
    """Lines of a stream.

    Raises:
        UnreadableError: a line has more than `limit` characters.
    """
    number = 0
    while line := stream.readline(limit + 1):
        number += 1
        if len(line) > limit:
            raise UnreadableError(f"longer than the limit of {limit:,} bytes a record", number)
        yield line


def _open_without_blocking(path: str, flags: int) -> int:
    return os.open(path, flags | getattr(os, "O_NONBLOCK", 0))


class _Bounded(io.RawIOBase):
    """A stream that ends with an error where it passes a limit."""

    def __init__(self, file: IO[bytes], max_bytes: int) -> None:
        self._file = file
        self._max_bytes = max_bytes
        self._num_bytes = 0

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        data = self._file.read(min(len(buffer), self._max_bytes + 1 - self._num_bytes))
        if data is None:
            raise UnreadableError("cannot be read without waiting")
        self._num_bytes += len(data)
        if self._num_bytes > self._max_bytes:
            raise UnreadableError(f"larger than the limit of {self._max_bytes:,} bytes")
        buffer[: len(data)] = data
        return len(data)

    def close(self) -> None:
        inner = getattr(self._file, "fileobj", None)
        self._file.close()
        if inner is not None:
            inner.close()
        super().close()
