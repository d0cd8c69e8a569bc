"""What every reader of a foreign file shares: budgets, one boundary for errors, and what a file looks like.

Nothing in a checkpoint is trusted. A reader checks depth, count and size of what it parses *while* it parses, so that
a small file costs little time and memory; what it did not foresee (a `RecursionError`, an error of h5py, an integer
too long to print) becomes a `CheckpointError` at one place, `reading`.
"""

from __future__ import annotations

import json
import reprlib
from collections import Counter
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from longspan.errors import CheckpointError, LongspanError

#: most axes of a tensor, as in NumPy
MAX_AXES = 32
#: most bytes of a tensor, and the largest whole number that a file may state
MAX_NUMBER = 2**63 - 1
#: most tensors of a file
MAX_TENSORS = 50_000
#: longest text of a value in a message, in characters
MAX_SHOWN = 300
#: longest name of a tensor, in characters
MAX_NAME = 1000
#: largest JSON file, in bytes
MAX_JSON_BYTES = 256 << 20
#: most commas and brackets of a JSON text, each about one Python object
MAX_JSON_ITEMS = 4_000_000
#: what `file_kind` says of a file that it cannot place
UNKNOWN = "no format that longspan knows"

_SIGNATURES = (
    (b"version https://git-lfs", "a Git LFS pointer, not the file itself (run `git lfs pull`)"),
    (b"PK\x03\x04", "a zip archive, as torch.save writes (pytorch_model.bin)"),
    (b"\x80\x02", "a Python pickle, as old versions of torch.save write (pytorch_model.bin)"),
    (b"\x80\x03", "a Python pickle"),
    (b"\x80\x04", "a Python pickle"),
    (b"\x80\x05", "a Python pickle"),
    (b"\x89HDF\r\n\x1a\n", "an HDF5 file (tf_model.h5)"),
    (b"\x1f\x8b", "a gzip archive"),
    (b"GGUF", "a GGUF file"),
)

_brief = reprlib.Repr()
_brief.maxstring = _brief.maxother = _brief.maxlong = 160
_brief.maxlist = _brief.maxtuple = _brief.maxdict = 8
_brief.maxlevel = 3


def shown(value: Any) -> str:
    """A value from a file for a message: `repr`, cut at a few items, levels and characters."""
    try:
        text = _brief.repr(value)
        return text if len(text) <= MAX_SHOWN else text[:MAX_SHOWN] + "..."
    except (ValueError, RecursionError):  # integers that are too long to print
        return f"a {type(value).__name__}"


@contextmanager
def reading(path: Path, what: str) -> Iterator[None]:
    """The boundary of a reader: whatever fails inside becomes a `CheckpointError` that names the file.

    Args:
        path: The file.
        what: What is being read, as the object of a sentence.

    Raises:
        CheckpointError: for anything but a `LongspanError`, which gets the file's name if it lacks it, and a file that
            is missing or may not be read.
    """
    try:
        with naming(str(path)):
            yield
    except (LongspanError, FileNotFoundError, PermissionError):
        raise
    except Exception as error:
        kind = type(error).__name__
        text = str(error)
        raise CheckpointError(f"{path} is damaged: {what} cannot be read ({kind}: {text[:200]}).") from error


@contextmanager
def naming(name: str) -> Iterator[None]:
    """Put the name of a file or directory before the message of a `LongspanError` that lacks it; "" for no name."""
    try:
        yield
    except LongspanError as error:
        if name in str(error):
            raise
        raise type(error)(f"{name}: {error}") from error


def check_shape(shape: Sequence[Any], itemsize: int) -> tuple[int, ...]:
    """Check that a shape from a file is one that an array can have.

    Args:
        shape: The shape.
        itemsize: Bytes of an element.

    Returns:
        The shape.

    Raises:
        CheckpointError: if there are too many axes, a length is no whole number from 0, or the bytes, zeros left out,
            pass `MAX_NUMBER`.
    """
    sound = len(shape) <= MAX_AXES and all(type(length) is int and 0 <= length <= MAX_NUMBER for length in shape)
    size = itemsize
    for length in shape if sound else ():
        size *= length or 1
    if not sound or size > MAX_NUMBER:
        raise CheckpointError(
            f"A shape must be at most {MAX_AXES} whole numbers from 0, of {MAX_NUMBER} bytes at most. "
            f"Received: {shown(tuple(shape))}"
        )
    return tuple(shape)


def check_names(names: Collection[str]) -> None:
    """Check that the names of a file's tensors are few enough, and texts that can be printed.

    Raises:
        CheckpointError: if there are more than `MAX_TENSORS`, or one is longer than `MAX_NAME` or no Unicode text.
    """
    if len(names) > MAX_TENSORS:
        raise CheckpointError(f"A file may hold at most {MAX_TENSORS} tensors. Received: {len(names)}")
    for name in names:
        if len(name) > MAX_NAME or any("\ud800" <= character <= "\udfff" for character in name):
            raise CheckpointError(
                f"The name of a tensor must be Unicode text of at most {MAX_NAME} characters. Received: {shown(name)}"
            )


def unique_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Hook for `json.loads` that refuses an object with a key twice."""
    found = dict(pairs)
    if len(found) != len(pairs):
        counts = Counter(key for key, _ in pairs)
        twice = next(key for key, count in counts.items() if count > 1)
        raise ValueError(f"the key {shown(twice)} appears twice")
    return found


def parse_json(data: bytes, *, unique: bool = False) -> Any:
    """Parse a JSON text under a budget.

    Args:
        data: The text in UTF-8.
        unique: Refuse an object with a key twice.

    Raises:
        ValueError: it is no JSON, nests too deep, or has more than `MAX_JSON_ITEMS` commas and brackets.
    """
    items = data.count(b",") + data.count(b"[") + data.count(b"{")
    if items > MAX_JSON_ITEMS:
        raise ValueError(f"it has {items} commas and brackets, at most {MAX_JSON_ITEMS} are allowed")
    try:
        return json.loads(data.decode("utf-8"), object_pairs_hook=unique_keys if unique else None)
    except RecursionError as error:
        raise ValueError("it nests too deep (maximum recursion depth)") from error


def read_json(path: Path, *, unique: bool = False) -> dict[str, Any]:
    """Read a JSON object from a file.

    Args:
        path: The file.
        unique: Refuse an object with a key twice.

    Raises:
        CheckpointError: the file is not JSON, passes a budget, or holds something other than an object.
    """
    size = path.stat().st_size
    if size > MAX_JSON_BYTES:
        raise CheckpointError(f"{path} must be a JSON file of at most {MAX_JSON_BYTES} bytes. Received: {size}")
    try:
        content = parse_json(path.read_bytes(), unique=unique)
    except ValueError as error:
        raise CheckpointError(f"{path} is not valid JSON: {error}") from error
    if not isinstance(content, dict):
        raise CheckpointError(f"{path} must hold a JSON object. Received: {type(content).__name__}")
    return content


def file_kind(path: Path) -> str:
    """Say what a file looks like, as the end of a sentence.

    Args:
        path: An existing file.

    Returns:
        E.g. `"an HTML page"`, `"empty"`, or `"no format that longspan knows"`.
    """
    with path.open("rb") as file:
        head = file.read(512)
    if not head:
        return "empty"
    for signature, description in _SIGNATURES:
        if head.startswith(signature):
            return description
    if head.lstrip().lower().startswith((b"<!doctype", b"<html", b"<?xml")):
        return "an HTML page, perhaps the error page of a failed download"
    if head[8:9] == b"{" and int.from_bytes(head[:8], "little") < 100_000_000:
        return "a safetensors file (model.safetensors)"
    if head.lstrip().startswith(b"{"):
        return "a JSON file"
    return UNKNOWN
