"""Reading `tf_model.h5` without TensorFlow and Keras (h5py reads the file).

Keras writes one HDF5 group per top-level layer, which lists its variables in the attribute `weight_names`. Heads that
share the embedding list its variables once more. A shard of a large model holds the variables directly.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from longspan.checkpoints import sniff
from longspan.checkpoints.dtypes import Array, dtype_of
from longspan.checkpoints.legacy_tf import canonical_name, without_scope
from longspan.checkpoints.reader import Entry
from longspan.checkpoints.renamed import Canonical, RenamedReader
from longspan.errors import CheckpointError, MissingFrameworkError, UnsafeCheckpointError


class TFReader(RenamedReader):
    """One HDF5 file of Keras weights, with canonical keys.

    Args:
        path: The file.

    Raises:
        MissingFrameworkError: if h5py is not installed.
        UnsafeCheckpointError: if the file refers to other files.
        CheckpointError: if the file is damaged or something else, or holds a variable that has no canonical name.
    """

    format = "tf"

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        try:
            import h5py
        except ModuleNotFoundError as error:
            raise MissingFrameworkError(
                f"{path.name} needs h5py, which is not installed: pip install 'longspan[convert]'"
            ) from error
        try:
            self._file = h5py.File(path, "r")
        except OSError as error:
            raise CheckpointError(
                f"{path} is no whole HDF5 file: {error}. It looks like {sniff.describe(path)}."
            ) from error
        try:
            self._index()
        except BaseException:
            self._file.close()
            raise

    def _index(self) -> None:
        """Find all variables; of several copies of one, the first under its own layer counts."""
        datasets: dict[str, Entry] = {}
        places: dict[str, Canonical] = {}
        copies: dict[str, list[tuple[bool, str]]] = {}
        for layer, name, dataset in _variables(self.path, self._file, self._file):
            path = without_scope(name, layer) if layer else name
            places[dataset.name] = canonical_name(path, len(dataset.shape))
            datasets[dataset.name] = Entry(tuple(dataset.shape), dtype_of(dataset.dtype.name))
            borrowed = bool(layer) and not path.startswith(f"{layer}/")
            copies.setdefault(places[dataset.name].key, []).append((borrowed, dataset.name))
        if not copies:
            raise CheckpointError(f"{self.path} holds no variables of a Keras model.")
        for found in copies.values():
            (_, kept), *others = sorted(found, key=lambda item: item[0])
            self.repeats |= {name: kept for borrowed, name in others if borrowed}
        self._place({name: entry for name, entry in datasets.items() if name not in self.repeats}, places)

    def read_native(self, name: str, out: Array, start: int = 0) -> None:
        """Fill an array with the values, or some rows of them, of a dataset."""
        try:
            if out.ndim == 0:
                out[...] = self._file[name][()]
            elif out.size:
                self._file[name].read_direct(out, np.s_[start : start + len(out)])
        except OSError as error:
            raise CheckpointError(f"{self.path} is damaged: {name} cannot be read ({error}).") from error

    def _equal_copies(self, name: str, kept: str) -> bool:
        return np.array_equal(self._file[name][()], self._file[kept][()])

    def close(self) -> None:
        """Close the file."""
        self._file.close()


def _variables(path: Path, file: Any, group: Any, layer: str = "") -> Iterator[tuple[str, str, Any]]:
    """Walk the file; yield (Keras layer or "", name below it, dataset)."""
    import h5py

    for name in group:
        link = group.get(name, getlink=True)
        if not isinstance(link, h5py.HardLink):
            raise UnsafeCheckpointError(f"{path} may not refer to anything outside itself. Received: the link {name!r}")
        item = group[name]
        if isinstance(item, h5py.Dataset):
            if item.external or item.is_virtual:
                raise UnsafeCheckpointError(
                    f"{path} may not refer to anything outside itself. Received: {item.name!r} in other files"
                )
            yield layer, item.name.removeprefix(f"/{layer}").removeprefix("/"), item
        elif isinstance(item, h5py.Group):
            is_layer = group == file and any(key.startswith("weight_names") for key in item.attrs)
            yield from _variables(path, file, item, name if is_layer else layer)
