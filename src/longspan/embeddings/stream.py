"""From files to the pieces that a model reads, and to the shards in which they are embedded and made durable."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import groupby

import numpy as np

from longspan.documents.document import Document, Problem, Unit
from longspan.documents.readers import ReadOptions, read_documents
from longspan.documents.walk import SourceFile
from longspan.embeddings.pooling import Floats
from longspan.errors import InputError
from longspan.pipelines.long.splitter import Piece, TextSplitter
from longspan.pipelines.run.progress import Stopwatch
from longspan.search.journal import OpenFile, Part, Slice, Step
from longspan.search.passages import FileRecord, Passages

#: Documents are tokenized in groups of at most so many documents and characters.
_GROUP_DOCUMENTS = 256
_GROUP_CHARACTERS = 1 << 20


@dataclass(eq=False)
class FileWork:
    """A file to embed, and how far it is.

    Attributes:
        source: The file.
        key: Its identity: the absolute path.
        digest: Digest of its bytes when the run began.
        first_document: Document to begin with; those before are done.
        first_chunk: Piece of that document to begin with.
        rows: Passages so far.
        tokens: Tokens of these.
        documents: Documents read so far, those before `first_document` included.
        notes: Remarks of its documents.
        problems: Lines of it that were left out.
        unit: What its lines count.
        progress: What it has added to the progress.
    """

    source: SourceFile
    key: str
    digest: str
    first_document: int = 0
    first_chunk: int = 0
    rows: int = 0
    tokens: int = 0
    documents: int = 0
    notes: dict[str, None] = field(default_factory=dict)
    problems: list[Problem] = field(default_factory=list)
    unit: Unit = "line"
    progress: int = 0

    def record(self) -> FileRecord:
        """The file as the index keeps it, under its absolute path."""
        return FileRecord(
            path=self.key,
            digest=self.digest if self._is_unchanged() else "",
            size=self.source.size,
            unit=self.unit,
            documents=self.documents,
            rows=self.rows,
            tokens=self.tokens,
            notes=tuple(self.notes),
            problems=tuple(self.problems),
        )

    def _is_unchanged(self) -> bool:
        """False if the file was written to while it was read; the next run then reads it again."""
        try:
            status = self.source.path.stat()
        except OSError:
            return False
        return (status.st_size, status.st_mtime_ns) == (self.source.size, self.source.modified)


@dataclass(frozen=True)
class PieceWork:
    """One piece to embed.

    Attributes:
        file: The file that it is from.
        document: Which document of the file, from 0.
        chunk: Which piece of the document, from 0.
        piece: What the model reads.
        text: The characters of it.
        line_start: Line (or page) of the first character.
        line_end: Line (or page) of the last character.
        num_new: Characters of it that the piece before it does not hold.
    """

    file: FileWork
    document: int
    chunk: int
    piece: Piece
    text: str
    line_start: int
    line_end: int
    num_new: int


@dataclass(frozen=True)
class FileEnd:
    """All pieces of a file have come."""

    file: FileWork


def stream_pieces(
    files: Iterable[FileWork], splitter: TextSplitter, options: ReadOptions, watch: Stopwatch
) -> Iterator[PieceWork | FileEnd | Problem]:
    """Read, split and hand on, in order; at most one group of documents is held.

    Args:
        files: The files.
        splitter: What cuts documents into pieces.
        options: How to read.
        watch: Gets the stages `read` and `tokenize`.

    Yields:
        The pieces of each file, then its `FileEnd`; problems as they are met.
    """
    group: list[tuple[FileWork, int, Document] | FileEnd] = []
    num_documents = num_characters = 0
    # what was too long for an interrupted run is named again by the one that goes on
    for item in _stream_documents(files, options, watch, checks_all=splitter.on_long == "error"):
        if isinstance(item, Problem):
            yield item
            continue
        group.append(item)
        if not isinstance(item, FileEnd):
            num_documents += 1
            num_characters += len(item[2].text)
        if num_documents >= _GROUP_DOCUMENTS or num_characters >= _GROUP_CHARACTERS:
            yield from _split_group(group, splitter, watch)
            group, num_documents, num_characters = [], 0, 0
    yield from _split_group(group, splitter, watch)


def _stream_documents(
    files: Iterable[FileWork], options: ReadOptions, watch: Stopwatch, *, checks_all: bool
) -> Iterator[tuple[FileWork, int, Document] | FileEnd | Problem]:
    for file in files:
        documents = read_documents(file.source, options)
        while True:
            with watch.time("read"):
                item = next(documents, None)
            if item is None:
                break
            if isinstance(item, Problem):
                file.problems.append(item)
                yield item
                continue
            file.unit = item.unit
            file.notes.update(dict.fromkeys(item.notes))
            file.documents += 1
            if file.documents > file.first_document or checks_all:
                yield file, file.documents - 1, item
        yield FileEnd(file)


def _split_group(
    group: list[tuple[FileWork, int, Document] | FileEnd], splitter: TextSplitter, watch: Stopwatch
) -> Iterator[PieceWork | FileEnd | Problem]:
    texts = [item[2].text for item in group if not isinstance(item, FileEnd)]
    with watch.time("tokenize"):
        found = iter(_split(texts, splitter))
    for item in group:
        if isinstance(item, FileEnd):
            yield item
            continue
        file, index, document = item
        pieces = next(found)
        if isinstance(pieces, InputError):
            line = int(document.lines.numbers[0]) if document.record is not None else None
            problem = Problem(file.source.name, str(pieces), line)
            file.problems.append(problem)
            yield problem
        else:
            yield from _pieces_of_document(file, index, document, pieces)


def _split(texts: list[str], splitter: TextSplitter) -> list[list[Piece] | InputError]:
    """Pieces of each text, or why it has none."""
    if not texts:
        return []
    try:
        return list(splitter.split(texts, with_characters=True))
    except InputError as error:
        return [error] if len(texts) == 1 else [one for text in texts for one in _split([text], splitter)]


def _pieces_of_document(file: FileWork, index: int, document: Document, pieces: list[Piece]) -> Iterator[PieceWork]:
    starts = np.array([piece.char_start for piece in pieces], np.int64)
    ends = np.array([piece.char_end for piece in pieces], np.int64)
    first_lines = document.lines.numbers_at(starts).tolist()
    last_lines = document.lines.numbers_at(np.maximum(ends - 1, starts)).tolist()
    done = 0
    for chunk, piece in enumerate(pieces):
        num_new, done = piece.char_end - done, piece.char_end
        if (index, chunk) < (file.first_document, file.first_chunk):
            continue
        text = document.text[piece.char_start : piece.char_end]
        yield PieceWork(file, index, chunk, piece, text, first_lines[chunk], last_lines[chunk], num_new)


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
    _reached: tuple[int, int] = (0, 0)

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
        self._reached = file.rows, file.tokens  # the stream may be ahead when the step is written

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
        return OpenFile(file.key, file.digest, last.document, last.chunk + 1, *self._reached)

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
