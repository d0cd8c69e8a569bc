"""Reading `tf_model.h5` without TensorFlow and Keras (h5py reads the file).

Keras writes one HDF5 group per top-level layer, which lists its variables in the attribute `weight_names`. Heads that
share the embedding list its variables once more. A shard of a large model holds the variables directly.

A variable is called `tf_bert_for_pre_training/mlm___cls/predictions/transform/dense/kernel:0`: the model's own scope,
the path, the leaf, the device. In the path, `mlm___cls` stands for `cls` and `layer_._0` for `layer/0`. `kernel`
(in, out) is `weight` (out, in); `gamma` and `embeddings` are `weight`; `beta` is `bias`.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from longspan.checkpoints.dtypes import Array, dtype_of
from longspan.checkpoints.reader import Canonical, Entry, RenamedReader
from longspan.checkpoints.untrusted import MAX_TENSORS, check_names, check_shape, file_kind, reading, shown
from longspan.errors import CheckpointError, MissingFrameworkError, UnsafeCheckpointError

_LEAVES = {
    "kernel": "weight",
    "gamma": "weight",
    "embeddings": "weight",
    "weight": "weight",
    "beta": "bias",
    "bias": "bias",
}
#: deepest group; Keras' own paths have about ten parts
_MAX_DEPTH = 32
#: most bytes of a variable for each byte that stores it, which only compressed ones exceed
_MAX_RATIO = 100
#: variables below this size may be compressed as far as they go
_SMALL = 1 << 20


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
        except (OSError, RuntimeError) as error:
            raise CheckpointError(f"{path} is no whole HDF5 file: {error}. It looks like {file_kind(path)}.") from error
        try:
            _check_end(path)
            with reading(path, "its groups and variables"):
                self._index()
        except BaseException:
            self._file.close()
            raise

    def _index(self) -> None:
        """Find all variables; of several copies of one, the first under its own layer counts."""
        datasets: dict[str, Entry] = {}
        places: dict[str, Canonical] = {}
        copies: dict[str, list[tuple[bool, str]]] = {}
        for layer, name, dataset in _Walk(self.path, self._file).variables(self._file):
            path = without_scope(name, layer) if layer else name
            datasets[dataset.name] = _entry(dataset)
            places[dataset.name] = canonical_name(path, len(dataset.shape))
            borrowed = bool(layer) and not path.startswith(f"{layer}/")
            copies.setdefault(places[dataset.name].key, []).append((borrowed, dataset.name))
        if not copies:
            raise CheckpointError(f"{self.path} holds no variables of a Keras model.")
        for found in copies.values():
            (_, kept), *others = sorted(found, key=lambda item: item[0])
            self.repeats |= {name: kept for borrowed, name in others if borrowed}
        check_names(datasets)
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


def _check_end(path: Path) -> None:
    """Check that the file ends where its first block says, so that nothing was put in between."""
    with path.open("rb") as file:
        head, size = file.read(52), file.seek(0, 2)
    start = {0: 40, 1: 44, 2: 28, 3: 28}.get(head[8], 0)
    end = int.from_bytes(head[start : start + 8], "little")
    if head.startswith(b"\x89HDF") and start and end != size:
        raise CheckpointError(f"{path} is damaged: it has {size} bytes and describes {end}.")


def _entry(dataset: Any) -> Entry:
    """Shape and type of a variable, all of whose values must be in the file."""
    name = shown(dataset.name)
    if dataset.shape is None:
        raise CheckpointError(f"A variable must have a shape. Received: {name}, which is empty")
    dtype = dtype_of(dataset.dtype.name)
    entry = Entry(check_shape(dataset.shape, dtype.itemsize), dtype)
    stored = dataset.id.get_storage_size()
    is_compressed = dataset.id.get_create_plist().get_nfilters() > 0
    largest = max(_MAX_RATIO * stored, _SMALL) if is_compressed else stored
    largest_chunk = math.prod(dataset.chunks or ()) * dtype.itemsize
    if entry.nbytes > largest or largest_chunk > 2 * entry.nbytes + _SMALL:
        raise CheckpointError(
            f"A variable must hold all its values, in chunks no larger than it. Received: {name} of {entry.nbytes} "
            f"bytes, stored in {stored}, in chunks of {largest_chunk}"
        )
    return entry


class _Walk:
    """Walks the groups of a file, each once."""

    def __init__(self, path: Path, file: Any) -> None:
        self._path, self._file = path, file
        self._seen: set[int] = set()
        self._count = 0

    def variables(self, group: Any, layer: str = "", depth: int = 0) -> Iterator[tuple[str, str, Any]]:
        """Yield (Keras layer or "", name below it, dataset)."""
        import h5py

        self._enter(group, depth)
        for name in group:
            self._count += 1
            if self._count > MAX_TENSORS:
                raise CheckpointError(f"{self._path} may hold at most {MAX_TENSORS} groups and variables.")
            self._check_link(name, group.get(name, getlink=True))
            item = group[name]
            if isinstance(item, h5py.Dataset):
                if item.external or item.is_virtual:
                    raise self._outside(f"{shown(item.name)} in other files")
                yield layer, item.name.removeprefix(f"/{layer}").removeprefix("/"), item
            elif isinstance(item, h5py.Group):
                is_layer = group == self._file and any(key.startswith("weight_names") for key in item.attrs)
                yield from self.variables(item, name if is_layer else layer, depth + 1)

    def _enter(self, group: Any, depth: int) -> None:
        import h5py

        address = h5py.h5o.get_info(group.id).addr
        if address in self._seen:
            raise CheckpointError(f"{self._path} must link each group once. Received again: {shown(group.name)}")
        if depth > _MAX_DEPTH:
            raise CheckpointError(f"{self._path} nests groups more than {_MAX_DEPTH} deep.")
        self._seen.add(address)

    def _check_link(self, name: str, link: Any) -> None:
        import h5py

        if not isinstance(link, h5py.HardLink):
            raise self._outside(f"the link {shown(name)}")

    def _outside(self, what: str) -> UnsafeCheckpointError:
        return UnsafeCheckpointError(f"{self._path} may not refer to anything outside itself. Received: {what}")


def canonical_name(name: str, num_axes: int = 2) -> Canonical:
    """Translate one variable name without the model's own scope.

    Args:
        name: E.g. `"bert/encoder/layer_._0/attention/self/query/kernel:0"`.
        num_axes: Number of axes of the array.

    Returns:
        The canonical key, and whether the array must be transposed.

    Raises:
        CheckpointError: if there is no rule for such a variable.

    Example:
        >>> canonical_name("mlm___cls/predictions/transform/dense/kernel:0")
        Canonical(key='cls.predictions.transform.dense.weight', transposed=True)
    """
    *path, leaf = name.partition(":")[0].split("/")
    if leaf not in _LEAVES or (leaf == "kernel" and num_axes != 2):
        raise CheckpointError(
            f"A TensorFlow variable must be a kernel with 2 axes or one of {', '.join(sorted(_LEAVES))}. "
            f"Received: {shown(name)[1:-1]} with {num_axes} axes"
        )
    modules = [module.rpartition("___")[2].replace("_._", ".") for module in path]
    return Canonical(".".join([*modules, _LEAVES[leaf]]), leaf == "kernel")


def without_scope(name: str, layer: str) -> str:
    """Drop the model's own scope, `tf_bert_model/`, from the name of a variable.

    Args:
        name: Name of the variable.
        layer: Name of the Keras layer it was saved under, such as `"bert"` or `"mlm___cls"`.

    Returns:
        The name as `canonical_name` wants it.

    Example:
        >>> without_scope("tf_bert_model_1/bert/pooler/dense/bias:0", "bert")
        'bert/pooler/dense/bias:0'
    """
    scope, _, rest = name.partition("/")
    return name if scope == layer and not rest.startswith(f"{layer}/") else rest
