"""Lists that go to the disk when they outgrow memory: the documents and windows of a data set larger than that."""

from __future__ import annotations

import json
import mmap
import sys
import tempfile
import weakref
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import IO, Any, Generic, TypeVar, overload

import numpy as np
import numpy.typing as npt

from longspan.pipelines.long.rows import Row
from longspan.training.records import Record
from longspan.training.task import Example, Sample

T = TypeVar("T")
_ALIGNED = 8
_ROW_PARTS = ("ids", "segments", "is_global", "wanted")
#: bytes of an object beside what it holds
_OVERHEAD = 400


class SpillingList(Sequence[T], Generic[T]):
    """A list that is in memory up to a limit, and from there on in a file without a name, which ends with the process.

    Args:
        folder: Where the file goes; it is made when it is needed.
        limit: Bytes that stay in memory.
        size: Bytes of an item in memory.
        encode: An item as bytes.
        decode: An item from these bytes.
    """

    def __init__(
        self,
        folder: Path,
        limit: int,
        *,
        size: Callable[[T], int],
        encode: Callable[[T], bytes],
        decode: Callable[[memoryview], T],
    ) -> None:
        self._folder, self._limit = folder, limit
        self._size, self._encode, self._decode = size, encode, decode
        self._kept: list[T] = []
        self._bytes = 0
        self._file: IO[bytes] | None = None
        self._ends = np.zeros(1, np.int64)
        self._count = 0
        self._map: memoryview | None = None

    @property
    def is_on_disk(self) -> bool:
        """Whether it has outgrown memory."""
        return self._file is not None

    def append(self, item: T) -> None:
        """Add an item at the end."""
        if self._file is None:
            self._kept.append(item)
            self._bytes += self._size(item)
            if self._bytes > self._limit:
                self._move()
        else:
            self._write(item)

    def _move(self) -> None:
        self._file = tempfile.TemporaryFile(dir=self._folder, prefix=".longspan-")  # noqa: SIM115 - open as long as the list
        weakref.finalize(self, self._file.close)
        for item in self._kept:
            self._write(item)
        self._kept = []

    def _write(self, item: T) -> None:
        assert self._file is not None
        data = self._encode(item)
        self._file.write(data)
        if self._count + 2 > len(self._ends):
            self._ends = np.resize(self._ends, 2 * len(self._ends) + 2)
        self._ends[self._count + 1] = self._ends[self._count] + len(data)
        self._count += 1
        self._map = None

    def __len__(self) -> int:
        return self._count if self.is_on_disk else len(self._kept)

    @overload
    def __getitem__(self, index: int) -> T: ...

    @overload
    def __getitem__(self, index: slice) -> list[T]: ...

    def __getitem__(self, index: int | slice) -> T | list[T]:
        if isinstance(index, slice):
            return [self[place] for place in range(*index.indices(len(self)))]
        if self._file is None:
            return self._kept[index]
        place = range(self._count)[index]
        if self._map is None:
            self._file.flush()
            self._map = memoryview(mmap.mmap(self._file.fileno(), 0, access=mmap.ACCESS_READ))
        return self._decode(self._map[self._ends[place] : self._ends[place + 1]])

    def __iter__(self) -> Iterator[T]:
        return (self[place] for place in range(len(self)))


class Chosen(Sequence[T], Generic[T]):
    """Some items of a list, which stay where they are.

    Args:
        items: The list.
        indices: (N,) which.
    """

    def __init__(self, items: Sequence[T], indices: npt.NDArray[np.int64]) -> None:
        self._items, self._indices = items, indices

    def __len__(self) -> int:
        return len(self._indices)

    @overload
    def __getitem__(self, index: int) -> T: ...

    @overload
    def __getitem__(self, index: slice) -> list[T]: ...

    def __getitem__(self, index: int | slice) -> T | list[T]:
        if isinstance(index, slice):
            return [self._items[place] for place in self._indices[index]]
        return self._items[int(self._indices[index])]


class Store:
    """The lists of a run, on the disk of its output where they outgrow memory.

    Args:
        output: Folder of the result, which need not exist.
        limit: MiB of each list that stay in memory.
    """

    def __init__(self, output: Path, limit: int) -> None:
        places = [output, *output.absolute().parents]
        self._folder = next(place for place in places if place.is_dir())
        self._limit = limit << 20

    def samples(self) -> SpillingList[Sample]:
        """A list for windows with targets."""
        size, encode, decode = _size_of_sample, encode_sample, decode_sample
        return SpillingList(self._folder, self._limit, size=size, encode=encode, decode=decode)

    def examples(self) -> SpillingList[Example]:
        """A list for documents."""
        size, encode, decode = _size_of_example, encode_example, decode_example
        return SpillingList(self._folder, self._limit, size=size, encode=encode, decode=decode)


def _arrays(sample: Sample) -> Iterator[tuple[str, npt.NDArray[Any]]]:
    for number, row in enumerate(sample.rows):
        for part in _ROW_PARTS:
            value = getattr(row, part)
            if value is not None:
                yield f"{number}.{part}", value
    for name, value in sample.targets.items():
        yield name, np.asarray(value)


def _size_of_sample(sample: Sample) -> int:
    return _OVERHEAD + sum(array.nbytes + sys.getsizeof(array) for _, array in _arrays(sample))


def encode_sample(sample: Sample) -> bytes:
    """A window as the names, types and shapes of its arrays, and their bytes."""
    arrays = list(_arrays(sample))
    shapes = [[name, array.dtype.str, array.shape] for name, array in arrays]
    head = json.dumps([len(sample.rows), sample.weight, shapes]).encode()
    parts = [len(head).to_bytes(_ALIGNED, "little"), head, *(array.tobytes() for _, array in arrays)]
    return b"".join(part.ljust(_aligned(len(part)), b"\0") for part in parts)


def decode_sample(data: memoryview) -> Sample:
    """The window; its arrays are read from the file when they are needed."""
    length = int.from_bytes(data[:_ALIGNED], "little")
    count, weight, shapes = json.loads(bytes(data[_ALIGNED : _ALIGNED + length]))
    arrays: dict[str, Any] = {}
    place = _ALIGNED + _aligned(length)
    for name, kind, shape in shapes:
        numbers = int(np.prod(shape))
        array = np.frombuffer(data, np.dtype(kind), numbers, place).reshape(shape)
        arrays[name] = array if shape else array[()]
        place += _aligned(array.nbytes)
    rows = [Row(*(arrays.pop(f"{number}.{part}", None) for part in _ROW_PARTS)) for number in range(count)]
    return Sample(rows, arrays, weight)


def _aligned(size: int) -> int:
    return -(-size // _ALIGNED) * _ALIGNED


def _size_of_example(example: Example) -> int:
    return _OVERHEAD + len(encode_example(example))


def encode_example(example: Example) -> bytes:
    """A document as JSON; of its record the place is kept."""
    values = [_listed(example.item), _listed(example.target), example.record.path, example.record.line]
    return json.dumps(values, default=np.generic.item).encode()


def decode_example(data: memoryview) -> Example:
    """The document."""
    item, target, path, line = json.loads(bytes(data))
    return Example(_told(item), _told(target), Record({}, path, line))


def _listed(value: Any) -> Any:
    """A value as JSON holds it, which has no tuples."""
    if isinstance(value, tuple):
        return {"()": [_listed(each) for each in value]}
    if isinstance(value, list):
        return [_listed(each) for each in value]
    return {key: _listed(each) for key, each in value.items()} if isinstance(value, Mapping) else value


def _told(value: Any) -> Any:
    if isinstance(value, dict):
        return tuple(map(_told, value["()"])) if value.keys() == {"()"} else {k: _told(v) for k, v in value.items()}
    return [_told(each) for each in value] if isinstance(value, list) else value
