"""The reader that every checkpoint format gives: names, shapes and types at once, values one tensor at a time.

Values are read straight into the memory that will hold them. Nothing maps or keeps the file, so that loading a model
costs its own size and not twice that.
"""

from __future__ import annotations

import math
import os
import threading
import zlib
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from io import BufferedReader
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Self

import numpy as np
import numpy.typing as npt

from longspan.checkpoints.dtypes import Array, DType, to_numpy
from longspan.checkpoints.untrusted import reading, shown
from longspan.errors import CheckpointError

if TYPE_CHECKING:
    import torch

#: bytes read, and checked while they are in the processor's cache, at a time
_CHUNK = 1 << 20
#: bytes of a transposed array that are held at a time
_SLAB = 4 << 20

Bytes = npt.NDArray[np.uint8]


@dataclass(frozen=True)
class Entry:
    """What a format knows of one tensor before reading it.

    Attributes:
        shape: Its shape.
        dtype: Its element type.
    """

    shape: tuple[int, ...]
    dtype: DType

    @property
    def nbytes(self) -> int:
        """Size of the values in bytes."""
        return math.prod(self.shape) * self.dtype.itemsize


class CheckpointReader(ABC):
    """Tensors of one checkpoint by key. Use as a context manager, or call `close`.

    Attributes:
        format: Name of the format: "safetensors", "pytorch", "flax" or "tf".
        path: The file, or the index file of a sharded checkpoint.
        metadata: Free text that the file carries about itself.
        repeats: Name in the file of a further copy of a tensor, to the name of the copy that is read.
        is_concurrent: Tensors may be read from several threads at once.
    """

    format: str = ""
    is_concurrent: bool = False

    def __init__(self, path: Path) -> None:
        self.path = path
        self.metadata: Mapping[str, str] = {}
        #: shape and type of every tensor, by key, in the order of the file; set by the subclass
        self.entries: Mapping[str, Entry] = {}
        self.repeats: dict[str, str] = {}

    @property
    def name(self) -> str:
        """The file, for messages."""
        return str(self.path)

    @property
    def paths(self) -> tuple[Path, ...]:
        """All files that the checkpoint is read from."""
        return (self.path,)

    @abstractmethod
    def _fill(self, key: str, out: Bytes) -> None:
        """Write the values of a tensor, in C order and native byte order, into flat memory of its exact size."""

    @abstractmethod
    def close(self) -> None:
        """Close the files."""

    def keys(self) -> list[str]:
        """Keys of all tensors."""
        return list(self.entries)

    def __iter__(self) -> Iterator[str]:
        return iter(self.entries)

    def __contains__(self, key: object) -> bool:
        return key in self.entries

    def shape(self, key: str) -> tuple[int, ...]:
        """Shape of a tensor."""
        return self._entry(key).shape

    def dtype(self, key: str) -> str:
        """Element type of a tensor, `"float32"`, `"bfloat16"`, ..."""
        return self._entry(key).dtype.name

    @property
    def float_dtype(self) -> str:
        """The one element type of all tensors of floating point; `"float32"` if there is none or several."""
        found = {name for key in self.entries if (name := self.dtype(key)).startswith(("float", "bfloat"))}
        return found.pop() if len(found) == 1 else "float32"

    def nbytes(self, key: str) -> int:
        """Size of a tensor in bytes."""
        return self._entry(key).nbytes

    def share_memory(self, first: str, second: str) -> bool:
        """True if the file stores one tensor under both keys. False where the format cannot say."""
        return first == second

    def native_name(self, key: str) -> str:
        """What the file itself calls a tensor."""
        return key

    def check_repeats(self) -> None:
        """Compare further copies of tensors with the ones that are read.

        Raises:
            CheckpointError: if two copies differ.
        """
        for name, kept in self.repeats.items():
            if not self._equal_copies(name, kept):
                raise CheckpointError(
                    f"{self.path} must hold equal copies of a shared tensor. {name} differs from {kept}"
                )

    def _equal_copies(self, name: str, kept: str) -> bool:
        """Compare two copies by their names in the file."""
        return name == kept

    def read_into(self, key: str, out: Array) -> None:
        """Fill memory with the values of a tensor.

        Args:
            key: Key of the tensor.
            out: Writable C-contiguous array of any type, as many bytes as the tensor has.

        Raises:
            CheckpointError: if the sizes differ, the file is damaged, or there is no such key.
        """
        entry = self._entry(key)
        if out.nbytes != entry.nbytes or not out.flags.c_contiguous or not out.flags.writeable:
            raise CheckpointError(
                f"{key} must be read into a writable contiguous array of {entry.nbytes} bytes. "
                f"Received: {out.nbytes} bytes, contiguous={out.flags.c_contiguous}, writable={out.flags.writeable}"
            )
        self._read(key, out.reshape(-1).view(np.uint8))

    def read_raw(self, key: str) -> Array:
        """Read a tensor as bits: bfloat16 comes as uint16, float8 as uint8, every other type as itself.

        Returns:
            A new array with the tensor's shape.
        """
        entry = self._entry(key)
        out = np.empty(entry.shape, entry.dtype.carrier)
        self._read(key, out.reshape(-1).view(np.uint8))
        return out

    def read(self, key: str) -> Array:
        """Read a tensor as a new NumPy array.

        Raises:
            CheckpointError: if the file is damaged, or the type needs `ml_dtypes` and it is not installed.
        """
        return to_numpy(self.read_raw(key), self._entry(key).dtype)

    def read_torch(self, key: str) -> torch.Tensor:
        """Read a tensor as a new PyTorch tensor of the stored type."""
        import torch

        entry = self._entry(key)
        tensor = torch.empty(entry.shape, dtype=getattr(torch, entry.dtype.name))
        self._read(key, tensor.reshape(-1).view(torch.uint8).numpy())
        return tensor

    def fill_torch(self, key: str, tensor: torch.Tensor) -> None:
        """Fill an existing PyTorch tensor of the same shape, converting to its type and device.

        A contiguous tensor on the CPU of the stored type takes the values without a copy in between.

        Args:
            key: Key of the tensor.
            tensor: Tensor to fill in place.

        Raises:
            CheckpointError: if the shapes differ or the file is damaged.
        """
        import torch

        entry = self._entry(key)
        if tuple(tensor.shape) != entry.shape:
            raise CheckpointError(f"{key} has the shape {entry.shape} in the file. Received: {tuple(tensor.shape)}")
        with torch.no_grad():
            if self.is_direct(key, tensor):
                self._read(key, tensor.detach().reshape(-1).view(torch.uint8).numpy())
            else:
                tensor.copy_(self.read_torch(key))

    def is_direct(self, key: str, tensor: torch.Tensor) -> bool:
        """True if `fill_torch` reads straight into this tensor, so that it takes no memory besides."""
        import torch

        is_of_type = tensor.dtype == getattr(torch, self._entry(key).dtype.name)
        return is_of_type and tensor.device.type == "cpu" and tensor.is_contiguous()

    def _read(self, key: str, out: Bytes) -> None:
        with reading(self.path, f"the values of {shown(key)}"):
            self._fill(key, out)

    def _entry(self, key: str) -> Entry:
        try:
            return self.entries[key]
        except KeyError:
            raise CheckpointError(f"{self.path} has no tensor {key!r}") from None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


@dataclass(frozen=True)
class Canonical:
    """Where an array of another framework belongs.

    Attributes:
        key: Canonical key.
        transposed: The two axes change places.
    """

    key: str
    transposed: bool


class RenamedReader(CheckpointReader):
    """Base of the readers for other frameworks' files. Keys and tensors come out in the canonical form."""

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        self._native_names: dict[str, str] = {}
        self._transposed: dict[str, bool] = {}

    def _place(self, native: Mapping[str, Entry], canonical: Mapping[str, Canonical]) -> None:
        """Fill `entries` from the arrays of the file and their places."""
        entries = {}
        for name, entry in native.items():
            key, transposed = canonical[name].key, canonical[name].transposed
            if key in entries:
                raise CheckpointError(f"{self.path} holds {key} twice, as {self._native_names[key]} and {name}.")
            entries[key] = Entry(entry.shape[::-1] if transposed else entry.shape, entry.dtype)
            self._native_names[key] = name
            self._transposed[key] = transposed
        self.entries = entries

    def native_name(self, key: str) -> str:
        """What the file itself calls a tensor."""
        return self._native_names[key]

    @abstractmethod
    def read_native(self, name: str, out: Array, start: int = 0) -> None:
        """Fill an array with an array of the file, or with some of its rows.

        Args:
            name: Name in the file.
            out: C-contiguous array of the carrier type, and of the shape in the file except for the number of rows.
            start: First row.
        """

    def _fill(self, key: str, out: Bytes) -> None:
        entry, name = self.entries[key], self._native_names[key]
        target = out.view(entry.dtype.carrier).reshape(entry.shape)
        if not self._transposed[key]:
            self.read_native(name, target)
            return
        columns, rows = entry.shape
        step = max(1, _SLAB // max(1, columns * entry.dtype.itemsize))
        for start in range(0, rows, step):
            slab = np.empty((min(step, rows - start), columns), entry.dtype.carrier)
            self.read_native(name, slab, start)
            target[:, start : start + step] = slab.T


class BlockFile:
    """A file from which byte ranges are read into given memory, safely from several threads."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._lock = threading.Lock()
        self._file: BufferedReader = path.open("rb")
        self.size = os.fstat(self._file.fileno()).st_size

    def read(self, offset: int, size: int) -> bytes:
        """Read a small range as bytes.

        Raises:
            CheckpointError: if the file ends before the range does.
        """
        with self._lock:
            self._file.seek(offset)
            data = self._file.read(size)
        if len(data) != size:
            raise self._cut_short(offset + size)
        return data

    def fill(self, offset: int, out: Bytes, *, checksum: bool = False) -> int:
        """Read a range into memory.

        Args:
            offset: Where the range starts in the file, in bytes.
            out: Flat memory to fill.
            checksum: Compute the CRC-32 on the way.

        Returns:
            The CRC-32, or 0 if it was not asked for.

        Raises:
            CheckpointError: if the file ends before the range does.
        """
        crc = 0
        step = _CHUNK if checksum else 1 << 30
        for start in range(0, out.nbytes, step):
            piece = out[start : start + step].data
            self._fill_piece(offset + start, piece)
            if checksum:
                crc = zlib.crc32(piece, crc)
        return crc

    def _fill_piece(self, offset: int, piece: memoryview) -> None:
        done = 0
        while done < len(piece):
            count = self._read_at(offset + done, piece[done:])
            if not count:
                raise self._cut_short(offset + len(piece))
            done += count

    def _read_at(self, offset: int, view: memoryview) -> int:
        if hasattr(os, "preadv"):
            return os.preadv(self._file.fileno(), [view], offset)
        with self._lock:
            self._file.seek(offset)
            return self._file.readinto(view)

    def _cut_short(self, needed: int) -> CheckpointError:
        return CheckpointError(
            f"{self.path} is cut short: it has {self.size} bytes where at least {needed} are needed."
        )

    def close(self) -> None:
        """Close the file."""
        self._file.close()


def equal_tensors(one: CheckpointReader, first: str, other: CheckpointReader, second: str) -> bool:
    """Say whether two tensors have the same type, shape and bits.

    Args:
        one: Reader of the first.
        first: Key of the first.
        other: Reader of the second.
        second: Key of the second.
    """
    if one is other and one.share_memory(first, second):
        return True
    if one.shape(first) != other.shape(second) or one.dtype(first) != other.dtype(second):
        return False
    bits, others = (reader.read_raw(key).reshape(-1).view(np.uint8) for reader, key in ((one, first), (other, second)))
    return np.array_equal(bits, others)
