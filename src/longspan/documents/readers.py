"""Reading one file into documents. What cannot be read is handed back as a `Problem`, never raised."""

from __future__ import annotations

import gzip
import hashlib
import json
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import IO, Any, cast

from longspan.documents.decoding import Decoded, decode, html_encoding, python_encoding
from longspan.documents.document import Document, LineMap, Problem, UnreadableError, replace_surrogates
from longspan.documents.html import html_text
from longspan.documents.pdf import pdf_text
from longspan.documents.tables import csv_records, parquet_records
from longspan.documents.walk import SourceFile

_BLOCK_BYTES = 1 << 20


@dataclass(frozen=True)
class ReadOptions:
    """How files are read.

    Attributes:
        text_field: Field of a JSON-lines record, or column of a table, that holds its text; `"a.b"` names a field of a
            nested object.
        max_bytes: Largest file (but for JSON lines: line) that is read, after decompression.
    """

    text_field: str = "text"
    max_bytes: int = 512 << 20


def file_digest(source: SourceFile) -> str:
    """Digest (BLAKE2b, 128 bits, hexadecimal) of a file's bytes; equal digests mean equal files.

    Raises:
        UnreadableError: the file cannot be opened or read.
    """
    digest = hashlib.blake2b(digest_size=16)
    try:
        with source.path.open("rb") as file:
            while block := file.read(_BLOCK_BYTES):
                digest.update(block)
    except OSError as error:
        raise UnreadableError(f"cannot be read: {error.strerror or error}") from error
    return digest.hexdigest()


def read_documents(source: SourceFile, options: ReadOptions | None = None) -> Iterator[Document | Problem]:
    """Read the documents of one file: one for most kinds, one a record for JSON lines.

    Args:
        source: The file.
        options: How to read.

    Yields:
        Each document, or a `Problem` for each thing that cannot be read: the file, or a line of it.
    """
    options = options or ReadOptions()
    try:
        if source.kind == "jsonl":
            yield from _read_json_lines(source, options)
        elif source.kind in ("csv", "parquet"):
            yield from _read_table(source, options)
        else:
            yield _read_whole(source, _read_bytes(source, options.max_bytes))
    except UnreadableError as error:
        yield Problem(source.name, error.reason, error.line)
    except (OSError, EOFError, zlib.error) as error:
        reason = getattr(error, "strerror", None) or str(error) or type(error).__name__
        yield Problem(source.name, f"cannot be read: {reason}")


def _read_whole(source: SourceFile, data: bytes) -> Document:
    if source.kind == "pdf":
        text, pages = pdf_text(data)
        return Document(replace_surrogates(text), pages, unit="page")
    if source.kind == "html":
        decoded = decode(data, declared=html_encoding(data))
        text, lines = html_text(decoded.text)
        return Document(text, lines, notes=_notes(decoded))
    decoded = decode(data, declared=python_encoding(data) if source.kind == "python" else None)
    return Document(decoded.text, LineMap.of_text(decoded.text), notes=_notes(decoded))


def _notes(decoded: Decoded) -> tuple[str, ...]:
    return (f"not UTF-8, read as {decoded.encoding}",) if decoded.fallback else ()


def _read_json_lines(source: SourceFile, options: ReadOptions) -> Iterator[Document | Problem]:
    with _open(source) as file:
        number = 0
        while line := file.readline(options.max_bytes + 1):
            number += 1
            if len(line) > options.max_bytes:
                raise UnreadableError(f"longer than the limit of {options.max_bytes:,} bytes", number)
            if not line.strip():
                continue
            try:
                record = _parse_record(line)
                text = text_of_record(record, options.text_field)
            except UnreadableError as error:
                yield Problem(source.name, error.reason, number)
            else:
                yield Document(replace_surrogates(text), LineMap.constant(number), record=record)


def _read_table(source: SourceFile, options: ReadOptions) -> Iterator[Document | Problem]:
    data = _read_bytes(source, options.max_bytes)
    records = csv_records(source.path.name, data) if source.kind == "csv" else parquet_records(data)
    for number, record in records:
        try:
            if isinstance(record, str):
                raise UnreadableError(record)
            text = text_of_record(record, options.text_field)
        except UnreadableError as error:
            yield Problem(source.name, error.reason, number)
        else:
            yield Document(replace_surrogates(text), LineMap.constant(number), record=record)


def _parse_record(line: bytes) -> Any:
    try:
        return json.loads(line.decode("utf-8-sig").rstrip())
    except UnicodeDecodeError as error:
        raise UnreadableError(f"no valid UTF-8 (byte {error.start} of the line)") from error
    except json.JSONDecodeError as error:
        raise UnreadableError(f"no valid JSON: {error.msg} (column {error.colno})") from error
    except RecursionError as error:
        raise UnreadableError("no valid JSON: nested too deeply") from error


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
            fields = ", ".join(map(repr, record)) if isinstance(record, dict) else f"a JSON {type(record).__name__}"
            raise UnreadableError(f"no field {text_field!r}; the record has {fields or 'no field'}")
        value = value[key]
    if not isinstance(value, str):
        raise UnreadableError(f"field {text_field!r} must be a string. Received: {type(value).__name__}")
    return value


def _read_bytes(source: SourceFile, max_bytes: int) -> bytes:
    with _open(source) as file:
        data = file.read(max_bytes + 1)
    if len(data) > max_bytes:
        raise UnreadableError(f"larger than the limit of {max_bytes:,} bytes")
    return data


def _open(source: SourceFile) -> IO[bytes]:
    if source.path.suffix.lower() == ".gz":
        return cast("IO[bytes]", gzip.open(source.path, "rb"))
    return source.path.open("rb")
