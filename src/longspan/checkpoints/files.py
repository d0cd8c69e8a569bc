"""Opening and saving a checkpoint: which file it is in, whatever the format, in one piece or in shards."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path

from longspan.checkpoints import formats_flax, formats_tf
from longspan.checkpoints.formats_flax import FlaxReader
from longspan.checkpoints.formats_pytorch import PytorchReader
from longspan.checkpoints.formats_safetensors import SafetensorsReader
from longspan.checkpoints.formats_tf import TFReader
from longspan.checkpoints.hub import Source
from longspan.checkpoints.reader import Bytes, CheckpointReader
from longspan.checkpoints.untrusted import check_names, read_json, reading, shown
from longspan.checkpoints.writer import LazyTensor, save_checkpoint
from longspan.errors import CheckpointError, CheckpointNotFoundError, UnsafeCheckpointError

__all__ = [
    "FORMATS",
    "CheckpointReader",
    "Format",
    "LazyTensor",
    "ShardedReader",
    "open_checkpoint",
    "save_checkpoint",
]


@dataclass(frozen=True)
class Format:
    """A format that checkpoints come in.

    Attributes:
        name: Its name, `CheckpointReader.format`.
        filename: Weights in one file; with `.index.json` after it, the list of shards.
        open: Opens one file; the second argument asks for checksums to be compared.
        canonical: Canonical key of a name in the list of shards.
    """

    name: str
    filename: str
    open: Callable[[Path, bool], CheckpointReader]
    canonical: Callable[[str], str] = str

    @property
    def index(self) -> str:
        """Name of the list of shards."""
        return self.filename + ".index.json"

    def with_variant(self, variant: str | None) -> Format:
        """The same format under file names such as `model.fp16.safetensors`."""
        if variant is None:
            return self
        stem, _, suffix = self.filename.rpartition(".")
        return replace(self, filename=f"{stem}.{variant}.{suffix}")


#: in order of preference, which is the reference's
FORMATS = (
    Format("safetensors", "model.safetensors", lambda path, verify: SafetensorsReader(path, verify=verify)),
    Format("pytorch", "pytorch_model.bin", lambda path, verify: PytorchReader(path, verify=verify)),
    Format(
        "flax",
        "flax_model.msgpack",
        lambda path, _: FlaxReader(path),
        lambda name: formats_flax.canonical_name(name).key,
    ),
    Format(
        "tf",
        "tf_model.h5",
        lambda path, _: TFReader(path),
        lambda name: formats_tf.canonical_name(formats_tf.without_scope(name, "")).key,
    ),
)


def open_checkpoint(
    source: Source | str | os.PathLike[str],
    *,
    formats: Sequence[str] | None = None,
    verify: bool = True,
    variant: str | None = None,
) -> CheckpointReader:
    """Open the weights of a checkpoint.

    Args:
        source: Where the checkpoint is; a name or directory stands for `Source(name)`.
        formats: Names of formats to look for, of "safetensors", "pytorch", "flax" and "tf"; all by default.
        verify: Compare what is read with stored checksums, where the file has them.
        variant: Infix of the file names, `"fp16"` for `model.fp16.safetensors`.

    Returns:
        A reader with keys in the canonical (PyTorch) naming and tensors in the PyTorch orientation.

    Raises:
        CheckpointNotFoundError: if there is no checkpoint, or it holds no weights.
        CheckpointError: if a file is damaged or mislabelled.
        UnsafeCheckpointError: if a file would run code or reach outside the checkpoint.
    """
    source = source if isinstance(source, Source) else Source(source)
    allowed = [form.with_variant(variant) for form in FORMATS if formats is None or form.name in formats]
    for form in allowed:
        path = source.find(form.filename)
        if path is not None:
            return form.open(path, verify)
        path = source.find(form.index)
        if path is not None:
            return _open_shards(source, path, form, verify)
    raise CheckpointNotFoundError(_nothing_found(source, allowed))


def _nothing_found(source: Source, allowed: Iterable[Format]) -> str:
    looked_for = ", ".join(name for form in allowed for name in (form.filename, form.index))
    message = f"A checkpoint must hold its weights in one of the files {looked_for}. Received: {source.name}"
    if not source.is_local:
        return message
    directory = Path(source.name) / source.subfolder
    held = sorted(path.name for path in directory.iterdir()) if directory.is_dir() else None
    if held is None:
        return f"{message}, which has no folder {source.subfolder!r}"
    return f"{message}, which holds {', '.join(held) if held else 'nothing'}"


class ShardedReader(CheckpointReader):
    """Several files that together are one checkpoint.

    Args:
        path: The index file.
        shards: Readers by file name, in the order of the index.
        weight_map: The index: key to file name.

    Raises:
        CheckpointError: if the index and the shards disagree, or two shards hold the same key.
    """

    def __init__(self, path: Path, shards: Mapping[str, CheckpointReader], weight_map: Mapping[str, str]) -> None:
        super().__init__(path)
        self.format = next((shard.format for shard in shards.values()), "")
        self.is_concurrent = all(shard.is_concurrent for shard in shards.values())
        self._shards = shards
        self.repeats = {name: kept for shard in shards.values() for name, kept in shard.repeats.items()}
        self._home: dict[str, CheckpointReader] = {}
        for name, shard in shards.items():
            for key in shard.entries:
                if key in self._home:
                    raise CheckpointError(
                        f"A tensor must lie in one shard. {key} lies in {self._home[key].path.name} and {name} ({path})"
                    )
                self._home[key] = shard
        astray = [f"{key} ({name})" for key, name in weight_map.items() if key not in shards[name]]
        if astray:
            raise CheckpointError(f"{path} names tensors that their shards do not hold: {', '.join(astray)}")
        self.entries = {key: shard.entries[key] for key, shard in self._home.items()}

    def _fill(self, key: str, out: Bytes) -> None:
        self._home[key]._read(key, out)

    def share_memory(self, first: str, second: str) -> bool:
        """True if one shard stores one tensor under both keys."""
        home = self._home[first]
        return home is self._home[second] and home.share_memory(first, second)

    @property
    def paths(self) -> tuple[Path, ...]:
        """The index and all shards."""
        return (self.path, *(shard.path for shard in self._shards.values()))

    def native_name(self, key: str) -> str:
        """What the shard itself calls a tensor."""
        return self._home[key].native_name(key)

    def check_repeats(self) -> None:
        """Compare further copies of tensors, shard by shard."""
        for shard in self._shards.values():
            shard.check_repeats()

    def close(self) -> None:
        """Close all shards."""
        for shard in self._shards.values():
            shard.close()


def _open_shards(source: Source, index: Path, form: Format, verify: bool) -> CheckpointReader:
    with reading(index, "its list of shards"):
        weight_map = {form.canonical(name): shard for name, shard in _read_index(index).items()}
    # In the hub cache every file of a snapshot is a link into one folder of blobs, the index among them.
    allowed = [index.resolve().parent]
    if source.is_local:
        allowed.append((Path(source.name) / source.subfolder).resolve())
    with ExitStack() as stack:
        shards = {}
        for name in dict.fromkeys(weight_map.values()):
            with reading(index, f"the shard {shown(name)}"):
                path = _shard_path(source, index, name, allowed)
            shards[name] = stack.enter_context(form.open(path, verify))
        reader = ShardedReader(index, shards, weight_map)
        stack.pop_all()
    return reader


def _read_index(path: Path) -> dict[str, str]:
    weight_map = read_json(path, unique=True).get("weight_map")
    if not isinstance(weight_map, dict) or not all(isinstance(name, str) for name in weight_map.values()):
        raise CheckpointError(f"{path} must hold a weight_map from tensor names to file names.")
    check_names(weight_map)
    return weight_map


def _shard_path(source: Source, index: Path, name: str, allowed: Sequence[Path]) -> Path:
    """Find a shard. It must lie, links resolved, in one of the allowed folders."""
    try:
        path = source.find(name)
    except UnsafeCheckpointError as error:
        raise UnsafeCheckpointError(f"{index} names a file outside its directory: {name!r}") from error
    if path is None:
        raise CheckpointNotFoundError(f"{index} names the file {name!r}, which does not exist.")
    if not any(path.resolve().is_relative_to(root) for root in allowed):
        raise UnsafeCheckpointError(f"{index} names a file outside its directory: {name!r} is {path.resolve()}")
    return path
