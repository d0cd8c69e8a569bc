"""Joining indexes: the shards of one job, or indexes of different files that were made alike."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import accumulate
from pathlib import Path
from typing import Any

from longspan.documents.file_shards import FileShard
from longspan.documents.walk import absolute_path
from longspan.errors import InputError
from longspan.search.index import check_output, open_index
from longspan.search.journal import Part, Slice, Step
from longspan.search.passages import FileRecord, IndexFileError, IndexInfo, Passages
from longspan.search.writer import FinalFile, IndexWriter, differing_settings

#: Rows that are held at once: a row group of a Parquet index.
_BLOCK_ROWS = 4096
#: What only the index of a shard says.
_OF_SHARDS = ("shard", "listing")


def merge_indexes(parts: Sequence[str | os.PathLike[str]], output: str | os.PathLike[str]) -> IndexInfo:
    """Join indexes into one, a block of passages at a time; it appears, or is replaced, when it is complete.

    Shards of a job come in their order, whatever that of `parts`: the result is the index of a run without shards,
    and the same run updates it. Other indexes come in the order of `parts`.

    Args:
        parts: Indexes of any format.
        output: A `.parquet` or `.npz` file, or a folder.

    Returns:
        What the new index says about itself.

    Raises:
        InputError: no part was given, one is named twice or is the output, or the output's name is no good.
        IndexFileError: a part is no index or damaged, was made with other settings or from other files than the first,
            holds a file that another holds, or shards are missing.
    """
    output = Path(output)
    check_output(output)
    infos = {part: open_index(part).info for part in _named_once(list(map(Path, parts)), output)}
    first, *others = infos
    for part in others:
        _check_alike(first, infos[first], part, infos[part])
    infos = {part: infos[part] for part in _in_order(infos)}
    records = _records(infos)
    same_base = len({info.base for info in infos.values()}) == 1
    settings = {name: value for name, value in infos[first].settings.items() if name not in _OF_SHARDS}
    with IndexWriter(
        output, settings=settings, dimension=infos[first].dimension, shard_tokens=1, resume=False
    ) as writer:
        for part, info in infos.items():
            for step, passages in _steps(part, info):
                writer.append(step, passages)
        known = writer.files()
        files = [
            FinalFile(record if same_base else replace(record, path=key), known[key].slices)
            for key, record in records.items()
        ]
        return writer.finish(files, base=infos[first].base)


def _named_once(parts: list[Path], output: Path) -> list[Path]:
    if not parts:
        raise InputError("At least one index must be given. Received: none")
    places = [os.path.realpath(part) for part in parts]
    for number, part in enumerate(parts):
        if places[number] in places[:number]:
            raise InputError(f"Each part must be named once. Received: {part} twice")
        if places[number] == os.path.realpath(output):
            raise InputError(f"The output must be none of the parts. Received: {output}, which is one")
    return parts


def _check_alike(first: Path, wanted: IndexInfo, part: Path, found: IndexInfo) -> None:
    left, right = _made_by(wanted), _made_by(found)
    if differing := differing_settings(left, right):
        differences = "; ".join(f"{name} is {left.get(name)!r} and {right.get(name)!r}" for name in differing)
        raise IndexFileError(
            f"Parts must have been made with the same settings. Received: {first} and {part} ({differences})"
        )


def _made_by(info: IndexInfo) -> dict[str, Any]:
    settings = {name: value for name, value in info.settings.items() if name not in _OF_SHARDS}
    return {**settings, "dimension": info.dimension}


def _in_order(infos: dict[Path, IndexInfo]) -> list[Path]:
    """Shards by number, after it is certain that they are all shards of one job; others as they come."""
    marks = {part: info.settings.get("shard") for part, info in infos.items()}
    if not any(marks.values()):
        return list(infos)
    if unmarked := [part for part, mark in marks.items() if not mark]:
        raise IndexFileError(f"Shards must be merged with shards only. Received: {unmarked[0]}, which is none")
    shards = {part: FileShard.parse(str(mark)) for part, mark in marks.items()}
    count = next(iter(shards.values())).count
    named = ", ".join(f"{part} ({shard})" for part, shard in shards.items())
    if sorted((shard.number, shard.count) for shard in shards.values()) != [(i + 1, count) for i in range(len(shards))]:
        raise IndexFileError(f"Shards must be those of one job, each once. Received: {named}")
    if len(shards) < count:
        missing = sorted({*range(1, count + 1)} - {shard.number for shard in shards.values()})
        raise IndexFileError(f"All shards must be given. Received: {named}, without {missing[0]}/{count}")
    if len({info.settings.get("listing") for info in infos.values()}) > 1:
        raise IndexFileError(
            "Shards must have found the same files. Received: shards between which names or sizes changed; run each "
            "again, which embeds only what changed"
        )
    return sorted(shards, key=lambda part: shards[part].number)


def _records(infos: dict[Path, IndexInfo]) -> dict[str, FileRecord]:
    """The files of all parts by absolute path, in order."""
    records: dict[str, FileRecord] = {}
    holders: dict[str, Path] = {}
    for part, info in infos.items():
        for record in info.files:
            key = _key(info, record)
            if key in holders:
                raise IndexFileError(
                    f"Passages of a file must come from one part. Received: {key}, in {holders[key]} and in {part}"
                )
            holders[key], records[key] = part, record
    return records


def _key(info: IndexInfo, record: FileRecord) -> str:
    return absolute_path(Path(info.base) / record.path)


def _steps(part: Path, info: IndexInfo) -> Iterator[tuple[Step, Passages | None]]:
    """The passages of an index in blocks, and the files that they are from."""
    store = open_index(part)
    ends = list(accumulate(record.rows for record in info.files))
    number = 0
    for low in range(0, max(info.num_passages, 1), _BLOCK_ROWS):
        high = min(low + _BLOCK_ROWS, info.num_passages)
        pieces, finished = [], []
        while number < len(ends):
            record, end = info.files[number], ends[number]
            key, begin = _key(info, record), end - record.rows
            if record.rows and begin < high:
                piece = Slice("", max(begin, low) - low, min(end, high) - low)
                pieces.append(Part(key, max(low - begin, 0), piece))
            if end > high:
                break
            finished.append(replace(record, path=key))
            number += 1
        yield Step(tuple(pieces), tuple(finished), None), store.rows(low, high) if high else None
