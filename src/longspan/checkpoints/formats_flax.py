"""Reading `flax_model.msgpack` without Flax and JAX.

The file is one MessagePack map of maps; an array is an extension object that holds shape, type name and bytes, and an
array above 1 GiB is a map of such chunks. Common decoders build the whole tree in memory beside the file's bytes. This
one notes where each array lies, so that arrays are read one at a time into their place.

The module tree is the canonical one; only leaves differ: `kernel` (in, out) is `weight` (out, in), `scale` and
`embedding` are `weight`. Raw parameters (`weight` of LongT5's norms, `bias`) keep name and orientation.
Format: https://github.com/msgpack/msgpack/blob/master/spec.md and `flax.serialization`.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from longspan.checkpoints.dtypes import Array, dtype_of
from longspan.checkpoints.reader import BlockFile, Canonical, Entry, RenamedReader
from longspan.checkpoints.untrusted import (
    MAX_TENSORS,
    UNKNOWN,
    check_names,
    check_shape,
    file_kind,
    reading,
    shown,
)
from longspan.errors import CheckpointError

_NDARRAY, _SCALAR = 1, 3
_CHUNKED = "__msgpack_chunked_array__"
_LEAVES = {"kernel": "weight", "scale": "weight", "embedding": "weight", "weight": "weight", "bias": "bias"}
_MAX_DEPTH = 64
#: most values of a file: names, maps, arrays and what describes them
_MAX_VALUES = 10 * MAX_TENSORS
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
            with reading(path, "its tree of arrays"):
                self._stored = dict(_flatten(path, _read_tree(self._file)))
                check_names(self._stored)
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
    except Exception as error:
        if isinstance(error, CheckpointError) and str(path) in str(error) and file_kind(path) == UNKNOWN:
            raise
        raise CheckpointError(
            f"{path} is no whole msgpack file of Flax: {str(error)[:500]}. It looks like {file_kind(path)}."
        ) from error
    if not isinstance(tree, dict) or scanner.position != file.size:
        raise CheckpointError(f"{path} is no msgpack file of Flax, which is one map. It looks like {file_kind(path)}.")
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
                f"{path} may hold only arrays in maps. Received: {shown(prefix + name)[1:-1]}, a {type(value).__name__}"
            )


def _join(chunked: Mapping[str, Any]) -> _Stored:
    """Join the chunks of a large array."""
    lengths, chunks = (_numbered(chunked.get(part), part) for part in ("shape", "chunks"))
    if not chunks or not all(isinstance(chunk, _Stored) and chunk.dtype == chunks[0].dtype for chunk in chunks):
        raise CheckpointError("The chunks of an array must be arrays of one type.")
    shape = check_shape(lengths, chunks[0].dtype.itemsize)
    joined = _Stored(shape, chunks[0].dtype, tuple(block for chunk in chunks for block in chunk.blocks))
    if joined.nbytes != sum(chunk.nbytes for chunk in chunks):
        raise CheckpointError(f"The chunks of an array of shape {shape} do not add up to it.")
    return joined


def _numbered(parts: Any, what: str) -> list[Any]:
    """The values of a map with the keys "0", "1", ..."""
    if not isinstance(parts, dict) or any(str(i) not in parts for i in range(len(parts))):
        raise CheckpointError(f"An array in chunks must number its {what} from 0. Received: {shown(parts)}")
    return [parts[str(i)] for i in range(len(parts))]


class _Scanner:
    """Parses MessagePack from a file, leaving byte strings where they are."""

    def __init__(self, file: BlockFile, position: int = 0) -> None:
        self._file = file
        self.position = position
        self._left = _MAX_VALUES

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
        self._left -= 1
        if self._left < 0:
            raise CheckpointError(f"{self._file.path} holds more than {_MAX_VALUES} values.")
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
                raise ValueError(f"a map needs texts as keys, each once, not {shown(key)}")
            found[key] = self.value(depth + 1)
        return found

    def _extension(self, size: int, depth: int) -> _Stored:
        """Parse an array: a list of shape, type name and bytes inside an extension object."""
        kind = self._unpack(">b")
        end = self.position + size
        if kind not in (_NDARRAY, _SCALAR):
            raise ValueError(f"extension type {kind} is no array")
        parts = self.value(depth + 1)
        if not isinstance(parts, list) or len(parts) != 3 or not isinstance(parts[0], list):
            raise ValueError("an array needs a shape, a type and its bytes")
        lengths, name, block = parts
        if isinstance(name, _Block):
            name = self._file.read(name.offset, min(name.size, 64)).decode("ascii")
        dtype = dtype_of(name)
        stored = _Stored(check_shape(lengths, dtype.itemsize), dtype, (block,))
        if self.position != end or not isinstance(block, _Block) or stored.nbytes != block.size:
            raise ValueError(f"an array of type {name} and shape {stored.shape} does not fit its bytes")
        return stored


def canonical_name(name: str, num_axes: int = 2) -> Canonical:
    """Translate one Flax name.

    Args:
        name: Path in the parameter tree, joined by slashes.
        num_axes: Number of axes of the array.

    Returns:
        The canonical key, and whether the array must be transposed.

    Raises:
        CheckpointError: if there is no rule for such a parameter.

    Example:
        >>> canonical_name("bert/encoder/layer/0/attention/self/query/kernel")
        Canonical(key='bert.encoder.layer.0.attention.self.query.weight', transposed=True)
    """
    *path, leaf = name.split("/")
    if leaf not in _LEAVES or (leaf == "kernel" and num_axes != 2):
        raise CheckpointError(
            f"A Flax parameter must be a kernel with 2 axes or one of {', '.join(sorted(_LEAVES))}. "
            f"Received: {shown(name)[1:-1]} with {num_axes} axes"
        )
    return Canonical(".".join([*path, _LEAVES[leaf]]), leaf == "kernel")
