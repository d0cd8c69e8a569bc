"""Reading `pytorch_model.bin` without PyTorch and without running anything it holds.

Since PyTorch 1.6 the file is a zip archive: `data.pkl` describes the tensors, `data/<key>` holds the bytes of each
storage, uncompressed. Before, it was a row of pickles followed by the storages. Both are read here. Only tensors are
understood; a pickle that refers to anything else is refused (see `restricted_pickle`).
"""

from __future__ import annotations

import io
import math
import struct
import zipfile
import zlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from longspan.checkpoints.dtypes import BY_NAME, DType, dtype_of
from longspan.checkpoints.reader import BlockFile, Bytes, CheckpointReader, Entry
from longspan.checkpoints.restricted_pickle import Name, PlainUnpickler, ordered_dict
from longspan.checkpoints.untrusted import MAX_NUMBER, check_names, check_shape, file_kind, reading, shown
from longspan.errors import CheckpointError, UnsafeCheckpointError

_STORAGES = {
    "DoubleStorage": "float64",
    "FloatStorage": "float32",
    "HalfStorage": "float16",
    "BFloat16Storage": "bfloat16",
    "LongStorage": "int64",
    "IntStorage": "int32",
    "ShortStorage": "int16",
    "CharStorage": "int8",
    "ByteStorage": "uint8",
    "BoolStorage": "bool",
    "ComplexFloatStorage": "complex64",
}
_STORAGE_TYPES = {f"torch.{place}{name}": kind for name, kind in _STORAGES.items() for place in ("", "cuda.")}
_UNTYPED = "torch.storage.UntypedStorage"
_LEGACY_MAGIC = 0x1950A86A20F9469CFC6C
_LEGACY_PROTOCOL = 1001
#: largest pickle inside an archive, in bytes
_MAX_RECORD = 64 << 20
#: bytes read at a time to verify a storage that several tensors share
_PIECE = 1 << 20


@dataclass
class _Storage:
    """A block of bytes in the file; position and CRC-32 (0 for none) become known after the pickle is read."""

    dtype: DType | None
    numel: int
    offset: int = -1
    crc: int = 0

    @property
    def nbytes(self) -> int:
        """Size in bytes."""
        return self.numel * (self.dtype.itemsize if self.dtype else 1)


@dataclass(frozen=True)
class _Tensor(Entry):
    """A strided view of a storage; start and strides count elements."""

    storage: _Storage
    start: int
    strides: tuple[int, ...]

    @property
    def is_contiguous(self) -> bool:
        """True if the values lie in C order without gaps."""
        expected = 1
        for length, stride in zip(reversed(self.shape), reversed(self.strides), strict=True):
            if length != 1 and stride != expected:
                return False
            expected *= length
        return True

    @property
    def extent(self) -> int:
        """Elements from the first to the last value, both included."""
        if 0 in self.shape:
            return 0
        return 1 + sum((length - 1) * stride for length, stride in zip(self.shape, self.strides, strict=True))


@dataclass
class _Archive:
    """What a `.bin` file describes: its object and its storages by key."""

    content: Any = None
    storages: dict[str, _Storage] = field(default_factory=dict)

    def unpickler(self, stream: BinaryIO, path: Path) -> PlainUnpickler:
        names: dict[str, Any] = dict.fromkeys([*_STORAGE_TYPES, _UNTYPED])
        names |= dict.fromkeys(f"torch.{name}" for name in BY_NAME)
        names |= {
            "collections.OrderedDict": ordered_dict,
            "torch.Size": tuple,
            "torch._utils._rebuild_tensor": _tensor,
            "torch._utils._rebuild_tensor_v2": _tensor,
            "torch._utils._rebuild_tensor_v3": _tensor_with_dtype,
            "torch._utils._rebuild_parameter": _first,
            "torch._utils._rebuild_parameter_with_state": _first,
        }
        return PlainUnpickler(stream, title=str(path), names=names, persistent=self._storage)

    def _storage(self, identity: Any) -> _Storage:
        """Understand ("storage", type, key, device, number of elements[, view])."""
        kind, storage_type, key, _, numel, *view = identity if isinstance(identity, tuple) else ()
        if kind != "storage" or any(part is not None for part in view) or not isinstance(key, str | int):
            raise CheckpointError(
                f"A persistent id in a .bin file must describe a whole storage. Received: {shown(identity)}"
            )
        path = storage_type.path if isinstance(storage_type, Name) else ""
        name = _STORAGE_TYPES.get(path)
        if not _is_number(numel) or (name is None and path != _UNTYPED):
            raise CheckpointError(f"A storage in a .bin file must have a type and a size. Received: {shown(identity)}")
        made = _Storage(dtype_of(name) if name else None, numel)
        known = self.storages.setdefault(str(key), made)
        if (known.dtype, known.numel) != (made.dtype, made.numel):
            raise CheckpointError(f"A storage in a .bin file must have one type and size. Received: {shown(identity)}")
        return known


def _tensor(storage: Any, start: Any, shape: Any, strides: Any, *_: Any) -> _Tensor:
    return _checked(storage, storage.dtype, start, shape, strides)


def _tensor_with_dtype(
    storage: Any, start: Any, shape: Any, strides: Any, _grad: Any, _hooks: Any, dtype: Name, *_: Any
) -> _Tensor:
    return _checked(storage, dtype_of(dtype.path.removeprefix("torch.")), start, shape, strides)


def _first(data: Any, *_: Any) -> Any:
    return data


def _is_number(value: Any) -> bool:
    return type(value) is int and 0 <= value <= MAX_NUMBER


def _checked(
    storage: _Storage, dtype: DType | None, start: Any, shape: Sequence[Any], strides: Sequence[Any]
) -> _Tensor:
    """Check that a view stays inside its storage, is not larger than it."""
    if dtype is None:
        raise CheckpointError("A tensor on untyped storage in a .bin file must state its type.")
    room = storage.nbytes // dtype.itemsize
    sound = len(shape) == len(strides) and all(map(_is_number, (start, *shape, *strides)))
    if sound:
        tensor = _Tensor(check_shape(shape, dtype.itemsize), dtype, storage, start, tuple(strides))
        if start + tensor.extent <= room and math.prod(shape) <= room:
            return tensor
    raise CheckpointError(
        f"A tensor in a .bin file must lie inside its storage of {storage.nbytes} bytes. Received: "
        f"shape {shown(tuple(shape))}, strides {shown(tuple(strides))}, start {shown(start)}, type {dtype.name}"
    )


class PytorchReader(CheckpointReader):
    """One `.bin` file, as `torch.save` writes it from a state dict.

    Args:
        path: The file.
        verify: Compare what is read with the checksums of the zip archive, where it has them and a tensor fills its
            storage.

    Raises:
        UnsafeCheckpointError: if the file refers to anything but tensors and plain data.
        CheckpointError: if it is damaged, is something else, or holds more than tensors by name.
    """

    format = "pytorch"
    is_concurrent = True

    def __init__(self, path: Path, *, verify: bool = True) -> None:
        super().__init__(path)
        self._verify = verify
        self._verified: set[int] = set()
        self._file = BlockFile(path)
        try:
            with reading(path, "its list of tensors"):
                archive = _read_zip(self._file) if zipfile.is_zipfile(path) else _read_legacy(self._file)
                self.entries = self._tensors = _named_tensors(path, archive.content)
        except BaseException:
            self._file.close()
            raise

    def share_memory(self, first: str, second: str) -> bool:
        """True if both keys are the same view of the same storage."""
        one, other = self._tensors[first], self._tensors[second]
        return one == other and one.storage is other.storage

    def _fill(self, key: str, out: Bytes) -> None:
        tensor = self._tensors[key]
        storage, itemsize = tensor.storage, tensor.dtype.itemsize
        checked = self._verify and storage.crc != 0 and storage.offset not in self._verified
        is_whole = tensor.is_contiguous and out.nbytes == storage.nbytes
        if checked and not is_whole:
            self._check(key, storage, self._checksum(storage))
        start = storage.offset + tensor.start * itemsize
        if tensor.is_contiguous:
            crc = self._file.fill(start, out, checksum=checked and is_whole)
            if checked and is_whole:
                self._check(key, storage, crc)
            return
        block = np.empty(tensor.extent, tensor.dtype.carrier)
        self._file.fill(start, block.view(np.uint8))
        steps = [stride * itemsize for stride in tensor.strides]
        view = np.lib.stride_tricks.as_strided(block, tensor.shape, steps, writeable=False)
        out.view(tensor.dtype.carrier).reshape(tensor.shape)[...] = view

    def _check(self, key: str, storage: _Storage, crc: int) -> None:
        if crc != storage.crc:
            raise CheckpointError(f"{self.path} is damaged: the values of {key} do not match their checksum.")
        self._verified.add(storage.offset)

    def _checksum(self, storage: _Storage) -> int:
        """CRC-32 of a storage of which a tensor is a part."""
        crc = 0
        for start in range(0, storage.nbytes, _PIECE):
            crc = zlib.crc32(self._file.read(storage.offset + start, min(_PIECE, storage.nbytes - start)), crc)
        return crc

    def close(self) -> None:
        """Close the file."""
        self._file.close()


def _named_tensors(path: Path, content: Any) -> dict[str, _Tensor]:
    """Check that the content is a flat mapping from names to tensors."""
    if not isinstance(content, dict):
        raise CheckpointError(f"{path} must hold a mapping from names to tensors. Received: {type(content).__name__}")
    astray = [
        f"{shown(key)}: {type(value).__name__}"
        for key, value in content.items()
        if not (isinstance(key, str) and isinstance(value, _Tensor))
    ]
    if astray:
        listed = ", ".join(astray[:20])
        raise CheckpointError(f"{path} must hold a flat mapping from names to tensors. Received also: {listed}")
    check_names(content)
    return content


def _read_zip(file: BlockFile) -> _Archive:
    path = file.path
    try:
        with zipfile.ZipFile(path) as archive:
            records = archive.infolist()
    except Exception as error:
        raise CheckpointError(f"{path} is a damaged zip archive: {error}") from error
    by_name = {record.filename: record for record in records}
    roots = [name.removesuffix("data.pkl") for name in by_name if name.count("/") == 1 and name.endswith("/data.pkl")]
    if len(by_name) != len(records) or len(roots) != 1:
        raise CheckpointError(f"{path} is no archive of torch.save: it must hold each file once, and one data.pkl.")
    root = roots[0]
    if f"{root}byteorder" in by_name and _record(file, by_name[f"{root}byteorder"]) != b"little":
        raise CheckpointError(f"{path} must hold little-endian numbers.")
    parsed = _Archive()
    stream = io.BytesIO(_record(file, by_name[f"{root}data.pkl"]))
    parsed.content = parsed.unpickler(stream, path).load()
    for key, storage in parsed.storages.items():
        record = by_name.get(f"{root}data/{key}")
        if record is None or record.file_size != storage.nbytes:
            held = "nothing" if record is None else f"{record.file_size} bytes"
            raise CheckpointError(f"{path} is damaged: storage {key} needs {storage.nbytes} bytes, there is {held}.")
        storage.offset, storage.crc = _record_offset(file, record), record.CRC
    unused = {name for name in by_name if name.startswith(f"{root}data/")} - {
        f"{root}data/{key}" for key in parsed.storages
    }
    if unused:
        raise CheckpointError(f"{path} is damaged: no tensor uses {shown(sorted(unused))}.")
    return parsed


def _record(file: BlockFile, record: zipfile.ZipInfo) -> bytes:
    if record.file_size > _MAX_RECORD:
        raise CheckpointError(
            f"{file.path} must list its tensors in {_MAX_RECORD} bytes. Received: {record.file_size} bytes"
        )
    data = file.read(_record_offset(file, record), record.file_size)
    if record.CRC not in (0, zlib.crc32(data)):
        raise CheckpointError(f"{file.path} is damaged: {record.filename} does not match its checksum.")
    return data


def _record_offset(file: BlockFile, record: zipfile.ZipInfo) -> int:
    """Where the bytes of an uncompressed record start."""
    if record.compress_type != zipfile.ZIP_STORED or record.file_size != record.compress_size:
        raise CheckpointError(f"{file.path} must hold its files uncompressed. Received: {record.filename} compressed")
    header = file.read(record.header_offset, 30)
    if header[:4] != b"PK\x03\x04":
        raise CheckpointError(f"{file.path} is a damaged zip archive: no header for {record.filename}.")
    name_length, extra_length = struct.unpack("<HH", header[26:30])
    start = int(record.header_offset + 30 + name_length + extra_length)
    encoding = "utf-8" if record.flag_bits & 0x800 else "cp437"
    if file.read(record.header_offset + 30, name_length) != record.orig_filename.encode(encoding):
        raise CheckpointError(f"{file.path} is a damaged zip archive: {shown(record.filename)} has two names.")
    if start + record.file_size > file.size:
        raise CheckpointError(f"{file.path} is cut short: {record.filename} reaches beyond its end.")
    return start


def _read_legacy(file: BlockFile) -> _Archive:
    """Read the format before PyTorch 1.6: five pickles (magic, protocol, system, object, storage keys), then bytes."""
    path = file.path
    parsed = _Archive()
    with _Bounded(path, file.size) as stream:
        unpickler = parsed.unpickler(stream, path)
        _check_magic(unpickler, path)
        protocol, system = unpickler.load(), unpickler.load()
        if protocol != _LEGACY_PROTOCOL or not isinstance(system, dict) or not system.get("little_endian", True):
            raise CheckpointError(f"{path} must hold little-endian numbers in protocol {_LEGACY_PROTOCOL}.")
        parsed.content = unpickler.load()
        keys = unpickler.load()
        _place_storages(file, parsed, keys, stream.tell())
    return parsed


def _check_magic(unpickler: PlainUnpickler, path: Path) -> None:
    """Read the first pickle, the number that marks files of torch.save."""
    message = f"{path} is no file of torch.save: it looks like {file_kind(path)}."
    try:
        magic = unpickler.load()
    except UnsafeCheckpointError:
        raise
    except CheckpointError as error:
        raise CheckpointError(message) from error
    if magic != _LEGACY_MAGIC:
        raise CheckpointError(message)


def _place_storages(file: BlockFile, parsed: _Archive, keys: Iterable[Any], position: int) -> None:
    """Find each storage: 8 bytes with its number of elements, then the elements."""
    for key in map(str, keys):
        storage = parsed.storages.get(key)
        numel = int.from_bytes(file.read(position, 8), "little")
        if storage is None or storage.numel != numel or storage.offset >= 0:
            raise CheckpointError(f"{file.path} is damaged: storage {key} has {numel} elements and no tensor fits it.")
        storage.offset = position + 8
        position = storage.offset + storage.nbytes
        if position > file.size:
            raise CheckpointError(f"{file.path} is cut short: storage {key} reaches beyond its end.")
    lost = [key for key, storage in parsed.storages.items() if storage.offset < 0]
    if lost:
        raise CheckpointError(f"{file.path} is damaged: it has no bytes for storage {', '.join(lost)}.")
    if position != file.size:
        raise CheckpointError(f"{file.path} is damaged: {file.size - position} bytes follow the last storage.")


class _Bounded(io.BufferedReader):
    """A file that makes no room for more bytes than it has, whatever length it claims."""

    def __init__(self, path: Path, size: int) -> None:
        super().__init__(io.FileIO(path))
        self._size = size

    def read(self, size: int | None = -1, /) -> bytes:
        if size is None or not 0 <= size <= _PIECE:
            left = max(0, self._size - self.tell())
            size = left if size is None or size < 0 else min(size, left)
        return super().read(size)
