"""Turning a checkpoint of any format into safetensors, with an account of every key and every file."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from longspan.checkpoints.files import FORMATS, LazyTensor, open_checkpoint, save_checkpoint
from longspan.checkpoints.hub import Source
from longspan.checkpoints.reader import CheckpointReader, equal_tensors
from longspan.errors import CheckpointError

#: files beside the weights that make a directory usable; those in folders are parts of sentence encoders
_COMPANIONS = (
    "config.json",
    "generation_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.txt",
    "vocab.json",
    "merges.txt",
    "spiece.model",
    "tokenizer.model",
    "modules.json",
    "config_sentence_transformers.json",
    "sentence_bert_config.json",
    "1_Pooling/config.json",
)


@dataclass(frozen=True)
class ConvertedTensor:
    """One tensor of a converted checkpoint.

    Attributes:
        key: Canonical key, under which it was written.
        name: What the source called it.
        dtype: Element type, unchanged.
        shape: Shape as written.
    """

    key: str
    name: str
    dtype: str
    shape: tuple[int, ...]


@dataclass(frozen=True)
class ConvertReport:
    """What a conversion did.

    Attributes:
        source: Name of the source.
        destination: Directory that was written.
        format: Format of the source: "safetensors", "pytorch", "flax" or "tf".
        tensors: Every tensor that was written and compared with the source bit for bit.
        repeats: Further copies of shared variables in the source, all equal, to the copy that was written.
        copied: Files that were copied as they are.
        left: Files of a local source that were neither read nor copied.
    """

    source: str
    destination: str
    format: str
    tensors: tuple[ConvertedTensor, ...]
    repeats: Mapping[str, str]
    copied: tuple[str, ...]
    left: tuple[str, ...]

    def __str__(self) -> str:
        lines = [f"{self.source} ({self.format}) -> {self.destination}: {len(self.tensors)} tensors, all compared"]
        for tensor in self.tensors:
            origin = "" if tensor.name == tensor.key else f" from {tensor.name}"
            lines.append(f"  {tensor.key} {tensor.dtype} {list(tensor.shape)}{origin}")
        lines += [f"  {name} repeats {kept}" for name, kept in self.repeats.items()]
        lines.append(f"copied: {', '.join(self.copied) or 'nothing'}")
        if self.left:
            lines.append(f"not copied: {', '.join(self.left)}")
        return "\n".join(lines)


def convert(
    src: Source | str | os.PathLike[str],
    dst: str | os.PathLike[str],
    *,
    formats: Sequence[str] | None = None,
    max_shard_size: int | str = "5GB",
    overwrite: bool = False,
) -> ConvertReport:
    """Write the weights of a checkpoint as safetensors with canonical keys, and copy its config and tokenizer.

    No framework is needed. Types and values stay as they are; tensors of TensorFlow and Flax are turned into the
    PyTorch orientation. What was written is read again and compared with the source, bit for bit.

    Args:
        src: Directory or hub repository with weights of any format that longspan reads.
        dst: Directory to write; another one than `src`.
        formats: Formats to look for in `src`, of "safetensors", "pytorch", "flax" and "tf"; all by default.
        max_shard_size: Largest size of one file, in bytes or as `"5GB"`.
        overwrite: Replace weights that `dst` holds already.

    Returns:
        An account of every tensor and every file.

    Raises:
        CheckpointNotFoundError: if `src` has no weights.
        UnsafeCheckpointError: if `src` would run code or reach outside itself.
        CheckpointError: if `src` is damaged or holds anything that has no place in the result, if `dst` holds weights
            already, or if the written tensors are not the source's.
    """
    source = src if isinstance(src, Source) else Source(src)
    target = Path(dst)
    _check_target(source, target, overwrite)
    companions = {name: path for name in _COMPANIONS if (path := source.find(name)) is not None}
    with open_checkpoint(source, formats=formats) as reader:
        reader.check_repeats()
        tensors = {key: _lazy(reader, key) for key in reader}
        files = {name: path.read_bytes() for name, path in companions.items()}
        save_checkpoint(target, tensors, files=files, max_shard_size=max_shard_size)
        _compare(reader, target)
        return ConvertReport(
            source=str(source.name),
            destination=str(target),
            format=reader.format,
            tensors=tuple(
                ConvertedTensor(key, reader.native_name(key), reader.dtype(key), reader.shape(key)) for key in reader
            ),
            repeats=dict(reader.repeats),
            copied=tuple(companions),
            left=_files_left(source, [*reader.paths, *companions.values()]),
        )


def _check_target(source: Source, target: Path, overwrite: bool) -> None:
    if source.is_local and target.is_dir() and (Path(source.name) / source.subfolder).samefile(target):
        raise CheckpointError(f"A checkpoint is converted into another directory. Received twice: {target}")
    held = [name for form in FORMATS for name in (form.filename, form.index) if (target / name).exists()]
    if held and not overwrite:
        raise CheckpointError(
            f"Weights are replaced only by a conversion that may overwrite. Received: {target}, "
            f"which holds {', '.join(held)}"
        )


def _lazy(reader: CheckpointReader, key: str) -> LazyTensor:
    return LazyTensor(reader.shape(key), reader.dtype(key), lambda: reader.read_raw(key))


def _compare(reader: CheckpointReader, target: Path) -> None:
    """Check that the written tensors are the source's, bit for bit."""
    with open_checkpoint(target, formats=["safetensors"]) as written:
        differing = sorted(set(written) ^ set(reader))
        differing += [key for key in reader if key in written and not equal_tensors(reader, key, written, key)]
    if differing:
        raise CheckpointError(f"{target} is not equal to its source, do not use it. Different: {', '.join(differing)}")


def _files_left(source: Source, used: Iterable[Path]) -> tuple[str, ...]:
    """Files right inside a local source that were not used."""
    if not source.is_local:
        return ()
    names = {path.name for path in (Path(source.name) / source.subfolder).iterdir() if path.is_file()}
    return tuple(sorted(names - {path.name for path in used}))
