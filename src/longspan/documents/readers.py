"""Reading one file into documents. What cannot be read is handed back as a `Problem`, never raised."""

from __future__ import annotations

import hashlib
import io
import json
import zlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import chain, islice
from typing import Any

from longspan.documents.decoding import decode, marked_encoding
from longspan.documents.document import Document, LineMap, Problem, UnreadableError, replace_surrogates
from longspan.documents.encodings import markup_encoding, python_encoding
from longspan.documents.html import html_text
from longspan.documents.isolated import read_isolated
from longspan.documents.limits import BlankRun, ReadLimits
from longspan.documents.pdf import join_pages
from longspan.documents.streams import open_content, open_file, read_content, text_lines, text_stream
from longspan.documents.tables import csv_records
from longspan.documents.walk import SourceFile

_BLOCK_BYTES = 1 << 20
#: Of the fields of a record that lacks the one wanted so many are named, with so many characters each.
_SHOWN_FIELDS = 20
_SHOWN_CHARACTERS = 40
#: How much longer than it was a file may be when its digest is taken.
_MAX_GROWTH_BYTES = 64 << 20


@dataclass(frozen=True)
class ReadOptions:
    """How files are read.

    Attributes:
        text_field: Field of a JSON-lines record, or column of a table, that holds its text; `"a.b"` names a field of a
            nested object.
        limits: What reading a file may cost.
    """

    text_field: str = "text"
    limits: ReadLimits = field(default_factory=ReadLimits)


def file_digest(source: SourceFile) -> str:
    """Digest (BLAKE2b, 128 bits, hexadecimal) of a file's bytes; equal digests mean equal files.

    Raises:
        UnreadableError: the file cannot be opened or read, or has no end.
    """
    digest = hashlib.blake2b(digest_size=16)
    num_bytes = 0
    try:
        with open_file(source) as file:
            while block := file.read(_BLOCK_BYTES):
                digest.update(block)
                num_bytes += len(block)
                if num_bytes > source.size + _MAX_GROWTH_BYTES:
                    raise UnreadableError("grows while it is read")
    except OSError as error:
        raise UnreadableError(f"cannot be read: {error.strerror or error}") from error
    return digest.hexdigest()


def read_documents(source: SourceFile, options: ReadOptions | None = None) -> Iterator[Document | Problem]:
    """Read the documents of one file: one for most kinds, one a record for JSON lines and tables.

    Args:
        source: The file.
        options: How to read.

    Yields:
        Each document, or a `Problem` for each thing that cannot be read: the file, or a line of it.
    """
    options = options or ReadOptions()
    try:
        if source.kind == "csv":
            yield from _read_csv(source, options)
        elif source.kind in ("jsonl", "parquet"):
            yield from _of_records(source, options, read_records(source, options.limits))
        elif source.kind == "pdf":
            (texts,) = read_isolated(source, options.limits)
            text, pages = join_pages(texts)
            yield Document(replace_surrogates(text), pages, unit="page")
        else:
            yield _read_whole(source, options.limits)
    except UnreadableError as error:
        yield Problem(source.name, error.reason, error.line)
    except (OSError, EOFError, zlib.error) as error:
        reason = getattr(error, "strerror", None) or str(error) or type(error).__name__
        yield Problem(source.name, f"cannot be read: {reason}")


def read_records(source: SourceFile, limits: ReadLimits) -> Iterator[tuple[int, Any]]:
    """The records of a file of JSON lines, csv or Parquet.

    Args:
        source: The file.
        limits: What reading it may cost.

    Yields:
        Line or row, counted from 1, and the record there, or the `UnreadableError` that says what is wrong with it.

    Raises:
        UnreadableError: the file cannot be read on.
    """
    if source.kind == "jsonl":
        yield from _json_records(source, limits)
    elif source.kind == "parquet":
        yield from enumerate(chain.from_iterable(read_isolated(source, limits)), start=1)
    else:
        stream, _ = text_stream(source, limits.unfolded(source.size))
        with stream:
            yield from csv_records(source.path.name, text_lines(stream, limits.record_bytes), limits)


def _read_whole(source: SourceFile, limits: ReadLimits) -> Document:
    data = read_content(source, limits.bytes)
    is_html = source.kind == "html"
    declared = python_encoding(data) if source.kind == "python" else markup_encoding(data, is_html=is_html)
    decoded = decode(data, declared=declared)
    notes = (decoded.note,) if decoded.note else ()
    if is_html:
        text, lines = html_text(decoded.text, max_seconds=limits.seconds)
        return Document(text, lines, notes=notes)
    return Document(decoded.text, LineMap.of_text(decoded.text), notes=notes)


def _of_records(
    source: SourceFile, options: ReadOptions, records: Iterator[tuple[int, Any]], notes: tuple[str, ...] = ()
) -> Iterator[Document | Problem]:
    """A document for each record, given with its line or row; for what is no record, what is wrong with it."""
    for number, record in records:
        try:
            if isinstance(record, UnreadableError):
                raise record
            text = text_of_record(record, options.text_field)
        except UnreadableError as error:
            yield Problem(source.name, error.reason, number)
        else:
            yield Document(replace_surrogates(text), LineMap.constant(number), notes=notes, record=record)


def _read_csv(source: SourceFile, options: ReadOptions) -> Iterator[Document | Problem]:
    limits = options.limits
    stream, note = text_stream(source, limits.unfolded(source.size))
    with stream:
        records = csv_records(source.path.name, text_lines(stream, limits.record_bytes), limits)
        yield from _of_records(source, options, records, (note,) if note else ())


def _json_records(source: SourceFile, limits: ReadLimits) -> Iterator[tuple[int, Any]]:
    """The records of JSON lines, in UTF-8 unless a byte order mark says otherwise."""
    with open_content(source, limits.unfolded(source.size)) as file:
        encoding = marked_encoding(file.peek(4)[:4])[1] or "utf-8"
        lines: Any = file
        if encoding != "utf-8":
            lines = io.TextIOWrapper(file, encoding[:6], "replace", newline="\n")
        number = 0
        blank = BlankRun(limits)
        while line := lines.readline(limits.record_bytes + 1):
            number += 1
            if not line.strip():
                blank.check(number)
                continue
            if len(line) > limits.record_bytes:
                yield number, UnreadableError(f"longer than the limit of {limits.record_bytes:,} bytes a record")
                while line and line[-1:] not in ("\n", b"\n"):
                    line = lines.readline(limits.record_bytes)
            else:
                yield number, _parse_record(line, limits)
            blank = BlankRun(limits)


def _parse_record(line: bytes | str, limits: ReadLimits) -> Any:
    """A record, or the error that says why it is none."""
    try:
        text = line if isinstance(line, str) else line.decode("utf-8-sig")
        record = json.loads(text.lstrip("\ufeff").rstrip())
    except UnicodeDecodeError as error:
        return UnreadableError(f"no valid UTF-8 (byte {error.start} of the line)")
    except json.JSONDecodeError as error:
        return UnreadableError(f"no valid JSON: {error.msg} (column {error.colno})")
    except ValueError as error:  # a number of more digits than Python converts
        return UnreadableError(f"no valid JSON: {str(error).partition(';')[0]}")
    except RecursionError:
        return UnreadableError("no valid JSON: nested too deeply")
    if len(text) > limits.cells and text.count(",") + text.count("[") > limits.cells:
        return UnreadableError(f"more values than the limit of {limits.cells:,} cells")
    return record


def text_of_record(record: Any, text_field: str) -> str:
    """The text of a record.

    Args:
        record: What a line of JSON or a row of a table holds.
        text_field: Name of the field; `"a.b"` names a field of a nested object.

    Raises:
        UnreadableError: there is no such field, or it holds no string.
    """
    value = record
    for key in text_field.split("."):
        if not isinstance(value, dict) or key not in value:
            if not isinstance(record, dict):
                fields = f"a JSON {type(record).__name__}"
            else:
                names = [repr(name)[:_SHOWN_CHARACTERS] for name in islice(record, _SHOWN_FIELDS)]
                fields = ", ".join([*names, "..."] if len(record) > len(names) else names)
            raise UnreadableError(f"no field {text_field!r}; the record has {fields or 'no field'}")
        value = value[key]
    if not isinstance(value, str):
        raise UnreadableError(f"field {text_field!r} must be a string. Received: {type(value).__name__}")
    return value
