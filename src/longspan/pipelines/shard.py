"""A stretch of work of the main job: the pieces that are embedded and made durable together."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import groupby

import numpy as np

from longspan.pipelines.document_stream import FileWork, PieceWork
from longspan.pipelines.pooling import Floats
from longspan.search.journal import OpenFile, Part, Slice, Step
from longspan.search.passages import Passages


@dataclass
class Shard:
    """Pieces in the order of the stream, and the files that ended among them.

    Attributes:
        pieces: The pieces.
        ended: Files whose last piece is in this shard or an earlier one.
        amounts: What each piece adds to the progress.
        num_tokens: Tokens of the pieces.
    """

    pieces: list[PieceWork] = field(default_factory=list)
    ended: list[FileWork] = field(default_factory=list)
    amounts: list[int] = field(default_factory=list)
    num_tokens: int = 0
    _first_rows: list[int] = field(default_factory=list)

    def add(self, item: PieceWork) -> None:
        """Add the next piece, and count it for its file."""
        file = item.file
        self.pieces.append(item)
        self._first_rows.append(file.rows)
        self.num_tokens += item.piece.num_tokens
        amount = min(item.num_new, file.source.size - file.progress)
        self.amounts.append(amount)
        file.progress += amount
        file.rows += 1
        file.tokens += item.piece.num_tokens

    def step(self) -> Step:
        """The journal's line for this shard."""
        parts = []
        for key, rows in groupby(range(len(self.pieces)), lambda row: self.pieces[row].file.key):
            first, *rest = rows
            stop = (rest[-1] if rest else first) + 1
            parts.append(Part(key, self._first_rows[first], Slice("", first, stop)))
        return Step(tuple(parts), tuple(file.record() for file in self.ended), self._unfinished())

    def _unfinished(self) -> OpenFile | None:
        if not self.pieces or self.pieces[-1].file in self.ended:
            return None
        last = self.pieces[-1]
        file = last.file
        return OpenFile(file.key, file.digest, last.document, last.chunk + 1, file.rows, file.tokens)

    def passages(self, vectors: Floats) -> Passages:
        """The pieces with their vectors (N, D), as columns."""
        items = self.pieces
        return Passages(
            document=_column([item.document for item in items], np.int32),
            chunk=_column([item.chunk for item in items], np.int32),
            char_start=_column([item.piece.char_start for item in items], np.int64),
            char_end=_column([item.piece.char_end for item in items], np.int64),
            line_start=_column([item.line_start for item in items], np.int32),
            line_end=_column([item.line_end for item in items], np.int32),
            num_tokens=_column([item.piece.num_tokens for item in items], np.int32),
            text=[item.text for item in items],
            embedding=vectors,
        )


def _column(values: Sequence[int], dtype: type[np.integer]) -> np.ndarray:
    return np.array(values, dtype)
