"""Reading `model.safetensors`: an 8-byte length, a JSON header, then the tensors' bytes.

The `safetensors` package maps the file and hands out copies, so a load holds the checkpoint twice. Here the header is
parsed and checked in full, and values go straight into the memory that will hold them.
Format: https://github.com/huggingface/safetensors#format
"""

from __future__ import annotations

import json
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from longspan.checkpoints.dtypes import BY_CODE
from longspan.checkpoints.reader import BlockFile, Bytes, CheckpointReader, Entry
from longspan.checkpoints.untrusted import (
    MAX_NUMBER,
    check_names,
    check_shape,
    file_kind,
    parse_json,
    reading,
    shown,
)
from longspan.errors import CheckpointError

#: longest header that the format allows, in bytes
MAX_HEADER = 100_000_000
#: metadata entry in which longspan stores {key: CRC-32 in hexadecimal} as JSON
CHECKSUMS = "longspan.crc32"
#: metadata entry in which longspan stores the CRC-32 of names, types and shapes (files before 0.1.0 lack it)
DESCRIPTION = "longspan.header"


@dataclass(frozen=True)
class _Stored(Entry):
    """An entry and where its bytes start in the file."""

    offset: int


class SafetensorsReader(CheckpointReader):
    """One safetensors file.

    Args:
        path: The file.
        verify: Compare every tensor that is read with the checksum that longspan's writer stored, if there is one.

    Raises:
        CheckpointError: if the header is damaged, or the file is something else.
    """

    format = "safetensors"
    is_concurrent = True

    def __init__(self, path: Path, *, verify: bool = True) -> None:
        super().__init__(path)
        self._file = BlockFile(path)
        try:
            with reading(path, "its header"):
                header, start = _read_header(self._file)
                self.metadata = _take_metadata(path, header)
                check_names(header)
                stored = _check_layout(path, header, start, self._file.size)
                self.entries, self._offsets = stored, {key: entry.offset for key, entry in stored.items()}
                self._checksums = _checksums(path, self.metadata, stored) if verify else {}
                if verify:
                    _check_description(path, self.metadata, stored)
        except BaseException:
            self._file.close()
            raise

    def _fill(self, key: str, out: Bytes) -> None:
        expected = self._checksums.get(key)
        crc = self._file.fill(self._offsets[key], out, checksum=expected is not None)
        if expected is not None and crc != expected:
            raise CheckpointError(
                f"{self.path} is damaged: the values of {key} do not match their checksum "
                f"(CRC-32 {crc:08x}, stored {expected:08x})."
            )

    def close(self) -> None:
        """Close the file."""
        self._file.close()


def _read_header(file: BlockFile) -> tuple[dict[str, Any], int]:
    """Parse the JSON header; returns it and the position of the first tensor byte."""
    path = file.path
    if file.size < 8:
        raise CheckpointError(f"{path} is no safetensors file: it has {file.size} bytes, {file_kind(path)}.")
    length = int.from_bytes(file.read(0, 8), "little")
    if length > min(MAX_HEADER, file.size - 8):
        kind = file_kind(path)
        if kind == "a safetensors file (model.safetensors)":
            kind = "cut short or damaged"
        raise CheckpointError(
            f"{path} is no whole safetensors file: it looks like {kind}. "
            f"Header length: {length} bytes, file: {file.size} bytes, longest header allowed: {MAX_HEADER}."
        )
    try:
        header = parse_json(file.read(8, length), unique=True)
    except ValueError as error:
        raise CheckpointError(
            f"{path} has a damaged safetensors header: {error}. It looks like {file_kind(path)}."
        ) from error
    if not isinstance(header, dict):
        raise CheckpointError(f"{path} has a damaged safetensors header: it must be a JSON object.")
    return header, 8 + length


def _take_metadata(path: Path, header: dict[str, Any]) -> dict[str, str]:
    metadata = header.pop("__metadata__", {})
    if not isinstance(metadata, dict) or not all(isinstance(value, str) for value in metadata.values()):
        raise CheckpointError(f"{path} has a damaged safetensors header: __metadata__ must map text to text.")
    return metadata


def _check_layout(path: Path, header: Mapping[str, Any], start: int, size: int) -> dict[str, _Stored]:
    """Check that the tensors fill the rest of the file exactly, without gaps or overlaps."""
    entries = {key: _entry(path, key, value, start) for key, value in header.items()}
    end, previous = start, ""
    for key, entry in sorted(entries.items(), key=lambda item: (item[1].offset, item[1].nbytes)):
        if entry.offset != end:
            what = "overlaps" if entry.offset < end else "leaves a gap after"
            raise CheckpointError(
                f"{path} has a damaged safetensors header: {key} {what} {previous or 'the header'} "
                f"(it starts at byte {entry.offset - start}, expected {end - start})."
            )
        end, previous = entry.offset + entry.nbytes, key
    if end != size:
        what = "is cut short" if size < end else "has extra bytes at its end"
        raise CheckpointError(f"{path} {what}: its header describes {end} bytes, the file has {size}.")
    return entries


def _entry(path: Path, key: str, value: Any, start: int) -> _Stored:
    """Check one header entry: known type, sound shape, and as many bytes as both need."""
    try:
        code, shape, (begin, end) = value["dtype"], value["shape"], value["data_offsets"]
    except (TypeError, KeyError, ValueError) as error:
        raise CheckpointError(
            f"{path} has a damaged safetensors header: {key} needs dtype, shape and data_offsets. "
            f"Received: {shown(value)}"
        ) from error
    if not isinstance(code, str) or code not in BY_CODE:
        raise CheckpointError(
            f"{path}: {key} must have one of the types {', '.join(BY_CODE)}. Received: {shown(code)[1:-1]}"
        )
    if not isinstance(shape, list) or not all(_is_size(length) for length in [*shape, begin, end]):
        raise CheckpointError(
            f"{path} has a damaged safetensors header: shape and offsets of {key} must be whole numbers from 0. "
            f"Received: {shown(value)}"
        )
    stored = _Stored(check_shape(shape, BY_CODE[code].itemsize), BY_CODE[code], start + begin)
    if end - begin != stored.nbytes:
        raise CheckpointError(
            f"{path} has a damaged safetensors header: {key} of type {code} and shape {shape} needs {stored.nbytes} "
            f"bytes, its offsets hold {end - begin}."
        )
    return stored


def describe_tensors(tensors: Mapping[str, Entry]) -> str:
    """CRC-32, in hexadecimal, of the names, types and shapes of a file's tensors, in whatever order."""
    described = sorted((key, entry.dtype.code, list(entry.shape)) for key, entry in tensors.items())
    return f"{zlib.crc32(json.dumps(described).encode('ascii')):08x}"


def _check_description(path: Path, metadata: Mapping[str, str], entries: Mapping[str, Entry]) -> None:
    expected, found = metadata.get(DESCRIPTION), describe_tensors(entries)
    if expected not in (None, found):
        raise CheckpointError(
            f"{path} has a damaged safetensors header: names, types and shapes do not match their checksum "
            f"(CRC-32 {found}, stored {expected})."
        )


def _is_size(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value <= MAX_NUMBER


def _checksums(path: Path, metadata: Mapping[str, str], entries: Mapping[str, Entry]) -> dict[str, int]:
    """Parse the checksum table; it must name exactly the tensors of the file."""
    if CHECKSUMS not in metadata:
        return {}
    try:
        stored = parse_json(metadata[CHECKSUMS].encode("utf-8", "replace"))
        table = {key: int(crc, 16) for key, crc in stored.items()}
    except (ValueError, TypeError, AttributeError) as error:
        raise CheckpointError(f"{path} has a damaged safetensors header: unreadable checksums ({error}).") from error
    if table.keys() != entries.keys():
        differing = ", ".join(map(str, sorted(table.keys() ^ entries.keys())[:8]))[:500]
        raise CheckpointError(
            f"{path} has a damaged safetensors header: its checksums and its tensors must have the same keys. "
            f"They differ in: {differing}"
        )
    return table
