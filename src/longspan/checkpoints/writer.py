"""Writing checkpoints: safetensors only, in shards if large, the whole checkpoint or nothing."""

from __future__ import annotations

import json
import math
import os
import re
import sys
import zlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from longspan.checkpoints.dtypes import Array, dtype_of, to_raw
from longspan.checkpoints.formats_safetensors import CHECKSUMS, DESCRIPTION, describe_tensors
from longspan.checkpoints.reader import Entry
from longspan.checkpoints.update import DirectoryUpdate
from longspan.errors import CheckpointError

_WEIGHTS = "model.safetensors"
_INDEX = "model.safetensors.index.json"
#: files that hold the weights of the checkpoint being replaced
_REPLACED = re.compile(
    r"model(-\d{5}-of-\d{5})?\.safetensors|pytorch_model(-\d{5}-of-\d{5})?\.bin"
    r"|(model\.safetensors|pytorch_model\.bin)\.index\.json"
)
_UNITS = {"B": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9, "TB": 10**12}
_UNITS |= {"KIB": 1 << 10, "MIB": 1 << 20, "GIB": 1 << 30, "TIB": 1 << 40}
_CHUNK = 1 << 20


@dataclass(frozen=True)
class LazyTensor:
    """A tensor whose values are made when they are written, so that only one needs to be in memory at a time.

    Attributes:
        shape: Its shape.
        dtype: Name of its element type, `"float32"`, `"bfloat16"`, ...
        read: Makes its values: an array of that type, or of the unsigned integers that carry its bits.
    """

    shape: tuple[int, ...]
    dtype: str
    read: Callable[[], Array]

    @property
    def nbytes(self) -> int:
        """Size in bytes."""
        return math.prod(self.shape) * dtype_of(self.dtype).itemsize


def save_checkpoint(
    directory: str | os.PathLike[str],
    tensors: Mapping[str, Any],
    *,
    files: Mapping[str, bytes] | None = None,
    metadata: Mapping[str, str] | None = None,
    max_shard_size: int | str = "5GB",
) -> None:
    """Write a checkpoint in place of the one that a directory may hold.

    Either the whole old checkpoint or the whole new one is there at any time, whatever kills the process (see
    `longspan.checkpoints.update`). The weights of the old one (`model.safetensors`, `pytorch_model.bin`, their
    shards and indices) are removed; other files stay.

    Args:
        directory: The directory; made if need be.
        tensors: Key to NumPy array, PyTorch tensor, JAX array or `LazyTensor`.
        files: Contents of further files that change together with the weights, e.g. `config.json`.
        metadata: Text to store in the header, beside `"format": "pt"` and a checksum of every tensor.
        max_shard_size: Largest size of one file, in bytes or as `"5GB"`; a single larger tensor gets its own file.

    Raises:
        CheckpointError: if a tensor has a type that safetensors lacks, or has no values.
    """
    sources = {key: _lazy(key, value) for key, value in tensors.items()}
    shards = split_into_shards({key: source.nbytes for key, source in sources.items()}, parse_size(max_shard_size))
    with DirectoryUpdate(directory) as update:
        remove_weights(update)
        for name, keys in shards.items():
            write_safetensors(update.path(name), {key: sources[key] for key in keys}, metadata=metadata)
        if list(shards) != [_WEIGHTS]:
            update.write(_INDEX, _index(shards, sources))
        for name, data in (files or {}).items():
            update.write(name, data)


def remove_weights(update: DirectoryUpdate) -> None:
    """Let the weights of the older checkpoint go, but for those files that the update writes anew."""
    for path in update.directory.iterdir():
        if _REPLACED.fullmatch(path.name):
            update.remove(path.name)


def split_into_shards(sizes: Mapping[str, int], max_size: int) -> dict[str, list[str]]:
    """Divide tensors among files, in order, none larger than `max_size` unless a single tensor is.

    Args:
        sizes: Bytes of each tensor.
        max_size: Most bytes of tensors in a file.

    Returns:
        File name to keys; one file `model.safetensors` if all fit into it.
    """
    shards: list[list[str]] = [[]]
    filled = 0
    for key, size in sizes.items():
        if shards[-1] and filled + size > max_size:
            shards.append([])
            filled = 0
        shards[-1].append(key)
        filled += size
    if len(shards) == 1:
        return {_WEIGHTS: shards[0]}
    return {f"model-{i:05d}-of-{len(shards):05d}.safetensors": keys for i, keys in enumerate(shards, start=1)}


def parse_size(size: int | str) -> int:
    """Read a size such as `5_000_000`, `"5GB"` or `"512MiB"` as bytes.

    Raises:
        CheckpointError: if it is no such size.
    """
    found = re.fullmatch(r"(\d+)\s*([A-Z]*)", str(size).upper())
    number = int(found[1]) * _UNITS.get(found[2] or "B", 0) if found else 0
    if number <= 0:
        raise CheckpointError(f"max_shard_size must be bytes above 0 or a text such as '5GB'. Received: {size!r}")
    return number


def write_safetensors(
    path: Path, tensors: Mapping[str, LazyTensor], *, metadata: Mapping[str, str] | None = None
) -> None:
    """Write one safetensors file and flush it to the disk. Tensors are taken one at a time.

    Args:
        path: The file.
        tensors: Its tensors.
        metadata: Text for the header.
    """
    order = sorted(tensors, key=lambda key: (-dtype_of(tensors[key].dtype).itemsize, key))
    checksums = dict.fromkeys(order, 0)
    with path.open("wb") as file:
        header = _header(tensors, order, checksums, metadata)
        file.write(header)
        for key in order:
            checksums[key] = _write_tensor(file, key, tensors[key])
        file.seek(0)
        final = _header(tensors, order, checksums, metadata)
        assert len(final) == len(header)
        file.write(final)
        file.flush()
        os.fsync(file.fileno())


def _header(
    tensors: Mapping[str, LazyTensor],
    order: list[str],
    checksums: Mapping[str, int],
    metadata: Mapping[str, str] | None,
) -> bytes:
    """The length and the JSON header, padded so that tensors start at a multiple of 8 bytes."""
    table = json.dumps({key: f"{checksums[key]:08x}" for key in order}, separators=(",", ":"))
    description = describe_tensors(
        {key: Entry(tensor.shape, dtype_of(tensor.dtype)) for key, tensor in tensors.items()}
    )
    sums = {CHECKSUMS: table, DESCRIPTION: description}
    header: dict[str, Any] = {"__metadata__": {"format": "pt", **(metadata or {}), **sums}}
    begin = 0
    for key in order:
        tensor = tensors[key]
        end = begin + tensor.nbytes
        header[key] = {
            "dtype": dtype_of(tensor.dtype).code,
            "shape": list(tensor.shape),
            "data_offsets": [begin, end],
        }
        begin = end
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode("utf-8")
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text


def _write_tensor(file: BinaryIO, key: str, tensor: LazyTensor) -> int:
    """Write the values of a tensor; returns their CRC-32."""
    raw = tensor.read()
    carrier = dtype_of(tensor.dtype).carrier
    if raw.shape != tensor.shape or raw.dtype.itemsize != carrier.itemsize:
        raise CheckpointError(
            f"{key} was announced as {tensor.dtype} {tensor.shape}. Received: {raw.dtype.name} {raw.shape}"
        )
    flat = np.ascontiguousarray(raw).reshape(-1).view(np.uint8)
    crc = 0
    for start in range(0, flat.nbytes, _CHUNK):
        piece = flat[start : start + _CHUNK].data
        crc = zlib.crc32(piece, crc)
        file.write(piece)
    return crc


def _lazy(key: str, value: Any) -> LazyTensor:
    """Describe any kind of tensor without copying it."""
    if key == "__metadata__":
        raise CheckpointError("A tensor cannot be named __metadata__ in safetensors.")
    if isinstance(value, LazyTensor):
        return value
    torch = sys.modules.get("torch")
    if torch is not None and isinstance(value, torch.Tensor):
        if value.device.type == "meta" or value.layout != torch.strided:
            raise CheckpointError(
                f"Only dense tensors with values can be saved. Received: {key} ({value.layout} on {value.device})"
            )
        dtype = dtype_of(str(value.dtype).removeprefix("torch."))
        return LazyTensor(tuple(value.shape), dtype.name, lambda: _torch_raw(value))
    raw, dtype = to_raw(np.asarray(value))
    return LazyTensor(raw.shape, dtype.name, lambda: raw)


def _torch_raw(tensor: Any) -> Array:
    """The bits of a PyTorch tensor, without a copy if it is contiguous and on the CPU."""
    torch = sys.modules["torch"]
    dtype = dtype_of(str(tensor.dtype).removeprefix("torch."))
    flat = tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy()
    raw: Array = flat.view(dtype.carrier).reshape(tuple(tensor.shape))
    return raw


def _index(shards: Mapping[str, list[str]], tensors: Mapping[str, LazyTensor]) -> bytes:
    weight_map = {key: name for name, keys in shards.items() for key in keys}
    total = sum(tensor.nbytes for tensor in tensors.values())
    index = {"metadata": {"total_size": total}, "weight_map": weight_map}
    return (json.dumps(index, indent=2, sort_keys=True) + "\n").encode("utf-8")
