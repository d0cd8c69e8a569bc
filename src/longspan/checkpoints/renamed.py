"""A reader over a file whose arrays have other names and orientations than the canonical ones."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from longspan.checkpoints.dtypes import Array
from longspan.checkpoints.reader import Bytes, CheckpointReader, Entry
from longspan.errors import CheckpointError

#: bytes of a transposed array that are held at a time
_SLAB = 4 << 20


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
