"""Reading `flax_model.msgpack` without Flax and JAX.

The file is one MessagePack map of maps; an array is an extension object that holds shape, type name and bytes, and an
array above 1 GiB is a map of such chunks. Common decoders build the whole tree in memory beside the file's bytes. This
one notes where each array lies, so that arrays are read one at a time into their place.
Format: https://github.com/msgpack/msgpack/blob/master/spec.md and `flax.serialization`.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from longspan.checkpoints import sniff
from longspan.checkpoints.dtypes import Array, dtype_of
from longspan.checkpoints.legacy_flax import canonical_name
from longspan.checkpoints.reader import BlockFile, Entry
from longspan.checkpoints.renamed import RenamedReader
from longspan.errors import CheckpointError

_NDARRAY, _SCALAR = 1, 3
_CHUNKED = "__msgpack_chunked_array__"
_MAX_DEPTH = 64
#: first byte -> format of a number, or of the length of a text, byte string, extension, list or map
_NUMBERS = {0xCA: ">f", 0xCB: ">d", 0xCC: ">B", 0xCD: ">H", 0xCE: ">I", 0xCF: ">Q"}
_NUMBERS |= {0xD0: ">b", 0xD1: ">h", 0xD2: ">i", 0xD3: ">q"}
_TEXTS = {0xD9: ">B", 0xDA: ">H", 0xDB: ">I"}
_BLOCKS = {0xC4: ">B", 0xC5: ">H", 0xC6: ">I"}
_EXTENSIONS = {0xC7: ">B", 0xC8: ">H", 0xC9: ">I"}
_LISTS = {0xDC: ">H", 0xDD: ">I"}
_MAPS = {0xDE: ">H", 0xDF: ">I"}
_CONSTANTS = {0xC0: None, 0xC2: False, 0xC3: True}


@dataclass(frozen=True)
class _Block:
    """A byte string that was not read."""

    offset: int
    size: int


@dataclass(frozen=True)
class _Stored(Entry):
    """An array in one piece, or in chunks that follow each other in its flat values."""

    blocks: tuple[_Block, ...]


class FlaxReader(RenamedReader):
    """One msgpack file of parameters, with canonical keys.

    Args:
        path: The file.

    Raises:
        CheckpointError: if the file is damaged or something else, or holds a parameter that has no canonical name.
    """

    format = "flax"

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        self._file = BlockFile(path)
        try:
            self._stored = dict(_flatten(path, _read_tree(self._file)))
            self._place(self._stored, {k: canonical_name(k, len(v.shape)) for k, v in self._stored.items()})
        except BaseException:
            self._file.close()
            raise

    def read_native(self, name: str, out: Array, start: int = 0) -> None:
        """Fill an array with the values, or some rows of them, stored under a Flax name."""
        flat = out.reshape(-1).view(np.uint8)
        skipped = start * (out[:1].nbytes if out.ndim else 0)
        position = 0
        for block in self._stored[name].blocks:
            offset, size = block.offset + skipped, min(block.size - skipped, flat.nbytes - position)
            skipped = max(0, skipped - block.size)
            if size > 0:
                self._file.fill(offset, flat[position : position + size])
                position += size

    def close(self) -> None:
        """Close the file."""
        self._file.close()


def _read_tree(file: BlockFile) -> Mapping[str, Any]:
    path = file.path
    try:
        scanner = _Scanner(file)
        tree = scanner.value()
    except (ValueError, TypeError, KeyError, struct.error) as error:
        if isinstance(error, CheckpointError) and sniff.describe(path) == sniff.UNKNOWN:
            raise
        raise CheckpointError(
            f"{path} is no whole msgpack file of Flax: {error}. It looks like {sniff.describe(path)}."
        ) from error
    if not isinstance(tree, dict) or scanner.position != file.size:
        raise CheckpointError(
            f"{path} is no msgpack file of Flax, which is one map. It looks like {sniff.describe(path)}."
        )
    inner = tree.get("params")
    return inner if len(tree) == 1 and isinstance(inner, dict) else tree


def _flatten(path: Path, tree: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, _Stored]]:
    """Walk the tree and yield arrays by their path."""
    for name, value in tree.items():
        if isinstance(value, dict) and _CHUNKED in value:
            yield prefix + name, _join(value)
        elif isinstance(value, dict):
            yield from _flatten(path, value, f"{prefix}{name}/")
        elif isinstance(value, _Stored):
            yield prefix + name, value
        else:
            raise CheckpointError(
                f"{path} may hold only arrays in maps. Received: {prefix}{name}, a {type(value).__name__}"
            )


def _join(chunked: Mapping[str, Any]) -> _Stored:
    """Join the chunks of a large array."""
    shape = tuple(chunked["shape"][str(axis)] for axis in range(len(chunked["shape"])))
    chunks = [chunked["chunks"][str(i)] for i in range(len(chunked["chunks"]))]
    joined = _Stored(shape, chunks[0].dtype, tuple(block for chunk in chunks for block in chunk.blocks))
    if joined.nbytes != sum(chunk.nbytes for chunk in chunks):
        raise CheckpointError(f"The chunks of an array of shape {shape} do not add up to it.")
    return joined


class _Scanner:
    """Parses MessagePack from a file, leaving byte strings where they are."""

    def __init__(self, file: BlockFile, position: int = 0) -> None:
        self._file = file
        self.position = position

    def _take(self, size: int) -> bytes:
        data = self._file.read(self.position, size)
        self.position += size
        return data

    def _unpack(self, form: str) -> Any:
        return struct.unpack(form, self._take(struct.calcsize(form)))[0]

    def value(self, depth: int = 0) -> Any:
        """Parse the value at the present position."""
        if depth > _MAX_DEPTH:
            raise CheckpointError(f"{self._file.path} nests maps more than {_MAX_DEPTH} deep.")
        byte = self._take(1)[0]
        if byte in _CONSTANTS:
            return _CONSTANTS[byte]
        if byte <= 0x7F or byte >= 0xE0:
            return byte if byte <= 0x7F else byte - 0x100
        if byte in _NUMBERS:
            return self._unpack(_NUMBERS[byte])
        if byte in _TEXTS or 0xA0 <= byte <= 0xBF:
            return self._take(self._length(byte, _TEXTS, 0x1F)).decode("utf-8")
        if byte in _BLOCKS:
            return self._block(self._unpack(_BLOCKS[byte]))
        if byte in _LISTS or 0x90 <= byte <= 0x9F:
            return [self.value(depth + 1) for _ in range(self._length(byte, _LISTS, 0x0F))]
        if byte in _MAPS or 0x80 <= byte <= 0x8F:
            return self._map(self._length(byte, _MAPS, 0x0F), depth)
        if byte in _EXTENSIONS or 0xD4 <= byte <= 0xD8:
            size = self._unpack(_EXTENSIONS[byte]) if byte in _EXTENSIONS else 1 << (byte - 0xD4)
            return self._extension(size, depth)
        raise ValueError(f"byte {byte:#x} starts no value")

    def _length(self, byte: int, long_forms: Mapping[int, str], mask: int) -> int:
        return int(self._unpack(long_forms[byte])) if byte in long_forms else byte & mask

    def _block(self, size: int) -> _Block:
        block = _Block(self.position, size)
        self.position += size
        if self.position > self._file.size:
            raise CheckpointError(f"{self._file.path} is cut short: an array reaches beyond its end.")
        return block

    def _map(self, length: int, depth: int) -> dict[str, Any]:
        found: dict[str, Any] = {}
        for _ in range(length):
            key = self.value(depth + 1)
            if not isinstance(key, str) or key in found:
                raise ValueError(f"a map needs texts as keys, each once, not {key!r}")
            found[key] = self.value(depth + 1)
        return found

    def _extension(self, size: int, depth: int) -> _Stored:
        """Parse an array: a list of shape, type name and bytes inside an extension object."""
        kind = self._unpack(">b")
        end = self.position + size
        if kind not in (_NDARRAY, _SCALAR):
            raise ValueError(f"extension type {kind} is no array")
        shape, type_name, block = self.value(depth + 1)
        name = type_name if isinstance(type_name, str) else self._file.read(type_name.offset, type_name.size).decode()
        stored = _Stored(tuple(shape), dtype_of(name), (block,))
        if self.position != end or stored.nbytes != block.size or any(length < 0 for length in shape):
            raise ValueError(f"an array of type {name} and shape {shape} does not fit its {block.size} bytes")
        return stored
