"""Folders beside an index with what was made of it, for searches; made again when the index changes."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from longspan.checkpoints.untrusted import parse_json
from longspan.search.passages import IndexFileError, PassageStore

_SOURCE = "source.json"
Note = Callable[[str], None]


def derived_folder(
    store: PassageStore, kind: str, settings: dict[str, Any], build: Callable[[Path], None], note: Note
) -> Path:
    """The folder with what `build` made of an index, which is built if there is none of this index.

    Args:
        store: The index.
        kind: What is made; part of the folder's name, which is hidden, so that no run takes it for documents.
        settings: How it is made, as JSON values.
        build: Writes files into the folder that it is given.
        note: Told before the work begins.

    Raises:
        IndexFileError: the folder that the index is in cannot be written to, or is full.
    """
    folder = store.path.with_name(f".{store.path.name}.{kind}")
    wanted = {"index": store.fingerprint, **settings}
    found = _read_source(folder)
    if found == wanted:
        return folder
    note(f"{store.path}: {'building' if found is None else 'it has changed: building again'} {folder.name}")
    try:
        with TemporaryDirectory(prefix=f"{folder.name}.", dir=folder.parent) as scratch:
            made = Path(scratch, "made")
            made.mkdir()
            build(made)
            sizes = {path.name: path.stat().st_size for path in made.iterdir()}
            (made / _SOURCE).write_text(json.dumps({"source": wanted, "sizes": sizes}))
            _swap(made, folder, Path(scratch, "old"), wanted)
    except OSError as error:
        raise IndexFileError(
            f"What a search makes of an index is kept beside it, where there must be room for it. Received: {error}"
        ) from error
    return folder


def _swap(made: Path, folder: Path, old: Path, wanted: dict[str, Any]) -> None:
    """Put `made` in the place of `folder`, unless another search has just done so with the same."""
    try:
        if folder.exists():
            folder.rename(old)
        made.rename(folder)
    except OSError:
        if _read_source(folder) != wanted:
            raise


def _read_source(folder: Path) -> dict[str, Any] | None:
    """What the files in `folder` were made of; None unless they are all there, as long as they were."""
    try:
        values = parse_json((folder / _SOURCE).read_bytes())
        if all((folder / name).stat().st_size == size for name, size in values["sizes"].items()):
            source: dict[str, Any] = values["source"]
            return source
    except (OSError, ValueError, TypeError, KeyError, AttributeError):
        pass
    return None
