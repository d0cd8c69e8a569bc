"""Embedded passages as columns, and the table of the files they come from."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field, fields
from itertools import pairwise
from pathlib import Path
from typing import Any, Protocol, cast

import numpy as np
import numpy.typing as npt

from longspan.documents.document import Problem, Unit
from longspan.errors import InputError

Array = npt.NDArray[Any]
Mask = npt.NDArray[np.bool_]

#: Integer columns of a passage, and their type.
INTEGER_COLUMNS: dict[str, type[np.integer[Any]]] = {
    "document": np.int32,
    "chunk": np.int32,
    "char_start": np.int64,
    "char_end": np.int64,
    "line_start": np.int32,
    "line_end": np.int32,
    "num_tokens": np.int32,
}


class IndexFileError(InputError):
    """An index is damaged, of another kind, or was made with other settings."""


@dataclass(frozen=True)
class Passages:
    """N embedded passages, column by column.

    Attributes:
        document: (N,) which document of its file, from 0 (a file is one document, except for JSON lines).
        chunk: (N,) which window of its document, from 0.
        char_start: (N,) first character in the document's text.
        char_end: (N,) one past the last character.
        line_start: (N,) line (page, in PDF files) of the first character, from 1.
        line_end: (N,) line (or page) of the last character.
        num_tokens: (N,) tokens of the window, special tokens not counted.
        text: N strings.
        embedding: (N, D) float32.
    """

    document: Array
    chunk: Array
    char_start: Array
    char_end: Array
    line_start: Array
    line_end: Array
    num_tokens: Array
    text: list[str]
    embedding: npt.NDArray[np.float32]

    def __len__(self) -> int:
        return len(self.text)

    def integers(self) -> dict[str, Array]:
        """The integer columns by name."""
        return {name: getattr(self, name) for name in INTEGER_COLUMNS}

    def slice(self, start: int, stop: int) -> Passages:
        """Rows `start` to `stop` (not included)."""
        return Passages(**{column.name: getattr(self, column.name)[start:stop] for column in fields(self)})

    @staticmethod
    def concatenate(parts: Sequence[Passages]) -> Passages:
        """Rows of all `parts` (at least one), in order."""
        if len(parts) == 1:
            return parts[0]
        arrays = {
            name: np.concatenate([getattr(part, name) for part in parts]) for name in (*INTEGER_COLUMNS, "embedding")
        }
        return Passages(text=[text for part in parts for text in part.text], **arrays)


@dataclass(frozen=True)
class FileRecord:
    """What an index knows of one file.

    Attributes:
        path: The file, as the run named it.
        digest: Digest of its bytes; a file is embedded again when it changes.
        size: Bytes.
        unit: What the passages' lines count.
        documents: Documents in it.
        rows: Passages in it.
        tokens: Tokens of its passages.
        notes: Remarks, such as a fallback encoding.
        problems: Lines of it that were left out.
    """

    path: str
    digest: str
    size: int
    unit: Unit = "line"
    documents: int = 0
    rows: int = 0
    tokens: int = 0
    notes: tuple[str, ...] = ()
    problems: tuple[Problem, ...] = ()

    def to_json(self) -> dict[str, Any]:
        """The record as JSON values."""
        return {**asdict(self), "problems": [[problem.line, problem.reason] for problem in self.problems]}

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> FileRecord:
        """The record that `to_json` gave."""
        problems = tuple(Problem(values["path"], reason, line) for line, reason in values["problems"])
        return cls(**{**values, "notes": tuple(values["notes"]), "problems": problems})


@dataclass(frozen=True)
class IndexInfo:
    """What an index says about itself.

    Attributes:
        settings: Everything that the embeddings depend on, as JSON values: model, fingerprint, lengths.
        dimension: Length D of an embedding.
        base: Folder that relative paths of `files` start from.
        files: The files, in the order of their passages.
    """

    settings: dict[str, Any]
    dimension: int
    base: str
    files: list[FileRecord] = field(default_factory=list)

    @property
    def num_passages(self) -> int:
        """Passages of all files."""
        return sum(record.rows for record in self.files)

    def to_json(self) -> dict[str, Any]:
        """The information as JSON values."""
        return {
            "settings": self.settings,
            "dimension": self.dimension,
            "base": self.base,
            "files": [record.to_json() for record in self.files],
        }

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> IndexInfo:
        """The information that `to_json` gave.

        Raises:
            IndexFileError: the values are of another form.
        """
        try:
            files = [FileRecord.from_json(record) for record in values["files"]]
            info = cls(dict(values["settings"]), int(values["dimension"]), str(values["base"]), files)
            if info.dimension < 1 or any(not isinstance(record.rows, int) or record.rows < 0 for record in files):
                raise ValueError("sizes are whole numbers")
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise IndexFileError(
                f"An index must say what it holds, as `longspan embed` wrote it. Received: other metadata ({error!r})"
            ) from error
        return info


class PassageStore(Protocol):
    """A finished index, whatever its format."""

    @property
    def info(self) -> IndexInfo:
        """What the index says about itself."""
        ...

    @property
    def path(self) -> Path:
        """Where it is."""
        ...

    @property
    def fingerprint(self) -> str:
        """Digest that changes with the index; telling it does not read the vectors."""
        ...

    def rows(self, start: int, stop: int) -> Passages:
        """Passages `start` to `stop` (not included), with their embeddings."""
        ...

    def take(self, rows: Sequence[int]) -> Passages:
        """Passages of the given rows, in that order; their embeddings may be left out (shape (N, 0))."""
        ...

    def embedding_blocks(self, wanted: Mask | None = None) -> Iterator[tuple[int, npt.NDArray[np.float32]]]:
        """First row and embeddings (n, D) of consecutive blocks that fit in memory.

        Args:
            wanted: (N,) which rows matter; a block without any is not read.
        """
        ...


def pack_texts(texts: Sequence[str]) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.int64]]:
    """UTF-8 bytes of all texts in one array, and the (N + 1,) positions at which they start and end."""
    encoded = [text.encode("utf-8") for text in texts]
    ends = np.cumsum([0, *map(len, encoded)], dtype=np.int64)
    return np.frombuffer(b"".join(encoded), np.uint8), ends


def unpack_texts(data: npt.NDArray[np.uint8], ends: npt.NDArray[np.int64]) -> list[str]:
    """The texts that `pack_texts` packed; `ends` may be a slice of its positions."""
    positions = cast("list[int]", ends.tolist())
    return [bytes(data[start:stop]).decode("utf-8") for start, stop in pairwise(positions)]
